"""Tokens for links that work once and for a short time, in PostgreSQL (async)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import tuple_row

from one_time_tokens_core import (
    CONSUME,
    ISSUE,
    PEEK,
    PURGE,
    REVOKE,
    SCHEMA,
    TokenInfo,
    info_of,
    key_of,
    new_token,
    row_of,
)


class AsyncOneTimeTokens:
    """Issues and consumes tokens on one connection, in your transaction.

    What a token allows belongs into the same transaction: both happen, or neither. Use READ
    COMMITTED, the default. An object costs nothing: make one where you have a connection.
    `clock` returns seconds since 1970. `psycopg.Error` comes through.
    """

    def __init__(self, db: AsyncConnection[Any], *, clock: Callable[[], float] = time.time) -> None:
        self._db = db
        self._clock = clock

    async def create_table(self) -> None:
        """Create the table if there is none; once, with your migrations."""
        await self._db.execute(SCHEMA)

    async def issue(
        self,
        purpose: str,
        subject: str,
        *,
        ttl: float,
        payload: Any = None,
        binding: str | None = None,
    ) -> str:
        """Return a new token; it ends the one before of this purpose and subject.

        Args:
            purpose: What it is for, such as `reset-password`. It is good for nothing else.
            subject: Whose it is: an id.
            ttl: Seconds until it expires.
            payload: Anything that JSON can hold, given back by `peek` and `consume`.
            binding: What must still be so when it is used, such as the hash of the old password.

        Raises:
            ValueError: `ttl` is not a number over 0.
        """
        token = new_token()
        now = self._clock()
        row = row_of(purpose, subject, token, now=now, ttl=ttl, payload=payload, binding=binding)
        await self._db.execute(ISSUE, row)
        return token

    async def peek(self, purpose: str, token: str) -> TokenInfo:
        """Return what a token stands for, and leave it as it is; `TokenInvalid` if it is bad."""
        key = key_of(purpose, token, self._clock())
        cursor = self._db.cursor(row_factory=tuple_row)
        await cursor.execute(PEEK, key)
        return info_of(purpose, await cursor.fetchone())

    async def consume(self, purpose: str, token: str, *, binding: str | None = None) -> TokenInfo:
        """Use a token up. `binding` is what was given to `issue`, as it is now.

        Raises:
            TokenInvalid: It is not good, or somebody else was faster.
        """
        key = key_of(purpose, token, self._clock(), binding)
        cursor = self._db.cursor(row_factory=tuple_row)
        await cursor.execute(CONSUME, key)
        return info_of(purpose, await cursor.fetchone())

    async def revoke_all(self, purpose: str, subject: str) -> int:
        """End what is unused of a purpose and subject; return how many that were."""
        cursor = await self._db.execute(REVOKE, {"purpose": purpose, "subject": subject})
        return cursor.rowcount

    async def purge(self) -> int:
        """Delete what is used or expired, from time to time; return how many that were."""
        cursor = await self._db.execute(PURGE, {"now": self._clock()})
        return cursor.rowcount
