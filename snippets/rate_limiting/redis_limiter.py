"""One rate limit for many processes, kept in Redis or Valkey: the limiter for threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence

from redis import BlockingConnectionPool, Redis, RedisError

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


class RedisLimiter(Core):
    """Limits hits by key, for all processes that use the same Redis. For threads.

    Args:
        client: A client with short timeouts and no retries, as `connect()` makes it: each further
            second that it waits is one that every request waits while Redis is down.
        prefix: What the keys in Redis begin with.
        on_error: What to answer while Redis does not: "open" allows, "closed" refuses, "local"
            limits in this process to its share.
        processes: Of how many processes this is one, for "local".
        clock: Returns seconds that never go back.

    """

    def __init__(
        self,
        client: Redis,
        *,
        prefix: str = "rl",
        on_error: str = "open",
        processes: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(prefix, on_error, processes, clock)
        self._script = client.register_script(LUA)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> RedisLimiter:
        """Read REDIS_URL and RATE_LIMIT_ON_ERROR; `RuntimeError` when the first is missing."""
        if not environ.get("REDIS_URL"):
            raise RuntimeError("REDIS_URL is not set")
        on_error = environ.get("RATE_LIMIT_ON_ERROR", "open")
        return cls(connect(environ["REDIS_URL"]), on_error=on_error)

    def hit(self, key: str, limits: Sequence[Limit], cost: int = 1) -> Decision:
        """Take `cost` from all limits of a key, or from none; a `cost` of 0 only looks.

        Raises `ValueError` for a negative cost, or one above a burst: it could never pass.
        """
        if cost < 0:
            raise ValueError(f"cost must be 0 or more, not {cost}")
        return self._ask(key, limits, cost)

    def refund(self, key: str, limits: Sequence[Limit], cost: int = 1) -> None:
        """Give back what a hit took, for work that was not done after all."""
        if cost < 1:
            raise ValueError(f"cost must be at least 1, not {cost}")
        self._ask(key, limits, -cost)

    def _ask(self, key: str, limits: Sequence[Limit], cost: int) -> Decision:
        keys, numbers = self.arguments(key, limits, cost)
        error: Exception | None = None
        if self.may_ask():
            try:
                return self.answered(limits, cost, self._script(keys, numbers))
            except (RedisError, OSError) as failure:
                error = failure
        return self.unanswered(key, limits, max(cost, 0), error)
