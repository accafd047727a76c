"""Store passwords as Argon2id hashes (RFC 9106), read older ones, and upgrade them at login."""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
import os
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import bcrypt
from argon2 import PasswordHasher
from argon2.exceptions import VerificationError, VerifyMismatchError

from password_policy import PasswordPolicyError, prepared

MAX_MEMORY_KIB, MAX_TIME_COST, MAX_LANES, MAX_BCRYPT_ROUNDS = 262_144, 10, 16, 15
_BCRYPT_BYTES = 72  # what bcrypt reads of a password

_ARGON2 = re.compile(
    r"([a-z0-9]{0,16})(\$argon2(?:id|i|d)\$v=19\$m=(\d{1,9}),t=(\d{1,9}),p=(\d{1,9})"
    r"\$[A-Za-z0-9+/]{11,86}\$[A-Za-z0-9+/]{16,172})",
    re.ASCII,
)
_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}", re.ASCII)
_PEPPER = re.compile(r"PASSWORD_PEPPER_([A-Z0-9]{1,16})")
_PEPPER_ID, _PEPPER_BYTES = re.compile(r"[a-z0-9]{1,16}"), 32
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the password is right, and the hash to store in place of the old one, if any.

    Store it with `UPDATE … SET hash = new WHERE id = ? AND hash = old`: the password may have been
    changed meanwhile.
    """

    ok: bool
    new_hash: str | None = field(default=None, repr=False)


class Passwords:
    """Makes and checks hashes, `max_parallel` at a time in this process.

    Args:
        memory_kib: Memory of one hash, in KiB. The default is the second of OWASP's five settings.
        time_cost: Passes over that memory.
        parallelism: Lanes, each on a core of its own.
        max_parallel: Hashes at a time, sync and async together: the memory is multiplied by it.
        peppers: Secrets by id, kept outside the database, to be able to read what they made.
        active_pepper: The id of the one that new hashes get; required when there are peppers.

    Raises:
        ValueError: A setting is out of bounds, or is no whole number.
    """

    def __init__(
        self,
        *,
        memory_kib: int = 19_456,
        time_cost: int = 2,
        parallelism: int = 1,
        max_parallel: int = 4,
        peppers: Mapping[str, bytes] | None = None,
        active_pepper: str | None = None,
    ) -> None:
        for setting, value in (
            ("memory_kib", memory_kib),
            ("time_cost", time_cost),
            ("parallelism", parallelism),
            ("max_parallel", max_parallel),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{setting} must be a whole number over 0, got {value!r}")
        if memory_kib > MAX_MEMORY_KIB or time_cost > MAX_TIME_COST or parallelism > MAX_LANES:
            raise ValueError("these hashes would be refused: they cost more than the limits")
        for name, pepper in (peppers or {}).items():
            if not _PEPPER_ID.fullmatch(name) or len(pepper) < _PEPPER_BYTES:
                raise ValueError("a pepper has 32 bytes or more; its id is 1 to 16 of a-z and 0-9")
        if active_pepper not in (peppers or [None]):
            raise ValueError("active_pepper must be one of peppers")
        self._peppers = dict(peppers or {})
        self._active = active_pepper or ""
        self._argon2 = PasswordHasher(time_cost, memory_kib, parallelism)
        # Both: the pool keeps the event loop free, the semaphore counts blocking callers too.
        self._slots = threading.BoundedSemaphore(max_parallel)
        self._pool = ThreadPoolExecutor(max_parallel, "passwords")
        self._dummy = self._hash_bytes(secrets.token_bytes(32))

    def __repr__(self) -> str:
        a = self._argon2
        return f"Passwords(m={a.memory_cost}, t={a.time_cost}, p={a.parallelism})"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **options: int) -> Passwords:
        """Read PASSWORD_PEPPER_<ID> (base64, 32 bytes or more) and PASSWORD_PEPPER_ACTIVE, if set.

        Raises:
            RuntimeError: There are peppers, and PASSWORD_PEPPER_ACTIVE is not set.
            ValueError: A variable is malformed; it is named, and no pepper is shown.
        """
        peppers: dict[str, bytes] = {}
        active = environ.get("PASSWORD_PEPPER_ACTIVE", "").lower() or None
        for name, value in environ.items():
            found = _PEPPER.fullmatch(name)
            if found is None or found[1] == "ACTIVE":
                continue
            try:
                pepper = base64.b64decode(value, validate=True)
            except ValueError:  # and "from None", because the cause may hold the value
                pepper = b""
            if len(pepper) < _PEPPER_BYTES:
                raise ValueError(f"{name} is not the base64 of 32 bytes or more") from None
            peppers[found[1].lower()] = pepper
        if peppers and not active:
            raise RuntimeError("PASSWORD_PEPPER_ACTIVE is not set, or is empty")
        if active and active not in peppers:
            raise ValueError("PASSWORD_PEPPER_ACTIVE must be the ID of a PASSWORD_PEPPER_<ID>")
        return cls(peppers=peppers, active_pepper=active, **options)

    def hash(self, pw: str) -> str:
        """Return the text to store: another one each time, salted, with its parameters in it.

        Raises:
            PasswordPolicyError: It has more than 1,024 code points, or is no text.
        """
        return self._active + self._hash_bytes(self._peppered(prepared(pw), self._active))

    def verify(self, pw: str, stored: str | None) -> Verdict:
        """Compare with what is stored: None, or an empty text, where there is no such user.

        An unknown user costs one hash as well. With a stored value that cannot be read, which is
        logged, every password is wrong. One that `hash` would refuse is wrong at no cost.
        """
        try:
            data = prepared(pw)
        except PasswordPolicyError:
            return Verdict(ok=False)
        if not stored:
            self._matches_hash(self._dummy, data)
            return Verdict(ok=False)
        if _BCRYPT.fullmatch(stored):
            ok, old = self._check_bcrypt(stored, pw.encode()), True
        else:
            ok, old = self._check_argon2(stored, data)
        return Verdict(ok, self.hash(pw) if ok and old else None)

    async def ahash(self, pw: str) -> str:
        """Do the same as `hash`, while the event loop goes on."""
        return await self._run_in_pool(lambda: self.hash(pw))

    async def averify(self, pw: str, stored: str | None) -> Verdict:
        """Do the same as `verify`, while the event loop goes on."""
        return await self._run_in_pool(lambda: self.verify(pw, stored))

    async def _run_in_pool(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def _check_argon2(self, stored: str, data: bytes) -> tuple[bool, bool]:
        found = _ARGON2.fullmatch(stored)
        if found is None or self._is_too_dear(found) or found[1] not in {"", *self._peppers}:
            _log.error("a stored password hash cannot be used: its form, its cost or its pepper")
            self._matches_hash(self._dummy, data)
            return False, False
        pepper = found[1]
        ok = self._matches_hash(found[2], self._peppered(data, pepper))
        return ok, pepper != self._active or self._argon2.check_needs_rehash(found[2])

    def _is_too_dear(self, found: re.Match[str]) -> bool:
        # Whoever can write to the table must not be able to order gigabytes with a login.
        limits = (MAX_MEMORY_KIB, MAX_TIME_COST, MAX_LANES)
        return any(int(found[3 + n]) > limit for n, limit in enumerate(limits))

    def _check_bcrypt(self, stored: str, raw: bytes) -> bool:
        rounds = int(stored[4:6])
        try:
            if not 4 <= rounds <= MAX_BCRYPT_ROUNDS:
                raise ValueError("rounds")
            with self._slots:
                # It was made of at most 72 bytes, as they were sent. bcrypt 5 raises on more.
                return bcrypt.checkpw(raw[:_BCRYPT_BYTES], stored.encode())
        except ValueError:
            _log.error("a stored password hash cannot be used: its form or its cost")
            return False

    def _matches_hash(self, stored: str, data: bytes) -> bool:
        try:
            with self._slots:
                return self._argon2.verify(stored, data)
        except VerifyMismatchError:
            return False
        except VerificationError as error:
            _log.error("a stored password hash cannot be used: %s", error)
            return False

    def _hash_bytes(self, data: bytes) -> str:
        with self._slots:
            return self._argon2.hash(data)

    def _peppered(self, data: bytes, pepper: str) -> bytes:
        return hmac.digest(self._peppers[pepper], data, "sha256") if pepper else data
