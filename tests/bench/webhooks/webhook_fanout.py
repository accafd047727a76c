"""Dispatches a second: the fan-out against a bare `asyncio.gather`."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable
from typing import Any

from psycopg_pool import AsyncConnectionPool

from bench.kit import Table, compare
from fanout_done import SCHEMA, PostgresDone
from servers.postgres import Postgres
from webhook_fanout import DoneStore, Fanout, MemoryDone
from webhook_queue import Delivery

HANDLERS = 5
BODY = b'{"type":"invoice.paid","note":"' + b"x" * 2_000 + b'"}'


def tables() -> list[Table]:
    """Five handlers that do nothing, with marks in memory, with marks in PostgreSQL, and without any."""
    server = Postgres()
    try:
        with asyncio.Runner() as runner:
            return [runner.run(_prepare(server.url)) or _measure(server.url, runner)]
    finally:
        server.stop()


async def _prepare(url: str) -> None:
    async with AsyncConnectionPool(url, min_size=1, open=False) as pool, pool.connection() as conn:
        await conn.execute(SCHEMA)


def _measure(url: str, runner: asyncio.Runner) -> Table:
    numbers = itertools.count()
    pool = AsyncConnectionPool(url, min_size=HANDLERS, max_size=HANDLERS, open=False)
    runner.run(pool.open(wait=True))

    async def nothing(delivery: Any) -> None: ...

    def fanout(store: DoneStore) -> Callable[[Delivery], Any]:
        made = Fanout(store)
        for number in range(HANDLERS):
            made.register(str(number), nothing)
        return made.dispatch

    async def gather(delivery: Delivery) -> None:
        await asyncio.gather(*(nothing(delivery) for _ in range(HANDLERS)), return_exceptions=True)

    async def many(dispatch: Callable[[Delivery], Any], count: int) -> None:
        for _ in range(count):
            await dispatch(Delivery("shop", f"evt_{next(numbers)}", 0, "invoice.paid", BODY))

    def run(dispatch: Callable[[Delivery], Any]) -> None:
        runner.run(many(dispatch, 20))

    dispatches = {
        "this module, marks in memory": fanout(MemoryDone()),
        "this module, marks in PostgreSQL": fanout(PostgresDone(pool)),
        "`asyncio.gather`": gather,
    }
    try:
        seconds = compare(
            {name: functools.partial(run, dispatch) for name, dispatch in dispatches.items()},
            calls=5,
            rounds=9,
            per_call=20,
        )
    finally:
        runner.run(pool.close())
    base = seconds["this module, marks in memory"]
    rows = [[name, f"{1 / value:,.0f} /s", f"{base / value:.2f} ×"] for name, value in seconds.items()]
    return Table(
        name="dispatch",
        columns=("", "dispatches", "ratio"),
        rows=rows,
        note=f"Dispatches a second, one at a time, of an event of 2 KB to {HANDLERS} handlers that do nothing. The "
        "bare `gather` has no time limits, no copies, no marks, and does not say what failed. With marks in PostgreSQL "
        f"each dispatch is one query and {HANDLERS} inserts; fsync is off.",
    )
