"""Memory in front of Redis or Valkey: hot keys in this process (L1), the rest shared by all (L2).

A change makes every process forget its copy: at once by a message, within `l1_ttl` if that is lost.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis

import multi_level_core as core
from multi_level_core import MISSING, Missing
from multi_level_listener_async import AsyncChangeListener

V = TypeVar("V")
log = logging.getLogger(__name__)


def connect(url: str, *, timeout: float = 0.1, max_connections: int = 50) -> Redis:
    """Return a client that gives up after `timeout` seconds, without the default's 10 retries."""
    core.milliseconds("timeout", timeout)
    waits = {"timeout": timeout, "socket_timeout": timeout, "socket_connect_timeout": timeout}
    pool = BlockingConnectionPool.from_url(
        url, max_connections=max_connections, retry=None, **waits
    )
    return Redis.from_pool(pool)


class AsyncMultiLevelCache:
    """One namespace, used inside `async with`; outside of it nobody listens, and only L2 is used.

    Every caller gets a copy of the value. Lifetimes are in seconds: `l1_ttl` in memory, where at
    most `l1_max` keys are; `l2_ttl` in Redis; `negative_ttl` for `MISSING`. `l1_ttl` is also how
    long memory is trusted while nothing is heard from Redis. What a load brings after `lock_ttl` is
    returned, not stored. `clock` never goes back; `sleep` waits between two looks for what another
    process loads.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        namespace: str,
        l1_max: int = 10_000,
        l1_ttl: float = 5.0,
        l2_ttl: float = 300.0,
        negative_ttl: float = 2.0,
        lock_ttl: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if redis.connection_pool.connection_kwargs.get("decode_responses"):
            raise ValueError("the client must hand out bytes: decode_responses=False")
        self._namespace = core.checked_namespace(namespace)
        self._channel = f"{namespace}:changed"
        self._lives = core.Lives.of(l2_ttl, negative_ttl, lock_ttl)
        self._sleep = sleep
        self._level = core.LocalLevel(l1_max, l1_ttl, clock)
        self._listener = AsyncChangeListener(redis, self._channel, self._level, self._note_failure)
        self._enter_script = redis.register_script(core.ENTER)
        self._leave_script = redis.register_script(core.LEAVE)
        self._change_script = redis.register_script(core.CHANGE)
        self._flights: dict[tuple[str, int], asyncio.Task[bytes]] = {}  # of a key, at a count

    async def __aenter__(self) -> Self:
        """Listen for changes; return when the subscription stands, or Redis has failed."""
        await self._listener.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening, and the loads that are still running."""
        await self._listener.stop(self._flights.values())
        self._level.stop_trusting()

    async def get(self, key: str) -> Any:
        """Return the value, or `MISSING` when there is none or it is known not to exist."""
        data = self._level.look(key)
        if data is None:
            data, _ = await self._read_shared(key, b"")
        return MISSING if data is None else core.unpack(data)

    async def get_or_load(
        self, key: str, load: Callable[[], Awaitable[V | Missing]]
    ) -> V | Missing:
        """Return the value, calling `load` when there is none: once for all who ask for it now.

        `load` returns `MISSING` for what does not exist. What it raises goes to all who wait.
        Raises `TypeError` for a value that does not come through JSON unchanged.
        """
        data = self._level.look(key)
        if data is None:
            flight = key, self._level.changes_of(key)
            task = self._flights.get(flight)
            if task is None:
                task = self._flights[flight] = asyncio.create_task(self._fetch_value(key, load))
                task.add_done_callback(functools.partial(self._land_flight, flight))
            await asyncio.wait([task])  # whoever is cancelled here goes alone
            data = task.result()
        value: V | Missing = core.unpack(data)
        return value

    async def set(self, key: str, value: Any, ttl: float | None = None) -> bool:
        """Give all processes a value for `ttl` seconds; False when Redis could not be told.

        Raises `TypeError` for a value that does not come through JSON unchanged.
        """
        return await self._change_key(key, core.pack(value), self._lives.of_value(value, ttl))

    async def invalidate(self, key: str) -> bool:
        """Make all processes forget `key`; False when Redis could not be told.

        Call it after the commit: before, somebody else loads and stores the old value.
        """
        return await self._change_key(key, b"", 0)

    def stats(self) -> dict[str, int]:
        """Return hits in "l1" and "l2", "loads", "errors" of Redis, and the "size" of L1."""
        return self._level.stats()

    async def _fetch_value(self, key: str, load: Callable[[], Awaitable[Any]]) -> bytes:
        token, first, pause = secrets.token_bytes(16), None, 0.005
        try:
            while True:
                data, holder = await self._read_shared(key, token)
                if data is not None:
                    return data
                if holder in (None, token) or holder != (first := first or holder):
                    break  # Redis fails, the lease is ours, or the one we waited for gave it up
                await self._sleep(pause)
                pause = min(1.5 * pause, 0.05)
            asked = self._level.asked_now(key)
            self._level.count("loads")
            value = await load()
            data = core.pack(value)
        except BaseException:
            await self._run_script(self._leave_script, key, [token, b"", 0])
            raise
        life = self._lives.of_value(value)
        left = await self._run_script(self._leave_script, key, [token, data, life])
        if left != 0:  # None: Redis fails
            self._level.keep(key, data, life, asked)
        return data

    def _land_flight(self, flight: tuple[str, int], task: asyncio.Task[bytes]) -> None:
        del self._flights[flight]
        if not task.cancelled():
            task.exception()  # looked at, even when every caller has gone

    async def _read_shared(self, key: str, token: bytes) -> tuple[bytes | None, bytes | None]:
        """Return the value in L2, else the holder of the lease, else (Redis is no help) nothing."""
        asked = self._level.asked_now(key)
        args = [token, self._lives.lease]
        found = await self._run_script(self._enter_script, key, args)
        if found is None:
            return None, None
        data, detail = found
        if data is None:
            return None, detail
        self._level.count("l2")
        self._level.keep(key, data, detail, asked)
        return data, None

    async def _change_key(self, key: str, data: bytes, life: int) -> bool:
        self._level.forget(key)
        asked = self._level.asked_now(key)
        args = [data, life, self._channel, key]
        told = await self._run_script(self._change_script, key, args) is not None
        if told:
            self._level.forget(key)  # again: what was read meanwhile may be the old value
        elif data:
            self._level.keep(key, data, life, asked)
        return told

    async def _run_script(self, script: Any, key: str, args: list[Any]) -> Any:
        """Run a script; return None when Redis fails."""
        try:
            return await script(keys=core.keys_of(self._namespace, key), args=args)
        except core.SERVER_ERRORS as error:
            self._note_failure(error)
            return None

    def _note_failure(self, error: Exception) -> None:
        self._level.count("errors")
        log.warning("cache %s: %s", self._namespace, error)
