"""A `DoneStore` of the fan-out in PostgreSQL: which handlers are done with which event."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, Protocol

from psycopg import AsyncConnection
from psycopg.rows import tuple_row

SCHEMA = """
CREATE TABLE IF NOT EXISTS webhook_done (
    source   text        NOT NULL,
    event_id text        NOT NULL,
    handler  text        NOT NULL,
    done_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, event_id, handler)
);
CREATE INDEX IF NOT EXISTS webhook_done_done_at ON webhook_done (done_at);
"""
_DONE = "SELECT handler FROM webhook_done WHERE source = %s AND event_id = %s"
_MARK = """
INSERT INTO webhook_done (source, event_id, handler) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING
"""
_PURGE = "DELETE FROM webhook_done WHERE done_at < now() - %s"


class _Pool(Protocol):
    """Lends connections: `psycopg_pool.AsyncConnectionPool`, or one of yours."""

    def connection(self) -> AbstractAsyncContextManager[AsyncConnection[Any]]: ...


class PostgresDone:
    """Marks in a table, which you create with `SCHEMA`. What psycopg raises comes out."""

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool

    async def done(self, source: str, event_id: str) -> Collection[str]:
        """Return the names of the handlers that are done with an event."""
        async with self._pool.connection() as conn, conn.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(_DONE, (source, event_id))
            return frozenset([name for (name,) in await cursor.fetchall()])

    async def mark(self, source: str, event_id: str, handler: str) -> None:
        """Remember a handler that is done, in a transaction of its own."""
        async with self._pool.connection() as conn, conn.transaction():
            await conn.execute(_MARK, (source, event_id, handler))

    async def purge(self, keep: timedelta = timedelta(days=30)) -> int:
        """Forget marks older than `keep`, and return how many.

        Keep them for longer than the event may be delivered again.
        """
        async with self._pool.connection() as conn, conn.transaction():
            return (await conn.execute(_PURGE, (keep,))).rowcount
