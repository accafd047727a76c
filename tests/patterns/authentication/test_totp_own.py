"""Proves docs/patterns/authentication/totp.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import pyotp  # plays the user's app
from psycopg_pool import ConnectionPool

from second_factor_core import SCHEMA
from second_factor_sync import SecondFactor


class Plain:
    """Yours encrypts."""

    def encrypt(self, plain: bytes, *, context: str) -> str:
        return plain.decode()

    def decrypt(self, token: str, *, context: str) -> bytes:
        return token.encode()


def test_my_login_takes_a_code_once(database_url: str) -> None:
    now = 1_795_000_000.0
    with ConnectionPool(database_url, min_size=1) as pool:
        with pool.connection() as db:
            db.execute(SCHEMA)
        factor = SecondFactor(pool, Plain(), issuer="Shop", clock=lambda: now)
        app = pyotp.TOTP(factor.begin_enrollment("ada", "ada@example.com").secret)
        assert factor.confirm("ada", app.at(int(now)))

        now += 30
        assert factor.verify("ada", app.at(int(now)))
        assert not factor.verify("ada", app.at(int(now)))


# --8<-- [end:own]
