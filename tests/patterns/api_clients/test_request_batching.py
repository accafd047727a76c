"""Proves docs/patterns/api-clients/request-batching.md: what goes into one call, when, and who gets which answer."""

from __future__ import annotations

import asyncio
import collections
import contextvars
import gc
import inspect
import math
import random
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import aiodataloader
import httpx2
import psycopg
import pytest
import strawberry.dataloader
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import fake_loop
from harness.depth import examples
from patterns.api_clients.request_batching_kit import timeline
from request_batcher import Batcher, BatcherClosed, BatchError, BatchFailed, BatchShapeError, KeyMissing
from servers.http import Uvicorn


class Bulk:
    """A bulk function that doubles numbers and remembers what it was asked for and when."""

    def __init__(self, answer: Callable[[list[Any]], Any] | None = None, takes: float = 0.0) -> None:
        self.answer = answer or (lambda keys: {key: key * 2 for key in keys})
        self.takes, self.calls, self.instants, self.most, self.running = takes, list[list[Any]](), list[float](), 0, 0

    @property
    def sizes(self) -> list[int]:
        return [len(keys) for keys in self.calls]

    async def __call__(self, keys: list[Any]) -> Any:
        self.calls.append(keys)
        self.instants.append(round(asyncio.get_running_loop().time(), 9))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.takes)
            return self.answer(keys)
        finally:
            self.running -= 1


def make(bulk: Bulk, **settings: Any) -> Batcher[Any, Any]:
    return Batcher(bulk, **settings)


# --- what goes together


@pytest.mark.parametrize(
    ("loads", "sizes"), [(1, [1]), (99, [99]), (100, [100]), (101, [100, 1]), (200, [100, 100]), (250, [100, 100, 50])]
)
def test_loads_of_one_tick_go_out_in_calls_of_max_size_and_none_is_left_behind(loads: int, sizes: list[int]) -> None:
    async def main() -> None:
        bulk = Bulk()
        batcher = make(bulk, max_size=100)
        answers = await asyncio.gather(*(batcher.load(key) for key in range(loads)))
        assert answers == [key * 2 for key in range(loads)]
        assert bulk.sizes == sizes

    fake_loop.run(main())


@fake_loop.on_fake_time
async def test_the_window_opens_with_the_first_key_and_later_ones_do_not_push_it_back() -> None:
    bulk = Bulk()
    batcher, tasks = make(bulk, max_wait=0.010), list[Any]()
    for key in range(6):  # at 0, 3, 6, 9, 12, 15 ms
        tasks.append(asyncio.create_task(batcher.load(key)))
        await asyncio.sleep(0.003)
    await asyncio.gather(*tasks)
    assert bulk.calls == [[0, 1, 2, 3], [4, 5]]
    assert bulk.instants == pytest.approx([0.010, 0.022])


@fake_loop.on_fake_time
async def test_a_full_window_does_not_wait_and_the_next_one_has_its_own_time() -> None:
    bulk = Bulk()
    batcher, tasks = make(bulk, max_size=2, max_wait=0.010), list[Any]()
    for key in range(3):
        tasks.append(asyncio.create_task(batcher.load(key)))
        await asyncio.sleep(0.004)
    await asyncio.gather(*tasks)
    assert bulk.instants == pytest.approx([0.004, 0.018])


@fake_loop.on_fake_time
async def test_without_a_wait_the_tasks_that_are_ready_go_together() -> None:
    bulk = Bulk()
    batcher = make(bulk, max_wait=0)
    await asyncio.gather(*(batcher.load(key) for key in range(5)))
    assert (bulk.sizes, bulk.instants) == ([5], [0.0])


@fake_loop.on_fake_time
async def test_a_key_asked_for_twice_is_sent_once_and_fetched_again_in_the_next_window() -> None:
    answers = iter(["first", "second"])
    bulk = Bulk(lambda keys: dict.fromkeys(keys, next(answers)))
    batcher = make(bulk)
    assert await batcher.load_many("aa") == ["first"] * 2
    assert await batcher.load("a") == "second"
    assert bulk.calls == [["a"], ["a"]]


@fake_loop.on_fake_time
async def test_never_more_than_max_concurrent_calls_run() -> None:
    bulk = Bulk(takes=1.0)
    batcher = make(bulk, max_size=1, max_concurrent=3)
    await asyncio.gather(*(batcher.load(key) for key in range(10)))
    assert bulk.most == 3
    assert bulk.instants == [0.0] * 3 + [1.0] * 3 + [2.0] * 3 + [3.0]


@fake_loop.on_fake_time
async def test_ten_thousand_loads_at_once_are_a_hundred_calls() -> None:
    bulk = Bulk()
    batcher = make(bulk)
    assert await batcher.load_many(range(10_000)) == [key * 2 for key in range(10_000)]
    assert bulk.sizes == [100] * 100


def test_the_defaults_are_those_of_the_page() -> None:
    parameters = inspect.signature(Batcher).parameters
    assert {name: p.default for name, p in parameters.items() if name != "fn"} == {
        "max_size": 100,
        "max_wait": 0.005,
        "max_concurrent": 4,
    }


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        *(
            (name, value, "a whole number of at least 1")
            for name in ("max_size", "max_concurrent")
            for value in (0, -1, 1.0, True, math.nan)
        ),
        *(("max_wait", value, "a number of seconds from 0") for value in (-0.1, math.inf, math.nan, True, "1")),
    ],
)
def test_a_setting_out_of_its_range_is_refused(name: str, value: Any, what: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be {what}, got {value!r}$"):
        make(Bulk(), **{name: value})


# --- who gets which answer


@fake_loop.on_fake_time
async def test_a_sequence_answers_in_the_order_of_the_keys() -> None:
    batcher = make(Bulk(lambda keys: tuple(f"value of {key}" for key in keys)))
    assert await batcher.load_many("abca") == [f"value of {key}" for key in "abca"]


@fake_loop.on_fake_time
async def test_a_sequence_of_another_length_is_an_error_for_its_batch_and_for_nobody_else() -> None:
    answers = iter([[1, 2], [1, 2, 3, 4], [1, 2, 3]])
    batcher = make(Bulk(lambda keys: next(answers)))
    for got in (2, 4):
        errors = await batcher.load_many("abc")
        assert [type(error) for error in errors] == [BatchShapeError] * 3
        assert str(errors[0]) == f"the bulk call gave {got} values for 3 keys"
    assert await batcher.load_many("abc") == [1, 2, 3]


@pytest.mark.parametrize("answer", [None, 7, {1, 2}, iter([1])])
def test_an_answer_that_is_neither_mapping_nor_sequence_is_an_error_that_names_it(answer: object) -> None:
    async def main() -> None:
        with pytest.raises(BatchShapeError, match=f"answered {type(answer).__name__}, not a mapping or a sequence"):
            await make(Bulk(lambda keys: answer)).load(1)

    fake_loop.run(main())


@fake_loop.on_fake_time
async def test_a_key_that_the_mapping_lacks_is_missing_for_its_callers_only() -> None:
    batcher = make(Bulk(lambda keys: {key: None for key in keys if key != 2} | {"more": 1}))
    answers = await batcher.load_many([1, 2, 2, 3])
    assert [answers[0], answers[3]] == [None, None]
    assert all(isinstance(answer, KeyMissing) and answer.key == 2 for answer in answers[1:3])
    assert answers[1] is not answers[2]
    assert str(answers[1]) == "the answer of the bulk call has no 2"


@pytest.mark.parametrize("kind", [dict, list])
def test_an_exception_among_the_values_fails_its_own_key_only(kind: type) -> None:
    def answer(keys: list[int]) -> Mapping[int, Any] | Sequence[Any]:
        values = [ValueError("bad 2") if key == 2 else key for key in keys]
        return dict(zip(keys, values, strict=True)) if kind is dict else values

    async def main() -> None:
        batcher = make(Bulk(answer))
        one, two, three = await batcher.load_many([1, 2, 3])
        assert (one, repr(two), three) == (1, "ValueError('bad 2')", 3)

    fake_loop.run(main())


@fake_loop.on_fake_time
async def test_a_bulk_call_that_raises_fails_each_of_its_callers_and_not_the_next_batch() -> None:
    down = True
    cause = ConnectionError("refused")

    def answer(keys: list[int]) -> Any:
        if down:
            raise cause
        return keys

    batcher = make(Bulk(answer))
    errors = await batcher.load_many([1, 2])
    assert [type(error) for error in errors] == [BatchFailed] * 2
    assert all(isinstance(error, Exception) and error.__cause__ is cause for error in errors)
    assert str(errors[0]) == "the bulk call raised ConnectionError"
    down = False
    assert await batcher.load_many([1, 2]) == [1, 2]


@fake_loop.on_fake_time
async def test_what_is_no_coroutine_function_or_raises_odd_things_leaves_nobody_waiting() -> None:
    class Broken(collections.UserDict[Any, Any]):
        def __iter__(self) -> Any:
            raise OSError("broken mapping")

    def stop(keys: list[int]) -> Any:
        raise asyncio.CancelledError

    functions: list[Any] = [list, Bulk(lambda keys: Broken()), Bulk(stop)]
    for fn in functions:
        with pytest.raises(BatchFailed):
            await asyncio.wait_for(make(fn).load(1), 5)


@fake_loop.on_fake_time
async def test_an_unhashable_key_is_a_type_error_before_anything_is_queued() -> None:
    bulk = Bulk()
    batcher: Batcher[Any, Any] = make(bulk)
    with pytest.raises(TypeError, match="unhashable type: 'list'"):
        await batcher.load([])
    with pytest.raises(TypeError, match="unhashable type: 'list'"):
        await batcher.load_many([1, []])
    await batcher.aclose()
    assert bulk.calls == []


# --- leaving


@fake_loop.on_fake_time
async def test_who_is_cancelled_does_not_harm_the_others() -> None:
    for when in (0.0, 0.006):  # in the window, and during the call
        bulk = Bulk(takes=0.1)
        batcher = make(bulk, max_wait=0.005)
        tasks = [asyncio.create_task(batcher.load(key)) for key in (1, 2, 3)]
        await asyncio.sleep(when)
        tasks[0].cancel()
        assert await asyncio.gather(*tasks[1:]) == [4, 6]
        assert tasks[0].cancelled()


@fake_loop.on_fake_time
async def test_a_key_that_nobody_waits_for_any_more_is_not_sent() -> None:
    bulk = Bulk()
    batcher = make(bulk)
    tasks = [asyncio.create_task(batcher.load(key)) for key in (1, 2, 2)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[1].cancel()
    assert await tasks[2] == 4
    assert bulk.calls == [[2]]

    only = asyncio.create_task(batcher.load(1))
    await asyncio.sleep(0)
    only.cancel()
    await asyncio.sleep(1)
    await batcher.aclose()
    assert bulk.calls == [[2]]


@fake_loop.on_fake_time
async def test_a_bulk_call_that_never_returns_does_not_take_the_callers_timeouts_away() -> None:
    never = asyncio.Event()

    async def hang(keys: list[int]) -> list[int]:
        await never.wait()
        return keys

    batcher = Batcher(hang)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await batcher.load(1)
    never.set()
    await batcher.aclose()


@fake_loop.on_fake_time
async def test_closing_sends_what_is_queued_waits_for_it_and_refuses_the_rest() -> None:
    bulk = Bulk(takes=1.0)
    batcher = make(bulk, max_wait=60)
    tasks = [asyncio.create_task(batcher.load(key)) for key in range(3)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(batcher.aclose())
    await asyncio.sleep(0)
    for refused in (batcher.load(9), batcher.load_many([9])):
        with pytest.raises(BatcherClosed, match="the batcher is closed"):
            await refused
    await closing
    assert [task.result() for task in tasks] == [0, 2, 4]
    assert (bulk.sizes, bulk.instants) == ([3], [0.0])
    await batcher.aclose()
    assert all(issubclass(each, BatchError) for each in (BatcherClosed, BatchFailed, BatchShapeError, KeyMissing))


def test_another_event_loop_is_refused_and_keys_its_loop_left_behind_make_no_noise() -> None:
    complaints = list[Any]()
    batcher = make(Bulk())

    async def leave() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        task = asyncio.create_task(batcher.load(1))
        await asyncio.sleep(0)
        del task

    asyncio.run(leave())
    with pytest.raises(RuntimeError, match="belongs to another event loop: make one for each"):
        asyncio.run(batcher.load(2))
    gc.collect()
    assert complaints == []


@settings(max_examples=examples(60), deadline=None)
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8), st.booleans()), max_size=60),
    max_size=st.integers(1, 6),
    max_concurrent=st.integers(1, 3),
)
def test_for_all_arrivals_everybody_is_answered_and_the_limits_hold(
    arrivals: list[tuple[int, int, bool]], max_size: int, max_concurrent: int
) -> None:
    async def main() -> None:
        bulk = Bulk(takes=0.003)
        batcher = make(bulk, max_size=max_size, max_wait=0.005, max_concurrent=max_concurrent)

        async def caller(at: int, key: int, leaves: bool) -> Any:
            await asyncio.sleep(at / 1000)
            if not leaves:
                return await batcher.load(key)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(batcher.load(key), 0.000001)
            return key * 2

        answers = await asyncio.gather(*(caller(*arrival) for arrival in arrivals))
        assert answers == [key * 2 for _, key, _ in arrivals]
        assert all(1 <= size <= max_size for size in bulk.sizes)
        assert all(len(set(keys)) == len(keys) for keys in bulk.calls)
        assert bulk.most <= max_concurrent
        assert sum(bulk.sizes) <= len(arrivals)
        await batcher.aclose()

    fake_loop.run(main())


def test_the_timeline_of_the_page_is_what_the_batcher_does() -> None:
    arrivals, flushes = timeline()
    assert len(arrivals) == sum(size for _, size in flushes)
    index, full = 0, 0
    for at, size in flushes:
        window, index = arrivals[index : index + size], index + size
        if size == 8:
            assert at == pytest.approx(window[-1])
            full += 1
        else:
            assert at - window[0] == pytest.approx(0.010)
    assert 0 < full < len(flushes)


# --- gotchas


class NaiveBatcher:
    """As it is usually written: whoever fills the batch sends it, and results are paired by position."""

    def __init__(self, fn: Callable[[list[Any]], Awaitable[Any]], size: int) -> None:
        self.fn, self.size, self.queue = fn, size, list[tuple[Any, asyncio.Future[Any]]]()

    async def load(self, key: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        self.queue.append((key, future))
        if len(self.queue) == self.size:
            await self.flush()
        return await future

    async def flush(self) -> None:
        queue, self.queue = self.queue, []
        for (_, future), value in zip(queue, await self.fn([key for key, _ in queue]), strict=False):
            future.set_result(value)


@fake_loop.on_fake_time
async def test_a_flush_inside_the_caller_who_filled_the_batch_is_cancelled_with_the_caller() -> None:
    async def hanging(load: Callable[[int], Awaitable[Any]]) -> int:
        tasks = [asyncio.ensure_future(load(key)) for key in (1, 2, 3)]
        await asyncio.sleep(0.001)
        tasks[2].cancel()
        await asyncio.sleep(10)
        hanging = [task for task in tasks if not task.done()]
        for task in hanging:
            task.cancel()
        return len(hanging)

    def answer(keys: list[int]) -> list[int]:
        return keys

    assert await hanging(NaiveBatcher(Bulk(answer, takes=1.0), 3).load) == 2
    assert await hanging(make(Bulk(answer, takes=1.0), max_size=3).load) == 0


@fake_loop.on_fake_time
async def test_one_cancelled_caller_gives_others_an_invalid_state_error_and_here_does_not() -> None:
    async def outcome(load: Callable[[int], Awaitable[Any]]) -> list[Any]:
        tasks = [asyncio.ensure_future(load(key)) for key in (1, 2, 3)]
        await asyncio.sleep(0.001)
        tasks[0].cancel()
        _, pending = await asyncio.wait(tasks, timeout=10)
        for task in pending:
            task.cancel()
        await asyncio.wait(tasks)
        return [None if task.cancelled() else task.exception() or task.result() for task in tasks]

    naive = await outcome(NaiveBatcher(Bulk(takes=1.0, answer=lambda keys: keys), 3).load)
    assert naive[1] is None  # it hung, and was put out of its misery
    assert isinstance(naive[2], asyncio.InvalidStateError)
    assert await outcome(make(Bulk(takes=1.0), max_size=3).load) == [None, 4, 6]


@fake_loop.on_fake_time
async def test_pairing_by_position_gives_a_record_to_the_wrong_user_and_by_key_does_not() -> None:
    records = {1: "record of 1", 3: "record of 3"}

    async def without_the_unknown(keys: list[int]) -> list[str]:
        return [records[key] for key in keys if key in records]

    naive = NaiveBatcher(without_the_unknown, 3)
    tasks = [asyncio.ensure_future(naive.load(key)) for key in (1, 2, 3)]
    await asyncio.sleep(0)
    assert await tasks[1] == "record of 3"  # asked for 2
    tasks[2].cancel()

    async def by_key(keys: list[int]) -> dict[int, str]:
        return {key: records[key] for key in keys if key in records}

    assert [type(each) for each in await Batcher(without_the_unknown).load_many([1, 2, 3])] == [BatchShapeError] * 3
    one, two, three = await Batcher(by_key).load_many([1, 2, 3])
    assert (one, type(two), three) == ("record of 1", KeyMissing, "record of 3")


async def test_the_bulk_call_runs_as_nobody_and_not_as_the_first_caller() -> None:
    user = contextvars.ContextVar("user", default="nobody")

    async def whoami(keys: list[int]) -> list[str]:
        return [user.get()] * len(keys)

    async def request(load: Callable[[int], Awaitable[str]], number: int) -> str:
        user.set(f"user {number}")
        return await load(number)

    naive = aiodataloader.DataLoader(whoami)
    assert set(await asyncio.gather(*(request(naive.load, number) for number in range(3)))) == {"user 0"}
    ours = Batcher(whoami)
    assert set(await asyncio.gather(*(request(ours.load, number) for number in range(3)))) == {"nobody"}


async def test_a_loader_that_keeps_failures_fails_a_key_forever_and_this_one_asks_again() -> None:
    async def first_fails(keys: list[int]) -> list[Any]:
        calls.append(keys)
        return [ConnectionError("blip") if len(calls) == 1 else "fine"]

    calls: list[list[int]] = []
    naive: strawberry.dataloader.DataLoader[int, Any] = strawberry.dataloader.DataLoader(first_fails)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            await naive.load(1)
    assert len(calls) == 1

    calls.clear()
    ours = Batcher(first_fails)
    with pytest.raises(ConnectionError):
        await ours.load(1)
    assert await ours.load(1) == "fine"


@fake_loop.on_fake_time
async def test_a_shared_exception_grows_a_tangled_traceback_and_one_for_each_does_not() -> None:
    shared = ConnectionError("refused")

    def frames(error: BaseException) -> int:
        return len(traceback.extract_tb(error.__traceback__))

    async def naive_caller() -> BaseException:
        try:
            raise shared
        except ConnectionError as error:
            return error

    naive = [await naive_caller() for _ in range(100)]
    assert frames(naive[0]) >= 100

    def fail(keys: list[int]) -> Any:
        raise shared

    errors = [error for error in await make(Bulk(fail)).load_many(range(100)) if isinstance(error, Exception)]
    assert len({id(error) for error in errors}) == 100
    assert max(frames(error) for error in errors) < 5


# --- real servers


async def test_a_real_bulk_endpoint_sees_a_few_calls_and_every_caller_gets_its_own_record() -> None:
    batches: list[list[int]] = []

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        ids = [int(each) for each in scope["query_string"].decode().removeprefix("ids=").split("%2C")]
        batches.append(ids)
        random.Random(1).shuffle(ids)  # in an order of its own, and without the unknown
        body = ",".join(f'"{each}": "user {each}"' for each in ids if each < 240)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": f"{{{body}}}".encode()})

    server = Uvicorn(endpoint, lifespan="off")
    try:
        async with httpx2.AsyncClient(base_url=server.url, trust_env=False) as client:

            async def fetch(ids: list[int]) -> dict[int, str]:
                response = await client.get("/users", params={"ids": ",".join(map(str, ids))})
                return {int(key): value for key, value in response.json().items()}

            answers = await Batcher(fetch).load_many(range(250))
    finally:
        server.stop()
    assert sorted(map(len, batches)) == [50, 100, 100]
    assert answers[:240] == [f"user {each}" for each in range(240)]
    assert all(isinstance(answer, KeyMissing) for answer in answers[240:])


async def test_a_hundred_look_ups_in_postgresql_are_one_query(database_url: str) -> None:
    queries = 0
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute(
            "CREATE TEMP TABLE items AS SELECT id, 'item ' || id AS name FROM generate_series(1, 99) id"
        )

        async def fetch(ids: list[int]) -> dict[int, str]:
            nonlocal queries
            queries += 1
            rows = await connection.execute("SELECT id, name FROM items WHERE id = ANY(%s)", [ids])
            return dict(await rows.fetchall())

        items = Batcher(fetch)
        answers = await items.load_many(range(1, 101))
    assert queries == 1
    assert answers[:99] == [f"item {each}" for each in range(1, 100)]
    assert isinstance(answers[99], KeyMissing)
