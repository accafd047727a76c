"""Proves docs/patterns/caching/memory-cache.md: what the decorators remember, of functions, methods and coroutines."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import weakref
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from harness.clock import Clock
from harness.color import Color
from memoize_async import AsyncMemoized, memoize_async
from memoize_sync import Memoized, memoize
from memory_cache import MISSING, Stats


class Counted:
    """Counts its calls and returns what it was called with."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((args, kwargs))
        return args, kwargs


def memoized(color: Color, counted: Callable[..., Any], **settings: Any) -> Any:
    """Return a function of this color that remembers what `counted` returns."""

    def fn(first: Any, *rest: Any, **named: Any) -> Any:
        return counted(first, *rest, **named)

    remember: Any = color.pick(memoize_async, memoize)
    decorate = remember(**({"max_items": 100, "ttl": 60} | settings))
    return decorate(color.quick(fn))


# --- keys


def test_the_same_arguments_are_computed_once(color: Color) -> None:
    counted = Counted()
    fn = memoized(color, counted)
    results = [color.call(fn, 1, "b", x=2, y=3), color.call(fn, 1, "b", y=3, x=2)]
    assert results == [((1, "b"), {"x": 2, "y": 3})] * 2
    assert len(counted.calls) == 1
    assert fn.cache.stats() == Stats(hits=1, misses=1, evicted=0, size=1)


def test_other_arguments_are_another_call(color: Color) -> None:
    counted = Counted()
    fn = memoized(color, counted)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((1,), {}),
        ((2,), {}),
        ((1, 2), {}),
        ((1,), {"x": 2}),
        ((1,), {"y": 2}),
        ((1, "x"), {}),
        ((1, ("x", 2)), {}),
    ]
    for args, kwargs in calls * 2:
        assert color.call(fn, *args, **kwargs) == (args, kwargs)
    assert len(counted.calls) == len(calls)


def test_one_and_true_and_one_point_zero_are_different_arguments(color: Color) -> None:
    fn = memoized(color, Counted())
    for value in (True, 1.0, 1):
        assert type(color.call(fn, value)[0][0]) is type(value)
        assert type(color.call(fn, 0, x=value)[1]["x"]) is type(value)

    naive = functools.lru_cache(lambda value: value)
    naive(True)
    assert naive(1.0) is True  # asked for 1.0

    untyped = memoized(color, Counted(), typed=False)
    color.call(untyped, True)
    assert color.call(untyped, 1)[0][0] is True


def test_an_argument_that_cannot_be_a_key_is_named(color: Color) -> None:
    fn = memoized(color, Counted())
    with pytest.raises(TypeError, match=r"argument 'first' of .*fn\(\) is no key \(unhashable type: 'list'\)"):
        color.call(fn, [1])
    with pytest.raises(TypeError, match=r"argument 'named' of .*pass a tuple for it, or give memoize a `key`"):
        color.call(fn, 1, x={})
    with pytest.raises(TypeError, match="missing a required argument: 'first'"):
        color.call(fn, x=[])


def test_a_type_error_of_the_function_or_of_a_comparison_is_not_taken_for_a_bad_key(color: Color) -> None:
    def fail(*_: Any) -> Any:
        raise TypeError("my own")

    with pytest.raises(TypeError, match=r"^my own$"):
        color.call(memoized(color, fail), 1)

    class Odd:
        def __hash__(self) -> int:
            return 1

        __eq__ = fail

    fn = memoized(color, lambda first: 1)
    color.call(fn, Odd())
    with pytest.raises(TypeError, match=r"^my own$"):
        color.call(fn, Odd())


def test_a_key_function_chooses_what_counts(color: Color) -> None:
    counted = Counted()
    fn = memoized(color, counted, key=lambda items, **rest: tuple(items))
    assert color.call(fn, [1, 2], trace="a") == color.call(fn, [1, 2], trace="b")
    assert len(counted.calls) == 1


def test_forget_drops_one_result_and_clear_all(color: Color) -> None:
    counted = Counted()
    fn = memoized(color, counted)
    for value in (1, 2):
        color.call(fn, value)
    fn.forget(1)
    for value in (1, 2):
        color.call(fn, value)
    assert [args for args, _ in counted.calls] == [(1,), (2,), (1,)]
    fn.cache.clear()
    color.call(fn, 2)
    assert len(counted.calls) == 4


# --- limits


def test_a_result_is_served_until_its_ttl_is_over_each_from_its_own_beginning(color: Color) -> None:
    clock, counted = Clock(), Counted()
    fn = memoized(color, counted, clock=clock)
    color.call(fn, "early")
    clock.now += 30
    color.call(fn, "late")
    clock.now += 30
    color.call(fn, "late")
    color.call(fn, "early")
    assert [args for args, _ in counted.calls] == [("early",), ("late",), ("early",)]


def test_the_time_bucket_trick_ends_all_results_at_once() -> None:
    clock, counted = Clock(), Counted()
    cached = functools.lru_cache(lambda name, bucket: counted(name))

    def naive(name: str) -> Any:
        return cached(name, int(clock.now // 60))  # "lru_cache with ttl"

    clock.now = 1079.0  # a second before a bucket ends
    for name in "abc":
        naive(name)
    clock.now += 1
    for name in "abc":
        naive(name)
    assert len(counted.calls) == 6  # after one second of the sixty, and all of them together

    counted, clock.now = Counted(), 1079.0
    fn = memoized(Color("sync"), counted, clock=clock)
    for _ in range(60):
        for name in "abc":
            fn(name)
        clock.now += 0.99
    assert len(counted.calls) == 3


def test_never_more_results_than_max_items(color: Color) -> None:
    fn = memoized(color, Counted(), max_items=3)
    for value in range(10):
        color.call(fn, value)
    assert (len(fn.cache), fn.cache.stats().evicted) == (3, 7)


def test_a_limit_that_is_not_above_zero_is_refused_where_it_is_written(color: Color) -> None:
    for wrong in ({"max_items": 0}, {"ttl": 0}):
        with pytest.raises(ValueError, match=r"must be a (whole )?number .*, got 0"):
            memoized(color, Counted(), **wrong)


# --- values


def test_a_list_that_is_handed_out_is_shared_unless_each_caller_gets_a_copy(color: Color) -> None:
    naive = functools.lru_cache(lambda _: [1])
    naive(0).append(2)
    assert naive(0) == [1, 2]  # everybody's result is changed

    fn = memoized(color, lambda _: [1], copy=list.copy)
    color.call(fn, 0).append(2)
    color.call(fn, 0).append(3)
    assert color.call(fn, 0) == [1]
    shared = memoized(color, lambda _: [1])
    assert color.call(shared, 0) is color.call(shared, 0)


@pytest.mark.parametrize("value", [None, 0, ""])
def test_an_empty_result_is_remembered(color: Color, value: object) -> None:
    calls = list[int]()

    def empty(_: Any) -> object:
        calls.append(1)
        return value

    fn = memoized(color, empty)
    assert [color.call(fn, 1), color.call(fn, 1)] == [value, value]
    assert len(calls) == 1


def test_an_error_is_raised_and_not_remembered(color: Color) -> None:
    answers: list[Any] = [ValueError("no"), 5]

    def fail_first(_: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    fn = memoized(color, fail_first)
    with pytest.raises(ValueError, match="no"):
        color.call(fn, 1)
    assert color.call(fn, 1) == 5


# --- methods


class Shop:
    """Has methods that remember."""

    def __init__(self) -> None:
        self.calls = list[Any]()

    @memoize(10, 60)
    def price(self, item: str) -> str:
        """Return it."""
        self.calls.append(item)
        return f"{item} of {id(self)}"

    @memoize_async(10, 60, key=str.lower)
    async def stock(self, item: str) -> str:
        self.calls.append(item)
        return f"{item} of {id(self)}"

    __hash__ = None  # type: ignore[assignment]  # as of a dataclass

    def __eq__(self, other: object) -> bool:
        return True


def test_each_instance_remembers_its_own_even_when_they_are_equal_and_not_hashable() -> None:
    one, other = Shop(), Shop()
    assert one.price("tea") == f"tea of {id(one)}"
    assert other.price("tea") == f"tea of {id(other)}"
    one.price("tea")
    assert (one.calls, other.calls) == (["tea"], ["tea"])
    assert asyncio.run(one.stock("tea")) == asyncio.run(one.stock("TEA"))
    assert one.calls == ["tea", "tea"]

    one.price.forget("tea")
    assert one.price.cache is one.price.cache is not other.price.cache
    assert one.price.cache.get(one.price.key_of("tea")) is MISSING
    assert len(other.price.cache) == 1


def test_an_instance_with_a_memoized_method_is_collected_and_with_lru_cache_not() -> None:
    class Naive:
        @functools.lru_cache  # noqa: B019
        def price(self, item: str) -> str:
            return item

    naive, ours = Naive(), Shop()
    naive.price("tea")
    ours.price("tea")
    asyncio.run(ours.stock("tea"))
    kept, freed = weakref.ref(naive), weakref.ref(ours)
    assert Shop.price._of_instance
    del naive, ours
    gc.collect()
    assert kept() is not None
    assert freed() is None
    assert not Shop.price._of_instance
    assert not Shop.stock._of_instance


def test_a_memoized_function_keeps_its_name_its_words_and_its_signature() -> None:
    assert isinstance(Shop.price, Memoized)
    assert isinstance(Shop.stock, AsyncMemoized)
    assert (vars(Shop.price)["__name__"], Shop.price.__doc__) == ("price", "Return it.")
    assert list(inspect.signature(Shop.price).parameters) == ["self", "item"]


# --- the wrong colour


def test_a_function_whose_result_can_be_used_once_is_refused_by_the_decorator() -> None:
    async def fetch() -> int:
        return 1

    def lines() -> Iterator[int]:
        yield 1

    async def alines() -> Any:
        yield 1

    def plain() -> int:
        return 1

    with pytest.raises(TypeError, match=r"fetch.* is a coroutine function: use memoize_async"):
        memoize(1, 1)(fetch)
    for generator in (lines, alines):
        with pytest.raises(TypeError, match=r"lines.* is a generator function: its result can be read only once"):
            memoize(1, 1)(generator)
    anything: Any = plain
    with pytest.raises(TypeError, match=r"plain.* is no coroutine function: use memoize"):
        memoize_async(1, 1)(anything)


async def test_lru_cache_hands_out_a_spent_coroutine_and_memoize_async_the_result() -> None:
    async def fetch(item: str) -> str:
        return item

    naive, ours = functools.lru_cache(fetch), memoize_async(1, 1)(fetch)
    await naive("tea")
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        await naive("tea")
    assert [await ours("tea"), await ours("tea")] == ["tea", "tea"]


# --- tasks


async def test_ten_tasks_that_miss_together_compute_once_and_with_a_plain_cache_ten_times() -> None:
    counted, known = Counted(), dict[str, Any]()

    async def fetch(item: str) -> Any:
        await asyncio.sleep(0.001)
        return counted(item)

    async def naive(item: str) -> Any:
        if item not in known:
            known[item] = await fetch(item)
        return known[item]

    await asyncio.gather(*(naive("tea") for _ in range(10)))
    assert len(counted.calls) == 10

    counted.calls.clear()
    ours = memoize_async(10, 60)(fetch)
    results = await asyncio.gather(*(ours("tea") for _ in range(10)))
    assert len(counted.calls) == 1
    assert all(result is results[0] for result in results)


async def test_other_keys_go_on_while_one_is_slow() -> None:
    slow = asyncio.Event()

    @memoize_async(10, 60)
    async def fetch(item: str) -> str:
        if item == "slow":
            await slow.wait()
        return item

    waiting = asyncio.create_task(fetch("slow"))
    await asyncio.sleep(0)
    assert await fetch("fast") == "fast"
    assert not waiting.done()
    slow.set()
    assert await waiting == "slow"


async def test_the_first_caller_s_cancel_does_not_harm_the_others() -> None:
    calls, go_on = list[int](), asyncio.Event()

    @memoize_async(10, 60)
    async def fetch() -> str:
        calls.append(1)
        await go_on.wait()
        return "tea"

    first, second = asyncio.create_task(fetch()), asyncio.create_task(fetch())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    go_on.set()
    assert await second == "tea"
    assert first.cancelled()
    assert len(calls) == 1


async def test_a_result_is_stored_even_when_everybody_left() -> None:
    calls, go_on = list[int](), asyncio.Event()

    @memoize_async(10, 60)
    async def fetch() -> str:
        calls.append(1)
        await go_on.wait()
        return "tea"

    only = asyncio.create_task(fetch())
    await asyncio.sleep(0)
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only
    go_on.set()
    await asyncio.sleep(0.001)
    assert await fetch() == "tea"
    assert len(calls) == 1


async def test_an_error_reaches_every_task_that_waited_and_nobody_misses_it_when_all_left() -> None:
    complaints = list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    go_on = asyncio.Event()

    @memoize_async(10, 60)
    async def fetch() -> str:
        await go_on.wait()
        raise ValueError("no")

    tasks = [asyncio.create_task(fetch()) for _ in range(5)]
    await asyncio.sleep(0)
    go_on.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [repr(error) for error in errors] == ["ValueError('no')"] * 5

    go_on.clear()
    left = asyncio.create_task(fetch())
    await asyncio.sleep(0)
    left.cancel()
    go_on.set()
    await asyncio.sleep(0.001)
    del tasks, errors, left
    gc.collect()
    assert complaints == []
    assert fetch.cache.flights == {}


async def test_a_coroutine_that_asks_for_its_own_result_is_an_error_and_not_a_deadlock() -> None:
    @memoize_async(10, 60)
    async def fetch(item: int) -> int:
        if item == 0:
            return (await asyncio.gather(fetch(0)))[0]  # in a task of its own, too
        if item == 1:
            return await fetch(2)
        return item

    with pytest.raises(RuntimeError, match="asks for its own result"):
        await asyncio.wait_for(fetch(0), 5)
    assert await fetch(1) == 2
    assert await fetch(0 + 2) == 2


async def test_what_is_forgotten_during_a_computation_is_not_stored() -> None:
    counted, go_on = Counted(), asyncio.Event()

    @memoize_async(10, 60)
    async def fetch(item: str) -> Any:
        counted(item)
        await go_on.wait()
        return item

    early = asyncio.create_task(fetch("tea"))
    await asyncio.sleep(0)
    fetch.forget("tea")
    late = asyncio.create_task(fetch("tea"))
    await asyncio.sleep(0)
    go_on.set()
    assert [await early, await late] == ["tea", "tea"]
    assert len(counted.calls) == 2
    assert len(fetch.cache) == 1


def test_a_loop_that_ended_during_a_computation_leaves_nothing_to_wait_for() -> None:
    calls = list[int]()

    @memoize_async(10, 60)
    async def fetch() -> int:
        calls.append(1)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return len(calls)

    def abandoned() -> Coroutine[Any, Any, None]:
        async def start() -> None:
            left = asyncio.create_task(fetch())
            await asyncio.sleep(0)
            assert fetch.cache.flights
            del left

        return start()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(abandoned())
    assert asyncio.run(asyncio.wait_for(fetch(), 20)) == 2  # another loop
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert asyncio.run(fetch()) == 2
