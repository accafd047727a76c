"""For the proofs of ssrf-guard: a site made of raw bytes, and a guarded client of either color."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ssrf_guard_async
import ssrf_guard_sync
from harness.color import Color
from harness.tls import NOBODY
from ssrf_guard_core import Fetched, Policy

Answer = bytes | Callable[[socket.socket], None]
Lookup = Callable[[str, int], list[str]]


def answer(body: bytes = b"hello", status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return answer(b"", status, f"Location: {location}")


class Site:
    """Answers by path with what it is told, byte for byte, on a loopback port; keeps each request's head."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, Answer] = {}
        self.heads: list[str] = []
        self.connections = 0
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept() where the system allows it
        self._listener.close()

    def policy(self, *schemes: str, **more: Any) -> Policy:
        return Policy(schemes=schemes or ("http",), ports=(self.port,), opened=("127.0.0.1",), **more)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        self.connections += 1
        with contextlib.suppress(OSError):
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
            with connection:
                self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        while True:
            head = b""
            while b"\r\n\r\n" not in head:
                more = connection.recv(65_536)
                if not more:
                    return
                head += more
            self.heads.append(head.decode())
            told = self.answers.get(self.heads[-1].split()[1], answer(b"", "404 Not Found"))
            if callable(told):
                told(connection)
                return
            connection.sendall(told)


class Guarded:
    """A guarded client of either color, whose calls a proof need not await."""

    def __init__(self, color: Color, policy: Policy | None, lookup: Lookup | None, options: dict[str, Any]) -> None:
        module: Any = color.pick(ssrf_guard_async, ssrf_guard_sync)
        if lookup:
            options["resolve"] = color.quick(lookup)
        options.setdefault("verify", NOBODY)
        self._color = color
        self._fetch = module.fetch
        self.inner = color.call(module.guarded_client, policy, **options)

    def fetch(self, url: str, **options: Any) -> Fetched:
        found: Fetched = self._color.call(self._fetch, self.inner, url, **options)
        return found

    def get(self, url: str, **options: Any) -> Any:
        return self._color.call(self.inner.get, url, **options)


@contextlib.contextmanager
def guarded(
    color: Color, policy: Policy | None = None, lookup: Lookup | None = None, **options: Any
) -> Iterator[Guarded]:
    """Make a guarded client, closed at the end of the block."""
    made = Guarded(color, policy, lookup, options)
    try:
        yield made
    finally:
        color.call(getattr(made.inner, color.pick("aclose", "close")))
