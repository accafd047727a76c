"""A customer's server over TLS that misbehaves on command, and the client that is allowed to reach it."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from harness.tls import Authority
from servers.http import Uvicorn

KEY, OLD_KEY = b"n" * 32, b"o" * 32
METADATA = "http://169.254.169.254/latest/meta-data"


class Guarded(httpx2.AsyncClient):
    """As the client of an SSRF guard says of itself that it is one. Here its policy is: the test's server only."""

    guards_addresses = True


class Customer:
    """Listens at `url`, and keeps what it got. The path says what it does."""

    def __init__(self, folder: Path, name: str = "localhost") -> None:
        authority = Authority()
        chain, key = authority.server_files(folder, name)
        self.trust = authority.client_context()
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.sent = 0
        app = Starlette(routes=[Route("/{what:path}", self._answer, methods=["POST"])])
        self._server = Uvicorn(app, ssl_certfile=str(chain), ssl_keyfile=str(key), timeout_graceful_shutdown=1)
        self.port = self._server.port
        self.url = f"https://localhost:{self.port}"

    def client(self, **options: Any) -> Guarded:
        return Guarded(verify=self.trust, trust_env=False, **options)

    def stop(self) -> None:
        self._server.stop()

    async def _answer(self, request: Request) -> Response:
        what = request.path_params["what"]
        self.got.append((what, dict(request.headers), await request.body()))
        if what.isdigit():
            headers = {"retry-after": request.query_params["after"]} if "after" in request.query_params else {}
            text = "" if what in ("204", "304") else "thanks" * 1_000
            return Response(text, int(what), headers | {"set-cookie": "session=canary-cookie"})
        match what:
            case "redirect":
                return Response(status_code=301, headers={"location": METADATA})
            case "drip" | "flood":
                return StreamingResponse(self._stream(what))
            case "bomb":
                bomb = gzip.compress(bytes(20_000_000))
                return Response(bomb, headers={"content-encoding": "gzip"})
            case _:
                while not await request.is_disconnected():
                    await asyncio.sleep(0.02)
                return Response()

    async def _stream(self, what: str) -> AsyncIterator[bytes]:
        for _ in range(100_000):
            chunk = b"." if what == "drip" else bytes(16_384)
            self.sent += len(chunk)
            yield chunk
            await asyncio.sleep(0.01 if what == "drip" else 0)
