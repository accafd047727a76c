"""Measures databases/connection-pool: one borrowing against other pools, and what the size of a pool changes."""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psycopg
import psycopg_pool
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

from bench.kit import SERIES, Plot, Table, compare, ratio_table, version
from pool_async import AsyncDatabase
from pool_core import PoolConfig
from pool_sync import Database
from servers.postgres import Postgres

CALLS = 10
CALLERS = 64
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
SECONDS = 1.0
# Two milliseconds in which the server waits, as for a disk or a lock, and half a millisecond in which it computes.
WORK = "SELECT pg_sleep(0.002), (SELECT sum(i) FROM generate_series(1, 4000) i)"


def tables() -> list[Table]:
    """One borrowing in this and in other pools; and what SQLAlchemy does with first attempts."""
    server = Postgres()
    try:
        return [_borrowing(server.url)]
    finally:
        server.stop()


def _borrowing(url: str) -> Table:
    alchemy = url.replace("postgresql://", "postgresql+psycopg://")
    with ExitStack() as stack, asyncio.Runner() as runner:
        ours = stack.enter_context(Database(PoolConfig(url, max_size=2)))
        plain = stack.enter_context(psycopg_pool.ConnectionPool(url, min_size=1, open=False))
        check = psycopg_pool.ConnectionPool.check_connection
        checked = stack.enter_context(psycopg_pool.ConnectionPool(url, min_size=1, check=check, open=False))
        engine = sqlalchemy.create_engine(alchemy, pool_pre_ping=True)
        stack.callback(engine.dispose)
        one = sqlalchemy.text("SELECT 1")

        def times(call: Callable[[], None]) -> Callable[[], None]:
            def calls() -> None:
                for _ in range(CALLS):
                    call()

            return calls

        def borrow_from(pool: Any) -> Callable[[], None]:
            def call() -> None:
                with pool.connection() as conn:
                    conn.execute("SELECT 1").fetchone()

            return call

        def borrow_from_engine() -> None:
            with engine.connect() as conn:
                conn.execute(one).fetchone()

        def connect() -> None:
            with psycopg.connect(url) as conn:
                conn.execute("SELECT 1").fetchone()

        db = AsyncDatabase(PoolConfig(url, max_size=2))
        runner.run(db.open())
        async_engine = create_async_engine(alchemy, pool_pre_ping=True)

        async def borrow() -> None:
            for _ in range(CALLS):
                async with db.connection() as conn:
                    await (await conn.execute("SELECT 1")).fetchone()

        async def borrow_engine() -> None:
            for _ in range(CALLS):
                async with async_engine.connect() as conn:
                    (await conn.execute(one)).fetchone()

        seconds = compare(
            {
                "this page, Database": times(borrow_from(ours)),
                f"{version('SQLAlchemy')}, pool_pre_ping": times(borrow_from_engine),
                f"{version('psycopg-pool')} with its check": times(borrow_from(checked)),
                f"{version('psycopg-pool')} without": times(borrow_from(plain)),
                "no pool, psycopg.connect()": times(connect),
                "this page, AsyncDatabase": lambda: runner.run(borrow()),
                f"{version('SQLAlchemy')}, async engine, pool_pre_ping": lambda: runner.run(borrow_engine()),
            },
            calls=5,
            rounds=25,
            per_call=CALLS,
        )
        runner.run(async_engine.dispose())
        runner.run(db.close())
    return ratio_table(
        "borrowing",
        seconds,
        base="this page, Database",
        unit="ms",
        note="Borrow a connection, SELECT 1, fetch the row, give it back; one caller, PostgreSQL on the same machine.",
    )


async def _load(url: str, size: int) -> tuple[float, float]:
    """Return borrowings a second and the median seconds a caller waited, with so many connections."""
    async with AsyncDatabase(PoolConfig(url, min_size=size, max_size=size, acquire_timeout=60)) as db:
        while db.stats().idle < size:
            await asyncio.sleep(0.01)
        waits: list[float] = []
        end = time.perf_counter() + SECONDS

        async def caller() -> None:
            while (begin := time.perf_counter()) < end:
                async with db.connection() as conn:
                    waits.append(time.perf_counter() - begin)
                    await conn.execute(WORK)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return len(waits) / SECONDS, statistics.median(waits)


def plots() -> list[Plot]:
    """Throughput and waiting time of 64 callers against the size of the pool."""
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    server = Postgres()
    try:
        rounds = [{size: asyncio.run(_load(server.url, size)) for size in SIZES} for _ in range(3)]
    finally:
        server.stop()
    rate = [statistics.median(found[size][0] for found in rounds) for size in SIZES]
    wait = [statistics.median(found[size][1] for found in rounds) * 1000 for size in SIZES]

    def draw(axes: Any) -> None:
        axes.plot(SIZES, rate, marker="o", color=SERIES[0], label="throughput")
        axes.set(xlabel="connections in the pool", ylabel="queries a second", ylim=(0, None), xlim=(0, None))
        other = axes.twinx()
        other.plot(SIZES, wait, marker="s", linestyle="--", color=SERIES[1], label="waiting time")
        other.set(ylabel="median wait, ms", ylim=(0, None))
        other.spines["right"].set_visible(True)
        lines = [*axes.get_lines()[:1], *other.get_lines()]
        axes.legend(lines, [line.get_label() for line in lines], loc="center right")

    few = SIZES.index(6)
    alt = (
        f"Two curves over the number of connections. Throughput rises from {rate[0]:.0f} queries a second with one "
        f"connection to {rate[few]:.0f} with {SIZES[few]} and {rate[-1]:.0f} with {SIZES[-1]}. The median wait of "
        f"{CALLERS} callers falls from {wait[0]:.0f} ms to {wait[few]:.0f} ms and {wait[-1]:.0f} ms."
    )
    return [Plot("size", alt, draw)]
