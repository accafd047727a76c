"""Workers as processes of their own, that are killed in the middle of their work."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import Any

import redis
import redis.asyncio

from webhook_queue import Delivery, WebhookQueue
from webhook_worker import Worker


async def work(url: str) -> None:
    """Run a worker until SIGTERM. Its handler writes down which event it had, and takes some time."""
    async with redis.asyncio.Redis.from_url(url) as client:

        async def handler(delivery: Delivery) -> None:
            await client.rpush("effects", delivery.id)
            await asyncio.sleep(0.002)
            if delivery.type == "poison":
                os.kill(os.getpid(), signal.SIGKILL)

        queue = WebhookQueue(client, "shop", max_attempts=3, timeout=30)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await Worker(queue, {"*": handler}, concurrency=10, poll=0.02).run(stop)


def fork(url: str) -> int:
    child = os.fork()
    if not child:
        asyncio.run(work(url))
        os._exit(0)
    return child


def main(url: str, total: int, kills: int) -> None:
    """Kill workers at random until enough were killed and the poison is dead; end the last one in order."""
    jobs: Any = "{shop}:jobs"
    with redis.Redis.from_url(url) as client:

        def successor() -> int:
            """Start a worker, for which a minute has passed since the last one died."""
            pending: Any = client.xpending_range(jobs, "workers", "-", "+", 100)
            if ids := [entry["message_id"] for entry in pending]:
                client.xclaim(jobs, "workers", "workers", 0, ids, idle=61_000, justid=True)
            return fork(url)

        worker, killed = fork(url), 0
        while True:
            time.sleep(0.002)
            if os.waitpid(worker, os.WNOHANG)[0]:  # the poison did it
                worker = successor()
            elif killed < kills and client.llen("effects") >= total * (killed + 1) // (kills + 1):
                os.kill(worker, signal.SIGKILL)
                os.waitpid(worker, 0)
                worker, killed = successor(), killed + 1
            elif client.xlen("{shop}:dead") and not client.xlen(jobs):
                break
        os.kill(worker, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 0


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
