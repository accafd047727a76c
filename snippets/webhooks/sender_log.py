"""A `DeliveryLog` in PostgreSQL: what is due, every attempt, and which endpoints are failing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from psycopg import AsyncConnection
from psycopg.rows import tuple_row

from webhook_sender import Attempt, Due, Endpoint, Message, Outcome

FIVE_DAYS = 5 * 86_400.0

# Times are seconds since 1970, of the clock that the sender uses.
SCHEMA = """
CREATE TABLE IF NOT EXISTS webhook_delivery (
    endpoint_id  text   NOT NULL,
    message_id   text   NOT NULL,
    type         text   NOT NULL,
    body         bytea  NOT NULL,
    outcome      text   NOT NULL DEFAULT 'waiting',
    n            int    NOT NULL DEFAULT 1,
    due_at       float8 NOT NULL,
    leased_until float8 NOT NULL DEFAULT 0,
    PRIMARY KEY (endpoint_id, message_id)
);
CREATE INDEX IF NOT EXISTS webhook_delivery_due ON webhook_delivery (due_at)
    WHERE outcome = 'waiting';
CREATE TABLE IF NOT EXISTS webhook_attempt (
    endpoint_id text   NOT NULL,
    message_id  text   NOT NULL,
    n           int    NOT NULL,
    at          float8 NOT NULL,
    status      int,
    outcome     text   NOT NULL,
    excerpt     text   NOT NULL
);
CREATE TABLE IF NOT EXISTS webhook_health (
    endpoint_id   text PRIMARY KEY,
    failing_since float8,
    disabled_at   float8
);
"""
_ADD = """
INSERT INTO webhook_delivery (endpoint_id, message_id, type, body, due_at)
VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
"""
# A few at a time of each endpoint, counting those under way, so that a dead one with a thousand
# messages leaves room for the others. What another worker is just claiming is passed over.
_CLAIM = """
WITH ranked AS (
    SELECT endpoint_id, message_id, row_number() OVER (PARTITION BY endpoint_id ORDER BY due_at)
           + (SELECT count(*) FROM webhook_delivery b
               WHERE b.endpoint_id = q.endpoint_id AND b.outcome = 'waiting'
                 AND b.leased_until > %(now)s) AS place
      FROM webhook_delivery q
     WHERE outcome = 'waiting' AND due_at <= %(now)s AND leased_until <= %(now)s
       AND NOT EXISTS (SELECT FROM webhook_health h
                        WHERE h.endpoint_id = q.endpoint_id AND disabled_at IS NOT NULL)
), free AS (
    SELECT d.endpoint_id, d.message_id
      FROM webhook_delivery d JOIN ranked USING (endpoint_id, message_id)
     WHERE place <= %(each)s AND outcome = 'waiting' AND leased_until <= %(now)s
     ORDER BY due_at LIMIT %(limit)s FOR UPDATE OF d SKIP LOCKED
)
UPDATE webhook_delivery d SET leased_until = %(now)s + %(lease)s
  FROM free WHERE (d.endpoint_id, d.message_id) = (free.endpoint_id, free.message_id)
RETURNING d.endpoint_id, d.message_id, d.type, d.body, d.n
"""
_FORGET = """
UPDATE webhook_delivery SET outcome = 'gone' WHERE endpoint_id = ANY(%s) AND outcome = 'waiting'
"""
_UPDATE = """
UPDATE webhook_delivery SET outcome = %(outcome)s, n = n + 1, leased_until = 0,
       due_at = coalesce(%(retry_at)s, due_at)
 WHERE endpoint_id = %(endpoint)s AND message_id = %(message)s AND n = %(n)s
"""
_ATTEMPT = """
INSERT INTO webhook_attempt VALUES
(%(endpoint)s, %(message)s, %(n)s, %(now)s, %(status)s, %(outcome)s, %(excerpt)s)
"""
_WELL = "UPDATE webhook_health SET failing_since = NULL WHERE endpoint_id = %(endpoint)s"
_ILL = """
INSERT INTO webhook_health AS h (endpoint_id, failing_since) VALUES (%(endpoint)s, %(now)s)
ON CONFLICT (endpoint_id) DO UPDATE
   SET failing_since = coalesce(h.failing_since, excluded.failing_since)
"""
_DISABLE = """
UPDATE webhook_health SET disabled_at = %(now)s
 WHERE endpoint_id = %(endpoint)s AND disabled_at IS NULL
   AND (%(gone)s OR failing_since <= %(now)s - %(patience)s)
"""


class _Pool(Protocol):
    def connection(self) -> AbstractAsyncContextManager[AsyncConnection[Any]]: ...


class PostgresLog:
    """Deliveries in tables, which you create with `SCHEMA`.

    Args:
        pool: Lends psycopg connections.
        endpoint: Finds an endpoint, with its secrets, in your own tables. None: it is gone, and so
            are its deliveries. One that is not enabled is asked for again after the lease.
        each: How many deliveries of one endpoint may be under way, over all workers.
        patience: After how many seconds of failures only an endpoint is disabled.

    Raises:
        ValueError: A number is not above 0.
    """

    def __init__(
        self,
        pool: _Pool,
        endpoint: Callable[[str], Awaitable[Endpoint | None]],
        *,
        each: int = 5,
        patience: float = FIVE_DAYS,
    ) -> None:
        if not isinstance(each, int) or isinstance(each, bool) or each < 1:
            raise ValueError(f"each must be a whole number over 0, got {each!r}")
        if not (_is_number(patience) and patience > 0):
            raise ValueError(f"patience must be a number of seconds over 0, got {patience!r}")
        self._pool = pool
        self._endpoint = endpoint
        self._each = each
        self._patience = patience

    async def add(self, endpoint_id: str, message: Message, *, now: float) -> bool:
        """Have a message sent to an endpoint. False: that was asked before."""
        row = (endpoint_id, message.id, message.type, message.body, now)
        async with self._pool.connection() as conn, conn.transaction():
            return (await conn.execute(_ADD, row)).rowcount == 1

    async def enable(self, endpoint_id: str) -> None:
        """Send to a disabled endpoint again, beginning with what is still waiting."""
        async with self._pool.connection() as conn, conn.transaction():
            await conn.execute("DELETE FROM webhook_health WHERE endpoint_id = %s", (endpoint_id,))

    async def claim(self, limit: int, *, now: float, lease: float) -> Sequence[Due]:
        """Return what is due, and give it to nobody else for `lease` seconds."""
        facts = {"now": now, "limit": limit, "lease": lease, "each": self._each}
        async with self._pool.connection() as conn, conn.transaction():
            cursor = conn.cursor(row_factory=tuple_row)
            rows = await (await cursor.execute(_CLAIM, facts)).fetchall()
        found = {row[0]: await self._endpoint(row[0]) for row in rows}
        if gone := [endpoint_id for endpoint_id, endpoint in found.items() if endpoint is None]:
            async with self._pool.connection() as conn, conn.transaction():
                await conn.execute(_FORGET, (gone,))
        return [
            Due(endpoint, Message(message_id, kind, bytes(body)), n)
            for endpoint_id, message_id, kind, body, n in rows
            if (endpoint := found[endpoint_id]) is not None and endpoint.enabled
        ]

    async def record(self, due: Due, attempt: Attempt, *, now: float) -> bool:
        """Keep the attempt. True: the endpoint has been disabled now, and was not before."""
        outcome = attempt.outcome
        facts = {
            "endpoint": due.endpoint.id,
            "message": due.message.id,
            "n": due.n,
            "now": now,
            "status": attempt.status,
            "outcome": outcome.value,
            "retry_at": attempt.retry_at,
            "excerpt": attempt.excerpt,
            "gone": outcome is Outcome.GONE,
            "patience": self._patience,
        }
        async with self._pool.connection() as conn, conn.transaction():
            await conn.execute(_UPDATE, facts)
            await conn.execute(_ATTEMPT, facts)
            if outcome is Outcome.DELIVERED:
                await conn.execute(_WELL, facts)
                return False
            await conn.execute(_ILL, facts)
            return (await conn.execute(_DISABLE, facts)).rowcount == 1


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
