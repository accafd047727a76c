"""ASGI middleware that holds each client of an API to limits, and tells it when to come back."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from redis_limiter_async import AsyncRedisLimiter
from redis_limiter_core import Decision, Limit

App = Callable[[Any, Any, Callable[[MutableMapping[str, Any]], Awaitable[None]]], Awaitable[None]]


class RateLimitMiddleware:
    """Answers 429 with `Retry-After` above the limits; says on every answer what is left.

    Args:
        app: The application.
        limiter: Shared by all processes through its Redis.
        limits: All of them hold at once.
        key: Tells from the ASGI scope whose request it is; None for one that is not limited. Take
            what you have checked (a user, an API key) or the address of the connection, never a
            header that the client writes.

    """

    def __init__(
        self,
        app: App,
        *,
        limiter: AsyncRedisLimiter,
        limits: Sequence[Limit],
        key: Callable[[Any], str | None],
    ) -> None:
        self._app = app
        self._limiter = limiter
        self._limits = tuple(limits)
        self._key = key

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        key = self._key(scope) if scope["type"] == "http" else None
        if key is None:
            await self._app(scope, receive, send)
            return
        decision = await self._limiter.hit(key, self._limits)
        headers = rate_headers(decision)

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        if decision.allowed:
            await self._app(scope, receive, send_with_headers)
            return
        body = json.dumps({"title": "Too Many Requests", "status": 429}).encode()
        content = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", str(max(1, math.ceil(decision.retry_after))).encode()),
        ]
        await send_with_headers({"type": "http.response.start", "status": 429, "headers": content})
        await send({"type": "http.response.body", "body": body})


def rate_headers(decision: Decision) -> list[tuple[bytes, bytes]]:
    """Return `RateLimit-Policy` and `RateLimit` (an IETF draft) of the tightest limit."""
    limit = decision.limit
    window = math.ceil(limit.burst * limit.interval)
    policy = f'"default";q={limit.burst};w={window}'
    rate = f'"default";r={max(0, decision.remaining)};t={math.ceil(decision.reset_after)}'
    return [(b"ratelimit-policy", policy.encode()), (b"ratelimit", rate.encode())]
