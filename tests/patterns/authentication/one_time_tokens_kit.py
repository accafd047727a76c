"""Users, sessions and an application in PostgreSQL, for the proofs of one-time-tokens."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import psycopg
from fastapi import FastAPI
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from harness.clock import Clock
from one_time_tokens_async import AsyncOneTimeTokens
from one_time_tokens_core import SCHEMA
from reset_routes import Account, ResetSettings, reset_routes, send_reset

NOW = 1_800_000_000.0
TABLES = """
CREATE TABLE IF NOT EXISTS users (id text PRIMARY KEY, address text NOT NULL UNIQUE, hash text NOT NULL);
CREATE TABLE IF NOT EXISTS sessions (user_id text NOT NULL);
"""
SETTINGS = ResetSettings("https://shop.example")


def hashed(password: str) -> str:
    """Stand in for a password hash, which is another pattern's."""
    return "hash:" + hashlib.sha256(password.encode()).hexdigest()


class Users:
    """Accounts in two tables."""

    async def find(self, db: AsyncConnection[Any], address: str) -> Account | None:
        row = await (await db.execute("SELECT * FROM users WHERE address = lower(%s)", (address,))).fetchone()
        return row and Account(*row)

    async def lock(self, db: AsyncConnection[Any], subject: str) -> Account | None:
        row = await (await db.execute("SELECT * FROM users WHERE id = %s FOR UPDATE", (subject,))).fetchone()
        return row and Account(*row)

    async def set_password(self, db: AsyncConnection[Any], subject: str, password: str) -> None:
        if len(password) < 15:
            raise ValueError("a password has at least 15 characters <here>")
        await db.execute("UPDATE users SET hash = %s WHERE id = %s", (hashed(password), subject))
        await db.execute("DELETE FROM sessions WHERE user_id = %s", (subject,))
        await AsyncOneTimeTokens(db).revoke_all("reset-password", subject)


class Site:
    """The application, its hooks, its worker, and what a test wants to see of them."""

    def __init__(self, url: str) -> None:
        self.url, self.clock, self.users = url, Clock(NOW), Users()
        self.lent = 0  # how often the application took a connection
        self.asked: list[str] = []
        self.queue: list[str] = []
        self.mails: list[tuple[str, str]] = []
        self.limit = 1_000
        self.app = FastAPI(lifespan=self._lifespan)
        router = reset_routes(self._connect, self.users, allow=self._allow, enqueue=self._enqueue, clock=self.clock)
        self.app.include_router(router)

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        async with AsyncConnectionPool(self.url, min_size=2, max_size=10, open=False) as self.pool:
            yield

    def _connect(self) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        self.lent += 1
        return self.pool.connection()

    async def _allow(self, address: str) -> bool:
        self.asked.append(address)
        return self.asked.count(address) <= self.limit

    async def _enqueue(self, address: str) -> None:
        self.queue.append(address)

    def work(self) -> None:
        """Do what the worker does with all that is queued."""

        async def main() -> None:
            @asynccontextmanager
            async def connect() -> AsyncIterator[AsyncConnection[Any]]:
                async with await AsyncConnection.connect(self.url) as db:
                    yield db

            async def send(address: str, link: str) -> None:
                self.mails.append((address, link))

            while self.queue:
                address = self.queue.pop(0)
                await send_reset(connect, self.users, address, settings=SETTINGS, send=send, clock=self.clock)

        asyncio.run(main())

    def reset(self) -> None:
        """Begin anew: one user with two sessions, another with one, no tokens."""
        self.clock.now, self.limit, self.lent = NOW, 1_000, 0
        for seen in (self.asked, self.queue, self.mails):
            seen.clear()
        with psycopg.connect(self.url, autocommit=True) as db:
            db.execute(SCHEMA)
            db.execute(TABLES)
            db.execute("TRUNCATE users, sessions, one_time_tokens")
            for name in ("ada", "bob"):
                row = (name, f"{name}@example.com", hashed(f"old password of {name}"))
                db.execute("INSERT INTO users VALUES (%s, %s, %s)", row)
            db.execute("INSERT INTO sessions VALUES ('ada'), ('ada'), ('bob')")

    def one(self, statement: str) -> Any:
        """Return the only row of a statement that the test wrote."""
        with psycopg.connect(self.url, autocommit=True) as db:
            rows = db.execute(statement.encode()).fetchall()
        return rows[0] if len(rows) == 1 else rows
