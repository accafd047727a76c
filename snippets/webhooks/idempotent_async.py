"""Process each event once, for asyncio: a marker that commits together with the effect, or a claim.

The key of an event is (source, id): ids of two providers may be equal. A `Delivery` of a receiver
or of a queue brings what is needed: `await run(d.source, d.id, handler, body=d.body)`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
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
    TRIES,
    InboxSettings,
    InProgress,
    Outcome,
    Status,
    TransactionLost,
    check_claim,
    check_known,
    check_open,
    logger,
)

T = TypeVar("T")


class _Pool(Protocol):
    """Lends connections: `psycopg_pool.AsyncConnectionPool`, or one of yours."""

    def connection(self) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        """Lend a connection; commit at the end of the block, roll back on an exception."""
        ...


class AsyncInbox:
    """Runs the handler of an event once, for all processes and machines that share a database.

    Args:
        pool: Lends psycopg connections.
        claim_ttl: How long a claim of `run_external` holds, in seconds. Longer than the handler's
            own time limit: afterwards the worker counts as dead.
        keep: How long events are remembered. Longer than the provider goes on sending.
        wait: How long, in seconds, `run` waits for a lock: for another worker that has the event,
            and then in each statement of the handler.
        clock: Returns an aware datetime. None: the database's own clock.

    Raises:
        ValueError: `keep` is not above 3 days and `claim_ttl`, or a time is not above 0.
    """

    def __init__(
        self,
        pool: _Pool,
        *,
        claim_ttl: float = 60,
        keep: timedelta = timedelta(days=30),
        wait: float = 10,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._pool = pool
        self._settings = InboxSettings(claim_ttl, keep, wait, clock)

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
        facts = self._settings.facts_of(source, event_id, body, leased=False)
        for _ in range(TRIES - 1):
            try:
                return await self._run_once(facts, handler)
            except (SerializationFailure, DeadlockDetected):
                logger.info("%s: gave way to another transaction, once more", facts["key"])
        return await self._run_once(facts, handler)

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
        facts = self._settings.facts_of(source, event_id, body, leased=True)
        async with self._pool.connection() as conn, conn.transaction():
            if not await self._claim_event(conn, facts):
                return Outcome(Status.DUPLICATE)
        try:
            value = await handler(facts["key"])
        except BaseException:
            await self._release_claim(facts)
            raise
        async with self._pool.connection() as conn, conn.transaction():
            cursor = conn.cursor(row_factory=tuple_row)
            await cursor.execute(FINISH, facts | self._settings.now())
            check_claim(facts, await cursor.fetchone())
        return Outcome(Status.PROCESSED, value)

    async def purge(self) -> int:
        """Forget what was claimed longer than `keep` ago, and return how many. Call it daily."""
        async with self._pool.connection() as conn, conn.transaction():
            bounds = self._settings.now() | {"keep": self._settings.keep}
            purged = await conn.execute(PURGE, bounds)
            return purged.rowcount

    async def _run_once(
        self, facts: dict[str, Any], handler: Callable[[AsyncConnection[Any]], Awaitable[T]]
    ) -> Outcome[T]:
        async with self._pool.connection() as conn, conn.transaction():
            if not await self._claim_event(conn, facts):
                return Outcome(Status.DUPLICATE)
            value = await handler(conn)
            check_open(conn.info.transaction_status)
            return Outcome(Status.PROCESSED, value)
        raise TransactionLost("the handler rolled back")  # psycopg.Rollback raises nothing

    async def _claim_event(self, conn: AsyncConnection[Any], facts: dict[str, Any]) -> bool:
        cursor = conn.cursor(row_factory=tuple_row)
        try:
            await cursor.execute(CLAIM, facts | self._settings.now())
        except LockNotAvailable:
            raise InProgress(facts["key"], self._settings.wait) from None
        if await cursor.fetchone():
            return True
        await cursor.execute(LOOK, facts | self._settings.now())
        check_known(facts, await cursor.fetchone())
        return False

    async def _release_claim(self, facts: dict[str, Any]) -> None:
        try:
            async with self._pool.connection() as conn, conn.transaction():
                await conn.execute(RELEASE, facts)
        except Exception:  # the handler's own error must not be hidden by this one
            logger.warning("%s: its claim could not be released; it expires", facts["key"])
