"""A second factor in PostgreSQL: codes of an app, each taken once, and recovery codes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import psycopg

import second_factor_core as core
from second_factor_core import AlreadyEnrolled, Cipher, Enrollment, NotEnrolled, TooManyAttempts
from totp import match_step, new_secret, provisioning_uri


class Pool(Protocol):
    """A `psycopg_pool.ConnectionPool`, or what lends connections as it does."""

    def connection(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        """Lend a connection; commit at the end of the block, roll back on an exception."""
        ...


class SecondFactor:
    """Enrollment, codes, recovery codes and the limit on guesses, for all processes together.

    Whatever the database cannot answer is an exception of psycopg, and never a success.

    Args:
        pool: Lends connections to a database that has the tables of `second_factor_core.SCHEMA`.
        cipher: Encrypts the secrets for the table.
        issuer: Your product's name, as the app shows it.
        clock: Seconds since 1970.

    """

    def __init__(
        self, pool: Pool, cipher: Cipher, *, issuer: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._pool, self._cipher, self._issuer, self._clock = pool, cipher, issuer, clock

    def begin_enrollment(self, user: str, account: str) -> Enrollment:
        """Make a secret for the user's app. It counts for nothing until `confirm`.

        Raises:
            AlreadyEnrolled: The user has a confirmed second factor.
            ValueError: `account` has a colon, see `provisioning_uri`.
        """
        secret = new_secret()
        made = Enrollment(secret, provisioning_uri(secret, account, self._issuer))
        token = self._cipher.encrypt(secret.encode(), context=core.context_of(user))
        with self._pool.connection() as db:
            begun = db.execute(core.BEGIN, {"user": user, "secret": token}).fetchone()
        if not begun:
            raise AlreadyEnrolled
        return made

    def confirm(self, user: str, code: str) -> bool:
        """Finish the enrollment with the first code of the app, which is then used up.

        Raises:
            NotEnrolled: Nothing was begun, or it is confirmed already.
            TooManyAttempts: As in `verify`.
        """
        with self._pool.connection() as db:
            row = db.execute(core.READ, {"user": user, "confirmed": False}).fetchone()
        if not row:
            raise NotEnrolled
        return self._check(user, code, confirmed=False)

    def verify(self, user: str, code: str) -> bool:
        """Say whether this is a code of the user's app that was not used before.

        The answer for a user without a second factor is that for a wrong code.

        Raises:
            TooManyAttempts: Five failures within 15 minutes. Right codes are refused too.
        """
        return self._check(user, code, confirmed=True)

    def recovery_codes(self, user: str) -> list[str]:
        """Make ten recovery codes, to be shown once. Those made before stop working.

        Raises:
            NotEnrolled: The user has no confirmed second factor.
        """
        codes = [core.new_recovery_code() for _ in range(core.RECOVERY_CODES)]
        rows = [{"user": user, "digest": core.recovery_digest(code)} for code in codes]
        with self._pool.connection() as db:
            if not db.execute(core.LOCK_ENROLLED, {"user": user}).fetchone():
                raise NotEnrolled
            db.execute(core.DROP_RECOVERY, {"user": user})
            with db.cursor() as cursor:
                cursor.executemany(core.ADD_RECOVERY, rows)
        return codes

    def use_recovery(self, user: str, code: str) -> bool:
        """Say whether this is a recovery code of the user's, and use it up.

        Raises:
            TooManyAttempts: As in `verify`, with the same count.
        """
        self._count(user)
        with self._pool.connection() as db:
            digest = core.recovery_digest(code)
            used = db.execute(core.BURN_RECOVERY, {"user": user, "digest": digest}).fetchone()
            if used:
                db.execute(core.FORGET_ATTEMPTS, {"user": user})
        return used is not None

    def disable(self, user: str, code: str) -> bool:
        """Remove the second factor, its secret and recovery codes, if the code is right.

        Args:
            user: Whose.
            code: Of the app, or a recovery code.

        Raises:
            NotEnrolled: The user has no confirmed second factor.
            TooManyAttempts: As in `verify`.
        """
        with self._pool.connection() as db:
            row = db.execute(core.READ, {"user": user, "confirmed": True}).fetchone()
        if not row:
            raise NotEnrolled
        of_the_app = len(code.replace(" ", "")) <= 6
        fresh = self.verify(user, code) if of_the_app else self.use_recovery(user, code)
        if fresh:
            with self._pool.connection() as db:
                db.execute(core.DISABLE, {"user": user})
        return fresh

    def _count(self, user: str) -> None:
        # Committed before the code is looked at: a crash in between leaves the attempt counted.
        now = self._clock()
        with self._pool.connection() as db:
            if db.execute(core.COUNT_ATTEMPT, core.attempt(user, now)).fetchone():
                return
            row = db.execute(core.LOCKED_SINCE, {"user": user}).fetchone()
        raise TooManyAttempts(row[0] + core.LOCK_SECONDS - now if row else 0.0)

    def _check(self, user: str, code: str, *, confirmed: bool) -> bool:
        self._count(user)
        with self._pool.connection() as db:
            row = db.execute(core.READ, {"user": user, "confirmed": confirmed}).fetchone()
            token = row[0] if row else ""
            secret = new_secret()  # nobody's: for a user without one, the same work is done
            if row:
                secret = self._cipher.decrypt(token, context=core.context_of(user)).decode()
            step = match_step(secret, code, self._clock())
            burn = {"user": user, "secret": token, "step": step}
            if step is None or not db.execute(core.BURN_STEP, burn).fetchone():
                return False
            db.execute(core.FORGET_ATTEMPTS, {"user": user})
        return True
