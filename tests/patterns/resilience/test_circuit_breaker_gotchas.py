"""Proves docs/patterns/resilience/circuit-breaker.md: a naive breaker fails where this one does not."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from circuit_breaker import CircuitBreaker, CircuitOpen
from harness.clock import Clock
from harness.waiting import at_once, in_thread


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker("test", clock=clock)


def answer() -> str:
    return "answer"


def fail() -> str:
    raise ConnectionError("down")


def good(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        assert breaker.call(answer) == "answer"


def bad(breaker: CircuitBreaker | NaiveBreaker, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(ConnectionError):
            breaker.call(fail)


def trip(breaker: CircuitBreaker | NaiveBreaker, failures: int) -> None:
    bad(breaker, failures)
    assert breaker.state == "open"


def refusal(breaker: CircuitBreaker) -> CircuitOpen:
    with pytest.raises(CircuitOpen) as refused:
        breaker.call(answer)
    return refused.value


# -- one probe in a crowd


class NaiveBreaker:
    """What most libraries do: open is a matter of time, and half-open is open to everybody."""

    def __init__(self, *, threshold: int, open_for: float, clock: Callable[[], float]) -> None:
        self.threshold = threshold
        self.open_for = open_for
        self.clock = clock
        self.failures = 0
        self.opened_at = float("-inf")

    @property
    def state(self) -> str:
        if self.failures < self.threshold:
            return "closed"
        return "open" if self.clock() - self.opened_at < self.open_for else "half_open"

    def call(self, fn: Callable[[], str]) -> str:
        if self.state == "open":
            raise CircuitOpen("naive", 0)
        return self.book(fn)

    async def acall(self, fn: Callable[[], Awaitable[str]]) -> str:
        if self.state == "open":
            raise CircuitOpen("naive", 0)
        try:
            answer = await fn()
        except Exception:
            return self.book(fail)
        return self.book(lambda: answer)

    def book(self, fn: Callable[[], str]) -> str:
        try:
            answer = fn()
        except Exception:
            self.failures += 1
            self.opened_at = self.clock()
            raise
        self.failures = 0
        return answer


def crowd_of_threads(breaker: CircuitBreaker | NaiveBreaker, size: int) -> tuple[int, int]:
    """Call from `size` threads at once; return how many got an answer and how many were refused."""
    everybody = threading.Barrier(size)

    def held() -> str:  # whoever is let through stays inside until all have arrived
        everybody.wait(10)
        return "answer"

    def caller() -> bool:
        try:
            return breaker.call(held) == "answer"
        except CircuitOpen:
            everybody.wait(10)
            return False

    answered = sum(at_once(size, caller))
    return answered, size - answered


async def crowd_of_tasks(breaker: CircuitBreaker | NaiveBreaker, size: int) -> tuple[int, int]:
    """Do what `crowd_of_threads` does, with tasks."""
    everybody = asyncio.Barrier(size)

    async def held() -> str:
        await everybody.wait()
        return "answer"

    async def caller() -> bool:
        try:
            return await breaker.acall(held) == "answer"
        except CircuitOpen:
            await everybody.wait()
            return False

    answered = sum(await asyncio.gather(*(caller() for _ in range(size))))
    return answered, size - answered


async def test_of_a_crowd_one_becomes_the_probe_where_a_naive_breaker_lets_all_through(
    clock: Clock,
) -> None:
    def ready_to_probe() -> tuple[CircuitBreaker, NaiveBreaker]:
        breaker = CircuitBreaker("test", min_calls=1, clock=clock)
        naive = NaiveBreaker(threshold=1, open_for=30, clock=clock)
        for each in (breaker, naive):
            with pytest.raises(ConnectionError):
                each.call(fail)
            assert each.state == "open"
        clock.now += 30
        return breaker, naive

    breaker, naive = ready_to_probe()
    assert await crowd_of_tasks(naive, 100) == (100, 0)
    assert await crowd_of_tasks(breaker, 100) == (1, 99)
    assert breaker.state == "closed"

    breaker, naive = ready_to_probe()
    assert await asyncio.to_thread(crowd_of_threads, naive, 50) == (50, 0)
    assert await asyncio.to_thread(crowd_of_threads, breaker, 50) == (1, 49)
    assert breaker.state == "closed"


async def test_half_open_max_three_lets_three_probes_of_a_crowd_through(clock: Clock) -> None:
    breaker = CircuitBreaker("test", min_calls=1, half_open_max=3, close_after=3, clock=clock)
    with pytest.raises(ConnectionError):
        breaker.call(fail)
    clock.now += 30
    assert await crowd_of_tasks(breaker, 10) == (3, 7)
    assert breaker.state == "closed"


async def test_a_storm_of_cancelled_probes_leaves_the_place_to_the_next_caller(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    trip(breaker, 20)
    clock.now += 30
    forever = asyncio.Event()
    for _ in range(100):
        probe = asyncio.create_task(breaker.acall(forever.wait))
        await asyncio.sleep(0)
        with pytest.raises(CircuitOpen):
            await breaker.acall(forever.wait)
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
    assert breaker.state == "half_open"
    good(breaker)
    assert breaker.state == "closed"


async def test_a_hung_probe_loses_its_place_after_open_for_but_may_still_close_the_breaker(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    trip(breaker, 20)
    clock.now += 30
    answers = asyncio.Event(), asyncio.Event()
    hung = asyncio.create_task(breaker.acall(answers[0].wait))
    await asyncio.sleep(0)
    clock.now += 29.75
    assert refusal(breaker).retry_after == 0.25
    clock.now += 0.25
    second = asyncio.create_task(breaker.acall(answers[1].wait))
    await asyncio.sleep(0)
    assert refusal(breaker).retry_after == 30.0
    answers[0].set()
    assert await hung is True
    assert breaker.state == "closed"
    answers[1].set()
    assert await second is True


class OneProbe(NaiveBreaker):
    """Guards its probe, and so refuses the calls that the probe itself makes."""

    probing = False

    def call(self, fn: Callable[[], str]) -> str:
        if self.state == "open" or self.probing:
            raise CircuitOpen("naive", 0)
        self.probing = self.state == "half_open"
        try:
            return self.book(fn)
        finally:
            self.probing = False


async def test_a_probe_that_calls_through_its_own_breaker_is_not_refused_by_itself(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    naive = OneProbe(threshold=1, open_for=30, clock=clock)
    trip(naive, 1)
    trip(breaker, 20)
    clock.now += 30

    def naive_page(number: int) -> str:  # recursive, as a client that follows pages is
        return naive.call(lambda: naive_page(number + 1)) if number < 3 else answer()

    with pytest.raises(CircuitOpen):
        naive.call(lambda: naive_page(1))
    assert naive.state == "open"

    async def page(number: int) -> str:
        if number == 3:
            return await asyncio.to_thread(breaker.call, answer)
        (found,) = await asyncio.gather(breaker.acall(page, number + 1))
        return breaker.call(lambda: found)

    assert await breaker.acall(page, 1) == "answer"
    assert breaker.state == "closed"


def test_the_outcome_of_a_call_within_a_probe_is_left_to_the_probe(clock: Clock) -> None:
    breaker = CircuitBreaker("test", min_calls=1, close_after=2, clock=clock)

    def probe() -> str:
        with contextlib.suppress(ConnectionError):
            breaker.call(fail)
        breaker.call(answer)
        assert breaker.state == "half_open"
        return breaker.call(answer)

    with pytest.raises(ConnectionError):
        breaker.call(fail)
    clock.now += 30
    assert breaker.call(probe) == "answer"
    assert breaker.state == "half_open"
    # The place of a finished probe does not stay with the task that had it.
    barrier = threading.Barrier(2)
    other = in_thread(breaker.call, lambda: (barrier.wait(5), barrier.wait(5)))
    barrier.wait(5)
    with pytest.raises(CircuitOpen):
        breaker.call(answer)
    barrier.wait(5)
    other.result(20)
    assert breaker.state == "closed"


# -- gotchas: the naive version fails, the pattern does not


async def test_a_lock_around_the_call_makes_healthy_calls_queue_and_this_breaker_does_not(
    breaker: CircuitBreaker,
) -> None:
    lock = threading.Lock()

    def naive(fn: Callable[..., object], *args: object) -> None:
        with lock:
            fn(*args)

    def ten_threads(call: Callable[..., object], fn: Callable[..., object], *args: object) -> None:
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(lambda _: call(fn, *args), range(10)))

    # A barrier opens when all ten are inside at once.
    ten_threads(breaker.call, threading.Barrier(10).wait, 10)
    with pytest.raises(threading.BrokenBarrierError):
        ten_threads(naive, threading.Barrier(10).wait, 0.02)

    ten_tasks = asyncio.Barrier(10)
    async with asyncio.timeout(20):
        await asyncio.gather(*(breaker.acall(ten_tasks.wait) for _ in range(10)))


async def test_counting_consecutive_failures_misses_a_steady_half_and_a_rate_does_not(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    naive = NaiveBreaker(threshold=5, open_for=30, clock=clock)
    for turn in range(1000):
        with contextlib.suppress(ConnectionError):
            naive.call(fail if turn % 2 else answer)
    assert naive.state == "closed"
    for _ in range(10):
        bad(breaker)
        good(breaker)
    assert breaker.state == "open"


def test_a_call_from_before_a_reset_does_not_count_after_it() -> None:
    breaker = CircuitBreaker("late", min_calls=20)

    def outlives_a_reset() -> None:
        breaker.reset()
        breaker.call(int)  # healthy traffic goes on meanwhile

    breaker.call(outlives_a_reset)
    assert breaker.snapshot().calls == 1


@pytest.mark.parametrize("outcome", ["answer", "error", "cancellation"])
async def test_a_slow_call_from_before_the_outage_neither_closes_nor_extends_it(
    breaker: CircuitBreaker, clock: Clock, outcome: str
) -> None:
    naive = NaiveBreaker(threshold=5, open_for=30, clock=clock)
    ends: list[asyncio.Future[str]] = [asyncio.get_running_loop().create_future() for _ in range(2)]

    async def slow(end: asyncio.Future[str]) -> str:
        return await end

    late = asyncio.create_task(breaker.acall(slow, ends[0]))
    naive_late = asyncio.create_task(naive.acall(lambda: slow(ends[1])))
    await asyncio.sleep(0)
    trip(breaker, 20)
    trip(naive, 5)

    clock.now += 10
    for end in ends:
        if outcome == "answer":
            end.set_result("answer")
        elif outcome == "error":
            end.set_exception(ConnectionError("late"))
        else:
            end.cancel()
    await asyncio.gather(late, naive_late, return_exceptions=True)
    if outcome == "answer":
        assert naive.state == "closed"
    elif outcome == "error":
        assert naive.opened_at == clock.now
    assert breaker.state == "open"
    assert breaker.snapshot().retry_after == 20.0


async def test_a_call_from_before_the_outage_does_not_count_after_it_either(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    ends = [asyncio.Event() for _ in range(2)]
    late = [asyncio.create_task(breaker.acall(end.wait)) for end in ends]
    await asyncio.sleep(0)
    trip(breaker, 20)
    clock.now += 30
    forever = asyncio.Event()
    probe = asyncio.create_task(breaker.acall(forever.wait))
    await asyncio.sleep(0)
    ends[0].set()
    await late[0]
    assert breaker.state == "half_open"
    forever.set()
    await probe
    ends[1].set()
    await late[1]
    assert (breaker.state, breaker.snapshot().calls) == ("closed", 0)


async def test_a_clock_set_back_an_hour_costs_one_open_for_and_a_naive_breaker_the_hour(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    naive = NaiveBreaker(threshold=1, open_for=30, clock=clock)
    with pytest.raises(ConnectionError):
        naive.call(fail)
    trip(breaker, 20)
    clock.now -= 3600
    assert refusal(breaker).retry_after == 30.0
    clock.now += 30
    good(breaker)
    assert breaker.state == "closed"
    clock.now += 3500
    assert naive.state == "open"


@pytest.mark.parametrize("step", [0.5, 3600])
def test_outcomes_from_a_future_that_the_clock_took_back_are_forgotten(
    breaker: CircuitBreaker, clock: Clock, step: float
) -> None:
    good(breaker, 5)
    clock.now -= step
    good(breaker)
    assert breaker.snapshot().calls == 1
    clock.now += 10.25
    assert breaker.snapshot().calls == 0


async def test_a_clock_that_leaps_ahead_only_ends_the_wait(breaker: CircuitBreaker, clock: Clock) -> None:
    trip(breaker, 20)
    clock.now += 1e9
    good(breaker)
    bad(breaker, 19)
    clock.now += 1e9
    bad(breaker, 19)
    assert breaker.state == "closed"


def test_the_default_clock_is_not_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    breaker = CircuitBreaker("test", min_calls=1)
    before = time.monotonic()
    with pytest.raises(ConnectionError):
        breaker.call(fail)
    after = time.monotonic()
    assert before + 30 <= breaker._until <= after + 30


def test_one_breaker_for_all_shards_cuts_off_the_good_ones_and_one_each_does_not(
    clock: Clock,
) -> None:
    def shard(number: int) -> str:
        return fail() if number == 0 else answer()

    def outcome(breaker: CircuitBreaker, number: int) -> str:
        try:
            return breaker.call(shard, number)
        except (ConnectionError, CircuitOpen) as error:
            return type(error).__name__

    shared = CircuitBreaker("all", failure_rate=0.25, clock=clock)
    each = [CircuitBreaker(f"shard {number}", clock=clock) for number in range(3)]
    for _ in range(20):
        for number in range(3):
            outcome(shared, number)
            outcome(each[number], number)
    assert [outcome(shared, number) for number in range(3)] == ["CircuitOpen"] * 3
    assert [outcome(each[number], number) for number in range(3)] == [
        "CircuitOpen",
        "answer",
        "answer",
    ]


async def test_a_timeout_outside_the_breaker_hides_the_outage_and_one_inside_opens_it() -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    async def hang_for_a_while() -> None:
        async with asyncio.timeout(0.0005):
            await hang()

    outside, inside = (CircuitBreaker(name, min_calls=5) for name in ("outside", "inside"))
    for _ in range(10):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.0005):  # it cancels what is inside: no outcome
                await outside.acall(hang)
    for _ in range(5):
        with pytest.raises(TimeoutError):
            await inside.acall(hang_for_a_while)
    assert (outside.state, outside.snapshot().calls) == ("closed", 0)
    assert inside.state == "open"


async def test_what_fails_after_the_call_is_refused_where_a_naive_breaker_counts_successes(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    async def late() -> str:
        return fail()

    def generator() -> Iterator[str]:
        yield fail()

    async def agenerator() -> AsyncIterator[str]:
        yield fail()

    anything = cast("Callable[[object], Any]", lambda each: each)  # types would have told
    naive = NaiveBreaker(threshold=1, open_for=30, clock=clock)
    for _ in range(20):
        with pytest.raises(ConnectionError):
            await anything(naive.call)(late)
    assert naive.state == "closed"

    with pytest.raises(TypeError, match=r"late.* is a coroutine function: use acall\(\)"):
        anything(breaker.call)(late)
    with pytest.raises(TypeError, match="coroutine function"):
        anything(breaker)(lambda: late())()
    for function in (generator, agenerator):
        with pytest.raises(TypeError, match=f"{function.__name__}.* is a generator function"):
            breaker(function)
