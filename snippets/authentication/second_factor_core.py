"""What the second factor is made of, for sync and async callers: tables, SQL, codes, errors."""

from __future__ import annotations

import base64
import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Protocol

MAX_FAILURES = 5
LOCK_SECONDS = 900.0
RECOVERY_CODES = 10

SCHEMA = """
create table if not exists second_factor (
    user_id text primary key,
    secret text not null,                      -- encrypted
    confirmed boolean not null default false,
    last_step bigint not null default -1       -- no code of this step or before it is taken again
);
create table if not exists second_factor_recovery (
    user_id text not null references second_factor on delete cascade,
    digest bytea not null,
    primary key (user_id, digest)
);
create table if not exists second_factor_attempts (
    user_id text primary key,                  -- of anybody who tried, enrolled or not
    since double precision not null,
    failures integer not null
);
"""

# An attempt is counted before it is looked at, in the statement that asks whether it is allowed.
# Counting afterwards would let a thousand guesses at once read "no failure yet".
COUNT_ATTEMPT = """
insert into second_factor_attempts as a (user_id, since, failures) values (%(user)s, %(now)s, 1)
on conflict (user_id) do update set
    failures = case when a.since <= %(now)s - %(lock)s then 1 else a.failures + 1 end,
    since = case when a.since <= %(now)s - %(lock)s then %(now)s else a.since end
where a.since <= %(now)s - %(lock)s or a.failures < %(most)s
returning user_id
"""
LOCKED_SINCE = "select since from second_factor_attempts where user_id = %(user)s"
FORGET_ATTEMPTS = "delete from second_factor_attempts where user_id = %(user)s"

BEGIN = """
insert into second_factor as f (user_id, secret) values (%(user)s, %(secret)s)
on conflict (user_id) do update set secret = excluded.secret where not f.confirmed
returning user_id
"""
READ = "select secret from second_factor where user_id = %(user)s and confirmed = %(confirmed)s"
# Of many who bring the same code at once, this statement lets one through.
BURN_STEP = """
update second_factor set last_step = %(step)s, confirmed = true
where user_id = %(user)s and secret = %(secret)s and last_step < %(step)s
returning user_id
"""
LOCK_ENROLLED = "select 1 from second_factor where user_id = %(user)s and confirmed for update"
DROP_RECOVERY = "delete from second_factor_recovery where user_id = %(user)s"
ADD_RECOVERY = "insert into second_factor_recovery values (%(user)s, %(digest)s)"
BURN_RECOVERY = """
delete from second_factor_recovery where user_id = %(user)s and digest = %(digest)s
returning user_id
"""
DISABLE = "delete from second_factor where user_id = %(user)s"


class NotEnrolled(Exception):
    """The user has no second factor, or has not begun to set one up."""


class AlreadyEnrolled(Exception):
    """The user has a confirmed second factor: `disable` it first, which takes a code."""


class TooManyAttempts(Exception):
    """Too many codes were wrong. `retry_after` is how long none is looked at, in seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"too many wrong codes: try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class Cipher(Protocol):
    """Encrypts the secrets for the table. `context` has to be authenticated with them."""

    def encrypt(self, plain: bytes, *, context: str) -> str:
        """Return text that only `decrypt` with the same context turns back."""
        ...

    def decrypt(self, token: str, *, context: str) -> bytes:
        """Return what was encrypted, or raise."""
        ...


@dataclass(frozen=True)
class Enrollment:
    """What the user's app needs, once: the secret to type, or its address as a QR code."""

    secret: str = field(repr=False)
    uri: str = field(repr=False)


def attempt(user: str, now: float) -> dict[str, object]:
    """Return the parameters of `COUNT_ATTEMPT`."""
    return {"user": user, "now": now, "lock": LOCK_SECONDS, "most": MAX_FAILURES}


def context_of(user: str) -> str:
    """Return what a secret is bound to: moved to another user's row, it does not decrypt."""
    return f"second_factor.secret:{user}"


def new_recovery_code() -> str:
    """Return a recovery code of 80 random bits, in four groups."""
    text = base64.b32encode(secrets.token_bytes(10)).decode()
    return "-".join(text[at : at + 4] for at in range(0, 16, 4))


def recovery_digest(code: str) -> bytes:
    """Return what is stored of a recovery code: 80 random bits need no slow hash, and no salt."""
    typed = "".join(code.split()).replace("-", "").upper() if isinstance(code, str) else ""
    return hashlib.sha256(typed.encode(errors="replace")).digest()
