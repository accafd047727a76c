"""Proves docs/patterns/resilience/circuit-breaker.md: what opens and closes it, and what its callbacks see."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import pickle
import threading
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_breaker import CircuitBreaker, CircuitOpen, Snapshot
from harness.clock import Clock
from harness.depth import examples


class Dependency:
    """Answers or raises `error`; counts what reaches it."""

    def __init__(self) -> None:
        self.reached = 0
        self.error: BaseException | None = None

    def answer(self) -> str:
        self.reached += 1
        if self.error is not None:
            raise self.error
        return "answer"

    async def aanswer(self) -> str:
        return self.answer()


class Way:
    """One of the four ways through a breaker."""

    def __init__(self, through: Callable[[CircuitBreaker, Dependency], Awaitable[str]]) -> None:
        self.through = through

    async def good(self, breaker: CircuitBreaker, times: int = 1) -> None:
        await self._try(breaker, None, times)

    async def bad(self, breaker: CircuitBreaker, times: int = 1, error: BaseException | None = None) -> None:
        await self._try(breaker, error or ConnectionError("down"), times)

    async def refused(self, breaker: CircuitBreaker) -> CircuitOpen:
        dependency = Dependency()
        with pytest.raises(CircuitOpen) as refusal:
            await self.through(breaker, dependency)
        assert dependency.reached == 0
        return refusal.value

    async def _try(self, breaker: CircuitBreaker, error: BaseException | None, times: int) -> None:
        dependency = Dependency()
        dependency.error = error
        for _ in range(times):
            if error is None:
                assert await self.through(breaker, dependency) == "answer"
            else:
                with pytest.raises(type(error)) as raised:
                    await self.through(breaker, dependency)
                assert raised.value is error
        assert dependency.reached == times


async def by_call(breaker: CircuitBreaker, dependency: Dependency) -> str:
    return breaker.call(dependency.answer)


async def by_acall(breaker: CircuitBreaker, dependency: Dependency) -> str:
    return await breaker.acall(dependency.aanswer)


async def by_decorator(breaker: CircuitBreaker, dependency: Dependency) -> str:
    return breaker(dependency.answer)()


async def by_async_decorator(breaker: CircuitBreaker, dependency: Dependency) -> str:
    return await breaker(dependency.aanswer)()


@pytest.fixture(params=[by_call, by_acall, by_decorator, by_async_decorator])
def way(request: pytest.FixtureRequest) -> Way:
    return Way(request.param)


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker("test", clock=clock)


# -- what opens it


async def test_nineteen_failures_of_nineteen_leave_it_closed_and_the_twentieth_opens_it(
    way: Way, breaker: CircuitBreaker
) -> None:
    await way.bad(breaker, 19)
    assert breaker.state == "closed"
    await way.bad(breaker)
    assert breaker.state == "open"


async def test_ten_failures_of_twenty_open_it_in_any_order(way: Way, clock: Clock) -> None:
    for order in ("good then bad", "bad then good", "in turns"):
        breaker = CircuitBreaker(order, clock=clock)
        if order == "in turns":
            for _ in range(10):
                await way.bad(breaker)
                await way.good(breaker)
        elif order == "bad then good":
            await way.bad(breaker, 10)
            await way.good(breaker, 10)
        else:
            await way.good(breaker, 10)
            await way.bad(breaker, 10)
        assert breaker.state == "open", order


async def test_nine_failures_of_twenty_do_not_open_it(way: Way, breaker: CircuitBreaker) -> None:
    await way.bad(breaker, 9)
    await way.good(breaker, 11)
    assert breaker.state == "closed"
    assert (breaker.snapshot().calls, breaker.snapshot().failures) == (20, 9)


async def test_a_rate_such_as_three_in_thirty_is_compared_exactly(way: Way, clock: Clock) -> None:
    breaker = CircuitBreaker("test", min_calls=30, failure_rate=0.1, clock=clock)
    await way.good(breaker, 27)
    await way.bad(breaker, 2)
    assert breaker.state == "closed"
    await way.bad(breaker)
    assert breaker.state == "open"


async def test_failures_older_than_the_window_no_longer_count(way: Way, breaker: CircuitBreaker, clock: Clock) -> None:
    await way.bad(breaker, 19)
    clock.now += 10.25
    await way.bad(breaker)
    assert breaker.state == "closed"
    assert (breaker.snapshot().calls, breaker.snapshot().failures) == (1, 1)


async def test_failures_within_the_window_count(way: Way, breaker: CircuitBreaker, clock: Clock) -> None:
    await way.bad(breaker, 19)
    clock.now += 10
    await way.bad(breaker)
    assert breaker.state == "open"


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=60))
@settings(max_examples=examples(60), deadline=None)
def test_an_outcome_counts_for_nine_tenths_of_the_window_at_least_and_one_at_most(
    steps: list[tuple[int, bool]],
) -> None:
    clock, past = Clock(), list[tuple[float, bool]]()
    breaker = CircuitBreaker("test", window=10, min_calls=1000, clock=clock)
    for quarters, good in steps:
        clock.now += quarters / 4
        past.append((clock.now, good))
        with contextlib.suppress(ConnectionError):
            breaker.call(answer if good else fail)
        seen = breaker.snapshot()
        surely = [good for when, good in past if clock.now - when <= 9]
        maybe = [good for when, good in past if clock.now - when <= 10]
        assert len(surely) <= seen.calls <= len(maybe)
        assert surely.count(False) <= seen.failures <= maybe.count(False)


async def test_outcomes_of_the_same_tenth_of_the_window_leave_it_together(
    way: Way, breaker: CircuitBreaker, clock: Clock
) -> None:
    for step in (0, 0.9375, 0.0625, 0.5):  # at 0 and 0.9375, at 1 and 1.5
        clock.now += step
        await way.good(breaker)
    clock.now += 8.5
    assert breaker.snapshot().calls == 4
    clock.now += 0.5
    assert breaker.snapshot().calls == 2
    clock.now += 0.75
    assert breaker.snapshot().calls == 0


async def test_an_hour_of_traffic_is_remembered_in_a_handful_of_slices(way: Way, clock: Clock) -> None:
    breaker = CircuitBreaker("test", failure_rate=0.9, clock=clock)
    for _ in range(1200):
        await way.good(breaker)
        await way.bad(breaker)
        clock.now += 0.5
        await way.good(breaker)
        clock.now += 2.5
    assert len(breaker._slices) <= 11


async def test_a_snapshot_is_a_record_of_one_instant(way: Way, breaker: CircuitBreaker) -> None:
    await way.good(breaker)
    await way.bad(breaker)
    seen = breaker.snapshot()
    await way.good(breaker)
    assert seen == Snapshot(name="test", state="closed", calls=2, failures=1, retry_after=0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(seen, "calls", 3)  # noqa: B010 - types forbid it too


def answer() -> str:
    return "answer"


def fail() -> str:
    raise ConnectionError("down")


# -- what an open one does


async def opened(way: Way, breaker: CircuitBreaker) -> None:
    await way.bad(breaker, 20)
    assert breaker.state == "open"


async def test_an_open_breaker_refuses_without_the_dependency_and_tells_the_time_left(
    way: Way, breaker: CircuitBreaker, clock: Clock
) -> None:
    await opened(way, breaker)
    assert (await way.refused(breaker)).retry_after == 30.0
    clock.now += 1
    refusal = await way.refused(breaker)
    assert (refusal.name, refusal.retry_after) == ("test", 29.0)
    assert str(refusal) == "circuit 'test' is open, retry in 29.0 s"
    assert breaker.snapshot().retry_after == 29.0


async def test_it_refuses_until_exactly_open_for_and_then_lets_a_probe_through(
    way: Way, breaker: CircuitBreaker, clock: Clock
) -> None:
    await opened(way, breaker)
    clock.now += 29.75
    assert (await way.refused(breaker)).retry_after == 0.25
    clock.now += 0.25
    assert breaker.state == "open"
    await way.good(breaker)
    assert breaker.state == "closed"


async def test_a_successful_probe_closes_it_and_empties_the_window(
    way: Way, breaker: CircuitBreaker, clock: Clock
) -> None:
    await opened(way, breaker)
    clock.now += 30
    await way.good(breaker)
    seen = breaker.snapshot()
    assert (seen.state, seen.calls, seen.failures, seen.retry_after) == ("closed", 0, 0, 0.0)
    await way.bad(breaker, 19)
    assert breaker.state == "closed"


async def test_a_failed_probe_opens_it_again_for_the_full_time(way: Way, breaker: CircuitBreaker, clock: Clock) -> None:
    await opened(way, breaker)
    clock.now += 35
    await way.bad(breaker)
    assert breaker.state == "open"
    assert (await way.refused(breaker)).retry_after == 30.0
    clock.now += 29.75
    await way.refused(breaker)
    clock.now += 0.25
    await way.good(breaker)


async def test_close_after_three_needs_three_successes_in_a_row(way: Way, clock: Clock) -> None:
    breaker = CircuitBreaker("test", close_after=3, clock=clock)
    await opened(way, breaker)
    clock.now += 30
    await way.good(breaker, 2)
    assert breaker.state == "half_open"
    await way.bad(breaker)
    assert breaker.state == "open"
    clock.now += 30
    await way.good(breaker, 2)
    assert breaker.state == "half_open"
    await way.good(breaker)
    assert breaker.state == "closed"


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(), GeneratorExit()])
async def test_a_cancelled_or_killed_probe_frees_its_place_and_counts_as_neither(
    way: Way, clock: Clock, error: BaseException
) -> None:
    breaker = CircuitBreaker("test", close_after=2, clock=clock)
    await opened(way, breaker)
    clock.now += 30
    await way.good(breaker)
    await way.bad(breaker, 3, error)
    assert breaker.state == "half_open"
    await way.good(breaker)
    assert breaker.state == "closed"


async def test_cancelled_calls_do_not_count_while_it_is_closed(way: Way, breaker: CircuitBreaker) -> None:
    await way.bad(breaker, 50, asyncio.CancelledError())
    assert (breaker.state, breaker.snapshot().calls) == ("closed", 0)


async def test_an_exception_that_does_not_count_is_proof_of_life(way: Way, clock: Clock) -> None:
    breaker = CircuitBreaker("test", counts=lambda error: not isinstance(error, KeyError), clock=clock)
    await way.bad(breaker, 100, KeyError("missing"))
    assert (breaker.state, breaker.snapshot().calls) == ("closed", 100)
    assert breaker.snapshot().failures == 0
    breaker.reset()
    await opened(way, breaker)
    clock.now += 30
    await way.bad(breaker, 1, KeyError("missing"))
    assert breaker.state == "closed"


async def test_what_the_function_returns_raises_and_takes_goes_through_unchanged(
    breaker: CircuitBreaker,
) -> None:
    def echo(*args: object, **kwargs: object) -> object:
        return args, kwargs

    async def aecho(*args: object, **kwargs: object) -> object:
        return args, kwargs

    expected = ((1, 2), {"fn": 3, "self": 4})
    assert breaker.call(echo, 1, 2, fn=3, self=4) == expected
    assert await breaker.acall(aecho, 1, 2, fn=3, self=4) == expected
    assert breaker(echo)(1, 2, fn=3, self=4) == expected
    assert await breaker(aecho)(1, 2, fn=3, self=4) == expected
    assert breaker(echo).__name__ == "echo"
    assert inspect.iscoroutinefunction(breaker(aecho))


def test_a_decorated_method_belongs_to_its_object(breaker: CircuitBreaker) -> None:
    class Client:
        host = "a"

        @breaker
        def get(self, path: str) -> str:
            return self.host + path

    assert Client().get("/x") == "a/x"
    assert breaker.snapshot().calls == 1


# -- callbacks, operators, settings


async def test_on_change_is_told_of_every_transition_once_and_of_nothing_else(way: Way, clock: Clock) -> None:
    changes: list[tuple[str, str, str]] = []
    breaker = CircuitBreaker("test", close_after=2, clock=clock, on_change=lambda *change: changes.append(change))

    def told() -> list[str]:
        seen = [f"{before} > {after}" for name, before, after in changes if name == "test"]
        changes.clear()
        return seen

    await way.good(breaker, 30)
    assert told() == []
    await way.bad(breaker, 30)
    assert told() == ["closed > open"]
    await way.refused(breaker)
    assert told() == []
    clock.now += 30
    await way.good(breaker)
    assert told() == ["open > half_open"]
    await way.bad(breaker)
    assert told() == ["half_open > open"]
    clock.now += 30
    await way.good(breaker, 2)
    assert told() == ["open > half_open", "half_open > closed"]
    breaker.reset()
    assert told() == []
    breaker.force_open()
    breaker.force_open()
    assert told() == ["closed > open"]
    breaker.reset()
    assert told() == ["open > closed"]


async def test_without_an_on_change_nothing_is_logged(
    way: Way, breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture
) -> None:
    await opened(way, breaker)
    breaker.reset()
    assert caplog.records == []


async def test_an_on_change_that_raises_is_logged_and_breaks_no_call(
    way: Way, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*change: str) -> None:
        raise RuntimeError("no metrics today")

    breaker = CircuitBreaker("test", clock=clock, on_change=broken)
    await opened(way, breaker)
    clock.now += 30
    await way.good(breaker)
    assert breaker.state == "closed"
    assert [record.message for record in caplog.records] == ["on_change of circuit 'test' raised"] * 3
    assert "no metrics today" in caplog.text


def test_no_lock_is_held_while_the_readers_own_code_runs(clock: Clock) -> None:
    free: list[str] = []

    def others_get_in(where: str) -> None:
        other = threading.Thread(target=guard.snapshot)
        other.start()
        other.join(2)
        if not other.is_alive():
            free.append(where)

    def counts(error: Exception) -> bool:
        others_get_in("counts")
        return True

    def fn() -> None:
        others_get_in("fn")
        raise ConnectionError

    guard = CircuitBreaker(
        "test",
        min_calls=1,
        clock=clock,
        counts=counts,
        on_change=lambda *change: others_get_in("on_change"),
    )
    with pytest.raises(ConnectionError):
        guard.call(fn)
    clock.now += 30
    with pytest.raises(ConnectionError):
        guard.call(fn)
    guard.reset()
    first, second = ["fn", "counts", "on_change"], ["on_change", "fn", "counts", "on_change"]
    assert free == [*first, *second, "on_change"]


async def test_a_probe_lost_before_it_began_is_replaced_after_open_for(way: Way, clock: Clock) -> None:
    def interrupted(name: str, before: str, after: str) -> None:
        if interrupts.pop():
            raise KeyboardInterrupt

    interrupts = [False, True, False]
    breaker = CircuitBreaker("test", clock=clock, on_change=interrupted)
    await opened(way, breaker)
    clock.now += 30
    with pytest.raises(KeyboardInterrupt):
        await way.through(breaker, Dependency())
    assert breaker.snapshot().retry_after == 30.0
    clock.now += 30
    await way.good(breaker)
    assert breaker.state == "closed"


async def test_a_predicate_that_raises_is_heard_and_its_call_counts_as_neither(way: Way, clock: Clock) -> None:
    def broken(error: Exception) -> bool:
        raise LookupError("bad predicate")

    breaker = CircuitBreaker("test", min_calls=1, counts=broken, clock=clock)
    dependency = Dependency()
    dependency.error = ConnectionError("down")
    for state in ("closed", "half_open"):
        with pytest.raises(LookupError) as raised:
            await way.through(breaker, dependency)
        assert raised.value.__context__ is dependency.error
        assert (breaker.state, breaker.snapshot().calls) == (state, 0)
        await way.good(breaker)
        breaker._enter_state("open", clock.now)
    await way.good(breaker)
    assert breaker.state == "closed"


def test_a_predicate_may_return_anything_that_is_true_or_false(clock: Clock) -> None:
    breaker = CircuitBreaker("test", counts=cast("Any", lambda error: error.args), clock=clock)
    for _ in range(19):
        with pytest.raises(ConnectionError):
            breaker.call(fail)
    assert breaker.snapshot().failures == 19


async def test_forced_open_it_refuses_until_reset(way: Way, clock: Clock) -> None:
    breaker = CircuitBreaker("test", clock=clock)
    breaker.force_open()
    assert breaker.state == "open"
    for _ in range(3):
        assert (await way.refused(breaker)).retry_after == 30.0
        clock.now += 86_400
    breaker.reset()
    await way.good(breaker)
    assert breaker.snapshot().calls == 1


async def test_reset_forgets_what_was_counted_and_what_is_running(way: Way, breaker: CircuitBreaker) -> None:
    end = asyncio.Event()
    running = asyncio.create_task(breaker.acall(end.wait))
    await asyncio.sleep(0)
    await way.bad(breaker, 19)
    breaker.reset()
    await way.good(breaker)
    end.set()
    await running
    assert breaker.snapshot().calls == 1
    breaker.reset()
    await way.bad(breaker, 19)
    assert breaker.state == "closed"


def test_a_refusal_survives_the_way_to_another_process() -> None:
    copy = pickle.loads(pickle.dumps(CircuitOpen(name="prices", retry_after=12.34)))
    assert isinstance(copy, CircuitOpen)
    assert (copy.name, copy.retry_after) == ("prices", 12.34)
    assert str(copy) == "circuit 'prices' is open, retry in 12.3 s"


NAN = float("nan")


@pytest.mark.parametrize(
    "wrong",
    [{name: value} for name in ("window", "open_for") for value in (0, -1, float("inf"), NAN, True)]
    + [{"failure_rate": value} for value in (0, -0.5, 1.01, NAN, True)]
    + [{name: value} for name in ("min_calls", "half_open_max", "close_after") for value in (0, -1, 1.5, NAN, True)],
    ids=str,
)
def test_a_setting_out_of_its_range_is_a_value_error_that_names_it(wrong: dict[str, Any]) -> None:
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got {value!r}$"):
        CircuitBreaker("test", **wrong)


def test_the_smallest_settings_make_a_breaker_that_opens_on_the_first_failure() -> None:
    breaker = CircuitBreaker("test", min_calls=1, failure_rate=1, window=1e-9, open_for=1e9)
    with pytest.raises(ConnectionError):
        breaker.call(fail)
    assert breaker.state == "open"
