"""What the session stores for asyncio and for threads share: the Lua, and what is kept in Redis.

Each script is one atomic step, so that a session which was destroyed cannot come back, and only
one of two rotations succeeds. Redis 6.2 and Valkey have all commands that are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")

_HEAD = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)

-- Give a session `life` milliseconds, and keep the list of its user's sessions exact.
local function live(key, index, member, life)
  redis.call('PEXPIRE', key, life)
  redis.call('ZADD', index, now + life, member)
  redis.call('ZREMRANGEBYSCORE', index, '-inf', now)
  local last = redis.call('ZREVRANGE', index, 0, 0, 'WITHSCORES')
  redis.call('PEXPIREAT', index, last[2])
end
"""

# The absolute end is kept by the clock of Redis: no application server's clock can move it.
CREATE = (
    _HEAD
    + """
redis.call('HSET', KEYS[1], 'user', ARGV[4], 'data', ARGV[5], 'created', ARGV[6],
           'ends', now + ARGV[2], 'index', KEYS[2])
live(KEYS[1], KEYS[2], ARGV[3], math.min(ARGV[1], ARGV[2]))
"""
)

GET = (
    _HEAD
    + """
local f = redis.call('HMGET', KEYS[1], 'user', 'data', 'created', 'ends', 'index')
if not f[1] then return false end
local left = f[4] - now
if left <= 0 then
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', f[5], ARGV[2])
  return false
end
live(KEYS[1], f[5], ARGV[2], math.min(ARGV[1], left))
return {f[1], f[2], f[3]}
"""
)

# A hash keeps its time to live when a field is written; a plain SET would take it away.
UPDATE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'data', ARGV[1])
return 1
"""

ROTATE = (
    _HEAD
    + """
local f = redis.call('HMGET', KEYS[1], 'user', 'data', 'created', 'ends', 'index')
if not f[1] or f[4] - now <= 0 then return false end
redis.call('RENAME', KEYS[1], KEYS[2])
redis.call('ZREM', f[5], ARGV[2])
live(KEYS[2], f[5], ARGV[3], math.min(ARGV[1], f[4] - now))
return {f[1], f[2], f[3]}
"""
)

DESTROY = """
local index = redis.call('HGET', KEYS[1], 'index')
if index then redis.call('ZREM', index, ARGV[1]) end
return redis.call('DEL', KEYS[1])
"""

DESTROY_ALL = """
local ended = 0
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  ended = ended + redis.call('DEL', ARGV[1] .. member)
end
redis.call('DEL', KEYS[1])
return ended
"""

LIST = """
local found = {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local f = redis.call('HMGET', ARGV[1] .. member, 'created', 'data')
  if f[1] then found[#found + 1] = f else redis.call('ZREM', KEYS[1], member) end
end
return found
"""


class SessionStoreUnavailable(Exception):
    """Redis did not answer. Nobody is known, and nobody is anonymous: answer 503."""


class SessionTooLarge(ValueError):
    """The data is longer than a session may be."""


@dataclass(frozen=True, slots=True)
class Session:
    """A login. Times are seconds since 1970; `ends_at` is its end even when it is used."""

    token: str = field(repr=False)
    user_id: str
    data: Mapping[str, Any] = field(repr=False)
    created_at: float
    ends_at: float


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One of a user's sessions, without its token: nobody knows that but the browser."""

    created_at: float
    data: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """How long a session lives, and how much it holds.

    Args:
        idle: Seconds without a request after which a session ends.
        absolute: Seconds after which it ends in any case.
        max_bytes: How long its data may be, as JSON.

    Raises:
        ValueError: A limit is no such number.
    """

    idle: float = 1_800
    absolute: float = 43_200
    max_bytes: int = 4_096

    def __post_init__(self) -> None:
        for name, value in (("idle", self.idle), ("absolute", self.absolute)):
            if not _is_number(value) or value < 0.001:
                text = f"{name} must be a number of seconds of at least 0.001, got {value!r}"
                raise ValueError(text)
        _check_count("max_bytes", self.max_bytes, 2)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> SessionLimits:
        """Read SESSION_IDLE_SECONDS and SESSION_ABSOLUTE_SECONDS, where they are set.

        Raises:
            ValueError: One of them is no number of seconds.
        """
        return cls(
            idle=_seconds_setting(environ, "SESSION_IDLE_SECONDS", cls().idle),
            absolute=_seconds_setting(environ, "SESSION_ABSOLUTE_SECONDS", cls().absolute),
        )

    @property
    def idle_ms(self) -> int:
        """The idle time in milliseconds, as Redis counts."""
        return int(self.idle * 1_000)

    @property
    def absolute_ms(self) -> int:
        """The absolute time in milliseconds."""
        return int(self.absolute * 1_000)

    def to_json(self, data: Mapping[str, Any]) -> bytes:
        """Return data as it is kept.

        Raises:
            SessionTooLarge: It is longer than `max_bytes`.
            ValueError: It is not JSON.
        """
        try:
            text = json.dumps(dict(data), ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError):
            raise ValueError("a session holds JSON and nothing else") from None
        if len(text) > self.max_bytes:
            raise SessionTooLarge(f"a session holds at most {self.max_bytes} bytes of JSON")
        return text

    def read_session(self, token: str, reply: Any, now: float) -> Session | None:
        """Return what `GET` and `ROTATE` answered; None if nothing, or if its end has come."""
        if not reply:
            return None
        user, data, created = (_decoded(part) for part in reply)
        begun = float(created)
        if now >= begun + self.absolute:
            return None
        return Session(token, user, json.loads(data), begun, begun + self.absolute)


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """The keys in Redis. `prefix` is what they begin with."""

    prefix: str

    def of_session(self, digest: str) -> str:
        """Return the key of a session, by the digest of its token."""
        return f"{{{self.prefix}}}:s:{digest}"  # braces: in a cluster, all in one slot

    def of_user(self, user_id: str) -> str:
        """Return the key of the list of a user's sessions; `ValueError` if there is no user."""
        if not isinstance(user_id, str) or not user_id:
            raise ValueError("user_id must be a text that is not empty")
        return f"{{{self.prefix}}}:u:{_sha256(user_id)}"


def check_connection(timeout: float, max_connections: int) -> None:
    """Raise a ValueError if a client cannot have these."""
    if not _is_number(timeout) or timeout <= 0:
        raise ValueError(f"timeout must be a number of seconds over 0, got {timeout!r}")
    _check_count("max_connections", max_connections, 1)


def new_token() -> tuple[str, str]:
    """Return a token of 256 random bits, 43 characters, and its digest."""
    token = secrets.token_urlsafe(32)
    return token, _sha256(token)


def token_digest(token: str | None) -> str | None:
    """Return what Redis knows a token by; None if it cannot be one of ours."""
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        return None
    return _sha256(token)


def read_infos(reply: Any) -> tuple[SessionInfo, ...]:
    """Return what `LIST` answered."""
    return tuple(SessionInfo(float(_decoded(c)), json.loads(_decoded(d))) for c, d in reply)


def _seconds_setting(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name) or ""
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text) or not int(text):
        raise ValueError(f"{name} must be a whole number of seconds over 0, got {text!r}")
    return float(text)


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def _decoded(part: Any) -> str:
    return part.decode() if isinstance(part, bytes) else str(part)
