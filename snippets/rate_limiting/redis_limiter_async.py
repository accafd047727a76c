"""One rate limit for many processes, kept in Redis or Valkey: the limiter for asyncio."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence

from redis import RedisError
from redis.asyncio import BlockingConnectionPool, Redis

from gcra import LUA, Core, Decision, Limit


def connect(url: str, *, timeout: float = 0.05, max_connections: int = 50) -> Redis:
    """Return a client that gives up after `timeout` seconds, without the default's 10 retries."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=timeout,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=None,
    )
    return Redis.from_pool(pool)


class AsyncRedisLimiter(Core):
    """Limits hits by key, for all processes that use the same Redis; see `RedisLimiter`.

    `timeout` is how long a decision may wait for Redis, in seconds, whatever the client does.
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
        super().__init__(prefix, on_error, processes, clock)
        self._script, self._timeout = client.register_script(LUA), timeout

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> AsyncRedisLimiter:
        """Read REDIS_URL and RATE_LIMIT_ON_ERROR; `RuntimeError` when the first is missing."""
        if not environ.get("REDIS_URL"):
            raise RuntimeError("REDIS_URL is not set")
        on_error = environ.get("RATE_LIMIT_ON_ERROR", "open")
        return cls(connect(environ["REDIS_URL"]), on_error=on_error)

    async def hit(self, key: str, limits: Sequence[Limit], cost: int = 1) -> Decision:
        """Take `cost` from all limits of a key, or from none; see `RedisLimiter.hit`."""
        if cost < 0:
            raise ValueError(f"cost must be 0 or more, not {cost}")
        return await self._ask(key, limits, cost)

    async def refund(self, key: str, limits: Sequence[Limit], cost: int = 1) -> None:
        """Give back what a hit took, for work that was not done after all."""
        if cost < 1:
            raise ValueError(f"cost must be at least 1, not {cost}")
        await self._ask(key, limits, -cost)

    async def _ask(self, key: str, limits: Sequence[Limit], cost: int) -> Decision:
        keys, numbers = self.arguments(key, limits, cost)
        error: Exception | None = None
        if self.may_ask():
            try:
                # A little later than the client's own timeouts, which end more cleanly.
                async with asyncio.timeout(self._timeout + 0.01):
                    return self.answered(limits, cost, await self._script(keys, numbers))
            # AttributeError: what asyncio raises for a reset connection on some Pythons.
            except (RedisError, OSError, AttributeError) as failure:
                error = failure
        return self.unanswered(key, limits, max(cost, 0), error)
