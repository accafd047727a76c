"""Hears from Redis what other processes change, and has the level in memory forget it (async)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from redis import RedisError
from redis.asyncio import Redis

from multi_level_core import SERVER_ERRORS, LocalLevel


class AsyncChangeListener:
    """Subscribes to a channel of changed keys, again and again after failures.

    `failed` is called with the error of each failure.
    """

    def __init__(
        self,
        redis: Redis,
        channel: str,
        level: LocalLevel,
        failed: Callable[[Exception], object],
    ) -> None:
        self._redis = redis
        self._channel = channel
        self._level = level
        self._failed = failed

    async def start(self) -> None:
        """Listen; return when the subscription stands, or Redis has failed."""
        tried = asyncio.Event()
        self._task = asyncio.create_task(self._listen(tried))
        await tried.wait()

    async def stop(self, others: Iterable[asyncio.Task[Any]] = ()) -> None:
        """Listen no more, and cancel `others` at once with it."""
        await cancel_all([self._task, *others])

    async def _listen(self, tried: asyncio.Event) -> None:
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(self._channel)
                    await self._hear_messages(pubsub, tried)
            except SERVER_ERRORS as error:
                self._failed(error)
            tried.set()
            await asyncio.sleep(0.1)

    async def _hear_messages(self, pubsub: Any, tried: asyncio.Event) -> None:
        silent, tick = 0.0, min(self._level.ttl / 4, 0.25)
        while True:
            message = await pubsub.get_message(timeout=tick)
            self._level.evict()
            if message is None:
                silent += tick
                if silent >= self._level.ttl:
                    raise RedisError(f"nothing heard for {self._level.ttl} s")
                await pubsub.ping()  # the answer shows that the connection lives
            else:
                silent = 0.0
                self._level.hear(message)
            tried.set()


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they end: asyncio.wait_for of Python 3.11 may lose a cancellation."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        left = (await asyncio.wait(left, timeout=0.1))[1]
