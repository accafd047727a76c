"""Proves docs/patterns/webhooks/webhook-queue.md: what was accepted is done, or is found among the dead."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import logging
import math
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.asyncio import Redis

from servers.faults import FaultProxy
from servers.valkey import Valkey
from webhook_queue import Dead, Delivery, Job, QueueUnavailable, Stats, WebhookQueue, connect
from webhook_worker import Drop, Handler, Retry, Worker, name_of

BODY = b'{"secret": "canary-body\xff"}'
IDLE = Stats(waiting=0, running=0, delayed=0, dead=0)


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def protocol(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(valkey_url) as made:
        yield made


def queue_of(client: Redis, **options: Any) -> WebhookQueue:
    return WebhookQueue(client, "shop", **{"uniform": lambda low, high: low, **options})


@pytest.fixture
def queue(client: Redis) -> WebhookQueue:
    return queue_of(client)


def event(number: object = 1, kind: str = "paid", *, source: str = "bank", body: bytes = BODY) -> Delivery:
    return Delivery(source, f"evt_{number}", 1_800_000_000, kind, body)


async def run(
    queue: WebhookQueue, handler: Handler, *, until: Callable[[], Awaitable[bool]] | None = None, **options: Any
) -> None:
    """Run a worker until nothing is left to do, or something else is true."""
    stop = asyncio.Event()
    worker = Worker(queue, options.pop("handlers", {"*": handler}), **{"poll": 0.005, **options})
    running = asyncio.create_task(worker.run(stop))

    async def idle() -> bool:
        stats = await queue.stats()
        return stats.waiting == stats.running == stats.delayed == 0

    async with asyncio.timeout(10):
        while not await (until or idle)():
            await asyncio.sleep(0.002)
    stop.set()
    await running


async def ok(delivery: Delivery) -> None: ...


async def lose(client: Redis, jobs: list[Job], seconds: int = 61) -> None:
    """Let as many seconds pass for these jobs as their worker would have been dead."""
    ids: Any = [job.entry_id for job in jobs]
    await client.xclaim("{shop}:jobs", "workers", "workers", 0, ids, idle=seconds * 1000, justid=True)


# Accepting.


async def test_an_event_comes_out_as_it_went_in(client: Redis, valkey_url: str, protocol: int) -> None:
    async with Redis.from_url(valkey_url, protocol=protocol) as other:
        queue = queue_of(other)
        given = SimpleNamespace(source="bank", id="évt_1", timestamp=7, type="paid", body=BODY)  # a receiver's own
        assert await queue.enqueue(given) is True
        [job] = await queue.take(5)
        assert job == Job(job.entry_id, Delivery("bank", "évt_1", 7, "paid", BODY), 1)
        assert "canary" not in repr(job)
        waiting = asyncio.create_task(queue.take(5, block=1))
        await asyncio.sleep(0.02)
        await queue.enqueue(event(2))
        [job] = await waiting
        assert (job.delivery, job.attempt) == (event(2), 1)
        assert await queue.take(5, block=0.01) == []
        assert await queue.stats() == Stats(0, 2, 0, 0)


async def test_twenty_posts_of_one_event_at_once_are_one_job_and_the_mark_lasts_a_day(
    client: Redis, queue: WebhookQueue
) -> None:
    fresh = await asyncio.gather(*(queue.enqueue(event()) for _ in range(20)))
    assert Counter(fresh) == {True: 1, False: 19}
    assert await queue.stats() == Stats(1, 0, 0, 0)
    [mark] = await client.keys("*seen*")
    assert 86_390_000 < await client.pttl(mark) <= 86_400_000
    await run(queue, ok)
    assert await queue.enqueue(event()) is False  # done, and still known


async def test_equal_ids_of_two_sources_are_two_jobs_however_they_are_joined(queue: WebhookQueue) -> None:
    for source, number in (("bank", "1"), ("shop", "1"), ("bank:evt_", "1")):
        assert await queue.enqueue(event(number, source=source)) is True
    twins = [Delivery("a:b", "c", 0, "", b""), Delivery("a", "b:c", 0, "", b"")]
    assert [await queue.enqueue(twin) for twin in twins] == [True, True]


async def test_a_mark_ends_after_its_time(client: Redis) -> None:
    queue = queue_of(client, dedupe_ttl=0.02)
    assert [await queue.enqueue(event()) for _ in range(2)] == [True, False]
    await asyncio.sleep(0.03)
    assert await queue.enqueue(event()) is True
    assert await queue_of(client, dedupe_ttl=0.0001).enqueue(event(2)) is True


async def test_a_full_queue_and_a_large_body_are_refused_before_anything_is_kept(client: Redis) -> None:
    queue = queue_of(client, max_jobs=2, max_body=10)
    small = [event(n, body=b"x" * 10) for n in range(3)]
    with pytest.raises(ValueError, match=r"^the body has more than 10 bytes$"):
        await queue.enqueue(event(body=b"x" * 11))
    assert await queue.enqueue(small[0])
    [job] = await queue.take(1)
    await queue.retry(job, 60)  # a delayed job counts
    assert await queue.enqueue(small[1])
    with pytest.raises(QueueUnavailable, match=r"^2 jobs wait already$"):
        await queue.enqueue(small[2])
    await queue.done((await queue.take(1))[0])
    assert await queue.enqueue(small[2]) is True  # no mark was left behind by the refusal


async def test_redis_that_is_away_or_silent_is_queue_unavailable_and_holds_nobody(
    valkey_url: str, fault_proxy: type[FaultProxy]
) -> None:
    proxy = fault_proxy("127.0.0.1", int(valkey_url.rsplit(":", 1)[1].split("/")[0]))
    async with Redis.from_url(f"redis://127.0.0.1:{proxy.port}/{valkey_url.rsplit('/', 1)[1]}", retry=None) as client:
        queue = queue_of(client, timeout=0.05)
        proxy.blackhole = True
        async with asyncio.timeout(60):  # without the limit it would wait forever
            with pytest.raises(QueueUnavailable, match=r"^Redis did not confirm \(TimeoutError\)$"):
                await queue.enqueue(event())
        queue = queue_of(client, timeout=5)
        proxy.blackhole, proxy.refuse = False, True
        proxy.reset_all()
        for call in (queue.enqueue(event()), queue.stats(), queue.dead(), queue.take(1), queue.requeue_dead("1-1")):
            with pytest.raises(QueueUnavailable, match=r"^Redis did not confirm \("):
                await call
        proxy.heal()
        await queue.enqueue(event())


async def test_a_client_that_is_made_for_a_queue_is_bounded_and_does_not_retry(valkey_url: str) -> None:
    async with connect(valkey_url, timeout=0.1, max_connections=1) as made:
        pool: Any = made.connection_pool
        options = pool.connection_kwargs
        assert (options["socket_timeout"], options["socket_connect_timeout"], options["retry"]) == (0.1, 0.1, None)
        assert (pool.max_connections, pool.timeout) == (1, 0.1)
        busy = await pool.get_connection()
        with pytest.raises(QueueUnavailable):
            await queue_of(made).enqueue(event())
        await pool.release(busy)
    async with connect(valkey_url) as made:
        pool = made.connection_pool
        assert (pool.max_connections, pool.timeout) == (50, 5)
        assert await queue_of(made).enqueue(event()) is True


def test_a_client_that_decodes_a_strange_name_and_useless_numbers_stop_the_start() -> None:
    client = Redis()
    with pytest.raises(ValueError, match="no decode_responses"):
        WebhookQueue(Redis(decode_responses=True), "shop")
    for name in ("", "a b", "{a}", "x" * 101):
        with pytest.raises(ValueError, match="letters, digits"):
            WebhookQueue(client, name)
    assert WebhookQueue(client, "x" * 100).visibility == 60
    seconds, counts = ("visibility", "dedupe_ttl", "timeout"), ("max_attempts", "max_jobs", "max_body", "max_dead")
    for wrong in (0, -1, math.nan, math.inf, True, "1"):
        for option in seconds:
            with pytest.raises(ValueError, match=rf"^{option} must be a number of seconds over 0, got {wrong!r}$"):
                queue_of(client, **{option: wrong})
        for option in counts:
            with pytest.raises(ValueError, match=rf"^{option} must be a whole number over 0, got {wrong!r}$"):
                queue_of(client, **{option: wrong})
        with pytest.raises(ValueError, match=rf"^max_connections must be a whole number over 0, got {wrong!r}$"):
            connect("redis://localhost", max_connections=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=rf"^timeout must be a number of seconds over 0, got {wrong!r}$"):
            connect("redis://localhost", timeout=wrong)  # type: ignore[arg-type]
        if wrong != 0:
            for option in ("base", "cap"):
                with pytest.raises(
                    ValueError, match=rf"^{option} must be a number of seconds, 0 or more, got {wrong!r}"
                ):
                    queue_of(client, **{option: wrong})


async def test_all_keys_of_a_queue_lie_on_one_node_of_a_cluster(client: Any, queue: WebhookQueue) -> None:
    await queue.enqueue(event())
    await queue.retry((await queue.take(1))[0])
    await queue.enqueue(event(2))
    await queue.bury((await queue.take(1))[0], "x")
    keys = await client.keys("*")
    assert len(keys) >= 4
    assert all(key.startswith(b"{shop}:") for key in keys)


# Retrying.


async def test_attempt_n_waits_for_a_jitter_below_a_ceiling_that_doubles(client: Redis) -> None:
    ceilings: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        ceilings.append((low, high))
        return 0.0

    queue = queue_of(client, uniform=uniform, cap=5)
    await queue.enqueue(event())
    seen = []
    for _ in range(5):
        [job] = await queue.take(1)
        seen.append(job.attempt)
        assert await queue.retry(job)
    assert seen == [1, 2, 3, 4, 5]
    assert ceilings == [(0, 1.0), (0, 2.0), (0, 4.0), (0, 5), (0, 5)]
    await queue.retry(Job("0-1", event(), 10_000))  # no overflow
    assert WebhookQueue(client, "shop")._uniform is random.uniform  # and it is really random


async def test_a_handler_that_asks_for_seven_seconds_is_not_called_earlier(client: Any) -> None:
    queue = queue_of(client, uniform=lambda low, high: high, base=0.5)
    await queue.enqueue(event())

    async def later(delivery: Delivery) -> None:
        raise Retry(after=7)

    async def delayed() -> bool:
        return (await queue.stats()).delayed == 1

    begin = time.time()
    await run(queue, later, until=delayed)
    [(_, due)] = await client.zrange("{shop}:delayed", 0, -1, withscores=True)
    assert begin + 7.49 < due / 1000 < begin + 10
    assert str(Retry(7)) == "after 7 s"
    for bad in (-1, math.inf, math.nan, True):
        with pytest.raises(ValueError, match=rf"^after must be a number of seconds, 0 or more, got {bad!r}$"):
            Retry(bad)
    assert Retry().after == 0


async def test_a_delayed_job_is_taken_when_its_time_has_come(client: Redis) -> None:
    queue = queue_of(client)
    await queue.enqueue(event())
    [job] = await queue.take(1)
    await queue.retry(job, 60)
    assert await queue.take(1) == []
    delayed: Any
    [delayed] = await client.zrange("{shop}:delayed", 0, -1)
    await client.zincrby("{shop}:delayed", -60_000, delayed)  # a minute passes
    [again] = await queue.take(1)
    assert (again.delivery, again.attempt) == (event(), 2)
    assert await queue.stats() == Stats(0, 1, 0, 0)


async def test_after_its_last_attempt_a_job_is_dead_with_error_count_and_times(
    client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    queue = queue_of(client, max_attempts=3)
    ran: list[str] = []

    async def fails(delivery: Delivery) -> None:
        ran.append(delivery.id)
        raise ConnectionError("canary-dsn")

    begin = datetime.now(UTC)
    await queue.enqueue(event())
    await asyncio.sleep(0.005)
    await run(queue, fails)
    [dead] = await queue.dead()
    assert dead == Dead(dead.entry_id, event(), 3, "ConnectionError", dead.enqueued, dead.died)
    assert begin - timedelta(seconds=1) < dead.enqueued < dead.died < datetime.now(UTC) + timedelta(seconds=1)
    assert ran == ["evt_1"] * 3
    assert await queue.stats() == Stats(0, 0, 0, 1)
    assert "job evt_1: attempt 2 failed (ConnectionError)" in caplog.text
    assert "job evt_1 is dead after attempt 3" in caplog.text
    assert "canary" not in caplog.text + repr(dead)


async def test_the_text_of_an_error_is_kept_only_when_asked_for_and_bounded(client: Redis) -> None:
    queue = queue_of(client, max_attempts=1)

    async def fails(delivery: Delivery) -> None:
        raise LookupError("x" * 1_000)

    await queue.enqueue(event())
    await run(queue, fails, describe=str)
    assert (await queue.dead())[0].error == "x" * 500
    assert name_of(LookupError("x")) == "LookupError"


async def test_a_dead_job_gets_all_its_attempts_again_under_its_own_id(client: Redis) -> None:
    queue = queue_of(client, max_attempts=2)
    ran: list[str] = []

    async def fails_three_times(delivery: Delivery) -> None:
        ran.append(delivery.id)
        if len(ran) <= 3:
            raise OSError

    await queue.enqueue(event())
    await run(queue, fails_three_times)
    [dead] = await queue.dead()
    assert await queue.requeue_dead(dead.entry_id) is True
    assert await queue.requeue_dead(dead.entry_id) is False
    assert await queue.stats() == Stats(1, 0, 0, 0)
    await run(queue, fails_three_times)
    assert (ran, await queue.stats()) == (["evt_1"] * 4, IDLE)


async def test_an_unknown_type_and_a_drop_are_dead_at_once(queue: WebhookQueue) -> None:
    async def hopeless(delivery: Delivery) -> None:
        raise Drop("no such customer")

    await queue.enqueue(event(1, "unheard.of"))
    await queue.enqueue(event(2, "paid"))
    await run(queue, ok, handlers={"paid": hopeless})
    reasons = {dead.delivery.id: (dead.error, dead.attempts) for dead in await queue.dead()}
    assert reasons == {"evt_1": ("no handler for this type", 1), "evt_2": ("no such customer", 1)}
    assert [dead.delivery.id for dead in await queue.dead(1)] == [(await queue.dead())[0].delivery.id]


async def test_a_handler_of_its_own_type_comes_before_the_one_for_all(queue: WebhookQueue) -> None:
    seen: list[str] = []

    async def named(delivery: Delivery) -> None:
        seen.append("named")

    async def any_type(delivery: Delivery) -> None:
        seen.append("any")

    for kind in ("paid", "other"):
        await queue.enqueue(event(kind, kind))
    await run(queue, ok, handlers={"paid": named, "*": any_type}, concurrency=1)
    assert seen == ["named", "any"]


# Losing workers.


async def test_what_a_dead_worker_had_is_taken_after_visibility_and_counts_as_an_attempt(
    client: Redis, queue: WebhookQueue
) -> None:
    await queue.enqueue(event())
    [lost] = await queue.take(1)
    await lose(client, [lost], 58)
    assert await queue_of(client).take(1) == []  # not before its time
    await lose(client, [lost], 60)
    assert await queue.take(1, lost=False) == []
    [found] = await queue_of(client).take(1)
    assert (lost.lost, found.lost) == (False, True)
    assert (found.delivery, found.attempt, found.entry_id) == (event(), 2, lost.entry_id)
    # The one that was taken for dead comes back, and cannot settle what is no longer its own.
    assert [await queue.done(lost), await queue.retry(lost), await queue.bury(lost, "x")] == [False] * 3
    assert await queue.done(found) is True
    assert await queue.done(lost) is False
    assert await queue.stats() == IDLE


async def test_a_job_that_is_always_lost_with_its_worker_ends_among_the_dead(client: Redis) -> None:
    queue = queue_of(client, max_attempts=3)
    await queue.enqueue(event())
    attempts = []
    for _ in range(3):
        [job] = await queue.take(1)
        attempts.append(job.attempt)
        await lose(client, [job])  # and here the worker dies
    assert attempts == [1, 2, 3]
    ran: list[int] = []

    async def never(delivery: Delivery) -> None:
        ran.append(1)

    await run(queue, never)
    [dead] = await queue.dead()
    assert (ran, dead.error, dead.attempts) == ([], "lost with its worker", 4)


async def test_lost_jobs_are_taken_one_at_a_time_until_all_are_found(client: Redis, queue: WebhookQueue) -> None:
    for number in range(30):
        await queue.enqueue(event(number))
    taken = await queue.take(30)
    await lose(client, taken)
    again = [await queue.take(5) for _ in range(30)]
    assert [len(jobs) for jobs in again] == [1] * 30
    assert sorted(jobs[0].entry_id for jobs in again) == sorted(job.entry_id for job in taken)
    assert await queue.take(5) == await queue_of(client).take(5) == []
    # And far behind others that are not lost: the search goes on where it ended.
    await lose(client, [taken[-1]])
    found = [job for _ in range(6) for job in await queue.take(1)]
    assert [job.entry_id for job in found] == [taken[-1].entry_id]


async def test_a_gap_left_by_somebody_who_trimmed_the_stream_is_passed_over(client: Redis, queue: WebhookQueue) -> None:
    for number in range(3):
        await queue.enqueue(event(number))
    jobs = await queue.take(3)
    await client.xdel("{shop}:jobs", jobs[0].entry_id, jobs[1].entry_id)
    assert await queue.done(jobs[1]) is False
    await lose(client, [jobs[0], jobs[2]])
    assert [job.delivery for _ in range(3) for job in await queue.take(3)] == [event(2)]


async def test_a_worker_runs_one_lost_job_at_a_time_beside_new_ones(
    client: Redis, queue: WebhookQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        await queue.enqueue(event(number, "lost"))
    await lose(client, await queue.take(4))
    for number in range(4, 8):
        await queue.enqueue(event(number, "new"))
    running: Counter[str] = Counter()
    peak: Counter[str] = Counter()

    async def handler(delivery: Delivery) -> None:
        running[delivery.type] += 1
        peak[delivery.type] = max(peak[delivery.type], running[delivery.type])
        await asyncio.sleep(0.01)
        running[delivery.type] -= 1

    real = queue.take
    takes: list[tuple[float, bool]] = []

    async def take(want: int, *, block: float = 0, lost: bool = True) -> list[Job]:
        jobs = await real(want, block=block, lost=lost)
        takes.append((block, any(job.lost for job in jobs)))
        return jobs

    monkeypatch.setattr(queue, "take", take)
    await run(queue, handler, poll=0.5)
    assert (peak, await queue.stats()) == ({"lost": 1, "new": 4}, IDLE)
    after_lost_ones = [block for (_, lost), (block, _) in itertools.pairwise(takes) if lost]
    assert len(after_lost_ones) == 4
    assert max(after_lost_ones) <= 0.02  # it does not wait for `poll` between two of them


async def test_jobs_are_settled_one_by_one_in_any_order(queue: WebhookQueue) -> None:
    for number in range(3):
        await queue.enqueue(event(number))
    first, second, third = await queue.take(3)
    await queue.done(third)
    await queue.bury(first, "x")
    assert await queue.stats() == Stats(0, 1, 0, 1)
    await queue.done(second)
    assert await queue.stats() == Stats(0, 0, 0, 1)


def test_a_timeout_that_is_not_below_visibility_stops_the_start() -> None:
    queue = queue_of(Redis(), visibility=30)
    Worker(queue, {}, timeout=29.9)
    for timeout in (30, 31):
        with pytest.raises(ValueError, match=f"^timeout must be below the queue's visibility, got {timeout}$"):
            Worker(queue, {}, timeout=timeout)
    for wrong in (0, -1, math.nan, math.inf, True, "1"):
        given: dict[str, Any]
        for option in ("timeout", "grace", "poll"):
            given = {"timeout": 1, option: wrong}
            with pytest.raises(ValueError, match=rf"^{option} must be a number of seconds over 0, got {wrong!r}$"):
                Worker(queue, {}, **given)
        given = {"timeout": 1, "concurrency": wrong}
        with pytest.raises(ValueError, match=rf"^concurrency must be a whole number over 0, got {wrong!r}$"):
            Worker(queue, {}, **given)


# Handlers that misbehave.


async def test_a_handler_that_hangs_is_cancelled_and_a_stubborn_one_does_not_hold_its_slot(client: Redis) -> None:
    queue = queue_of(client, max_attempts=1, visibility=0.3)
    release = asyncio.Event()

    async def hangs(delivery: Delivery) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if delivery.type == "stubborn":
                await release.wait()
            raise

    for kind in ("stubborn", "polite", "stubborn.too"):
        await queue.enqueue(event(kind, kind))
    await run(queue, hangs, timeout=0.02, concurrency=1)
    assert [dead.error for dead in await queue.dead()] == ["TimeoutError"] * 3
    release.set()


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()])
async def test_a_handler_that_raises_a_base_exception_fails_alone(client: Redis, error: BaseException) -> None:
    queue = queue_of(client, max_attempts=2)
    done: list[str] = []

    async def handler(delivery: Delivery) -> None:
        if delivery.type == "bad":
            raise error
        done.append(delivery.id)

    await queue.enqueue(event(1, "bad"))
    await queue.enqueue(event(2, "good"))
    await run(queue, handler)
    assert done == ["evt_2"]
    assert [(dead.error, dead.attempts) for dead in await queue.dead()] == [(type(error).__name__, 2)]


async def test_no_more_jobs_run_at_a_time_than_asked_for(queue: WebhookQueue) -> None:
    running = peak = 0

    async def handler(delivery: Delivery) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.003)
        running -= 1

    for number in range(12):
        await queue.enqueue(event(number))
    await run(queue, handler, concurrency=4)
    assert (peak, await queue.stats()) == (4, IDLE)


# Stopping, and outages.


async def test_a_stopped_worker_takes_nothing_new_finishes_its_jobs_and_leaves_the_rest(
    client: Redis, queue: WebhookQueue
) -> None:
    begun, finished = [], []
    stop = asyncio.Event()

    async def handler(delivery: Delivery) -> None:
        begun.append(delivery.id)
        if len(begun) == 2:
            stop.set()
        await asyncio.sleep(0.01 if delivery.type == "short" else 60)
        finished.append(delivery.id)

    for number, kind in enumerate(("short", "long", "short")):
        await queue.enqueue(event(number, kind))
    await Worker(queue, {"*": handler}, concurrency=2, grace=0.2, poll=0.005).run(stop)
    assert (begun, finished) == (["evt_0", "evt_1"], ["evt_0"])
    assert await queue.stats() == Stats(waiting=1, running=1, delayed=0, dead=0)
    pending: Any = await client.xpending_range("{shop}:jobs", "workers", "-", "+", 10)
    await lose(client, [Job(entry["message_id"].decode(), event(), 1) for entry in pending])

    async def second(delivery: Delivery) -> None:
        finished.append(delivery.id)

    await run(queue, second)
    assert sorted(finished) == ["evt_0", "evt_1", "evt_2"]


async def test_a_cancelled_worker_cancels_its_handlers_and_acknowledges_nothing(client: Redis) -> None:
    queue = queue_of(client)
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(delivery: Delivery) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    await queue.enqueue(event())
    running = asyncio.create_task(Worker(queue, {"*": handler}, concurrency=1).run(asyncio.Event()))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.wait_for(cancelled.wait(), 1)
    assert await queue.stats() == Stats(0, 1, 0, 0)


async def test_a_cancellation_that_the_client_swallows_still_ends_the_worker(queue: WebhookQueue) -> None:
    taking = asyncio.Event()

    async def swallowing(want: int, *, block: float = 0, lost: bool = True) -> list[Job]:
        taking.set()
        with contextlib.suppress(asyncio.CancelledError):  # as redis-py now and then does
            await asyncio.sleep(60)
        return []

    async def cancelled_meanwhile(want: int, *, block: float = 0, lost: bool = True) -> list[Job]:
        taking.set()
        if task := asyncio.current_task():
            task.cancel()
        return []

    for take in (swallowing, cancelled_meanwhile):
        queue.take = take  # type: ignore[method-assign]
        running = asyncio.create_task(Worker(queue, {}).run(asyncio.Event()))
        await taking.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(running, 5)
        taking.clear()


async def test_a_worker_waits_out_an_outage_and_redis_keeps_the_jobs_over_a_crash(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = await asyncio.to_thread(Valkey, "--appendonly", "yes", "--appendfsync", "always")
    try:
        async with Redis.from_url(server.url, retry=None) as client:
            queue = queue_of(client, timeout=5)
            for number in range(5):
                await queue.enqueue(event(number))
            done: list[str] = []
            dead = asyncio.Event()

            async def handler(delivery: Delivery) -> None:
                if not dead.is_set():
                    await asyncio.to_thread(server.kill)
                    dead.set()
                done.append(delivery.id)

            stop = asyncio.Event()
            worker = Worker(queue, {"*": handler}, concurrency=1, poll=0.01)
            running = asyncio.create_task(worker.run(stop))
            await asyncio.wait_for(dead.wait(), 20)
            while "no jobs: Redis did not confirm" not in caplog.text:
                await asyncio.sleep(0.005)
            await asyncio.to_thread(server.start)
            pending: Any = await client.xpending_range("{shop}:jobs", "workers", "-", "+", 10)
            await lose(client, [Job(entry["message_id"].decode(), event(), 1) for entry in pending])
            async with asyncio.timeout(10):
                while len(set(done)) < 5 or await queue.stats() != IDLE:  # one in hand was lost as well
                    await asyncio.sleep(0.01)
            stop.set()
            await running
            assert asyncio.all_tasks() == {asyncio.current_task()}  # the outage has left none behind
            assert "job evt_0 not settled: Redis did not confirm" in caplog.text
            assert await queue.stats() == IDLE
    finally:
        await asyncio.to_thread(server.stop)


def test_workers_killed_in_a_loop_over_a_thousand_jobs_lose_none(valkey_url: str) -> None:
    total, kills = 1_000, 2

    async def fill() -> None:
        async with Redis.from_url(valkey_url) as client:
            queue = WebhookQueue(client, "shop", timeout=30)
            await queue.enqueue(event("poison", "poison"))
            for start in range(0, total, 100):
                await asyncio.gather(*(queue.enqueue(event(start + n)) for n in range(100)))

    asyncio.run(fill())
    here = Path(__file__).parent
    argv = [sys.executable, str(here / "webhook_queue_kit.py"), valkey_url, str(total), str(kills)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), *sys.path])}
    subprocess.run(argv, check=True, env=env, timeout=240)
    with redis.Redis.from_url(valkey_url) as client:
        effects = Counter(client.lrange("effects", 0, -1))
        [(_, dead)] = client.xrange("{shop}:dead")
    assert 1 <= effects.pop(b"evt_poison") <= 3  # one of its attempts may have been killed before it began
    assert (dead[b"id"], dead[b"error"]) == (b"evt_poison", b"lost with its worker")
    assert set(effects) == {b"evt_%d" % n for n in range(total)}
    # Only what a killed worker had in hand was done twice: the poison kills three workers, the loop two.
    assert sum(effects.values()) - total <= 5 * 10


async def test_the_clock_of_a_worker_does_not_matter(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = queue_of(client)
    await queue.enqueue(event())
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this worker lives in 2096
    [job] = await queue.take(1)
    await queue.retry(job, 30)
    assert await queue.take(1) == []
    await queue.enqueue(event(2))
    await queue.bury((await queue.take(1))[0], "x")
    [dead] = await queue.dead()
    assert dead.enqueued.year < 2090


async def test_nothing_of_the_jobs_that_are_done_stays_and_the_dead_are_bounded(client: Redis) -> None:
    queue = queue_of(client, max_dead=20)
    sizes = []
    for _ in range(2):
        pipe = client.pipeline(transaction=False)
        for number in range(500):
            await queue._enqueue([f"seen:{number}", queue._jobs, queue._delayed], _arguments(number), client=pipe)
        await pipe.execute()
        while jobs := await queue.take(500):
            pipe = client.pipeline(transaction=False)
            for job in jobs:
                where = "dead" if job.delivery.timestamp % 10 == 0 else "done"
                keys = [queue._jobs, queue._delayed, queue._dead]
                await queue._settle(keys, ["workers", job.entry_id, where, 1, 0, "x", 20, 1], client=pipe)
            await pipe.execute()
        sizes.append([await client.xlen(queue._jobs), await client.memory_usage(queue._jobs)])
        await client.delete(*[f"seen:{number}" for number in range(500)])
    assert sizes[0] == sizes[1]
    assert sizes[0][0] == 0
    assert await queue.stats() == Stats(0, 0, 0, 20)


def _arguments(number: int) -> list[Any]:
    return [1000, 100_000, "bank", f"evt_{number}", number, "paid", b"x" * 200]


# What people write first.


@pytest.fixture
async def group(client: Any) -> Any:
    await client.xgroup_create("jobs", "workers", "0", mkstream=True)
    await client.xadd("jobs", {"id": "evt_1"})
    return client


async def test_naive_read_of_what_is_new_never_sees_what_a_dead_worker_had(group: Any) -> None:
    assert await group.xreadgroup("workers", "a", {"jobs": ">"})  # and "a" is killed
    for _ in range(3):
        assert not await group.xreadgroup("workers", "b", {"jobs": ">"})
    assert (await group.xpending("jobs", "workers"))["pending"] == 1  # forever


async def test_naive_acknowledgement_before_the_work_loses_the_job(group: Any) -> None:
    [[_, [(entry, _)]]] = await group.xreadgroup("workers", "a", {"jobs": ">"})
    await group.xack("jobs", "workers", entry)  # and "a" is killed before its handler has run
    found = await group.xautoclaim("jobs", "workers", "b", min_idle_time=0)
    assert found[1] == []


async def test_naive_lpop_loses_the_job_in_hand(client: Any) -> None:
    await client.rpush("jobs", "evt_1")
    assert await client.lpop("jobs") == b"evt_1"
    assert await client.lpop("jobs") is None  # the worker was killed, and nothing is left


async def test_naive_retry_by_sleeping_holds_the_slot_and_dies_with_the_worker(client: Any) -> None:
    attempts: list[str] = []

    async def naive(jobs: asyncio.Queue[str]) -> None:
        while True:
            job = await jobs.get()
            attempts.append(job)
            if job == "fails":
                await asyncio.sleep(300)

    jobs: asyncio.Queue[str] = asyncio.Queue()
    for job in ("fails", "healthy"):
        jobs.put_nowait(job)
    with pytest.raises(TimeoutError):  # the deploy
        await asyncio.wait_for(naive(jobs), 0.02)
    assert attempts == ["fails"]  # the healthy one has waited behind it, and the retry is gone


async def test_naive_moving_of_delayed_jobs_by_two_workers_makes_two_of_one(client: Any) -> None:
    await client.zadd("delayed", {"evt_1": 0})
    looked = asyncio.Barrier(2)

    async def naive() -> None:
        due = await client.zrangebyscore("delayed", "-inf", 1)
        await looked.wait()
        for job in due:
            await client.xadd("jobs", {"id": job})
            await client.zrem("delayed", job)

    await asyncio.gather(naive(), naive())
    assert await client.xlen("jobs") == 2


async def test_two_workers_that_look_at_once_move_a_delayed_job_once(client: Any) -> None:
    queue = queue_of(client)
    await queue.enqueue(event())
    await queue.retry((await queue.take(1))[0])
    taken = await asyncio.gather(*(queue_of(client).take(5) for _ in range(8)))
    assert sorted(map(len, taken)) == [0] * 7 + [1]


def test_naive_backoff_without_jitter_brings_all_jobs_back_at_one_instant() -> None:
    assert {min(300, 2**3) for _ in range(100)} == {8}
    queue = WebhookQueue(Redis(), "shop", uniform=random.Random(1).uniform)
    with_jitter = [queue._uniform(0, 8) for _ in range(100)]
    assert max(with_jitter) - min(with_jitter) > 7


async def test_naive_queue_without_bounds_takes_whatever_anybody_sends(client: Any, queue: WebhookQueue) -> None:
    await client.xadd("naive", {"body": b"x" * 2_000_000})
    assert await client.memory_usage("naive") > 2_000_000
    with pytest.raises(ValueError, match="more than 1048576 bytes"):
        await queue.enqueue(event(body=b"x" * 1_048_577))
    assert await client.keys("*shop*") == []


def test_naive_three_attempts_without_a_dead_list_are_a_silent_loss() -> None:
    jobs = ["evt_1"]
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            print(1 / 0, jobs)
    jobs.clear()  # "attempts: 3", and then nothing: neither done nor kept
    assert jobs == []


def defaults(function: Any) -> dict[str, Any]:
    return {n: p.default for n, p in inspect.signature(function).parameters.items() if p.default is not p.empty}


def test_what_is_handed_over_cannot_be_changed() -> None:
    records: tuple[Any, ...] = (Delivery, Job, Dead, Stats)
    for record in records:
        assert record.__dataclass_params__.frozen
        assert "__slots__" in vars(record)


def test_the_defaults_are_those_that_the_docstrings_promise() -> None:
    queue, worker = defaults(WebhookQueue.__init__), defaults(Worker.__init__)
    del queue["uniform"]
    assert queue == {
        "group": "workers",
        "visibility": 60,
        "max_attempts": 5,
        "base": 1,
        "cap": 300,
        "dedupe_ttl": 24 * 3_600,
        "max_jobs": 100_000,
        "max_body": 2**20,
        "max_dead": 10_000,
        "timeout": 2,
    }
    assert worker == {"concurrency": 10, "timeout": 30, "grace": 20, "poll": 1, "describe": name_of}
    assert defaults(WebhookQueue.take) == {"block": 0, "lost": True}
    assert (defaults(WebhookQueue.dead), defaults(WebhookQueue.retry)) == ({"count": 100}, {"after": 0})
