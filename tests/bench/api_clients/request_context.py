"""Measures docs/patterns/api-clients/request-context.md: what the middleware adds to a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asgi_correlation_id

from bench.kit import Table, compare, ratio_table, version
from request_context import RequestContextMiddleware

CALLS, OURS = 1000, "this pattern"


async def empty(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def nowhere(message: Any) -> None:
    pass


def middleware(name: str, headers: list[tuple[bytes, bytes]], note: str) -> Table:
    apps: dict[str, Any] = {
        OURS: RequestContextMiddleware(empty),
        version("asgi-correlation-id"): asgi_correlation_id.CorrelationIdMiddleware(empty, validator=None),
        "no middleware": empty,
    }
    loop = asyncio.new_event_loop()

    def many(app: Any) -> Callable[[], object]:
        async def calls() -> None:
            for _ in range(CALLS):
                await app({"type": "http", "headers": headers}, None, nowhere)

        return lambda: loop.run_until_complete(calls())

    try:
        seconds = compare({name: many(app) for name, app in apps.items()}, calls=1, rounds=51, per_call=CALLS)
    finally:
        loop.close()
    return ratio_table(name, seconds, base=OURS, note=note)


def tables() -> list[Table]:
    usual = [(b"host", b"api.internal"), (b"accept", b"*/*"), (b"user-agent", b"bench")]
    return [
        middleware(
            "given", [*usual, (b"x-request-id", b"0" * 32)], "An ASGI request that brings its id, to an empty app."
        ),
        middleware("made", usual, "The same without an id, so that one is made."),
    ]
