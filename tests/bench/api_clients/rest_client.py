"""Measures docs/patterns/api-clients/rest-client.md: what a call costs over bare httpx2, and a client for each call."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import httpx2

from bench.kit import ROOT, Table, compare, ratio_table, version
from rest_client_async import AsyncRestClient
from rest_client_core import bearer
from rest_client_sync import RestClient
from servers.http import UvicornProcess

aiohttp: Any = importlib.import_module("aiohttp")  # only where benchmarks run, not where types are checked

CALLS = 100
TOKEN = "x" * 40
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Accept": "application/json"}
BODY = json.dumps({f"field_{n:02}": "x" * 34 for n in range(20)} | {"id": 7}).encode()  # about 1 kB
HEAD = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]


def factory() -> Any:
    """Return the application that the server process runs."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEAD})
        await send({"type": "http.response.body", "body": BODY})

    return app


def loops(call: Callable[[], object], calls: int = CALLS) -> Callable[[], object]:
    def many() -> None:
        for _ in range(calls):
            call()

    return many


def sync(url: str) -> Table:
    with (
        RestClient(url, auth=bearer(TOKEN)) as ours,
        httpx2.Client(base_url=url, headers=HEADERS) as bare,
        httpx.Client(base_url=url, headers=HEADERS) as old,
    ):
        seconds = compare(
            {
                "this pattern": loops(lambda: ours.get("users/7").data),
                f"bare {version('httpx2')}": loops(lambda: bare.get("users/7").json()),
                f"bare {version('httpx')}": loops(lambda: old.get("users/7").json()),
            },
            calls=1,
            rounds=61,
            per_call=CALLS,
        )
    return ratio_table("sync", seconds, base="this pattern", note=NOTE, unit="ms")


def asynchronous(url: str) -> Table:
    with asyncio.Runner() as runner:

        def awaited(call: Callable[[], Awaitable[object]]) -> Callable[[], object]:
            async def many() -> None:
                for _ in range(CALLS):
                    await call()

            return lambda: runner.run(many())

        async def bare() -> object:
            return (await http.get("users/7")).json()

        async def old() -> object:
            return (await httpx_client.get("users/7")).json()

        async def other() -> object:
            async with session.get(f"{url}/users/7") as response:
                return await response.json()

        async def start() -> Any:
            return aiohttp.ClientSession(headers=HEADERS)

        ours = AsyncRestClient(url, auth=bearer(TOKEN))
        http = httpx2.AsyncClient(base_url=url, headers=HEADERS)
        httpx_client = httpx.AsyncClient(base_url=url, headers=HEADERS)
        session = runner.run(start())
        seconds = compare(
            {
                "this pattern": awaited(lambda: ours.get("users/7")),
                f"bare {version('httpx2')}": awaited(bare),
                f"bare {version('httpx')}": awaited(old),
                f"bare {version('aiohttp')}": awaited(other),
            },
            calls=1,
            rounds=61,
            per_call=CALLS,
        )
        for close in (ours.aclose, http.aclose, httpx_client.aclose, session.close):
            runner.run(close())
    return ratio_table("async", seconds, base="this pattern", note=NOTE, unit="ms")


def client_per_call(url: str) -> Table:
    def fresh() -> None:
        with RestClient(url, auth=bearer(TOKEN)) as client:
            client.get("users/7")

    with RestClient(url, auth=bearer(TOKEN)) as shared:
        seconds = compare(
            {"one client for all calls": lambda: shared.get("users/7"), "a client for each call": fresh},
            calls=10,
            rounds=9,
        )
    note = "GET of the same kilobyte, without TLS on the wire: the time goes into a TLS context that nobody uses."
    return ratio_table("client-per-call", seconds, base="one client for all calls", note=note, unit="ms")


NOTE = (
    "GET of 1 kB of JSON from uvicorn on the same machine, decoded; one caller, one kept connection, the same headers. "
    f"Median of 61 interleaved rounds of {CALLS} calls."
)


def tables() -> list[Table]:
    """Return the tables of the page."""
    paths = os.pathsep.join([str(ROOT / "tests"), *sys.path])
    server = UvicornProcess(
        "bench.api_clients.rest_client:factory", path=ROOT / "tests", env=os.environ | {"PYTHONPATH": paths}
    )
    try:
        url = f"{server.url}/v1"
        return [asynchronous(url), sync(url), client_per_call(url)]
    finally:
        server.stop()
