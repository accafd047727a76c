"""What the session stores for asyncio and for threads share: the Lua, and what is kept in Redis.

Each script is one atomic step, so that a session which was destroyed cannot come back, and only
one of two rotations succeeds. Redis 6.2 and Valkey have all commands that are used.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping
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


class Core:
    """The settings of a store, and what it sends and reads. It does no I/O.

    Args:
        idle: Seconds without a request after which a session ends.
        absolute: Seconds after which it ends in any case.
        max_bytes: How long its data may be, as JSON.
        clock: Seconds since 1970.
        prefix: What the keys in Redis begin with.

    Raises:
        ValueError: A limit is not positive.
    """

    def __init__(
        self,
        *,
        idle: float = 1_800,
        absolute: float = 43_200,
        max_bytes: int = 4_096,
        clock: Callable[[], float] = time.time,
        prefix: str = "sessions",
    ) -> None:
        if not (idle >= 0.001 and absolute >= 0.001 and max_bytes >= 2):
            raise ValueError("idle and absolute must be at least 0.001 s, max_bytes at least 2")
        self._idle, self._absolute, self._max_bytes = idle, absolute, max_bytes
        self._clock, self._prefix = clock, f"{{{prefix}}}"  # in a cluster, all in one slot

    def _limits(self) -> list[int]:
        return [int(self._idle * 1_000), int(self._absolute * 1_000)]

    def _key(self, digest: str) -> str:
        return f"{self._prefix}:s:{digest}"

    def _index(self, user_id: str) -> str:
        if not isinstance(user_id, str) or not user_id:
            raise ValueError("user_id must be a text that is not empty")
        return f"{self._prefix}:u:{_digest(user_id)}"

    def _known(self, token: str | None) -> str | None:
        """Return what Redis knows a token by, None if it cannot be one of ours."""
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            return None
        return _digest(token)

    def _new(self) -> tuple[str, str]:
        token = secrets.token_urlsafe(32)
        return token, _digest(token)

    def _encode(self, data: Mapping[str, Any]) -> bytes:
        try:
            text = json.dumps(dict(data), ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError):
            raise ValueError("a session holds JSON and nothing else") from None
        if len(text) > self._max_bytes:
            raise SessionTooLarge(f"a session holds at most {self._max_bytes} bytes of JSON")
        return text

    def _session(self, token: str, reply: Any) -> Session | None:
        if not reply:
            return None
        user, data, created = (_text(part) for part in reply)
        begun = float(created)
        if self._clock() >= begun + self._absolute:
            return None
        return Session(token, user, json.loads(data), begun, begun + self._absolute)

    def _infos(self, reply: Any) -> tuple[SessionInfo, ...]:
        return tuple(SessionInfo(float(_text(c)), json.loads(_text(d))) for c, d in reply)


def limits_from(environ: Mapping[str, str]) -> dict[str, float]:
    """Read SESSION_IDLE_SECONDS and SESSION_ABSOLUTE_SECONDS, where they are set.

    Raises:
        RuntimeError: One of them is no number of seconds.
    """
    names = {"idle": "SESSION_IDLE_SECONDS", "absolute": "SESSION_ABSOLUTE_SECONDS"}
    found = {}
    for argument, name in names.items():
        if environ.get(name):
            if not re.fullmatch(r"[0-9]{1,9}", environ[name]):
                raise RuntimeError(f"{name} is not a whole number of seconds")
            found[argument] = float(environ[name])
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def _text(part: Any) -> str:
    return part.decode() if isinstance(part, bytes) else str(part)
