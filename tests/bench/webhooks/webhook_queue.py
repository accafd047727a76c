"""Jobs a second through Redis, enqueued and processed: this queue against taskiq's stream broker."""

from __future__ import annotations

import asyncio
import logging
import statistics
import sys
import time
import types
from collections.abc import Callable, Coroutine
from typing import Any

from redis.asyncio import Redis
from taskiq.receiver import Receiver
from taskiq_redis import RedisStreamBroker

from bench.kit import Table, version
from servers.valkey import Valkey
from webhook_queue import Delivery, WebhookQueue
from webhook_worker import Worker

JOBS = 5_000
AT_ONCE = 50
BODY = b'{"type":"invoice.paid","note":"' + b"x" * 2_000 + b'"}'
Run = Callable[[str], Coroutine[Any, Any, tuple[float, float]]]


def tables() -> list[Table]:
    """Seconds for 5,000 jobs that do nothing, enqueued by one process and processed by one worker."""
    logging.getLogger("taskiq").setLevel(logging.ERROR)
    subjects: dict[str, Run] = {
        "this module": _ours,
        f"{version('taskiq')}, {version('taskiq-redis')}": _taskiq,
    }
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
    server = Valkey()
    try:
        for _ in range(3):
            for name, run in subjects.items():
                samples[name].append(asyncio.run(run(server.url)))
    finally:
        server.stop()
    rows = []
    base: tuple[float, float] | None = None
    for name, times in samples.items():
        put, work = (statistics.median(column) for column in zip(*times, strict=True))
        base = base or (put, work)
        rows.append(
            [
                name,
                f"{JOBS / put:,.0f} /s ({base[0] / put:.2f} ×)",
                f"{JOBS / work:,.0f} /s ({base[1] / work:.2f} ×)",
            ]
        )
    return [
        Table(
            name="jobs",
            columns=("", "enqueued", "processed"),
            rows=rows,
            note=f"Jobs a second, {JOBS:,} of 2 KB that do nothing, {AT_ONCE} at a time, one process and one worker, "
            "Valkey on the same machine without persistence; in brackets, as a multiple of this module's. This "
            "module also drops duplicates, counts attempts and deletes what is done; taskiq's broker was given no "
            "result backend and no retries.",
        )
    ]


async def _put(one: Callable[[int], Coroutine[Any, Any, object]]) -> float:
    begin = time.perf_counter()
    for start in range(0, JOBS, AT_ONCE):
        await asyncio.gather(*(one(start + n) for n in range(AT_ONCE)))
    return time.perf_counter() - begin


async def _ours(url: str) -> tuple[float, float]:
    async with Redis.from_url(url) as client:
        await client.flushdb()
        queue = WebhookQueue(client, "bench")
        put = await _put(lambda n: queue.enqueue(Delivery("shop", f"evt_{n}", 0, "paid", BODY)))
        stop, left = asyncio.Event(), JOBS

        async def handler(delivery: Delivery) -> None:
            nonlocal left
            left -= 1
            if not left:
                stop.set()

        begin = time.perf_counter()
        await Worker(queue, {"*": handler}, concurrency=AT_ONCE).run(stop)
        return put, time.perf_counter() - begin


async def _taskiq(url: str) -> tuple[float, float]:
    sys.modules.setdefault(__name__, types.ModuleType(__name__))  # taskiq looks up where a task is defined
    broker: Any = RedisStreamBroker(url, consumer_id="0", xread_block=50)
    stop, left = asyncio.Event(), JOBS

    @broker.task(task_name="handler")
    async def handler(body: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            stop.set()

    async with Redis.from_url(url) as client:
        await client.flushdb()
    await broker.startup()
    text = BODY.decode()
    put = await _put(lambda n: handler.kiq(text))
    begin = time.perf_counter()
    await Receiver(broker, max_async_tasks=AT_ONCE, run_startup=False).listen(stop)
    took = time.perf_counter() - begin
    await broker.shutdown()
    return put, took
