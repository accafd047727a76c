"""Requests a second: the receiver against `await request.body()` and a verification, with nothing bounded."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
from collections.abc import Callable, Mapping

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Scope

from bench.kit import Table, compare
from webhook_receiver import Delivery, WebhookReceiver
from webhook_signature import BadSignature, Verified, sign, verify

KEYS = [os.urandom(32)]
REQUESTS = 50


def _body(size: int) -> bytes:
    line = '{"sku":"tea","amount":1,"note":"%s"}' % ("x" * 64)
    lines = [line] * (size // len(line))
    return ('{"type":"invoice.paid","lines":[' + ",".join(lines) + "]}").encode()


def _believe(body: bytes, headers: Mapping[str, str]) -> Verified:
    return verify(body, headers, KEYS, now=time.time())


async def _keep(delivery: Delivery) -> bool:
    return True


async def _plain(request: Request) -> Response:
    body = await request.body()
    try:
        _believe(body, request.headers)
    except BadSignature:
        return Response(status_code=401)
    return Response()


def tables() -> list[Table]:
    """Measure genuine deliveries of 2 KB and 200 KB, and a forged one of 200 KB."""
    logging.getLogger("webhook_receiver").setLevel(logging.ERROR)  # what a terminal costs is not the question
    receiver = WebhookReceiver("shop", _believe, _keep, refused=BadSignature)
    apps: dict[str, ASGIApp] = {
        "this module": Starlette(routes=[receiver.route("/webhooks")]),
        "`request.body()` and verify": Starlette(routes=[Route("/webhooks", _plain, methods=["POST"])]),
    }
    small, large = _body(2_048), _body(204_800)
    with asyncio.Runner() as runner:

        def subjects(body: bytes, *, forged: bool = False) -> dict[str, Callable[[], object]]:
            keys = [os.urandom(32)] if forged else KEYS
            headers = sign(body, keys, msg_id="msg_1", timestamp=int(time.time()))

            def run(app: ASGIApp) -> None:
                runner.run(_many(app, body, headers))

            return {name: functools.partial(run, app) for name, app in apps.items()}

        measured = [
            compare(subjects(small), calls=10, rounds=9, per_call=REQUESTS),
            compare(subjects(large), calls=2, rounds=9, per_call=REQUESTS),
            compare(subjects(large, forged=True), calls=2, rounds=9, per_call=REQUESTS),
        ]
    rows = [[name, *(f"{1 / m[name]:,.0f} /s ({m['this module'] / m[name]:.2f} ×)" for m in measured)] for name in apps]
    return [
        Table(
            name="receive",
            columns=("", "2 KB", "200 KB", "200 KB, forged"),
            rows=rows,
            note="Requests a second through Starlette on one core, without a network, and a store that does nothing; "
            "in brackets, as a multiple of this module's. The difference is the time limits, the parsing that finds "
            "out whether the payload is an object with each key once, and the log. The short form bounds nothing and "
            "stores nothing.",
        )
    ]


async def _many(app: ASGIApp, body: bytes, headers: Mapping[str, str]) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    raw.append((b"content-length", str(len(body)).encode()))
    for _ in range(REQUESTS):
        scope: Scope = {"type": "http", "method": "POST", "path": "/webhooks", "headers": raw, "query_string": b""}
        chunks = [body[at : at + 65_536] for at in range(0, len(body), 65_536)]

        async def receive(chunks: list[bytes] = chunks) -> Message:
            return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

        async def send(message: Message) -> None: ...

        await app(scope, receive, send)
