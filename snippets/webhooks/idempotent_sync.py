"""Process each event once: a marker that commits together with the effect, or a claim.

The key of an event is (source, id): ids of two providers may be equal. A `Delivery` of a receiver
or of a queue brings what is needed: `run(d.source, d.id, handler, body=d.body)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from psycopg import Connection
from psycopg.errors import DeadlockDetected, LockNotAvailable, SerializationFailure
from psycopg.rows import tuple_row

from idempotent_core import (
    CLAIM,
    FINISH,
    LOOK,
    PURGE,
    RELEASE,
    SCHEMA,
    TRIES,
    BodyMismatch,
    Core,
    InProgress,
    Outcome,
    Status,
    TransactionLost,
    event_key,
    logger,
)

__all__ = [
    "SCHEMA",
    "BodyMismatch",
    "InProgress",
    "Inbox",
    "Outcome",
    "Status",
    "TransactionLost",
    "event_key",
]
T = TypeVar("T")


class _Pool(Protocol):
    """Lends connections: `psycopg_pool.ConnectionPool`, or one of yours."""

    def connection(self) -> AbstractContextManager[Connection[Any]]:
        """Lend a connection; commit at the end of the block, roll back on an exception."""
        ...


class Inbox(Core[_Pool]):
    """Runs the handler of an event once, for all processes and machines that share a database."""

    def run(
        self,
        source: str,
        event_id: str,
        handler: Callable[[Connection[Any]], T],
        *,
        body: bytes | None = None,
    ) -> Outcome[T]:
        """Run `handler(connection)` and remember the event, in one transaction.

        For effects in this database. After a deadlock or a serialization failure the transaction,
        handler included, is tried again, three times in all.

        Raises:
            InProgress: Another worker has the event, for longer than `wait`.
            BodyMismatch: The event is known with another `body`.
            TransactionLost: The handler left no transaction to commit; nothing is persisted.
            Exception: What the handler raises; nothing is persisted.
        """
        if inspect.iscoroutinefunction(handler):
            raise TypeError("the handler is a coroutine function: use AsyncInbox")
        facts = self._facts(source, event_id, body, None)
        for _ in range(TRIES - 1):
            try:
                return self._run(facts, handler)
            except (SerializationFailure, DeadlockDetected):
                logger.info("%s: gave way to another transaction, once more", facts["key"])
        return self._run(facts, handler)

    def run_external(
        self,
        source: str,
        event_id: str,
        handler: Callable[[str], T],
        *,
        body: bytes | None = None,
    ) -> Outcome[T]:
        """Claim the event, run `handler(key)`, mark it done: for effects elsewhere.

        No connection is held meanwhile. A worker that dies between effect and mark leaves an
        effect that is repeated after `claim_ttl`: hand `key` on as the `Idempotency-Key`.

        Raises:
            InProgress: Another worker holds the claim.
            BodyMismatch: The event is known with another `body`.
            Exception: What the handler raises; the claim is released.
        """
        if inspect.iscoroutinefunction(handler):
            raise TypeError("the handler is a coroutine function: use AsyncInbox")
        facts = self._facts(source, event_id, body, self._ttl)
        with self._pool.connection() as conn, conn.transaction():
            if not self._take(conn, facts):
                return Outcome(Status.DUPLICATE)
        try:
            value = handler(facts["key"])
        except BaseException:
            self._release(facts)
            raise
        with self._pool.connection() as conn, conn.transaction():
            cursor = conn.cursor(row_factory=tuple_row)
            self._finished(facts, cursor.execute(FINISH, facts | self._now()).fetchone())
        return Outcome(Status.PROCESSED, value)

    def purge(self) -> int:
        """Forget what was claimed longer than `keep` ago, and return how many. Call it daily."""
        with self._pool.connection() as conn, conn.transaction():
            return conn.execute(PURGE, self._now() | {"keep": self._keep}).rowcount

    def _run(self, facts: dict[str, Any], handler: Callable[[Connection[Any]], T]) -> Outcome[T]:
        with self._pool.connection() as conn, conn.transaction():
            if not self._take(conn, facts):
                return Outcome(Status.DUPLICATE)
            value = handler(conn)
            self._still_open(conn.info.transaction_status)
            return Outcome(Status.PROCESSED, value)
        raise TransactionLost("the handler rolled back")  # psycopg.Rollback raises nothing

    def _take(self, conn: Connection[Any], facts: dict[str, Any]) -> bool:
        cursor = conn.cursor(row_factory=tuple_row)
        try:
            taken = cursor.execute(CLAIM, facts | self._now()).fetchone()
        except LockNotAvailable:
            raise self._busy(facts) from None
        if not taken:
            self._judge(facts, cursor.execute(LOOK, facts | self._now()).fetchone())
        return bool(taken)

    def _release(self, facts: dict[str, Any]) -> None:
        try:
            with self._pool.connection() as conn, conn.transaction():
                conn.execute(RELEASE, facts)
        except Exception:  # the handler's own error must not be hidden by this one
            logger.warning("%s: its claim could not be released; it expires", facts["key"])
