"""What the async and the sync one-time tokens share: the table, the statements, the errors."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg.types.json import Jsonb

# One row for each purpose and subject: a new token takes the place of the one before.
SCHEMA = """
CREATE TABLE IF NOT EXISTS one_time_tokens (
    purpose text NOT NULL,
    subject text NOT NULL,
    digest bytea NOT NULL UNIQUE,
    binding bytea,
    payload jsonb,
    expires_at double precision NOT NULL,
    used_at double precision,
    PRIMARY KEY (purpose, subject)
)
"""
ISSUE = """
INSERT INTO one_time_tokens (purpose, subject, digest, binding, payload, expires_at)
VALUES (%(purpose)s, %(subject)s, %(digest)s, %(binding)s, %(payload)s, %(expires_at)s)
ON CONFLICT (purpose, subject) DO UPDATE SET digest = excluded.digest, binding = excluded.binding,
    payload = excluded.payload, expires_at = excluded.expires_at, used_at = NULL
"""
PEEK = """
SELECT subject, payload, expires_at FROM one_time_tokens
WHERE digest = %(digest)s AND purpose = %(purpose)s AND used_at IS NULL AND expires_at > %(now)s
"""
# Checked and used in one statement: of requests at the same instant, one finds the row unused.
CONSUME = """
UPDATE one_time_tokens SET used_at = %(now)s
WHERE digest = %(digest)s AND purpose = %(purpose)s AND used_at IS NULL AND expires_at > %(now)s
    AND binding IS NOT DISTINCT FROM %(binding)s
RETURNING subject, payload, expires_at
"""
REVOKE = """
DELETE FROM one_time_tokens
WHERE purpose = %(purpose)s AND subject = %(subject)s AND used_at IS NULL
"""
PURGE = "DELETE FROM one_time_tokens WHERE used_at IS NOT NULL OR expires_at <= %(now)s"

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


class TokenInvalid(Exception):
    """Unknown, used, expired, replaced, revoked, of another purpose or binding: it does not say."""

    def __init__(self) -> None:
        super().__init__("this link is not valid, or not any more")


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """What a token stands for. `subject` is whose it is: believe this, and nothing in the request.

    `expires_at` is seconds since 1970; `payload` is what was given to `issue`, as JSON.
    """

    purpose: str
    subject: str
    payload: Any = field(repr=False)
    expires_at: float


def new_token() -> str:
    """Return 256 random bits as 43 characters that need no quoting in an address."""
    return secrets.token_urlsafe(32)


def row_of(
    purpose: str,
    subject: str,
    token: str,
    *,
    now: float,
    ttl: float,
    payload: Any,
    binding: str | None,
) -> dict[str, Any]:
    """Return the parameters of `ISSUE`; `ValueError` if it would never expire, or at once."""
    if not _is_number(ttl) or ttl <= 0:
        raise ValueError(f"ttl must be a number of seconds over 0, got {ttl!r}")
    return {
        "purpose": purpose,
        "subject": subject,
        "digest": _digest(token),
        "binding": None if binding is None else _digest(binding),
        "payload": None if payload is None else Jsonb(payload),
        "expires_at": now + ttl,
    }


def key_of(purpose: str, token: str, now: float, binding: str | None = None) -> dict[str, Any]:
    """Return the parameters of `PEEK` and `CONSUME`; `TokenInvalid` if this cannot be a token."""
    if not _TOKEN.fullmatch(token):
        raise TokenInvalid
    return {
        "purpose": purpose,
        "digest": _digest(token),
        "now": now,
        "binding": None if binding is None else _digest(binding),
    }


def info_of(purpose: str, row: Sequence[Any] | None) -> TokenInfo:
    """Return what a row says; `TokenInvalid` if there is none."""
    if row is None:
        raise TokenInvalid
    return TokenInfo(purpose, row[0], row[1], row[2])


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _digest(text: str) -> bytes:
    # A fast hash is enough for 256 random bits; a binding is a stored value already.
    return hashlib.sha256(text.encode()).digest()
