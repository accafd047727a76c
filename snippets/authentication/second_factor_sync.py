"""A second factor in PostgreSQL (sync): codes of an app, each taken once, and recovery codes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import psycopg

import second_factor_core as core
from second_factor_core import AlreadyEnrolled, Cipher, Enrollment, NotEnrolled, TooManyAttempts
from totp_codes import match_step, new_secret, provisioning_uri


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
        self,
        pool: Pool,
        cipher: Cipher,
        *,
        issuer: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pool = pool
        self._cipher = cipher
        self._issuer = issuer
        self._clock = clock

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
            cursor = db.execute(core.BEGIN, {"user": user, "secret": token})
            begun = cursor.fetchone()
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
            cursor = db.execute(core.READ, {"user": user, "confirmed": False})
            row = cursor.fetchone()
        if not row:
            raise NotEnrolled
        return self._check_code(user, code, confirmed=False)

    def verify(self, user: str, code: str) -> bool:
        """Say whether this is a code of the user's app that was not used before.

        The answer for a user without a second factor is that for a wrong code.

        Raises:
            TooManyAttempts: Five failures within 15 minutes. Right codes are refused too.
        """
        return self._check_code(user, code, confirmed=True)

    def recovery_codes(self, user: str) -> list[str]:
        """Make ten recovery codes, to be shown once. Those made before stop working.

        Raises:
            NotEnrolled: The user has no confirmed second factor.
        """
        codes = [core.new_recovery_code() for _ in range(core.RECOVERY_CODES)]
        rows = [{"user": user, "digest": core.recovery_digest(code)} for code in codes]
        with self._pool.connection() as db:
            cursor = db.execute(core.LOCK_ENROLLED, {"user": user})
            if not cursor.fetchone():
                raise NotEnrolled
            db.execute(core.DROP_RECOVERY, {"user": user})
            cursor.executemany(core.ADD_RECOVERY, rows)
        return codes

    def use_recovery(self, user: str, code: str) -> bool:
        """Say whether this is a recovery code of the user's, and use it up.

        Raises:
            TooManyAttempts: As in `verify`, with the same count.
        """
        self._count_attempt(user)
        digest = core.recovery_digest(code)
        with self._pool.connection() as db:
            cursor = db.execute(core.BURN_RECOVERY, {"user": user, "digest": digest})
            used = cursor.fetchone()
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
            cursor = db.execute(core.READ, {"user": user, "confirmed": True})
            row = cursor.fetchone()
        if not row:
            raise NotEnrolled
        if len(code.replace(" ", "")) <= 6:  # of the app
            fresh = self.verify(user, code)
        else:
            fresh = self.use_recovery(user, code)
        if fresh:
            with self._pool.connection() as db:
                db.execute(core.DISABLE, {"user": user})
        return fresh

    def _count_attempt(self, user: str) -> None:
        # Committed before the code is looked at: a crash in between leaves the attempt counted.
        now = self._clock()
        with self._pool.connection() as db:
            cursor = db.execute(core.COUNT_ATTEMPT, core.attempt(user, now))
            if cursor.fetchone():
                return
            cursor = db.execute(core.LOCKED_SINCE, {"user": user})
            row = cursor.fetchone()
        raise TooManyAttempts(row[0] + core.LOCK_SECONDS - now if row else 0.0)

    def _check_code(self, user: str, code: str, *, confirmed: bool) -> bool:
        self._count_attempt(user)
        with self._pool.connection() as db:
            cursor = db.execute(core.READ, {"user": user, "confirmed": confirmed})
            row = cursor.fetchone()
            token = row[0] if row else ""
            secret = new_secret()  # nobody's: for a user without one, the same work is done
            if row:
                secret = self._cipher.decrypt(token, context=core.context_of(user)).decode()
            step = match_step(secret, code, self._clock())
            if step is None:
                return False
            burn = {"user": user, "secret": token, "step": step}
            cursor = db.execute(core.BURN_STEP, burn)
            if not cursor.fetchone():
                return False
            db.execute(core.FORGET_ATTEMPTS, {"user": user})
        return True
