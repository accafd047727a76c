"""Events a second, and events lost in a crash: a marker that commits with the effect, against `SET NX` beside it."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import redis
from psycopg_pool import ConnectionPool

from bench.kit import Table, compare, version
from idempotent_core import SCHEMA
from idempotent_sync import Inbox
from servers.postgres import Postgres
from servers.valkey import Valkey

CRASHES = 100
Deliver = Callable[[str, Callable[[], None]], None]


class Crash(BaseException):
    """The process ends here, between the effect and its commit."""


def nothing() -> None:
    """Let the work go on."""


def crash() -> None:
    """End it."""
    raise Crash


def tables() -> list[Table]:
    """New events, duplicates, and the effects that are missing after every event was delivered once more."""
    postgres, valkey = Postgres(), Valkey()
    try:
        with ConnectionPool(postgres.url, min_size=2) as pool, redis.Redis.from_url(valkey.url) as marks:
            with pool.connection() as conn:
                conn.execute(SCHEMA + "CREATE TABLE ledger (event_id text)")
            return [_events(pool, marks)]
    finally:
        valkey.stop()
        postgres.stop()


def _events(pool: ConnectionPool[Any], marks: redis.Redis) -> Table:
    inbox = Inbox(pool)
    sql = "INSERT INTO ledger VALUES (%s)"

    def ours(event_id: str, then: Callable[[], None] = nothing) -> None:
        def handler(conn: Any) -> None:
            conn.execute(sql, (event_id,))
            then()

        inbox.run("shop", event_id, handler)

    def set_nx(event_id: str, then: Callable[[], None] = nothing) -> None:
        if marks.set(f"shop:{event_id}", 1, nx=True, ex=86_400):
            with pool.connection() as conn:
                conn.execute(sql, (event_id,))
                then()

    def unguarded(event_id: str, then: Callable[[], None] = nothing) -> None:
        with pool.connection() as conn:
            conn.execute(sql, (event_id,))
            then()

    subjects: dict[str, Any] = {
        "this module, `run`": ours,
        f"`SET NX`, {version('redis')}": set_nx,
        "no guard": unguarded,
    }
    numbers = itertools.count()

    def unknown(deliver: Deliver) -> None:
        deliver(f"new-{next(numbers)}", nothing)

    def again(deliver: Deliver) -> None:
        deliver("known", nothing)

    new, known = (
        compare({name: functools.partial(run, deliver) for name, deliver in subjects.items()}, calls=200, rounds=9)
        for run in (unknown, again)
    )
    rows = []
    for name, deliver in subjects.items():
        lost, twice = _after_crashes(pool, deliver, name)
        rows.append([name, f"{1 / new[name]:,.0f} /s", f"{1 / known[name]:,.0f} /s", str(lost), str(twice)])
    return Table(
        name="events",
        columns=("", "new events", "duplicates", "lost in 100 crashes", "done twice"),
        rows=rows,
        note="Events a second on one connection; the effect is one inserted row, and PostgreSQL runs with fsync off. "
        f"Then {CRASHES} events are interrupted between their effect and its commit and each is delivered twice more: "
        "how many effects are missing, and how many are there twice. Without a guard, a duplicate costs as much as "
        "the work itself.",
    )


def _after_crashes(pool: ConnectionPool[Any], deliver: Deliver, name: str) -> tuple[int, int]:
    ids = [f"crash-{time.monotonic_ns()}-{number}" for number in range(CRASHES)]
    for event_id in ids:
        with suppress(Crash):
            deliver(event_id, crash)
        for _ in range(2):
            deliver(event_id, nothing)
    with pool.connection() as conn:
        counts = [
            n for (n,) in conn.execute("SELECT count(*) FROM ledger WHERE event_id = ANY(%s) GROUP BY event_id", (ids,))
        ]
    return CRASHES - len(counts), sum(1 for n in counts if n > 1)
