"""HTTP Basic authentication (RFC 7617) for a FastAPI application, with stored Argon2 hashes."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import secrets
import unicodedata
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError
from fastapi import HTTPException, Request

MAX_HEADER = 8_192  # characters
_BASIC = re.compile(  # base64 in groups of four, the last one padded
    r"basic +((?:[a-z0-9+/]{4})*(?:[a-z0-9+/]{2}==|[a-z0-9+/]{3}=)?)", re.IGNORECASE | re.ASCII
)
_REALM = re.compile(r"[ !#-\[\]-~]+")  # what can stand between quotation marks
_log = logging.getLogger(__name__)


def parse_basic(header: str | None) -> tuple[str, str] | None:
    """Return user name and password of an `Authorization` header, or None if it is not that.

    The first colon separates them, so a password may have more. Never raises, whatever is sent.
    """
    found = _BASIC.fullmatch(header or "") if len(header or "") <= MAX_HEADER else None
    if found is None:
        return None
    try:
        text = base64.b64decode(found[1]).decode()
    except UnicodeDecodeError:
        return None
    user, colon, password = text.partition(":")
    if not user or not colon or any(unicodedata.category(c) == "Cc" for c in text):
        return None
    return user, password


class BasicAuth:
    """A dependency that returns the user's name, or answers 401 with a challenge.

    Args:
        realm: What the browser shows: visible ASCII and spaces.
        lookup: Returns the Argon2 hash stored for a user name, or None.
        hasher: How dear a verification is; use the one that made the hashes.
        max_parallel: Verifications at a time, each with the hasher's memory.

    Raises:
        ValueError: `realm` cannot be quoted, or `max_parallel` is no whole number over 0.
    """

    def __init__(
        self,
        realm: str,
        lookup: Callable[[str], Awaitable[str | None]],
        *,
        hasher: PasswordHasher | None = None,
        max_parallel: int = 4,
    ) -> None:
        if not _REALM.fullmatch(realm):
            raise ValueError("realm is visible ASCII and spaces, without quotation marks")
        if not isinstance(max_parallel, int) or isinstance(max_parallel, bool) or max_parallel < 1:
            raise ValueError(f"max_parallel must be a whole number over 0, got {max_parallel!r}")
        self._challenge = {"WWW-Authenticate": f'Basic realm="{realm}", charset="UTF-8"'}
        self._lookup = lookup
        self._hasher = hasher or PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
        self._dummy = self._hasher.hash(secrets.token_bytes(32))
        self._pool = ThreadPoolExecutor(max_parallel, "basic-auth")

    async def __call__(self, request: Request) -> str:
        """Return the name of the user whose password was sent.

        Answers 401, the same for whatever is wrong, and 503 when `lookup` raises.
        """
        sent = request.headers.getlist("authorization")
        # Of two, we and the next reader of the headers might each take another one.
        pair = parse_basic(sent[0]) if len(sent) == 1 else None
        if pair is None:
            raise HTTPException(401, "Not authenticated", self._challenge)
        user, password = pair
        stored = await self._stored_hash(user)
        # Nobody's password is verified too, so that the time does not tell who exists.
        loop = asyncio.get_running_loop()
        right = await loop.run_in_executor(
            self._pool, self._verify_password, stored or self._dummy, password
        )
        if not (stored and right):
            _log.warning("Basic authentication failed")  # for an unknown user it may be a password
            raise HTTPException(401, "Not authenticated", self._challenge)
        return user

    async def _stored_hash(self, user: str) -> str | None:
        try:
            return await self._lookup(user)
        except Exception:  # whatever it is, it says nothing about the password
            _log.exception("the stored passwords cannot be read")
            raise HTTPException(503, "Try again later", {"Retry-After": "5"}) from None

    def _verify_password(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except VerifyMismatchError:
            return False
        except (VerificationError, InvalidHashError) as error:
            _log.error("a stored password hash cannot be used: %s", error)
            return False
