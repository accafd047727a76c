"""One request's work with its session: the module against starsessions, on the same Valkey."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

from starlette.requests import HTTPConnection
from starsessions.serializers import JsonSerializer
from starsessions.session import SessionHandler
from starsessions.stores.redis import RedisStore

from bench.kit import Table, compare, version
from servers.valkey import Valkey
from sessions_async import AsyncSessionStore, connect

DATA = {"name": "Ada", "cart": [{"sku": f"sku-{n}", "count": n} for n in range(10)], "theme": "dark"}


def tables() -> list[Table]:
    """Measure reading a session and beginning its idle time anew."""
    server = Valkey()
    try:
        with asyncio.Runner() as runner:
            client = connect(server.url, timeout=5)
            ours = AsyncSessionStore(client)
            token = runner.run(ours.create("ada", DATA)).token
            theirs, name = RedisStore(connection=client), secrets.token_hex(16)
            peer = version("starsessions")

            async def load(session_id: str) -> SessionHandler:
                connection = HTTPConnection({"type": "http", "headers": []})
                handler = SessionHandler(connection, session_id, theirs, JsonSerializer(), 1_800)
                await handler.load()
                return handler

            async def begin() -> None:
                handler = await load(name)
                handler.connection.session.update(DATA)
                await handler.save(1_800)

            async def one() -> bool:
                return await ours.get(token) is not None

            async def other() -> bool:
                handler = await load(name)
                await handler.save(1_800)
                return not handler.is_empty

            async def twenty(call: Callable[[], Any]) -> bool:
                return all(await asyncio.gather(*(call() for _ in range(20))))

            runner.run(begin())
            alone: dict[str, Callable[[], object]] = {
                "this module": lambda: runner.run(one()),
                peer: lambda: runner.run(other()),
            }
            crowd: dict[str, Callable[[], object]] = {
                "this module": lambda: runner.run(twenty(one)),
                peer: lambda: runner.run(twenty(other)),
            }
            if not all(call() for call in (*alone.values(), *crowd.values())):
                raise RuntimeError("a session was not found")
            measured = [compare(alone, calls=200, rounds=9), compare(crowd, calls=20, rounds=9, per_call=20)]
            runner.run(client.aclose())
    finally:
        server.stop()
    rows = [
        [row, *(f"{1 / s[row]:,.0f} /s ({s[row] / s['this module']:.2f} × time)" for s in measured)]
        for row in measured[0]
    ]
    note = (
        "Reading a session of 342 bytes and beginning its idle time anew, with Valkey on the same machine. "
        "starsessions reads and writes, in two round trips; this module does all of it in one script, and keeps the "
        "absolute limit and the list of the user's sessions as well."
    )
    return [Table(name="get-and-slide", columns=("", "one at a time", "20 at once"), rows=rows, note=note)]
