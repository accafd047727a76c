"""Proves docs/patterns/resilience/retry-backoff.md: what is repeated, how long it waits, and when it gives up."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import logging
import math
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.clock import Clock
from harness.depth import examples
from harness.waiting import at_once, auntil
from patterns.resilience.retry_backoff_kit import Flaky, policy_of
from retry_backoff import RetryBudget, RetryPolicy, aretry, retry, retrying

WRONG = (-0.1, math.nan, math.inf, True)
Run = Callable[..., Any]


def run_sync(policy: RetryPolicy, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return retry(policy, fn, *args, **kwargs)


def as_coroutine_function(fn: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return call


def run_async(policy: RetryPolicy, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return asyncio.run(aretry(policy, as_coroutine_function(fn), *args, **kwargs))


def run_decorated(policy: RetryPolicy, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return retrying(policy)(call)(*args, **kwargs)


def run_decorated_async(policy: RetryPolicy, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return asyncio.run(retrying(policy)(as_coroutine_function(fn))(*args, **kwargs))


@pytest.fixture(params=[run_sync, run_async, run_decorated, run_decorated_async])
def run(request: pytest.FixtureRequest) -> Run:
    """Call a function by `retry`, by `aretry` and by the decorator, of both kinds."""
    found: Run = request.param
    return found


def notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


# --- how often, how long


def test_a_call_that_succeeds_is_made_once_without_a_wait(run: Run) -> None:
    clock, fn = Clock(), Flaky(0)
    assert run(policy_of(clock), fn) == 1
    assert clock.pauses == []


@pytest.mark.parametrize("failures", [1, 2, 4])
def test_a_call_is_repeated_until_it_succeeds(run: Run, failures: int) -> None:
    clock, fn = Clock(), Flaky(failures)
    assert run(policy_of(clock), fn) == failures + 1
    assert len(clock.pauses) == failures


def test_with_one_attempt_it_is_called_once_and_never_waits(run: Run) -> None:
    clock, fn = Clock(), Flaky(math.inf)
    with pytest.raises(ConnectionError):
        run(policy_of(clock, attempts=1), fn)
    assert (fn.calls, clock.pauses) == (1, [])


def test_the_longest_wait_doubles_up_to_the_cap_and_none_follows_the_last_failure(run: Run) -> None:
    clock, fn = Clock(), Flaky(math.inf)
    with pytest.raises(ConnectionError):
        run(policy_of(clock, attempts=7, base=0.1, cap=1.0), fn)
    assert clock.pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert fn.calls == 7


def test_the_actual_wait_is_a_random_share_of_the_longest(run: Run) -> None:
    clock, shares = Clock(), iter([0.5, 0.0, 0.25])
    with pytest.raises(ConnectionError):
        run(policy_of(clock, attempts=4, base=1.0, rng=lambda: next(shares)), Flaky(math.inf))
    assert clock.pauses == [0.5, 0.0, 1.0]


def test_two_thousand_attempts_do_not_overflow() -> None:
    clock, fn = Clock(), Flaky(math.inf)
    with pytest.raises(ConnectionError):
        retry(policy_of(clock, attempts=2000), fn)
    assert fn.calls == 2000
    assert clock.pauses[6:] == [6.4] + [10.0] * 1992
    assert policy_of(clock, base=1e-300, cap=50.0).backoff(2000) == 1e-300 * 2.0**1000


def test_jitter_survives_at_the_cap() -> None:
    policy = RetryPolicy(base=0.1, cap=10.0, rng=random.Random(7).random)
    waits = [policy.backoff(20) for _ in range(10_000)]
    assert sum(waits) / len(waits) == pytest.approx(5.0, rel=0.02)
    assert len(set(waits)) == 10_000
    assert 0 <= min(waits) < 0.01
    assert 9.99 < max(waits) < 10


def test_the_defaults_are_those_of_the_page() -> None:
    policy = RetryPolicy()
    assert (policy.attempts, policy.base, policy.cap, policy.max_elapsed) == (5, 0.1, 10.0, 30.0)
    assert policy.retry_on == (ConnectionError, TimeoutError)
    assert (policy.clock, policy.sleep, policy.async_sleep) == (time.monotonic, time.sleep, asyncio.sleep)
    assert (policy.rng, policy.budget) == (random.random, None)


def test_a_policy_cannot_be_changed_and_takes_its_settings_by_name() -> None:
    with pytest.raises(AttributeError):
        RetryPolicy().attempts = 3  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        RetryPolicy(3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"attempts": 0}, "attempts must be 1 or more, got 0"),
        *(({"attempts": wrong}, f"attempts must be a whole number, got {wrong}") for wrong in (1.5, math.nan, True)),
        *(({"base": wrong}, f"base must be a number of seconds, 0 or more, got {wrong}") for wrong in WRONG),
        *(({"cap": wrong}, f"cap must be a number of seconds, 0 or more, got {wrong}") for wrong in WRONG),
        ({"base": 2, "cap": 1}, "base must be at most cap, 1, got 2"),
        ({"max_elapsed": 0}, "max_elapsed must be a number of seconds over 0, got 0"),
        ({"max_elapsed": math.nan}, "max_elapsed must be a number of seconds over 0, got nan"),
        ({"max_elapsed": True}, "max_elapsed must be a number of seconds over 0, got True"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_and_named(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}$"):
        RetryPolicy(**wrong)


def test_settings_at_their_limits_are_accepted() -> None:
    assert RetryPolicy(attempts=1, base=0, cap=0, max_elapsed=1e-9).backoff(1) == 0
    assert RetryPolicy(base=3, cap=3, rng=lambda: 1.0).backoff(1) == 3


def test_a_retry_on_that_names_no_class_is_refused_before_the_first_failure() -> None:
    with pytest.raises(TypeError):
        RetryPolicy(retry_on=(ConnectionError, "TimeoutError"))  # type: ignore[arg-type]


# --- the deadline


def test_a_wait_that_would_end_after_max_elapsed_is_not_begun(run: Run) -> None:
    clock, fn = Clock(), Flaky(math.inf)
    with pytest.raises(ConnectionError) as failure:  # 1 + 2 s are over, 4 more would be 7
        run(policy_of(clock, base=1.0, max_elapsed=6.9), fn)
    assert (fn.calls, clock.pauses) == (3, [1.0, 2.0])
    assert notes(failure.value) == ["attempt 3 of 5, 3.0 s: a wait of 4.0 s would pass max_elapsed"]


def test_a_wait_that_ends_just_at_max_elapsed_is_begun(run: Run) -> None:
    clock, fn = Clock(), Flaky(math.inf)
    with pytest.raises(ConnectionError):
        run(policy_of(clock, base=1.0, max_elapsed=7.0), fn)
    assert clock.pauses == [1.0, 2.0, 4.0]


def test_the_time_that_calls_take_counts(run: Run) -> None:
    clock = Clock()

    def slow() -> None:
        clock.now += 10
        raise TimeoutError

    with pytest.raises(TimeoutError) as failure:
        run(policy_of(clock, max_elapsed=25), slow)
    assert len(clock.pauses) == 2
    assert notes(failure.value)[0].startswith("attempt 3 of 5, 30.3 s: ")


def test_a_clock_that_goes_back_does_not_lengthen_the_time(run: Run) -> None:
    clock, fn = Clock(), Flaky(math.inf)

    def back() -> int:
        clock.now -= 3600
        return fn()

    with pytest.raises(ConnectionError):
        run(policy_of(clock, base=2.0, max_elapsed=3.0), back)
    assert clock.pauses == [2.0]  # the second would be 4 s, above max_elapsed by itself


def test_a_clock_that_jumps_ahead_ends_it_early(run: Run) -> None:
    clock, fn = Clock(), Flaky(math.inf)

    def ahead() -> int:
        clock.now += 3600
        return fn()

    with pytest.raises(ConnectionError):
        run(policy_of(clock, max_elapsed=30.0), ahead)
    assert fn.calls == 1


# --- Retry-After


def test_the_server_that_asks_for_three_seconds_gets_them_and_the_jitter_on_top(run: Run) -> None:
    clock = Clock()
    run(policy_of(clock, base=0.5, retry_after=lambda error: 3.0), Flaky(2))
    assert clock.pauses == [3.5, 4.0]


def test_clients_that_were_asked_to_wait_the_same_do_not_return_together() -> None:
    policy = RetryPolicy(base=1.0, retry_after=lambda error: 3.0, rng=random.Random(1).random)
    waits = [policy.wait(ConnectionError(), 1, 0.0) or 0.0 for _ in range(100)]
    assert min(waits) >= 3.0
    assert len({round(wait, 2) for wait in waits}) > 50


def test_a_retry_after_beyond_the_time_left_gives_up_at_once(run: Run) -> None:
    clock, fn = Clock(), Flaky(math.inf)
    year = 365 * 86400.0
    with pytest.raises(ConnectionError) as failure:
        run(policy_of(clock, max_elapsed=30.0, retry_after=lambda error: year), fn)
    assert (fn.calls, clock.pauses) == (1, [])
    assert notes(failure.value) == ["attempt 1 of 5, 0.0 s: a wait of 31536000.1 s would pass max_elapsed"]


@pytest.mark.parametrize("asked", [None, 0.0, -5.0, math.nan])
def test_a_retry_after_that_says_nothing_leaves_the_ordinary_wait(run: Run, asked: float | None) -> None:
    clock = Clock()
    run(policy_of(clock, retry_after=lambda error: asked), Flaky(1))
    assert clock.pauses == [0.1]


# --- which errors


def test_an_error_that_is_not_worth_repeating_is_raised_at_once_as_the_same_object(run: Run) -> None:
    clock, fn = Clock(), Flaky(math.inf, lambda: ValueError("bad request"))
    with pytest.raises(ValueError, match="bad request") as failure:
        run(policy_of(clock), fn)
    assert fn.calls == 1
    assert failure.value is fn.raised[0]
    assert notes(failure.value) == ["attempt 1 of 5, 0.0 s: not an error to retry"]


def test_the_last_error_is_raised_itself_with_a_note_and_without_the_earlier_ones(run: Run) -> None:
    clock, fn = Clock(), Flaky(math.inf)
    with pytest.raises(ConnectionError) as failure:
        run(policy_of(clock, base=1.0, attempts=3), fn)
    assert failure.value is fn.raised[-1]
    assert notes(failure.value) == ["attempt 3 of 3, 3.0 s: none left"]
    assert failure.value.__context__ is None
    assert [notes(error) for error in fn.raised[:-1]] == [[], []]


@pytest.mark.parametrize(
    "retry_on",
    [KeyError, (ValueError, KeyError), lambda error: isinstance(error, KeyError)],
    ids=["class", "tuple", "function"],
)
def test_what_to_repeat_is_a_class_a_tuple_or_a_function(run: Run, retry_on: Any) -> None:
    assert run(policy_of(Clock(), retry_on=retry_on), Flaky(2, KeyError)) == 3
    with pytest.raises(IndexError):
        run(policy_of(Clock(), retry_on=retry_on), Flaky(1, IndexError))


@pytest.mark.parametrize("setting", ["retry_on", "retry_after"])
def test_a_setting_that_raises_is_seen_with_the_call_s_error_as_its_context(run: Run, setting: str) -> None:
    def broken(error: Exception) -> bool:
        raise LookupError("my own bug")

    fn = Flaky(math.inf)
    with pytest.raises(LookupError) as failure:
        run(policy_of(Clock(), **{setting: broken}), fn)
    assert failure.value.__context__ is fn.raised[0]
    assert fn.calls == 1


@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("retry_on", [BaseException, (BaseException,), lambda error: True])
def test_what_is_no_exception_is_never_repeated_whatever_retry_on_says(
    error: type[BaseException], retry_on: Any
) -> None:
    clock, fn = Clock(), Flaky(math.inf, error)
    with pytest.raises(error):
        retry(policy_of(clock, retry_on=retry_on), fn)

    async def call() -> None:
        fn()

    awaiting = aretry(policy_of(clock, retry_on=retry_on), call)
    with pytest.raises(error):
        awaiting.send(None)
    assert (fn.calls, clock.pauses) == (2, [])


async def test_a_cancel_ends_a_wait_at_once() -> None:
    fn, waits = Flaky(math.inf), list[float]()

    async def forever(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.Event().wait()

    policy = RetryPolicy(base=10.0, rng=lambda: 1.0, async_sleep=forever)
    waiting = asyncio.create_task(aretry(policy, as_coroutine_function(fn)))
    await auntil(lambda: waits)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (fn.calls, waits) == (1, [10.0])


def test_an_error_whose_text_raises_is_retried_and_raised_like_any_other(run: Run) -> None:
    class UnprintableError(ConnectionError):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert run(policy_of(Clock()), Flaky(2, UnprintableError)) == 3
    with pytest.raises(UnprintableError):
        run(policy_of(Clock()), Flaky(math.inf, UnprintableError))


def test_a_retry_is_logged_by_the_name_of_its_error_and_not_by_its_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "retry_backoff")
    retry(policy_of(Clock(), base=1.0), Flaky(1, lambda: ConnectionError("https://user:secret@host")))
    assert caplog.messages == ["attempt 1 of 5: ConnectionError, next in 1.00 s"]


# --- calling


def test_arguments_arrive_unchanged_each_time(run: Run) -> None:
    seen: list[tuple[Any, ...]] = []
    value = object()

    def fn(*args: Any, **kwargs: Any) -> None:
        seen.append((*args, kwargs))
        if len(seen) < 3:
            raise ConnectionError

    run(policy_of(Clock()), fn, 1, value, policy="mine", fn=2)
    assert seen == [(1, value, {"policy": "mine", "fn": 2})] * 3


def test_a_function_that_changes_its_argument_meets_its_own_change_again(run: Run) -> None:
    def drain(queue: list[int]) -> int:
        if queue:
            queue.pop()
            raise ConnectionError
        return len(queue)

    items = [1, 2]
    assert run(policy_of(Clock()), drain, items) == 0
    assert items == []


async def test_fifty_calls_at_once_share_a_policy_and_nothing_else() -> None:
    clock = Clock()
    policy = policy_of(clock, attempts=51)

    async def call(number: int) -> int:
        return await aretry(policy, as_coroutine_function(Flaky(number)))

    assert await asyncio.gather(*(call(number) for number in range(50))) == list(range(1, 51))
    assert sorted(clock.pauses)[:49] == [0.1] * 49


def test_a_decorated_function_keeps_its_name_kind_and_place_in_a_class() -> None:
    policy = policy_of(Clock())

    class Api:
        def __init__(self) -> None:
            self.flaky = Flaky(1)

        @retrying(policy)
        def fetch(self, more: int) -> int:
            """Fetch it."""
            return self.flaky() + more

        @retrying(policy)
        async def afetch(self, more: int) -> int:
            return self.flaky() + more

    assert Api().fetch(10) == 12
    assert asyncio.run(Api().afetch(more=10)) == 12
    assert (Api.fetch.__name__, Api.fetch.__doc__) == ("fetch", "Fetch it.")
    assert inspect.iscoroutinefunction(Api.afetch)
    assert not inspect.iscoroutinefunction(Api.fetch)


def test_a_sync_call_that_returns_an_awaitable_is_a_type_error() -> None:
    async def fetch() -> int:
        return 1

    class Soon:
        def __await__(self) -> Iterator[None]:
            yield

    with pytest.raises(TypeError, match=r"fetch.* returned coroutine, which has not run yet"):
        _ = retry(RetryPolicy(), fetch)
    with pytest.raises(TypeError, match="returned Soon"):
        retry(RetryPolicy(), Soon)
    with pytest.raises(TypeError, match="returned coroutine"):
        _ = retrying(RetryPolicy())(functools.partial(lambda: fetch()))()


def test_a_generator_is_a_type_error_however_it_is_called() -> None:
    def lines() -> Iterator[int]:
        yield 1

    async def alines() -> Any:
        yield 1

    for generator in (lines, alines):
        with pytest.raises(TypeError, match=r"lines.* is a generator function: retry the calls inside it"):
            retrying(RetryPolicy())(generator)
        with pytest.raises(TypeError, match="which has not run yet"):
            retry(RetryPolicy(), generator)


# --- the budget


def test_a_budget_of_a_tenth_lets_a_thousand_failing_calls_make_a_tenth_more() -> None:
    fn = Flaky(math.inf)
    policy = policy_of(Clock(), budget=RetryBudget(ratio=0.1, reserve=10))
    for _ in range(1000):
        with pytest.raises(ConnectionError):
            retry(policy, fn)
    assert 1000 + 100 <= fn.calls <= 1000 + 100 + 10

    without = Flaky(math.inf)
    for _ in range(1000):
        with pytest.raises(ConnectionError):
            retry(policy_of(Clock()), without)
    assert without.calls == 5000


def test_a_spent_budget_is_noted_and_calls_go_on_once_each(run: Run) -> None:
    fn, clock = Flaky(math.inf), Clock()
    policy = policy_of(clock, attempts=3, budget=RetryBudget(ratio=0.5, reserve=1))
    with pytest.raises(ConnectionError) as failure:
        run(policy, fn)
    assert notes(failure.value) == ["attempt 2 of 3, 0.1 s: the retry budget is spent"]
    assert fn.calls == 2


def test_a_budget_is_earned_by_calls_and_shared_by_policies() -> None:
    budget = RetryBudget(ratio=0.5, reserve=1)
    one, other = policy_of(Clock(), budget=budget), policy_of(Clock(), budget=budget)
    assert retry(one, Flaky(1)) == 2  # the reserve
    with pytest.raises(ConnectionError):
        retry(other, Flaky(1))  # half a retry earned
    assert asyncio.run(aretry(other, as_coroutine_function(Flaky(1)))) == 2  # and the other half
    with pytest.raises(ConnectionError):
        retry(one, Flaky(1))


def test_only_the_reserve_is_saved_up_in_good_times() -> None:
    budget = RetryBudget(ratio=0.1, reserve=2)
    for _ in range(1000):
        retry(policy_of(Clock(), budget=budget), Flaky(0))
    assert [budget.spend() for _ in range(3)] == [True, True, False]


def test_an_error_that_is_not_retried_costs_no_budget() -> None:
    budget = RetryBudget(reserve=1)
    for settings_ in ({"retry_on": KeyError}, {"attempts": 1}, {"max_elapsed": 0.01}):
        with pytest.raises(ConnectionError):
            retry(policy_of(Clock(), budget=budget, **settings_), Flaky(math.inf))
    assert budget.spend()


def test_threads_that_share_a_budget_do_not_spend_it_twice() -> None:
    budget = RetryBudget(ratio=0.001, reserve=100)
    granted = [yes for each in at_once(8, lambda: [budget.spend() for _ in range(50)]) for yes in each]
    assert (granted.count(True), len(granted)) == (100, 400)


def test_a_budget_has_a_reserve_of_ten_and_a_tenth_of_the_calls_unless_told() -> None:
    budget = RetryBudget()
    assert [budget.spend() for _ in range(11)] == [True] * 10 + [False]
    for _ in range(9):
        budget.earn()
    assert not budget.spend()
    budget.earn()
    assert budget.spend()


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, True, "1"])
def test_a_budget_that_makes_no_sense_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=rf"^ratio must be a number over 0, got {wrong!r}$"):
        RetryBudget(wrong, 10)
    with pytest.raises(ValueError, match=rf"^reserve must be a number of retries, 1 or more, got {wrong!r}$"):
        RetryBudget(0.1, wrong)


# --- whatever the settings


@settings(max_examples=examples(150), deadline=None)
@given(
    attempts=st.integers(1, 12),
    base=st.floats(0, 5),
    cap=st.floats(5, 60),
    max_elapsed=st.floats(0.001, 100),
    failures=st.lists(st.tuples(st.floats(0, 10), st.none() | st.floats(-1, 20)), max_size=15),
    shares=st.lists(st.floats(0, 1), min_size=1),
)
def test_for_all_settings_calls_and_waits_stay_within_them(
    attempts: int,
    base: float,
    cap: float,
    max_elapsed: float,
    failures: list[tuple[float, float | None]],
    shares: list[float],
) -> None:
    clock, calls, asked = Clock(), 0, dict[int, float | None]()
    rng = itertools.cycle(shares)

    def fn() -> None:
        nonlocal calls
        calls += 1
        if calls <= len(failures):
            took, wanted = failures[calls - 1]
            clock.now += took
            error = ConnectionError()
            asked[id(error)] = wanted
            seen.append((error, wanted))
            raise error

    seen: list[tuple[Exception, float | None]] = []
    policy = policy_of(
        clock,
        attempts=attempts,
        base=base,
        cap=cap,
        max_elapsed=max_elapsed,
        rng=lambda: next(rng),
        retry_after=lambda error: asked[id(error)],
    )
    begun = clock.now
    try:
        retry(policy, fn)
    except ConnectionError:
        assert calls <= len(failures)
    else:
        assert calls == len(failures) + 1
    assert calls <= attempts
    assert len(clock.pauses) == calls - 1
    for wait, (_, wanted) in zip(clock.pauses, seen, strict=False):
        assert max(0.0, wanted or 0.0) <= wait <= max(0.0, wanted or 0.0) + cap
    last_call = failures[calls - 1][0] if calls <= len(failures) else 0.0
    if clock.pauses:
        assert clock.now - begun - last_call <= max_elapsed * (1 + 1e-9)
