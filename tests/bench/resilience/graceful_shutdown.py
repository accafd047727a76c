"""Measures docs/patterns/resilience/graceful-shutdown.md: requests that are lost while servers are replaced."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time

import httpx2

from bench.kit import ROOT, Table
from servers._process import free_port

APP = ROOT / "tests" / "patterns" / "resilience" / "graceful_shutdown_app.py"
REQUESTS, POLL = 1000, 0.05


class Backend:
    """A server on a port of its own, and what the load balancer knows of it."""

    def __init__(self, kind: str) -> None:
        self.kind, self.port, self.known_ready = kind, free_port(), False
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(APP), self.kind, str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"DRAIN_DELAY_S": "0.3", "GRACE_S": "1"},
        )

    async def replace(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(self.process.wait, 20)
        self.start()
        while not self.known_ready:
            await asyncio.sleep(POLL)


async def lost(kind: str) -> int:
    """Return how many of 1,000 requests fail while two servers are replaced one after the other."""
    backends = [Backend(kind) for _ in range(2)]
    failed = sent = 0
    over = asyncio.Event()

    each_its_own_connection = httpx2.Limits(max_keepalive_connections=0)
    http = httpx2.AsyncClient(trust_env=False, timeout=5, limits=each_its_own_connection)

    async def ask(url: str) -> int:
        return (await http.get(url)).status_code

    async def poll(backend: Backend) -> None:
        while not over.is_set():
            try:
                backend.known_ready = await ask(f"{backend.url}/ready") == 200
            except httpx2.TransportError:
                backend.known_ready = False
            await asyncio.sleep(POLL)

    async def client(number: int) -> None:
        nonlocal failed, sent
        while sent < REQUESTS:
            ready = [backend for backend in backends if backend.known_ready] or backends
            sent += 1
            try:
                failed += await ask(f"{ready[(sent + number) % len(ready)].url}/work?name=x&seconds=0") != 200
            except httpx2.TransportError:
                failed += 1
            await asyncio.sleep(0.02)

    pollers = [asyncio.create_task(poll(backend)) for backend in backends]
    try:
        begun = time.monotonic()
        while not all(backend.known_ready for backend in backends) and time.monotonic() - begun < 20:
            await asyncio.sleep(POLL)
        clients = [asyncio.create_task(client(number)) for number in range(8)]
        for backend in backends:
            await backend.replace()
        await asyncio.gather(*clients)
    finally:
        over.set()
        await asyncio.gather(*pollers)
        await http.aclose()
        for backend in backends:
            with contextlib.suppress(ProcessLookupError):
                backend.process.kill()
            backend.process.wait(10)
    return failed


def tables() -> list[Table]:
    rows = [["this pattern", str(asyncio.run(lost("graceful")))], ["uvicorn alone", str(asyncio.run(lost("plain")))]]
    note = (
        f"Two servers are replaced one after the other under {REQUESTS} requests from 8 clients; the load balancer "
        f"asks /ready every {POLL * 1000:.0f} ms. The drain takes 0.3 s."
    )
    return [Table("lost", ("", "requests lost"), rows, note)]
