"""What the proofs of the token bucket share: a world in which time passes when told, for threads and for tasks."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, cast

import pytest

from harness.clock import Clock
from token_bucket_async import AsyncTokenBucket
from token_bucket_sync import TokenBucket


class Job:
    """A thread or task that calls `acquire`."""

    def __init__(self, n: float) -> None:
        self.n = n
        self.at: float | None = None  # when its call returned
        self.error: BaseException | None = None
        self.event: Any = None
        self.until = math.inf
        self.asleep = False
        self.interrupted = False
        self.stop: Callable[[], object] = lambda: None

    @property
    def waits(self) -> bool:
        return self.at is None and self.error is None


class World:
    """Makes a bucket whose time it holds, and callers of it; returns when nobody can move until time passes."""

    bucket: Any

    def __init__(self, start: float = 1000.0) -> None:
        self.clock = Clock(start)
        self.late = 0.0  # how long after its time everybody wakes up
        self.jobs: list[Job] = []

    @property
    def now(self) -> float:
        return self.clock.now

    @now.setter
    def now(self, now: float) -> None:
        self.clock.now = now

    def acquire(self, n: float = 1, timeout: float | None = None) -> Job:
        job = Job(n)
        self.jobs.append(job)
        self._start(job, {} if timeout is None else {"timeout": timeout})
        self._idle()
        return job

    def cancel(self, job: Job) -> None:
        job.stop()
        self._idle()

    def advance(self, seconds: float) -> None:
        """Let time pass, and wake everybody to the instant."""
        end = self.now + seconds
        while (due := self.late + min((job.until for job in self.jobs if job.asleep), default=math.inf)) <= end:
            self.jump(due - self.now)
        self.now = end

    def jump(self, seconds: float) -> None:
        """Let time pass at once, as for a process that was stopped."""
        self.now += seconds
        for job in self.jobs:
            if job.asleep and job.until <= self.now:
                job.event.set()
        self._idle()

    def drain(self, n: float) -> None:
        assert self.bucket.try_acquire(n)

    def granted(self) -> list[tuple[float, float]]:
        return sorted((job.at, job.n) for job in self.jobs if job.at is not None)

    def close(self) -> None:
        for job in self.jobs:
            if job.waits:
                self.cancel(job)

    def _idle(self) -> None:
        while any(job.waits and not (job.asleep and not job.event.is_set()) for job in self.jobs):
            self._step()

    def _start(self, job: Job, timeout: dict[str, float]) -> None: ...
    def _step(self) -> None: ...


class Interrupted(BaseException):
    """As KeyboardInterrupt comes, from outside and in the middle of a wait."""


class ThreadWorld(World):
    def make(self, rate: float, capacity: float) -> ThreadWorld:
        self.bucket = TokenBucket(rate, capacity, clock=self.clock, wait=self._wait)
        self._job = threading.local()
        return self

    def _start(self, job: Job, timeout: dict[str, float]) -> None:
        def run() -> None:
            self._job.own = job
            try:
                self.bucket.acquire(job.n, **timeout)
                job.at = self.now
            except BaseException as error:
                job.error = error

        def stop() -> None:
            job.interrupted = True
            job.event.set()

        job.stop = stop
        threading.Thread(target=run, daemon=True).start()

    def _wait(self, event: threading.Event, seconds: float | None) -> None:
        job = self._job.own
        job.event, job.until = event, math.inf if seconds is None else self.now + seconds
        job.asleep = True
        assert event.wait(30)
        job.asleep = False
        if job.interrupted:
            raise Interrupted

    def _step(self) -> None:
        time.sleep(0.00002)


class TaskWorld(World):
    def make(self, rate: float, capacity: float) -> TaskWorld:
        self.bucket = AsyncTokenBucket(rate, capacity, clock=self.clock, wait=self._wait)
        self.loop = asyncio.new_event_loop()
        self._tasks: dict[asyncio.Task[None], Job] = {}
        return self

    def _start(self, job: Job, timeout: dict[str, float]) -> None:
        async def run() -> None:
            try:
                await self.bucket.acquire(job.n, **timeout)
                job.at = self.now
            except BaseException as error:
                job.error = error

        task = self.loop.create_task(run())
        self._tasks[task] = job

        def stop() -> None:
            task.cancel()
            job.asleep = False

        job.stop = stop

    async def sleep(self, seconds: float) -> None:
        await self._wait(asyncio.Event(), seconds)

    async def _wait(self, event: asyncio.Event, seconds: float | None) -> None:
        job = self._tasks[cast("asyncio.Task[None]", asyncio.current_task())]
        job.event, job.until = event, math.inf if seconds is None else self.now + seconds
        job.asleep = True
        await event.wait()
        job.asleep = False

    def _step(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))

    def close(self) -> None:
        super().close()
        self._step()
        self.loop.close()


@pytest.fixture(params=[ThreadWorld, TaskWorld], ids=["threads", "tasks"])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[[float, float], World]]:
    """Make worlds of one color with a bucket; they are closed afterwards."""
    made: list[World] = []

    def make(rate: float, capacity: float) -> World:
        made.append(request.param().make(rate, capacity))
        return made[-1]

    yield make
    for world in made:
        world.close()


def most_in_any_interval(grants: Sequence[tuple[float, float]], rate: float) -> float:
    """Return the least capacity that the grants (instant, n) keep to: their most in any interval, less rate * T."""
    least, most, taken = math.inf, 0.0, 0.0
    for at, n in sorted(grants):
        least = min(least, taken - rate * at)
        taken += n
        most = max(most, taken - rate * at - least)
    return most


class Naive:
    """Refills from `time.time`, and has no lock: `between` runs where another thread could."""

    def __init__(self, rate: float, capacity: float) -> None:
        self.rate, self.capacity, self.tokens = rate, capacity, capacity
        self.clock: Callable[[], float] = time.time
        self.stamp: float | None = None
        self.between: Callable[[], object] = lambda: None
        self.sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    def refill(self) -> None:
        now = self.clock()
        self.tokens = min(self.capacity, self.tokens + (now - (now if self.stamp is None else self.stamp)) * self.rate)
        self.stamp = now

    def try_acquire(self, n: float = 1) -> bool:
        self.refill()
        if self.tokens < n:
            return False
        self.between()
        self.tokens -= n
        return True

    async def acquire(self, n: float = 1) -> None:
        """Check, sleep, subtract."""
        self.refill()
        if self.tokens < n:
            await self.sleep((n - self.tokens) / self.rate)
            self.refill()
        self.tokens -= n


# -- what the page's plots are drawn from


def grants_of_a_hundred(naive: bool) -> list[tuple[float, float]]:
    """Return when (s) each of 100 calls that come at once goes through a bucket of 10 at 10 a second."""
    world = TaskWorld(0.0).make(10, 10)
    if naive:
        limiter = world.bucket = Naive(10, 10)
        limiter.clock, limiter.sleep = world.clock, world.sleep
    for _ in range(100):
        world.acquire()
    world.advance(20)
    world.close()
    return world.granted()


def a_few_seconds() -> tuple[list[tuple[float, float]], list[float]]:
    """Return the tokens of a bucket of 10 at 10 a second every 10 ms (instant, tokens), and when calls went through.

    20 calls come at 0 s, 6 at 2.5 s, and one every 40 ms from 3 to 4 s.
    """
    world = TaskWorld(0.0).make(10, 10)
    calls = {0: 20, 250: 6} | dict.fromkeys(range(300, 400, 4), 1)
    tokens = []
    for tick in range(501):
        tokens.append((tick / 100, world.bucket.available()))
        for _ in range(calls.get(tick, 0)):
            world.acquire()
        if tick in calls:
            tokens.append((tick / 100, world.bucket.available()))
        world.advance(tick / 100 + 0.01 - world.now)
    world.close()
    return tokens, [at for at, _ in world.granted()]
