"""Process each event once, for asyncio: a marker that commits together with the effect, or a claim.

The key of an event is (source, id): ids of two providers may be equal. A `Delivery` of a receiver
or of a queue brings what is needed: `await run(d.source, d.id, handler, body=d.body)`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

from psycopg import AsyncConnection
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
    "AsyncInbox",
    "BodyMismatch",
    "InProgress",
    "Outcome",
    "Status",
    "TransactionLost",
    "event_key",
]
T = TypeVar("T")


class _Pool(Protocol):
    """Lends connections: `psycopg_pool.AsyncConnectionPool`, or one of yours."""

    def connection(self) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        """Lend a connection; commit at the end of the block, roll back on an exception."""
        ...


class AsyncInbox(Core[_Pool]):
    """Runs the handler of an event once, for all processes and machines that share a database."""

    async def run(
        self,
        source: str,
        event_id: str,
        handler: Callable[[AsyncConnection[Any]], Awaitable[T]],
        *,
        body: bytes | None = None,
    ) -> Outcome[T]:
        """Run `await handler(connection)` and remember the event, in one transaction.

        For effects in this database. After a deadlock or a serialization failure the transaction,
        handler included, is tried again, three times in all.

        Raises:
            InProgress: Another worker has the event, for longer than `wait`.
            BodyMismatch: The event is known with another `body`.
            TransactionLost: The handler left no transaction to commit; nothing is persisted.
            Exception: What the handler raises; nothing is persisted.
        """
        facts = self._facts(source, event_id, body, None)
        for _ in range(TRIES - 1):
            try:
                return await self._run(facts, handler)
            except (SerializationFailure, DeadlockDetected):
                logger.info("%s: gave way to another transaction, once more", facts["key"])
        return await self._run(facts, handler)

    async def run_external(
        self,
        source: str,
        event_id: str,
        handler: Callable[[str], Awaitable[T]],
        *,
        body: bytes | None = None,
    ) -> Outcome[T]:
        """Claim the event, run `await handler(key)`, mark it done: for effects elsewhere.

        No connection is held meanwhile. A worker that dies between effect and mark leaves an
        effect that is repeated after `claim_ttl`: hand `key` on as the `Idempotency-Key`.

        Raises:
            InProgress: Another worker holds the claim.
            BodyMismatch: The event is known with another `body`.
            Exception: What the handler raises; the claim is released.
        """
        facts = self._facts(source, event_id, body, self._ttl)
        async with self._pool.connection() as conn, conn.transaction():
            if not await self._take(conn, facts):
                return Outcome(Status.DUPLICATE)
        try:
            value = await handler(facts["key"])
        except BaseException:
            await self._release(facts)
            raise
        async with self._pool.connection() as conn, conn.transaction():
            cursor = conn.cursor(row_factory=tuple_row)
            await cursor.execute(FINISH, facts | self._now())
            self._finished(facts, await cursor.fetchone())
        return Outcome(Status.PROCESSED, value)

    async def purge(self) -> int:
        """Forget what was claimed longer than `keep` ago, and return how many. Call it daily."""
        async with self._pool.connection() as conn, conn.transaction():
            return (await conn.execute(PURGE, self._now() | {"keep": self._keep})).rowcount

    async def _run(
        self, facts: dict[str, Any], handler: Callable[[AsyncConnection[Any]], Awaitable[T]]
    ) -> Outcome[T]:
        async with self._pool.connection() as conn, conn.transaction():
            if not await self._take(conn, facts):
                return Outcome(Status.DUPLICATE)
            value = await handler(conn)
            self._still_open(conn.info.transaction_status)
            return Outcome(Status.PROCESSED, value)
        raise TransactionLost("the handler rolled back")  # psycopg.Rollback raises nothing

    async def _take(self, conn: AsyncConnection[Any], facts: dict[str, Any]) -> bool:
        cursor = conn.cursor(row_factory=tuple_row)
        try:
            await cursor.execute(CLAIM, facts | self._now())
        except LockNotAvailable:
            raise self._busy(facts) from None
        if await cursor.fetchone():
            return True
        await cursor.execute(LOOK, facts | self._now())
        self._judge(facts, await cursor.fetchone())
        return False

    async def _release(self, facts: dict[str, Any]) -> None:
        try:
            async with self._pool.connection() as conn, conn.transaction():
                await conn.execute(RELEASE, facts)
        except Exception:  # the handler's own error must not be hidden by this one
            logger.warning("%s: its claim could not be released; it expires", facts["key"])
