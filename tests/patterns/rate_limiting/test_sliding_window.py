"""Proves docs/patterns/rate-limiting/sliding-window.md: at most N in any window, to the instant, and what is kept."""

from __future__ import annotations

import asyncio
import inspect
import math
import signal
import sys
import threading
import time
import tracemalloc
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from types import FrameType
from typing import Any, TypeAlias

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from harness.clock import Clock
from harness.depth import examples
from harness.waiting import at_once
from patterns.rate_limiting.sliding_window_kit import FixedWindow, hits_in_the_last_minute
from sliding_window import Decision, SlidingWindowCounter, SlidingWindowLog

Limiter: TypeAlias = SlidingWindowLog | SlidingWindowCounter
Make: TypeAlias = Callable[..., Limiter]
both = pytest.mark.parametrize("make", [SlidingWindowLog, SlidingWindowCounter], ids=["log", "counter"])


@pytest.fixture
def clock() -> Clock:
    """A clock that begins at zero, as the windows do."""
    return Clock(0.0)


def allowed(limiter: Limiter | FixedWindow | Recording, times: int, key: str = "") -> int:
    return sum(bool(limiter.hit(key)) for _ in range(times))


# -- how many, and when


def test_a_hit_counts_until_exactly_a_window_after_it(clock: Clock) -> None:
    log = SlidingWindowLog(3, 60, clock=clock)
    for clock.now, remaining in ((0, 2), (10, 1), (20, 0)):
        assert log.hit() == (True, remaining, 0.0)
    clock.now = 59.999
    assert log.hit()[:2] == (False, 0)
    assert log.hit().retry_after == pytest.approx(0.001)
    clock.now = 60
    assert log.hit() == (True, 0, 0.0)
    assert log.hit() == (False, 0, 10.0)


@given(
    limit=st.integers(1, 5),
    arrivals=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 5), st.sampled_from("ab"), st.booleans())),
)
@settings(max_examples=examples(150), deadline=None)
def test_a_log_decides_as_one_who_counts_all_hits_of_the_window(
    limit: int, arrivals: list[tuple[int, int, str, bool]]
) -> None:
    clock = Clock(1000)
    log = SlidingWindowLog(limit, 1, clock=clock)
    hits: list[tuple[float, str]] = []
    for eighths, cost, key, look in arrivals:
        clock.now += eighths / 8
        if cost > limit:
            continue
        counting = [at for at, who in hits if who == key and at > clock.now - 1]
        fits = len(counting) + cost <= limit
        until = 0.0 if fits else counting[len(counting) + cost - limit - 1] + 1 - clock.now
        expected = (fits, limit - len(counting), until)
        assert log.peek(key, cost) == expected
        if not look:
            assert log.hit(key, cost) == (fits, expected[1] - (cost if fits else 0), until)
            hits += [(clock.now, key)] * (cost if fits else 0)
    for at, who in hits:
        assert sum(other == who and at - 1 < then <= at for then, other in hits) <= limit


@given(
    limit=st.integers(1, 6),
    arrivals=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6), st.booleans())),
)
@settings(max_examples=examples(150), deadline=None)
def test_a_counter_decides_by_its_estimate_and_never_allows_over_twice_the_limit(
    limit: int, arrivals: list[tuple[int, int, bool]]
) -> None:
    clock = Clock(1000)
    counter = SlidingWindowCounter(limit, 1, clock=clock)
    hits: list[float] = []
    for eighths, cost, look in arrivals:
        clock.now += eighths / 8
        if cost > limit:
            continue
        share = 1 - Fraction(clock.now) % 1
        counts = Counter(at // 1 for at in hits)
        free = limit - counts[clock.now // 1 - 1] * share - counts[clock.now // 1]
        before = counter.peek("", cost)
        assert before[:2] == (cost <= free, math.floor(free))
        assert (before.retry_after == 0) == before.allowed
        if not look:
            assert counter.hit("", cost) == before._replace(remaining=math.floor(free) - cost * before.allowed)
            hits += [clock.now] * (cost if before else 0)
        elif not before:
            clock.now += before.retry_after  # nobody else comes
            assert counter.hit("", cost).allowed
            hits += [clock.now] * cost
            clock.now = math.ceil(clock.now * 8) / 8  # where the model is exact
    for at in hits:
        assert sum(at - 1 < other <= at for other in hits) <= 2 * limit


def test_half_a_window_after_a_burst_at_its_end_a_counter_allows_half(clock: Clock) -> None:
    counter = SlidingWindowCounter(100, 60, clock=clock)
    clock.now = 59.999
    assert allowed(counter, 101) == 100
    assert counter.hit().retry_after == pytest.approx(0.6 + 0.001)  # one of a hundred has faded
    clock.now = 90
    assert counter.peek() == (True, 50, 0.0)
    assert allowed(counter, 100) == 50
    assert counter.peek()[:2] == (False, 0)
    assert counter.peek().retry_after == pytest.approx(0.6)


def test_what_a_counter_asks_one_to_wait_is_enough_and_a_moment_less_is_not(clock: Clock) -> None:
    for now, cost, wait in ((31, 5, 39.0), (31, 10, 89.0), (90, 8, 10.0)):
        clock.now = 30
        counter = SlidingWindowCounter(10, 60, clock=clock)
        assert counter.hit(cost=6)
        clock.now = now
        assert counter.peek(cost=cost).retry_after == pytest.approx(wait)
        clock.now = now + wait - 0.01
        assert not counter.peek(cost=cost)
        clock.now = now + wait
        assert counter.peek(cost=cost)


def test_a_counter_forgets_a_window_when_the_one_after_it_has_passed(clock: Clock) -> None:
    counter = SlidingWindowCounter(10, 60, clock=clock)
    assert allowed(counter, 10) == 10
    clock.now = 119.9
    assert counter.peek().remaining == 9
    clock.now = 120
    assert counter.peek().remaining == 10
    clock.now = 0
    again = SlidingWindowCounter(10, 60, clock=clock)
    assert allowed(again, 10) == 10
    clock.now = 180
    assert again.peek().remaining == 10


def test_for_steady_traffic_a_counter_is_off_by_less_than_one_percent(clock: Clock) -> None:
    counter, log = (make(10_000, 60, max_keys=1, clock=clock) for make in (SlidingWindowCounter, SlidingWindowLog))
    for tick in range(60 * 100 * 3):
        clock.now = tick / 100
        counts = [10_000 - limiter.hit().remaining for limiter in (counter, log)]
        if tick > 6000:
            assert counts[0] == pytest.approx(counts[1], rel=0.01)


def test_twice_the_traffic_gets_through_at_the_limit_to_one_percent(clock: Clock) -> None:
    counter, log = SlidingWindowCounter(200, 60, clock=clock), SlidingWindowLog(200, 60, clock=clock)
    passed = Counter[str]()
    for tick in range(400 * 20):
        clock.now = tick * 60 / 400
        passed.update({"counter": bool(counter.hit()), "log": bool(log.hit())})
    assert passed == {"counter": pytest.approx(200 * 20, rel=0.01), "log": 200 * 20}


@both
def test_a_limit_of_one_and_a_window_of_a_millisecond_work(make: Make, clock: Clock) -> None:
    limiter = make(1, 0.001, clock=clock)
    assert [bool(limiter.hit()) for _ in range(3)] == [True, False, False]
    clock.now = 0.002
    assert allowed(limiter, 3) == 1


@both
def test_hits_of_the_same_instant_are_counted_each(make: Make, clock: Clock) -> None:
    limiter = make(100, 60, clock=clock)
    assert [limiter.hit().remaining for _ in range(101)] == [*range(99, -1, -1), 0]
    assert not limiter.hit()


# -- cost, and looking


@both
def test_a_cost_that_does_not_fit_takes_nothing(make: Make, clock: Clock) -> None:
    limiter = make(10, 60, clock=clock)
    assert limiter.hit(cost=7) == (True, 3, 0.0)
    assert limiter.hit(cost=4)[:2] == (False, 3)
    assert limiter.hit(cost=3) == (True, 0, 0.0)
    assert make(10, 60).hit(cost=10) == (True, 0, 0.0)


@both
@pytest.mark.parametrize("cost", [0, -1, 11, math.nan, math.inf, 1.5, True])
async def test_a_cost_that_can_never_fit_is_a_value_error(make: Make, cost: Any) -> None:
    limiter = make(10, 60)
    for method in (limiter.hit, limiter.peek):
        with pytest.raises(ValueError, match=f"cost must be a whole number of 1 to 10, got {cost}"):
            method("key", cost)
    with pytest.raises(ValueError, match="cost must be"):
        await limiter.wait("key", cost)
    assert limiter.peek("key").remaining == 10


@both
@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, True])
def test_a_limit_that_limits_nothing_is_a_value_error(make: Make, wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"^limit must be a whole number of at least 1, got {wrong}$"):
        make(wrong, 60)
    with pytest.raises(ValueError, match=f"^window must be a number of seconds over 0, got {wrong}$"):
        make(1, wrong)
    with pytest.raises(ValueError, match=f"^max_keys must be a whole number of at least 1, got {wrong}$"):
        make(1, 60, max_keys=wrong)


@both
def test_looking_counts_nothing_and_keeps_no_key(make: Make, clock: Clock) -> None:
    limiter = make(2, 60, clock=clock)
    assert {limiter.peek("ann") for _ in range(5)} == {(True, 2, 0.0)}
    assert not limiter._kept
    assert limiter.hit("ann")
    assert limiter.peek("ann", 2)[:2] == (False, 1)
    assert limiter.peek("ann") == (True, 1, 0.0)


def test_a_decision_that_refuses_is_false_where_a_tuple_would_be_true() -> None:
    assert tuple(Decision(False, 0, 1.5))
    assert not Decision(False, 0, 1.5)
    assert Decision(True, 0, 0.0)


# -- what goes wrong by hand


class Recording:
    """A log that is rebuilt on every call, and that records what it refuses."""

    def __init__(self, limit: int, window: float, *, clock: Callable[[], float]) -> None:
        self.limit, self.window, self.clock = limit, window, clock
        self.hits: dict[str, list[float]] = {}

    def hit(self, key: str = "") -> bool:
        now = self.clock()
        self.hits[key] = [at for at in self.hits.get(key, []) if at > now - self.window]
        self.hits[key].append(now)
        return len(self.hits[key]) <= self.limit


def test_around_the_edge_a_fixed_window_allows_twice_the_limit_in_a_moment(clock: Clock) -> None:
    limiters = [make(100, 60, clock=clock) for make in (FixedWindow, SlidingWindowCounter, SlidingWindowLog)]
    passed = [0, 0, 0]
    for clock.now in (59.9, 60.1):
        passed = [before + allowed(limiter, 150) for before, limiter in zip(passed, limiters, strict=True)]
    assert passed == [200, 100, 100]


@both
def test_hammering_keeps_a_client_out_forever_where_refused_hits_are_recorded(make: Make, clock: Clock) -> None:
    naive, limiter = Recording(10, 6, clock=clock), make(10, 6, clock=clock)
    passed = [0, 0]
    for tick in range(1000 * 12 + 500):  # a thousand a second
        clock.now = tick / 1000
        passed[0] += limiter.hit().allowed
        if tick % 100 == 0:
            passed[1] += allowed(naive, 11)
    assert passed == [30 if make is SlidingWindowLog else 20, 10]


class Instant(float):
    """A time that counts how often times are compared."""

    compared = 0

    def __add__(self, other: float) -> Instant:
        return Instant(float(self) + other)

    def __lt__(self, other: float) -> bool:
        Instant.compared += 1
        return float(self) < float(other)

    def __le__(self, other: float) -> bool:
        Instant.compared += 1
        return float(self) <= float(other)

    def __gt__(self, other: float) -> bool:
        Instant.compared += 1
        return float(self) > float(other)


def test_rebuilding_the_list_costs_more_the_more_hits_there_are_and_a_deque_does_not() -> None:
    def comparisons(limiter: Recording | SlidingWindowLog) -> int:
        for _ in range(1000):
            limiter.hit()
        Instant.compared = 0
        limiter.hit()
        return Instant.compared

    assert comparisons(Recording(10**6, 60, clock=lambda: Instant(7))) == 1000
    assert comparisons(SlidingWindowLog(10**6, 60, clock=lambda: Instant(7))) == 2


@both
def test_keys_that_come_once_fill_the_memory_of_a_dictionary_and_here_old_ones_go(make: Make, clock: Clock) -> None:
    naive, limiter = FixedWindow(10, 60, clock=clock), make(10, 60, max_keys=100, clock=clock)
    for number in range(1000):
        clock.now = number
        naive.hit(f"client {number}")
        limiter.hit(f"client {number}")
    assert len(naive.counts) == 1000
    assert len(limiter._kept) == len(limiter._counted) == (60 if make is SlidingWindowLog else 100)


# -- keys


@both
def test_a_flood_of_keys_stays_under_twenty_megabytes(make: Make) -> None:
    limiter = make(100, 60)
    for number in range(30_000):
        limiter.hit(f"client {number}")
    tracemalloc.start()
    try:
        for number in range(12_000):  # every key that is kept is one of these
            limiter.hit(f"visitor {number}")
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(limiter._kept) == 10_000
    assert size + sys.getsizeof(limiter._kept) + sys.getsizeof(limiter._counted) < 20e6


@both
def test_a_key_whose_window_has_ended_goes_before_one_that_was_used_less_recently(make: Make, clock: Clock) -> None:
    limiter = make(1, 60, max_keys=3, clock=clock)
    begin, end = (0, 60) if make is SlidingWindowLog else (59, 120)
    for clock.now, key in ((begin, "ended"), (begin + 50, "quiet"), (end - 2, "third")):
        assert limiter.hit(key)
    clock.now = end - 1
    assert not limiter.hit("ended")  # a use, although refused
    clock.now = end
    assert limiter.hit("new")
    assert list(limiter._kept) == ["quiet", "third", "new"]


@both
def test_when_no_window_has_ended_the_least_recently_used_key_goes_and_starts_afresh(make: Make, clock: Clock) -> None:
    limiter = make(1, 60, max_keys=3, clock=clock)
    for key in ("first", "second", "third"):
        assert limiter.hit(key)
    assert not limiter.hit("first")  # a use, although refused
    limiter.peek("second")  # none
    assert limiter.hit("fourth")
    assert not limiter.hit("first")
    assert limiter.hit("second")


@both
def test_a_client_that_is_locked_out_and_keeps_trying_is_not_forgotten_in_a_flood(make: Make, clock: Clock) -> None:
    limiter = make(5, 60, max_keys=50, clock=clock)
    assert allowed(limiter, 6, "attacker") == 5
    for number in range(500):
        clock.now = number / 100
        limiter.hit(f"forged {number}")
        if number % 40 == 0:
            assert not limiter.hit("attacker")
    assert len(limiter._kept) == 50


@both
def test_two_keys_that_ended_go_with_each_that_comes(make: Make, clock: Clock) -> None:
    limiter = make(1, 60, clock=clock)
    for number in range(10):
        limiter.hit(str(number))
    clock.now = 120
    sizes = []
    for number in range(10, 16):
        limiter.hit(str(number))
        sizes.append(len(limiter._kept))
    assert sizes == [9, 8, 7, 6, 5, 6]


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from("abcdef"))))
@settings(max_examples=examples(150), deadline=None)
def test_any_sequence_of_keys_is_kept_and_forgotten_as_a_model_predicts(visits: list[tuple[int, str]]) -> None:
    clock = Clock(1000)
    log = SlidingWindowLog(2, 1, max_keys=3, clock=clock)
    hits: dict[str, list[float]] = {}
    used: list[str] = []
    counted: list[str] = []
    for eighths, key in visits:
        clock.now += eighths / 8
        if key not in hits:
            gone = {each for each in counted[:2] if hits[each][-1] + 1 <= clock.now}
            if len(hits) - len(gone) == 3:
                gone = {used[0]}
            hits = {each: at for each, at in hits.items() if each not in gone}
            used = [each for each in used if each not in gone]
            counted = [each for each in counted if each not in gone]
        counting = [at for at in hits.get(key, []) if at + 1 > clock.now]
        assert log.hit(key).allowed == (len(counting) < 2)
        if len(counting) < 2:
            counted = [each for each in counted if each != key] + [key]
        hits[key] = [*counting, clock.now][:2]
        used = [each for each in used if each != key] + [key]
        assert list(log._kept) == used


# -- the clock


@both
def test_a_clock_that_goes_back_an_hour_allows_nothing_more_and_locks_nobody_out(make: Make, clock: Clock) -> None:
    clock.now = 36_000
    naive, limiter = Recording(5, 60, clock=clock), make(5, 60, clock=clock)
    assert (allowed(naive, 5), allowed(limiter, 6)) == (5, 5)
    clock.now -= 3600
    assert allowed(limiter, 5) == 0
    assert limiter.hit().retry_after <= 72
    clock.now += 30
    assert not limiter.hit(cost=5)
    clock.now += 90
    assert allowed(limiter, 6) == 5
    assert allowed(naive, 5) == 0
    for _ in range(100):
        clock.now -= 3600
        assert not limiter.hit()
    clock.now += 120
    assert allowed(limiter, 6) == 5


@both
def test_the_clock_is_one_that_nobody_sets_if_you_give_none(make: Make) -> None:
    assert inspect.signature(make).parameters["clock"].default is time.monotonic


# -- threads, tasks, event loops


@both
def test_threads_that_start_together_get_no_more_than_the_limit(make: Make) -> None:
    inside, most = 0, 0

    def clock() -> float:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.0001)
        inside -= 1
        return 0.0

    limiter = make(100, 3600, clock=clock)

    assert sum(at_once(16, lambda: allowed(limiter, 20))) == 100
    assert most == 1


@both
def test_a_signal_handler_may_use_the_limiter_whose_lock_its_thread_holds(make: Make) -> None:
    happened = ["made"]

    def clock() -> float:
        if not happened:
            happened.append("signal")
            signal.raise_signal(signal.SIGINT)
        return 0.0

    def handler(*_: object) -> None:
        happened.append(f"allowed: {limiter.hit().allowed}")

    limiter = make(5, 60, clock=clock)
    happened.clear()
    before = signal.signal(signal.SIGINT, handler)
    try:
        assert limiter.hit()
    finally:
        signal.signal(signal.SIGINT, before)
    assert happened == ["signal", "allowed: True"]


def depth(frame: FrameType | None) -> int:
    frames = 0
    while frame := frame and frame.f_back:
        frames += 1
    return frames


class FakeSleep(Clock):
    """A clock, and a sleep that lets it run; notes how many slept, and how deep their stack was."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.sleeps = 0
        self.depths: set[int] = set()

    async def asleep(self, seconds: float) -> None:
        self.sleeps += 1
        until = self.now + seconds
        self.depths.add(depth(sys._getframe()) if self.sleeps % 40 == 0 else 0)
        await asyncio.sleep(0)
        self.now = max(self.now, until)


async def test_ten_thousand_waiters_go_in_order_and_finish_when_the_last_may() -> None:
    fake = FakeSleep()
    log = SlidingWindowLog(100, 0.1, clock=fake, sleep=fake.asleep)
    done: list[tuple[int, float]] = []

    async def waiter(number: int) -> None:
        await log.wait()
        done.append((number, fake.now))

    await asyncio.gather(*(waiter(number) for number in range(10_000)))
    assert [number for number, _ in done] == list(range(10_000))
    assert [at for _, at in done] == pytest.approx([number // 100 / 10 for number in range(10_000)])
    assert done[-1][1] == pytest.approx(9.9)
    assert fake.sleeps < 250
    assert len(fake.depths - {0}) == 1
    assert not log._lines
    assert len(log._kept[""]) == 100


class Recursive:
    """Waits by calling itself, until the oldest entry goes, with everybody else."""

    def __init__(self, limit: int, window: float, fake: FakeSleep) -> None:
        self.limit, self.window, self.fake, self.deepest = limit, window, fake, 0
        self.hits: deque[float] = deque()

    async def wait(self, depth: int = 0) -> None:
        self.deepest = max(depth, self.deepest)
        while self.hits and self.hits[0] <= self.fake.now:
            self.hits.popleft()
        if len(self.hits) < self.limit:
            self.hits.append(self.fake.now + self.window)
        else:
            await self.fake.asleep(self.hits[0] - self.fake.now)
            await self.wait(depth + 1)


def test_waiting_by_recursion_fails_in_a_crowd_that_waits_here_one_after_another() -> None:
    async def crowd(wait: Callable[[], Awaitable[None]]) -> list[BaseException | None]:
        return await asyncio.gather(*(wait() for _ in range(300)), return_exceptions=True)

    results = {}

    def run() -> None:  # in a thread of its own, whose stack begins empty
        for name, fake in (("naive", FakeSleep()), ("log", FakeSleep())):
            log = SlidingWindowLog(1, 0.02, clock=fake, sleep=fake.asleep)
            wait = log.wait if name == "log" else Recursive(1, 0.02, fake).wait
            failed = sum(isinstance(result, RecursionError) for result in asyncio.run(crowd(wait)))
            results[name] = (failed, fake.sleeps)

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(250)
    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(limit)
    assert results["naive"][0] > 20
    assert results["naive"][1] > 10_000  # all wake together, and all but one go back to sleep
    assert results["log"] == (0, 299)


async def test_a_waiter_that_is_cancelled_leaves_the_line_to_the_others() -> None:
    fake = FakeSleep()
    log = SlidingWindowLog(1, 0.02, clock=fake, sleep=fake.asleep)
    assert log.hit("ann")
    first, second = (asyncio.create_task(log.wait("ann")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait_for(second, 5)
    assert first.cancelled()
    assert not log.peek("ann")
    assert not log._lines


async def test_waiters_for_one_key_do_not_hold_up_those_for_another() -> None:
    log = SlidingWindowLog(1, 60)
    assert log.hit("ann")
    stuck = asyncio.create_task(log.wait("ann"))
    await asyncio.wait_for(log.wait("bob"), 5)
    with pytest.raises(ValueError, match="cost must be"):  # nor does one that can never be served stand in line
        await asyncio.wait_for(log.wait("ann", 2), 5)
    stuck.cancel()
    assert not log.hit("bob")


async def test_a_waiter_for_two_waits_until_both_fit_and_is_not_overtaken() -> None:
    fake = FakeSleep()
    log = SlidingWindowLog(2, 10, clock=fake, sleep=fake.asleep)
    log.hit()
    fake.now = 5
    log.hit()
    done = []

    async def waiter(cost: int) -> None:
        await log.wait(cost=cost)
        done.append((cost, fake.now))

    await asyncio.gather(waiter(2), waiter(1))
    assert done == [(2, 15), (1, 25)]


@pytest.mark.parametrize("start", [0.0, 1.2e9])
async def test_a_counter_lets_its_waiters_through_as_its_estimate_falls(start: float) -> None:
    fake = FakeSleep()
    fake.now = start
    counter = SlidingWindowCounter(10, 60, clock=fake, sleep=fake.asleep)
    await asyncio.gather(*(counter.wait() for _ in range(20)))
    assert fake.now - start == pytest.approx(120)


@both
async def test_rounding_makes_nobody_wait_forever_whatever_the_clock_starts_from(make: Make) -> None:
    fake = FakeSleep()
    fake.now = 1.7e9 + 0.0123
    limiter = make(7, 0.01, clock=fake, sleep=fake.asleep)
    await asyncio.gather(*(limiter.wait() for _ in range(100)))
    assert 0.1 < fake.now - 1.7e9 < 0.2


def test_event_loops_in_several_threads_share_a_limit_and_none_hangs() -> None:
    log = SlidingWindowLog(5, 0.02)

    async def ten() -> None:
        await asyncio.wait_for(asyncio.gather(*(log.wait() for _ in range(10))), 30)

    begin = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: asyncio.run(ten()), range(3)))
    assert time.monotonic() - begin >= 0.1
    assert not log._lines


async def test_an_endpoint_limits_each_client_and_tells_it_when_to_come_again(clock: Clock) -> None:
    limiter = SlidingWindowLog(2, 60, clock=clock)

    async def endpoint(request: Request) -> Response:
        assert request.client
        decision = limiter.hit(request.client.host)
        if not decision:
            return PlainTextResponse("slow down", 429, {"Retry-After": str(math.ceil(decision.retry_after))})
        return PlainTextResponse("welcome")

    app: Any = Starlette(routes=[Route("/", endpoint)])

    async def codes(host: str, times: int) -> list[int]:
        transport = httpx2.ASGITransport(app, client=(host, 4711))
        async with httpx2.AsyncClient(transport=transport, base_url="http://api") as client:
            answers = [await client.get("/") for _ in range(times)]
            assert {answer.headers.get("Retry-After") for answer in answers if answer.status_code == 429} <= {"30"}
            return [answer.status_code for answer in answers]

    assert await codes("10.0.0.1", 1) == [200]
    clock.now = 30
    assert await codes("10.0.0.1", 3) == [200, 429, 429]
    assert await codes("10.0.0.2", 2) == [200, 200]
    clock.now = 60
    assert await codes("10.0.0.1", 1) == [200]


def test_the_plot_shows_what_the_limiters_do() -> None:
    most = {kind: max(count for _, count in hits_in_the_last_minute(kind)) for kind in ("fixed", "counter", "log")}
    assert most["fixed"] == 200
    assert most["log"] == 100
    assert 100 < most["counter"] < 190
