"""A queue of webhooks in Redis: a stream of jobs, a set of delayed ones, a stream of dead ones.

It takes any object with the attributes of `Delivery`, such as a receiver's own. Each step that
moves a job is one script, so that it is in one place, whatever dies.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from redis import RedisError, ResponseError
from redis.asyncio import BlockingConnectionPool, Redis

from webhook_scripts import ENQUEUE, REQUEUE, SETTLE, TAKE


def connect(url: str, *, timeout: float = 5.0, max_connections: int = 50) -> Redis:
    """Return a client for a queue: without retries of its own, waiting `timeout` seconds at most.

    Longer than the `poll` of a worker, which is how long Redis may keep it waiting. Raises
    `ValueError` for a number that is not above 0.
    """
    _check_seconds(timeout=timeout)
    _check_counts(max_connections=max_connections)
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=timeout,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=None,
    )
    return Redis.from_pool(pool)


class QueueUnavailable(Exception):
    """Redis is away, slow or full: what was asked may not have happened."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event as it arrived. (`source`, `id`) names it; `timestamp` is seconds since 1970."""

    source: str
    id: str
    timestamp: int
    type: str
    body: bytes = field(repr=False)


class _Arrived(Protocol):
    @property
    def source(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def type(self) -> str: ...
    @property
    def body(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Job:
    """A delivery in a worker's hands, at its `attempt`-th attempt (1 is the first).

    `times`: how often it was handed out since it was last settled.
    """

    entry_id: str
    delivery: Delivery
    attempt: int
    times: int = 1

    @property
    def lost(self) -> bool:
        """Whether another worker had it before, and did not settle it."""
        return self.times > 1


@dataclass(frozen=True, slots=True)
class Dead:
    """A delivery that was given up after `attempts`, for the reason `error`."""

    entry_id: str
    delivery: Delivery
    attempts: int
    error: str
    enqueued: datetime
    died: datetime


@dataclass(frozen=True, slots=True)
class Stats:
    """How many jobs wait, are in a worker's hands, wait for their next attempt, or are dead."""

    waiting: int
    running: int
    delayed: int
    dead: int


class WebhookQueue:
    """At least once, in no promised order.

    Args:
        redis: An asyncio client that returns bytes. Let it persist (`appendonly yes`).
        name: Of the queue: letters, digits and `_.-`.
        group: The consumer group of its workers.
        visibility: After how many seconds a job counts as lost with its worker.
        max_attempts: How often a job is tried before it is dead; a lost run counts.
        base: Attempt n+1 waits between 0 and `base` * 2^(n-1) seconds...
        cap: ...but not longer than this.
        dedupe_ttl: How many seconds an event is remembered.
        max_jobs: How many jobs may wait; beyond, `enqueue` raises.
        max_body: The largest body, in bytes.
        max_dead: How many dead jobs are kept; the oldest go first.
        timeout: How many seconds a call may wait for Redis.
        uniform: Draws the jitter.

    Raises:
        ValueError: The client decodes, or the name or a number is of another form.
    """

    def __init__(
        self,
        redis: Redis,
        name: str,
        *,
        group: str = "workers",
        visibility: float = 60,
        max_attempts: int = 5,
        base: float = 1.0,
        cap: float = 300.0,
        dedupe_ttl: float = 86_400,
        max_jobs: int = 100_000,
        max_body: int = 1_048_576,
        max_dead: int = 10_000,
        timeout: float = 2.0,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        if redis.connection_pool.connection_kwargs.get("decode_responses"):
            raise ValueError("the client must return bytes: no decode_responses")
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", name):
            raise ValueError("name must be 1 to 100 letters, digits and _.-")
        _check_seconds(visibility=visibility, dedupe_ttl=dedupe_ttl, timeout=timeout)
        for what, seconds in (("base", base), ("cap", cap)):
            if not (_is_number(seconds) and seconds >= 0):
                raise ValueError(f"{what} must be a number of seconds, 0 or more, got {seconds!r}")
        _check_counts(max_attempts=max_attempts, max_jobs=max_jobs)
        _check_counts(max_body=max_body, max_dead=max_dead)
        self.visibility = visibility
        self.max_attempts = max_attempts
        self._redis = redis
        self._group = group
        self._timeout = timeout
        self._uniform = uniform
        self._base = base
        self._cap = cap
        self._dedupe_ttl = dedupe_ttl
        self._max_jobs = max_jobs
        self._max_body = max_body
        self._max_dead = max_dead
        self._cursor = b"0-0"
        # In braces, so that a cluster keeps all keys of a queue on one node.
        self._seen = f"{{{name}}}:seen:"
        self._jobs = f"{{{name}}}:jobs"
        self._delayed = f"{{{name}}}:delayed"
        self._dead = f"{{{name}}}:dead"
        self._enqueue = redis.register_script(ENQUEUE)
        self._take = redis.register_script(TAKE)
        self._settle = redis.register_script(SETTLE)
        self._requeue = redis.register_script(REQUEUE)

    async def enqueue(self, delivery: _Arrived) -> bool:
        """Store a *verified* delivery. False: it is known. Answer 202 (or 200) only afterwards.

        Raises:
            QueueUnavailable: Redis did not confirm, or too many jobs wait: answer 503.
            ValueError: The body is larger than `max_body`.
        """
        d = delivery
        if len(d.body) > self._max_body:
            raise ValueError(f"the body has more than {self._max_body} bytes")
        keys = [f"{self._seen}{len(d.source)}:{d.source}:{d.id}", self._jobs, self._delayed]
        ttl = max(1, round(self._dedupe_ttl * 1000))
        args: list[Any] = [ttl, self._max_jobs, d.source, d.id, d.timestamp, d.type, d.body]
        answer = await self._ask_redis(self._enqueue(keys, args))
        if answer < 0:
            raise QueueUnavailable(f"{self._max_jobs} jobs wait already")
        return bool(answer)

    async def stats(self) -> Stats:
        """Count the jobs: an alert on `dead`, and on a `waiting` that grows."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.xlen(self._jobs)
        pipe.zcard(self._delayed)
        pipe.xlen(self._dead)
        pipe.xpending(self._jobs, self._group)
        jobs, delayed, dead, pending = await self._ask_redis(pipe.execute(raise_on_error=False))
        running = 0 if isinstance(pending, ResponseError) else pending["pending"]  # no worker yet
        return Stats(jobs - running, running, delayed, dead)

    async def dead(self, count: int = 100) -> list[Dead]:
        """Return the latest of the dead jobs, newest first."""
        found = await self._ask_redis(self._redis.xrevrange(self._dead, count=count))
        return [
            Dead(
                entry_id=entry.decode(),
                delivery=_delivery_of(job),
                attempts=int(job[b"attempts"]),
                error=job[b"error"].decode(),
                enqueued=_time_of(job[b"enqueued"]),
                died=_time_of(entry.split(b"-")[0]),
            )
            for entry, job in found
        ]

    async def requeue_dead(self, entry_id: str) -> bool:
        """Give a dead job all its attempts again, under the same id. False: there is none."""
        return bool(await self._ask_redis(self._requeue([self._jobs, self._dead], [entry_id])))

    async def take(self, want: int, *, block: float = 0, lost: bool = True) -> list[Job]:
        """Take up to `want` jobs; with none there, wait up to `block` seconds. For workers.

        At most one of them is a lost one, and none unless `lost`.
        """
        args: list[Any] = [self._group, want, round(self.visibility * 1000), self._cursor]
        args.append(int(lost))
        self._cursor, found = await self._ask_redis(self._take([self._jobs, self._delayed], args))
        if not found and block > 0:
            milliseconds = max(1, round(block * 1000))
            reading = self._redis.xreadgroup(
                self._group, "workers", {self._jobs: ">"}, count=want, block=milliseconds
            )
            reply: Any = await self._ask_redis(reading, block)
            pages = (
                [x[0] for x in reply.values()]
                if isinstance(reply, dict)
                else [x[1] for x in reply or ()]
            )
            found = [(entry, job, 1) for page in pages for entry, job in page]
        return [_job_of(*entry) for entry in found]

    async def done(self, job: Job) -> bool:
        """Forget a job that succeeded. False: another worker has it meanwhile."""
        return await self._settle_job(job, "done")

    async def retry(self, job: Job, after: float = 0) -> bool:
        """Have a job tried again, after `after` seconds and some more; see `base` and `cap`."""
        ceiling = min(self._cap, self._base * 2 ** min(job.attempt - 1, 60))
        return await self._settle_job(
            job, "retry", round((after + self._uniform(0, ceiling)) * 1000)
        )

    async def bury(self, job: Job, error: str) -> bool:
        """Move a job to the dead ones."""
        return await self._settle_job(job, "dead", error=error[:500])

    async def _settle_job(self, job: Job, where: str, delay: int = 0, error: str = "") -> bool:
        args: list[Any] = [
            self._group,
            job.entry_id,
            where,
            job.attempt,
            delay,
            error,
            self._max_dead,
            job.times,
        ]
        return bool(
            await self._ask_redis(self._settle([self._jobs, self._delayed, self._dead], args))
        )

    async def _ask_redis(self, answer: Any, patience: float = 0) -> Any:
        try:
            async with asyncio.timeout(self._timeout + patience):
                return await answer
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            raise QueueUnavailable(f"Redis did not confirm ({type(error).__name__})") from error


def _delivery_of(job: dict[bytes, bytes]) -> Delivery:
    text = {name: job[name].decode() for name in (b"source", b"id", b"type")}
    return Delivery(
        text[b"source"], text[b"id"], int(job[b"timestamp"]), text[b"type"], job[b"body"]
    )


def _job_of(entry: bytes, values: Any, times: int) -> Job:
    job = values if isinstance(values, dict) else dict(zip(values[::2], values[1::2], strict=True))
    return Job(entry.decode(), _delivery_of(job), int(job[b"attempts"]) + times, times)


def _time_of(milliseconds: bytes) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def _check_seconds(**given: float) -> None:
    for name, seconds in given.items():
        if not (_is_number(seconds) and seconds > 0):
            raise ValueError(f"{name} must be a number of seconds over 0, got {seconds!r}")


def _check_counts(**given: int) -> None:
    for name, count in given.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} must be a whole number over 0, got {count!r}")


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
