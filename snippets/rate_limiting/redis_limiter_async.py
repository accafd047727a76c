"""One rate limit for many processes, kept in Redis or Valkey: the limiter for asyncio."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence

from redis.asyncio import BlockingConnectionPool, Redis

import redis_limiter_core as core
from redis_limiter_core import Decision, Limit
from redis_limiter_fallback import Fallback


def connect(url: str, *, timeout: float = 0.05, max_connections: int = 50) -> Redis:
    """Return a client that gives up after `timeout` seconds, without the default's 10 retries."""
    core.checked_seconds("timeout", timeout)
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=timeout,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=None,
    )
    return Redis.from_pool(pool)


class AsyncRedisLimiter:
    """Limits hits by key, for all processes that use the same Redis. For asyncio.

    Args:
        client: A client with short timeouts and no retries, as `connect()` makes it: each further
            second that it waits is one that every request waits while Redis is down.
        prefix: What the keys in Redis begin with.
        on_error: What to answer while Redis does not: "open" allows, "closed" refuses, "local"
            limits in this process to its share.
        timeout: How long a decision may wait for Redis, in seconds, whatever the client does.
        processes: Of how many processes this is one, for "local".
        clock: Returns seconds that never go back.

    """

    def __init__(
        self,
        client: Redis,
        *,
        prefix: str = "rl",
        on_error: str = "open",
        timeout: float = 0.05,
        processes: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prefix = prefix
        self._fallback = Fallback(on_error, processes, clock)
        self._timeout = core.checked_seconds("timeout", timeout)
        self._script = client.register_script(core.LUA)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> AsyncRedisLimiter:
        """Make one from REDIS_URL and RATE_LIMIT_ON_ERROR; `RuntimeError` without the first."""
        url, on_error = core.read_settings(environ)
        return cls(connect(url), on_error=on_error)

    async def hit(self, key: str, limits: Sequence[Limit], cost: int = 1) -> Decision:
        """Take `cost` from all limits of a key, or from none; a `cost` of 0 only looks.

        Raises `ValueError` for a negative cost, or one above a burst: it could never pass.
        """
        return await self._decide(key, limits, core.checked_count("cost", cost, least=0))

    async def refund(self, key: str, limits: Sequence[Limit], cost: int = 1) -> None:
        """Give back what a hit took, for work that was not done after all."""
        await self._decide(key, limits, -core.checked_count("cost", cost))

    async def _decide(self, key: str, limits: Sequence[Limit], cost: int) -> Decision:
        """Ask Redis, or decide without it."""
        keys, numbers = core.script_arguments(self._prefix, key, limits, cost)
        error: Exception | None = None
        if self._fallback.may_ask():
            try:
                # A little later than the client's own timeouts, which end more cleanly.
                async with asyncio.timeout(self._timeout + 0.01):
                    reply = await self._script(keys, numbers)
            except core.ASYNC_SERVER_ERRORS as failure:
                error = failure
            else:
                self._fallback.redis_answered()
                return core.decision_of(limits, reply)
        return self._fallback.decide(key, limits, max(cost, 0), error)
