"""What the proofs of ssrf-guard share: a site made of raw bytes, and one face for both twins."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ssrf_guard_async
import ssrf_guard_sync
from ssrf_guard_core import Fetched, Policy

_NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # to load the usual authorities takes its time
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


class Async:
    """The async twin, called as the sync one is."""

    module: Any = ssrf_guard_async

    @contextlib.contextmanager
    def client(self, policy: Policy | None = None, lookup: Lookup | None = None, **options: Any) -> Iterator[Any]:
        if lookup:

            async def resolve(host: str, port: int) -> list[str]:
                return lookup(host, port)

            options["resolve"] = resolve
        options.setdefault("verify", _NOBODY)
        with asyncio.Runner() as runner:
            client = ssrf_guard_async.guarded_client(policy, **options)
            self._run = runner.run
            yield client
            runner.run(client.aclose())

    def fetch(self, client: Any, url: str, **options: Any) -> Fetched:
        return self._run(ssrf_guard_async.fetch(client, url, **options))

    def get(self, client: Any, url: str, **options: Any) -> Any:
        return self._run(client.get(url, **options))


class Sync:
    """The sync twin."""

    module: Any = ssrf_guard_sync

    @contextlib.contextmanager
    def client(self, policy: Policy | None = None, lookup: Lookup | None = None, **options: Any) -> Iterator[Any]:
        if lookup:
            options["resolve"] = lookup
        options.setdefault("verify", _NOBODY)
        with ssrf_guard_sync.guarded_client(policy, **options) as client:
            yield client

    def fetch(self, client: Any, url: str, **options: Any) -> Fetched:
        return ssrf_guard_sync.fetch(client, url, **options)

    def get(self, client: Any, url: str, **options: Any) -> Any:
        return client.get(url, **options)
