"""Servers that answer what a proof tells them, and keep what they were asked.

`Script` is an ASGI application for a real uvicorn. `Raw` is a TCP server that breaks HTTP in ways uvicorn cannot.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Seen:
    """A request as a server saw it; header names are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """What a server answers; a body that is not bytes is sent as JSON."""

    status: int = 200
    body: Any = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    after: float = 0.0

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()

    def raw(self, *, length: int | None = None) -> bytes:
        """The bytes of the answer; `length` lies about the body's."""
        headers = {"content-length": str(len(self.content) if length is None else length)} | self.headers
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {self.status} X\r\n{head}\r\n".encode("latin-1") + self.content


class Script:
    """An ASGI application that gives one answer after the other, and the last one forever."""

    def __init__(self) -> None:
        self.url = ""
        self.reset()

    def reset(self) -> None:
        self.answers: list[Answer | Callable[[Seen], Answer]] = [Answer()]
        self.seen: list[Seen] = []
        self.connections: set[tuple[str, int]] = set()

    def answer(self, *answers: Answer | int | Callable[[Seen], Answer]) -> None:
        self.answers = [Answer(each) if isinstance(each, int) else each for each in answers]

    @property
    def targets(self) -> list[str]:
        return [seen.target for seen in self.seen]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        query = scope["query_string"].decode()
        target = scope["raw_path"].decode() + (f"?{query}" if query else "")
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        seen = Seen(scope["method"], target, headers, body)
        self.seen.append(seen)
        self.connections.add(tuple(scope["client"]))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not isinstance(answer, Answer):
            answer = answer(seen)
        await asyncio.sleep(answer.after)
        raw = {"content-type": "application/json", "content-length": str(len(answer.content))} | answer.headers
        pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in raw.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": pairs})
        await send({"type": "http.response.body", "body": answer.content if scope["method"] != "HEAD" else b""})


Play = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Raw:
    """A TCP server on loopback. Each request gets the next answer, and the last one forever: bytes, or a play."""

    def __init__(self, *answers: bytes | Play) -> None:
        self._answers = list(answers)
        self.heads: list[str] = []
        self.connections = 0
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        ready = threading.Event()

        async def listen() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = self._server.sockets[0].getsockname()[1]
            ready.set()

        def run() -> None:
            self._loop.run_until_complete(listen())
            self._loop.run_forever()

        self._thread = threading.Thread(target=run)
        self._thread.start()
        assert ready.wait(10)
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        async def wind_down() -> None:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(wind_down(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:-2])
                await reader.readexactly(int(fields.get("content-length", 0)))
                self.heads.append(head)
                answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
                if isinstance(answer, bytes):
                    writer.write(answer)
                    await writer.drain()
                else:
                    await answer(writer)
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


def drip(data: bytes, *, gap: float, before: bytes = b"") -> Play:
    """Send `before` at once, then `data` one byte in each `gap` seconds."""

    async def play(writer: asyncio.StreamWriter) -> None:
        writer.write(before)
        for byte in data:
            await asyncio.sleep(gap)
            writer.write(bytes([byte]))
            await writer.drain()

    return play


def reset(before: bytes = b"") -> Play:
    """Send `before`, then reset the connection."""

    async def play(writer: asyncio.StreamWriter) -> None:
        writer.write(before)
        await writer.drain()
        await asyncio.sleep(0.02)  # a reset overtakes what it follows
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return play


async def silence(writer: asyncio.StreamWriter) -> None:
    """Never answer."""
    await asyncio.Event().wait()


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close the connection in order, without an answer."""
    writer.close()


def refused_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
