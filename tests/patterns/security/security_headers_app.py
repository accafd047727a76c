"""The application that the proofs of security-headers talk to, and a client that shows every byte of a header."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles

from security_headers import csp_nonce


def build(folder: Path) -> FastAPI:
    app = FastAPI()
    app.mount("/static", StaticFiles(directory=folder))

    @app.get("/page")
    async def page(request: Request) -> HTMLResponse:
        nonce = csp_nonce(request.scope)
        same = csp_nonce(request.scope) == nonce
        headers = {"Age": "1", "Cache-Control": "public, max-age=60", "X-Other": "2"}
        return HTMLResponse(f'<script nonce="{nonce}">{same}</script>', headers=headers)

    @app.get("/json")
    async def json(number: int = 0) -> dict[str, int]:
        return {"number": number}

    @app.get("/status/{code}")
    async def status(code: int) -> Response:
        if code >= 400:
            raise HTTPException(code)
        return Response(status_code=code)

    @app.get("/boom")
    async def boom() -> None:
        raise RuntimeError("unhandled")

    @app.get("/redirect")
    async def redirect() -> RedirectResponse:
        return RedirectResponse("/json")

    @app.get("/own")
    async def own() -> Response:
        headers = {
            "Content-Security-Policy": "default-src 'none'",
            "REFERRER-POLICY": "no-referrer",
            "Access-Control-Allow-Origin": "*",
            "X-XSS-Protection": "1; mode=block",
            "Server": "Secret/1.2",
            "X-Powered-By": "Secret",
            "Vary": "Accept",
            "Cache-Control": "public",
        }
        return Response(headers=headers)

    @app.get("/xss-zero")
    async def xss_zero() -> Response:
        return Response(headers={"X-XSS-Protection": "0"})

    @app.get("/inject")
    async def inject(name: str) -> Response:
        return Response(headers={"X-Name": name, "X-Other": "kept"})

    @app.get("/stream")
    async def stream(request: Request) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"first"
            await request.app.state.go_on.wait()
            yield b"last"

        request.app.state.go_on = asyncio.Event()
        request.app.state.loop = asyncio.get_running_loop()
        return StreamingResponse(parts())

    @app.get("/cut")
    async def cut() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"first"
            raise RuntimeError("midway")

        return StreamingResponse(parts())

    @app.get("/late")
    async def late(request: Request) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            try:
                csp_nonce(request.scope)
            except ValueError as error:
                yield str(error).encode()

        return StreamingResponse(parts())

    @app.options("/json")
    async def options() -> dict[str, str]:
        return {"from": "the application"}

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    return app


Headers = list[tuple[str, str]]


def ask(port: int, path: str, *headers: str, method: str = "GET") -> tuple[int, Headers, bytes]:
    """Send one request over a raw socket, and return status, headers as they stand, and what follows them."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test", "Connection: close", *headers]
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        raw = b""
        while chunk := connection.recv(65_536):
            raw += chunk
    return parse(raw)


def parse(raw: bytes) -> tuple[int, Headers, bytes]:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    pairs = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in rest)]
    return int(first.split()[1]), pairs, body


def values(headers: Headers, name: str) -> list[str]:
    return [value for key, value in headers if key == name]
