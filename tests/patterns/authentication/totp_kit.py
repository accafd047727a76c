"""One second factor in two colors, on one database; every test has a user of its own."""

from __future__ import annotations

import os
import uuid
from typing import Any

import psycopg
import pyotp
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from harness.clock import Clock
from harness.color import Color
from second_factor_async import AsyncSecondFactor
from second_factor_sync import SecondFactor

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


class Factor:
    """A second factor of one color behind plain calls, with a real pool; `clock` is its clock."""

    def __init__(self, color: Color, url: str) -> None:
        self.color, self.url = color, url
        self.clock, self.cipher = Clock(NOW), Sealed()
        pool: Any = color.pick(AsyncConnectionPool, ConnectionPool)
        opened = color.closing(pool(url, min_size=1, max_size=8, open=False))
        color.call(opened.open)
        kind: Any = color.pick(AsyncSecondFactor, SecondFactor)
        self.made = kind(opened, self.cipher, issuer="Shop", clock=self.clock)
        self._calls = color.blocking(self.made)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._calls, name)

    def enrolled(self) -> tuple[str, str]:
        """Enroll a new user a minute ago; return the user and the secret."""
        user = f"user-{uuid.uuid4().hex}"
        secret = self.begin_enrollment(user, "ada@example.com").secret
        self.clock.now -= 60
        assert self.confirm(user, core_code(secret, self.clock.now))
        self.clock.now += 60
        return user, secret

    def rows(self, query: str, user: str) -> list[tuple[Any, ...]]:
        """Ask the database itself."""
        with psycopg.connect(self.url, autocommit=True) as db:
            return db.execute(query.encode(), {"user": user}).fetchall()


def core_code(secret: str, at: float) -> str:
    """Return what the user's app shows."""
    return pyotp.TOTP(secret).at(int(at))
