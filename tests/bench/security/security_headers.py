"""Requests on an empty route: bare, in these layers, in secure's, in Starlette's CORSMiddleware."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from secure import Secure
from secure.middleware import SecureASGIMiddleware
from starlette.middleware.cors import CORSMiddleware

from bench.kit import Table, compare, ratio_table, version
from cors_middleware import Cors
from security_headers import SecurityHeaders, csp_nonce

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
BODY = {"type": "http.response.body", "body": b""}


async def _empty(scope: Any, receive: Any, send: Any) -> None:
    await send({**START, "headers": list(START["headers"])})  # type: ignore[call-overload]
    await send(BODY)


async def _page(scope: Any, receive: Any, send: Any) -> None:
    csp_nonce(scope)
    await _empty(scope, receive, send)


def tables() -> list[Table]:
    """Time whole ASGI calls, without a server, which would hide the difference."""
    origins = ["https://app.example"]
    headers = [(b"host", b"test"), (b"origin", b"https://app.example")]

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        pass

    with asyncio.Runner() as runner:

        async def many(app: Any) -> None:
            for _ in range(1_000):
                scope = {"type": "http", "method": "GET", "path": "/", "scheme": "https", "headers": headers}
                await app(scope, receive, send)

        def subject(app: Any) -> Callable[[], object]:
            return lambda: runner.run(many(app))

        seconds = compare(
            {
                "SecurityHeaders": subject(SecurityHeaders(_empty)),
                "SecurityHeaders, a page with a nonce": subject(SecurityHeaders(_page)),
                version("secure"): subject(SecureASGIMiddleware(_empty, secure=Secure.with_default_headers())),
                "Cors": subject(Cors(_empty, origins=origins, credentials=True)),
                version("starlette") + " CORSMiddleware": subject(
                    CORSMiddleware(_empty, allow_origins=origins, allow_credentials=True)
                ),
                "no layer": subject(_empty),
            },
            calls=1,
            rounds=31,
            per_call=1_000,
        )
    return [
        ratio_table(
            "empty-route",
            seconds,
            base="SecurityHeaders",
            note="One call of an ASGI application that answers an empty 200, without a server around it.",
        )
    ]
