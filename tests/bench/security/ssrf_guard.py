"""Fetches a second from a loopback server: the guarded clients, safehttpx, and httpx2 without any guard."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import httpx2
import safehttpx

import ssrf_guard_async
import ssrf_guard_sync
from bench.kit import Table, compare, version
from ssrf_guard_core import Policy

# In a process of its own: in a thread, server and client would wait for each other's lock.
SERVER = """
import asyncio
ANSWER = b"HTTP/1.1 200 OK\\r\\nContent-Length: 2048\\r\\n\\r\\n" + b"x" * 2048
class Talk(asyncio.Protocol):
    def connection_made(self, transport): self.transport = transport
    def data_received(self, data): self.transport.write(ANSWER)
async def main():
    server = await asyncio.get_running_loop().create_server(Talk, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def tables() -> list[Table]:
    """Time one GET of 2 KB over plain HTTP, in each library's usual way."""
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        return _measure(int(server.stdout.readline() if server.stdout else 0))
    finally:
        server.kill()
        server.wait()


def _measure(port: int) -> list[Table]:
    url = f"http://127.0.0.1:{port}/"
    policy = Policy(schemes=("http",), ports=(port,), opened=("127.0.0.1",))
    with asyncio.Runner() as runner:

        def awaited(make: Callable[[], Coroutine[Any, Any, Any]]) -> Callable[[], object]:
            return lambda: runner.run(make())

        guarded = ssrf_guard_async.guarded_client(policy)
        guarded_sync = ssrf_guard_sync.guarded_client(policy)
        plain = httpx2.AsyncClient(trust_env=False)
        unkept = ssrf_guard_async.guarded_client(policy, limits=httpx2.Limits(max_keepalive_connections=0))

        async def theirs() -> object:
            transport = safehttpx.AsyncSecureTransport("127.0.0.1")  # what it makes for each fetch
            return await safehttpx.get(url, _transport=transport)

        light = compare(
            {
                "this module": awaited(lambda: ssrf_guard_async.fetch(guarded, url)),
                "this module, a new connection each time": awaited(lambda: ssrf_guard_async.fetch(unkept, url)),
                "this module, sync": lambda: ssrf_guard_sync.fetch(guarded_sync, url),
                "httpx2 without a guard, one client": awaited(lambda: plain.get(url)),
            },
            calls=50,
            rounds=15,
        )
        # Apart, because what loads a processor for so long slows down whoever comes next.
        heavy = compare(
            {
                "this module": awaited(lambda: ssrf_guard_async.fetch(guarded, url)),
                version("safehttpx"): awaited(theirs),
            },
            calls=5,
            rounds=11,
        )
        for client in (guarded, plain, unkept):
            runner.run(client.aclose())
        guarded_sync.close()
    rows = [
        [name, f"{seconds[name] * 1e3:.3g} ms", f"{seconds[name] / seconds['this module']:.2f} ×"]
        for seconds in (light, heavy)
        for name in seconds
        if seconds is light or name != "this module"
    ]
    return [
        Table(
            name="fetch",
            columns=("", "time a call", "ratio"),
            rows=rows,
            note="One GET of 2 KB over plain HTTP from a loopback server in a process of its own, whose address was "
            "opened. safehttpx makes a client for each fetch, and with it a TLS context that reads all certificate "
            "authorities; its name lookup is left out here. It was timed in a run of its own beside this module.",
        )
    ]
