"""Proves docs/patterns/webhooks/idempotent-processing.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from idempotent_core import SCHEMA, Status
from idempotent_sync import Inbox


def book(conn: psycopg.Connection) -> None:  # your handler
    conn.execute("INSERT INTO booking VALUES ('evt_1')")


def test_my_handler_has_its_effect_once_and_none_when_it_fails(database_url: str) -> None:
    with ConnectionPool(database_url, min_size=1) as pool:
        inbox = Inbox(pool)
        with pool.connection() as conn:
            conn.execute(SCHEMA + "CREATE TABLE booking (event_id text)")

        def book_and_fail(conn: psycopg.Connection) -> None:
            book(conn)
            raise ConnectionError

        with pytest.raises(ConnectionError):
            inbox.run("shop", "evt_1", book_and_fail)
        outcomes = [inbox.run("shop", "evt_1", book).status for _ in range(3)]
        assert outcomes == [Status.PROCESSED, Status.DUPLICATE, Status.DUPLICATE]
        with pool.connection() as conn:
            assert conn.execute("SELECT count(*) FROM booking").fetchone() == (1,)


# --8<-- [end:own]
