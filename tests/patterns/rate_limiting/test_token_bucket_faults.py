"""Proves docs/patterns/rate-limiting/token-bucket.md: naive limiters, crowds, loops, forks, stalls; against a model."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import aiolimiter
import httpx2
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import token_bucket_sync
from harness import fake_loop
from harness.depth import examples
from harness.fake_loop import on_fake_time
from harness.waiting import at_once
from patterns.rate_limiting import token_bucket_kit as kit
from patterns.rate_limiting.token_bucket_kit import (
    Naive,
    TaskWorld,
    ThreadWorld,
    World,
    a_few_seconds,
    grants_of_a_hundred,
    most_in_any_interval,
)
from servers.http import Uvicorn
from token_bucket_async import AsyncTokenBucket
from token_bucket_core import RateLimitTimeout, Reservation
from token_bucket_sync import TokenBucket

# Fixtures.
make = kit.make


def test_a_clock_that_stands_still_or_goes_back_grants_nothing_and_blocks_nobody(
    make: Callable[[float, float], World],
) -> None:
    world, naive = make(10, 10), Naive(10, 10)
    naive.clock = world.clock
    world.drain(10)
    assert naive.try_acquire(10)
    for _ in range(5):
        assert not world.bucket.try_acquire()
    world.now -= 3600
    assert not world.bucket.try_acquire()
    assert not naive.try_acquire()
    waiter = world.acquire()
    world.advance(0.1)
    assert waiter.at == world.now
    world.advance(3000)
    assert world.bucket.available() == 10
    assert naive.tokens < -5000
    assert not naive.try_acquire()


# -- what a naive limiter does


class Paced:
    """Sleeps a whole interval before each of `n` calls."""

    def __init__(self, rate: float, sleep: Callable[[float], Awaitable[None]]) -> None:
        self.interval, self.sleep = 1 / rate, sleep

    async def acquire(self, n: float) -> None:
        for _ in range(int(n)):
            await self.sleep(self.interval)


def test_checking_sleeping_and_subtracting_grants_a_hundred_in_a_tenth_of_a_second() -> None:
    world = TaskWorld().make(10, 10)
    naive = world.bucket = Naive(10, 10)
    naive.clock, naive.sleep = world.clock, world.sleep
    for _ in range(100):
        world.acquire()
    world.advance(0.1)
    assert len(world.granted()) == 100
    assert naive.tokens == pytest.approx(-89)
    assert most_in_any_interval(world.granted(), rate=10) == pytest.approx(99)
    world.close()


def test_aiolimiter_lets_five_later_calls_overtake_a_call_for_eight_and_this_none() -> None:
    async def order(limiter: aiolimiter.AsyncLimiter | AsyncTokenBucket) -> list[float]:
        done = []

        async def call(n: float) -> None:
            await limiter.acquire(n)
            done.append(n)

        await limiter.acquire(10)
        await asyncio.gather(*(call(n) for n in (8, 1, 1, 1, 1, 1)))
        return done

    async def theirs() -> list[float]:
        return await order(aiolimiter.AsyncLimiter(10, 1))

    async def ours() -> list[float]:
        return await order(AsyncTokenBucket(10, 10, clock=asyncio.get_running_loop().time))

    assert fake_loop.run(theirs()) == [1, 1, 1, 1, 1, 8]
    assert fake_loop.run(ours()) == [8, 1, 1, 1, 1, 1]


def test_two_threads_take_the_same_token_from_a_naive_bucket_and_here_one_of_sixteen() -> None:
    naive = Naive(1, 1)
    naive.between = threading.Barrier(2).wait
    assert at_once(2, naive.try_acquire) == [True, True]
    assert naive.tokens == pytest.approx(-1, abs=0.1)

    inside, most = 0, 0

    def clock() -> float:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.0005)
        inside -= 1
        return 0.0

    bucket = TokenBucket(1, 1, clock=clock)
    assert sum(at_once(16, bucket.try_acquire)) == 1
    assert most == 1


@pytest.mark.parametrize(("capacity", "seconds"), [(2, 0.981), (1, 1.089)])
def test_waking_up_late_costs_no_throughput_and_a_sleep_per_interval_loses_it(
    make: Callable[[float, float], World], capacity: int, seconds: float
) -> None:
    naive, world = TaskWorld().make(1, 1), make(100, capacity)
    naive.bucket = Paced(100, naive.sleep)
    naive.late = world.late = 0.001
    naive.acquire(100)
    for _ in range(100):
        world.acquire()
    naive.advance(2)
    world.advance(2)
    assert naive.granted()[-1][0] - 1000 == pytest.approx(1.1)
    assert world.granted()[-1][0] - 1000 == pytest.approx(seconds)
    naive.close()


# -- event loops


def test_a_bucket_serves_one_event_loop_after_another() -> None:
    bucket = AsyncTokenBucket(200, 1)

    async def three() -> None:
        await asyncio.gather(*(bucket.acquire() for _ in range(3)))

    for _ in range(3):
        asyncio.run(three())
    assert bucket.available() < 1


def test_tasks_left_in_a_closed_loop_hold_nobody_up_where_aiolimiter_only_warns() -> None:
    def abandon(acquire: Callable[[], Awaitable[None]]) -> list[asyncio.Task[None]]:
        async def use() -> None:
            await acquire()

        async def leave_two_behind() -> list[asyncio.Task[None]]:
            await acquire()
            left = [asyncio.create_task(use()) for _ in range(2)]
            await asyncio.sleep(0)
            return left

        loop = asyncio.new_event_loop()
        left = loop.run_until_complete(leave_two_behind())
        loop.close()
        return left

    def forget(tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            cast("Any", task)._log_destroy_pending = False

    limiter = aiolimiter.AsyncLimiter(1, 0.02)
    left = abandon(limiter.acquire)
    with pytest.warns(RuntimeWarning, match="can lead to undefined behaviour"):
        asyncio.run(limiter.acquire())
    forget(left)

    now = 0.0
    bucket = AsyncTokenBucket(10, 1, clock=lambda: now)
    left = abandon(bucket.acquire)
    reserved = bucket.reserve()
    assert reserved.wait == pytest.approx(0.1)  # the third of the line, and the two before it are gone
    now = 0.1
    assert bucket.available() == 0
    now = 0.2
    asyncio.run(asyncio.wait_for(bucket.acquire(), 5))
    assert bucket.available() == 0
    forget(left)


def test_a_second_event_loop_that_would_hang_behind_the_first_is_told() -> None:
    bucket = AsyncTokenBucket(0.001, 1)
    loop = asyncio.new_event_loop()
    task = loop.create_task(bucket.acquire())
    waiting = loop.create_task(bucket.acquire())
    loop.run_until_complete(asyncio.sleep(0))
    assert task.done()
    with pytest.raises(RuntimeError, match="make a bucket for each loop"):
        asyncio.run(bucket.acquire())
    waiting.cancel()
    loop.run_until_complete(asyncio.gather(waiting, return_exceptions=True))
    loop.close()
    with pytest.raises(TimeoutError):
        asyncio.run(bucket.acquire(timeout=1))


# -- processes and signals


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_stand_in_the_line_of_its_parents_threads() -> None:
    world = ThreadWorld().make(1, 2)
    world.drain(2)
    world.acquire(2)
    held, release = threading.Event(), threading.Event()

    def hold() -> float:
        held.set()
        release.wait(30)
        return world.now

    world.bucket._line._clock = hold
    holder = threading.Thread(target=world.bucket.available)  # has the lock while the process forks
    holder.start()
    held.wait(30)
    world.now += 1
    child = os.fork()
    if child == 0:  # pragma: no cover
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        world.bucket._line._clock = world.clock
        os._exit(42 if world.bucket.available() == 1 and world.bucket.try_acquire() else 1)
    release.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    world.bucket._line._clock = world.clock
    assert [job.waits for job in world.jobs] == [True]
    token_bucket_sync._after_fork()  # what ran in the child, seen by whoever measures coverage
    assert world.bucket.try_acquire()
    world.close()


def test_a_signal_handler_may_use_the_bucket_whose_lock_its_thread_holds() -> None:
    happened = ["made"]

    def clock() -> float:
        if not happened:
            happened.append("signal")
            signal.raise_signal(signal.SIGINT)
        return 0.0

    def handler(*_: object) -> None:
        happened.append(f"taken: {bucket.try_acquire()}")

    bucket = TokenBucket(1, 5, clock=clock)
    happened.clear()
    before = signal.signal(signal.SIGINT, handler)
    try:
        assert bucket.try_acquire()
    finally:
        signal.signal(signal.SIGINT, before)
    assert happened == ["signal", "taken: True"]


# -- real time


class Arrivals:
    """An API that notes when each request arrives."""

    def __init__(self) -> None:
        self.at: list[float] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        self.at.append(time.monotonic())
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})


def test_a_real_server_sees_sixteen_threads_and_then_as_many_tasks_keep_to_the_rate() -> None:
    api = Arrivals()
    server = Uvicorn(api, lifespan="off")
    bucket, abucket = TokenBucket(200, 10), AsyncTokenBucket(200, 10)

    def by_thread(_: int) -> None:
        for _ in range(3):
            bucket.acquire()
            urllib.request.urlopen(server.url).close()

    def by_threads() -> None:
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(by_thread, range(16)))

    async def by_tasks() -> None:
        async def call() -> None:
            for _ in range(3):
                await abucket.acquire()
                await client.get(server.url)

        async with httpx2.AsyncClient() as client:
            await asyncio.gather(*(call() for _ in range(16)))

    try:
        for run in (by_threads, lambda: asyncio.run(by_tasks())):
            api.at.clear()
            begin = time.monotonic()
            run()
            assert len(api.at) == 48
            assert max(api.at) - begin >= (48 - 10) / 200  # no request arrives before it is granted
    finally:
        server.stop()


@on_fake_time
async def test_a_thousand_tasks_take_as_long_as_the_rate_says() -> None:
    clock = asyncio.get_running_loop().time
    bucket = AsyncTokenBucket(5000, 10, clock=clock)
    await asyncio.gather(*(bucket.acquire() for _ in range(1000)))
    assert clock() == pytest.approx(990 / 5000, abs=1e-4)


def test_a_thousand_tasks_of_which_some_give_up_leave_an_empty_line_within_the_limit() -> None:
    chance = random.Random(7)
    world = TaskWorld().make(50, 20)
    for _ in range(1000):
        world.acquire(chance.choice([0.1, 0.7, 1, 7, 20]))
        if chance.random() < 0.4:
            world.cancel(chance.choice([job for job in world.jobs if job.waits] or world.jobs))
        world.jump(chance.choice([0, 0, 0.001, 0.01, 0.1]))  # some of it late
    world.advance(1000)
    assert all(job.at or isinstance(job.error, asyncio.CancelledError) for job in world.jobs)
    assert sum(job.error is not None for job in world.jobs) > 200
    assert most_in_any_interval(world.granted(), rate=50) <= 20 + 1e-6
    assert world.bucket.available() == 20
    assert (len(world.bucket._line._places), world.bucket._line._queued) == (0, 0.0)
    world.close()


# -- any sequence of calls, cancels and time, against a model


class Model:
    """The bucket as one would explain it: exact, because all its numbers are sums of powers of two."""

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self.rate, self.capacity, self.tokens, self.now = rate, capacity, capacity, now
        self.line: list[tuple[object, float, bool]] = []  # who, how many, whether it sleeps there
        self.grants: dict[object, tuple[float, float]] = {}
        self.due: dict[object, float] = {}  # earlier than the grant, if nobody was awake

    def take(self, who: object, n: float, sleeps: bool) -> None:
        self.line.append((who, n, sleeps))
        self._grant()

    def wait(self, who: object) -> float:
        names = [name for name, _, _ in self.line]
        return (self.ahead(names.index(who) + 1) - self.tokens) / self.rate if who in names else 0.0

    def ahead(self, places: int | None = None) -> float:
        return sum(n for _, n, _ in self.line[:places])

    def leave(self, who: object) -> None:
        if who in self.grants:
            back = self.grants.pop(who)[1] - (self.now - self.due[who]) * self.rate
            self.tokens = min(self.capacity, self.tokens + max(0, back))
        self.line = [place for place in self.line if place[0] is not who]
        self.advance(0, late=False)

    def advance(self, seconds: float, late: bool) -> None:
        end = self.now + seconds
        while self.line and not (late and self.line[0][2]):
            missing = max(0, self.line[0][1] - self.tokens)
            if self.now + missing / self.rate > end:
                break
            self.tokens += missing
            self.now += missing / self.rate
            self._grant()
        before, self.now = self.now, end
        self.tokens = min(self.capacity, self.tokens + (end - before) * self.rate)
        self._grant(before)

    def _grant(self, before: float = math.inf) -> None:
        while self.line and self.tokens >= self.line[0][1]:
            who, n, _ = self.line.pop(0)
            self.tokens -= n
            self.grants[who] = (self.now, n)
            self.due[who] = max(min(before, self.now), self.now - self.tokens / self.rate)


class Machine(RuleBasedStateMachine):
    world_type: type[ThreadWorld | TaskWorld] = TaskWorld

    @initialize(rate=st.sampled_from([0.5, 1, 2, 4]), capacity=st.sampled_from([1, 2, 3, 8]))
    def begin(self, rate: float, capacity: float) -> None:
        self.world = self.world_type().make(rate, capacity)
        self.model = Model(rate, capacity, self.world.now)
        self.reservations: list[Reservation] = []

    def part(self, share: int) -> float:
        return max(0.5, math.floor(self.model.capacity * share / 4) / 2)

    @rule(share=st.integers(0, 8))
    def somebody_tries(self, share: int) -> None:
        n = self.part(share)
        possible = not self.model.line and self.model.tokens >= n
        assert self.world.bucket.try_acquire(n) == possible
        if possible:
            self.model.take(object(), n, True)

    @rule(share=st.integers(0, 8), timeout=st.none() | st.integers(0, 8).map(float))
    def somebody_waits(self, share: int, timeout: float | None) -> None:
        n = self.part(share)
        wait = (self.model.ahead() + n - self.model.tokens) / self.model.rate
        job = self.world.acquire(n, timeout)
        if timeout is not None and wait > timeout:
            assert isinstance(job.error, TimeoutError)
            assert cast("RateLimitTimeout", job.error).wait == wait
        else:
            self.model.take(job, n, True)

    @rule(share=st.integers(0, 8))
    def somebody_reserves(self, share: int) -> None:
        n = self.part(share)
        reservation = self.world.bucket.reserve(n)
        self.reservations.append(reservation)
        self.model.take(reservation, n, False)

    @precondition(lambda self: self.reservations)
    @rule(data=st.data())
    def a_reservation_is_cancelled(self, data: st.DataObject) -> None:
        reservation = data.draw(st.sampled_from(self.reservations))
        reservation.cancel()
        self.world._idle()
        self.model.leave(reservation)

    @precondition(lambda self: any(job.waits for job in self.world.jobs))
    @rule(data=st.data())
    def a_waiter_gives_up(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from([job for job in self.world.jobs if job.waits]))
        self.world.cancel(job)
        self.model.leave(job)

    @rule(eighths=st.integers(0, 24))
    def time_passes(self, eighths: int) -> None:
        self.world.advance(eighths / 8)
        self.model.advance(eighths / 8, late=False)

    @rule(eighths=st.integers(0, 80))
    def the_machine_stalls(self, eighths: int) -> None:
        self.world.jump(eighths / 8)
        self.model.advance(eighths / 8, late=True)

    @rule()
    def somebody_looks(self) -> None:
        assert self.world.bucket.available() == max(0, self.model.tokens - self.model.ahead())
        assert [each.wait for each in self.reservations] == [self.model.wait(each) for each in self.reservations]

    @invariant()
    def the_same_calls_were_granted_at_the_same_instants(self) -> None:
        if hasattr(self, "world"):
            for job in self.world.jobs:
                assert self.model.grants.get(job, (None,))[0] == job.at

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.time_passes(8 * 10_000)
            self.somebody_looks()
            self.the_same_calls_were_granted_at_the_same_instants()
            assert not self.world.bucket._line._places
            most = most_in_any_interval(list(self.model.grants.values()), self.model.rate)
            assert most <= self.model.capacity
        finally:
            self.world.close()


@pytest.mark.parametrize("world_type", [ThreadWorld, TaskWorld], ids=["threads", "tasks"])
def test_any_sequence_of_calls_cancels_and_stalls_is_granted_as_a_model_predicts(
    world_type: type[ThreadWorld | TaskWorld],
) -> None:
    machine = type("Machine", (Machine,), {"world_type": world_type})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples(40), stateful_step_count=25, deadline=None)
    )


# -- the plots


def test_the_plots_show_what_the_module_does() -> None:
    good, bad = grants_of_a_hundred(naive=False), grants_of_a_hundred(naive=True)
    assert [at for at, _ in good] == pytest.approx([0.0] * 10 + [n / 10 for n in range(1, 91)])
    assert [at for at, _ in bad] == pytest.approx([0.0] * 10 + [0.1] * 90)
    tokens, granted = a_few_seconds()
    assert (tokens[0], tokens[1], max(level for _, level in tokens)) == ((0, 10), (0, 0), 10)
    assert dict(tokens)[2.5] == pytest.approx(4)
    assert len(granted) == 20 + 6 + 25
    assert most_in_any_interval([(at, 1) for at in granted], rate=10) == pytest.approx(10)
