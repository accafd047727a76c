"""One second factor in two colors, on one database; every test has a user of its own."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pyotp
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg_pool import AsyncConnectionPool, ConnectionPool

import second_factor_core as core
from second_factor import SecondFactor
from second_factor_async import AsyncSecondFactor

NOW = 1_795_000_000.0


class Sealed:
    """A cipher as the modules ask for: AES-GCM with the context authenticated."""

    def __init__(self) -> None:
        self._cipher = AESGCM(AESGCM.generate_key(256))

    def encrypt(self, plain: bytes, *, context: str) -> str:
        nonce = os.urandom(12)
        return (nonce + self._cipher.encrypt(nonce, plain, context.encode())).hex()

    def decrypt(self, token: str, *, context: str) -> bytes:
        raw = bytes.fromhex(token)
        return self._cipher.decrypt(raw[:12], raw[12:], context.encode())


class Pools:
    """Real pools of both colors on one database; the async one lives on a loop in a thread of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.sync = ConnectionPool(url, min_size=1, max_size=8, open=True)
        self.waiting = self.run(self._open())

    async def _open(self) -> AsyncConnectionPool[Any]:
        pool: AsyncConnectionPool[Any] = AsyncConnectionPool(self.url, min_size=1, max_size=8, open=False)
        await pool.open()
        return pool

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the loop and return its answer."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def close(self) -> None:
        """Close both pools and end the loop."""
        self.sync.close()
        self.run(self.waiting.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


class Factor:
    """Either color behind plain calls; `at` is what its clock says."""

    def __init__(self, color: str, pools: Pools) -> None:
        self.at = NOW
        self.cipher = Sealed()
        self.pools = pools
        if color == "sync":
            self.made: Any = SecondFactor(pools.sync, self.cipher, issuer="Shop", clock=lambda: self.at)
        else:
            self.made = AsyncSecondFactor(pools.waiting, self.cipher, issuer="Shop", clock=lambda: self.at)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.made, name)

        def call(*arguments: Any) -> Any:
            answer = method(*arguments)
            return self.pools.run(answer) if inspect.iscoroutine(answer) else answer

        return call

    def together(self, calls: list[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        """Make all calls at once; an exception is its own answer."""

        def one(call: tuple[str, tuple[Any, ...]]) -> Any:
            try:
                return getattr(self, call[0])(*call[1])
            except Exception as error:
                return error

        with ThreadPoolExecutor(8) as threads:
            return list(threads.map(one, calls))

    def enrolled(self) -> tuple[str, str]:
        """Enroll a new user a minute ago; return the user and the secret."""
        user = f"user-{uuid.uuid4().hex}"
        secret = self.begin_enrollment(user, "ada@example.com").secret
        self.at -= 60
        assert self.confirm(user, core_code(secret, self.at))
        self.at += 60
        return user, secret

    def rows(self, query: str, user: str) -> list[tuple[Any, ...]]:
        """Ask the database itself."""
        with self.pools.sync.connection() as db:
            return db.execute(query, {"user": user}).fetchall()


def core_code(secret: str, at: float) -> str:
    """Return what the user's app shows."""
    return pyotp.TOTP(secret).at(int(at))


@pytest.fixture(scope="module")
def pools(module_database_url: str) -> Iterator[Pools]:
    """The pattern's tables, and pools for them."""
    with psycopg.connect(module_database_url) as db:
        db.execute(core.SCHEMA)
    both = Pools(module_database_url)
    yield both
    both.close()
