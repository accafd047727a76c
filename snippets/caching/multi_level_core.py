"""What both multi-level caches share: the level in memory, Redis' scripts, the form of values."""

from __future__ import annotations

import enum
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from redis import RedisError

# KEYS of every script: value, lease. The lease holds the token of the one who loads for everybody.
# ARGV: token ('' to look only), life of the lease in ms. Returns {value, ms left} or {nil, holder}.
ENTER = """
local value = redis.pcall('GET', KEYS[1])
if type(value) == 'string' and string.sub(value, 1, 1) == '[' then
  return {value, redis.call('PTTL', KEYS[1])}
end
if ARGV[1] ~= '' then redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) end
return {false, redis.call('GET', KEYS[2])}
"""
# ARGV: token, value ('' to give up), its life in ms. A change takes the lease away: what was read
# before the change is not stored after it.
LEAVE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
if ARGV[2] ~= '' then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return redis.call('DEL', KEYS[2])
"""
# ARGV: value ('' to delete), its life in ms, channel, key.
CHANGE = """
redis.call('DEL', KEYS[1], KEYS[2])
if ARGV[1] ~= '' then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return redis.call('PUBLISH', ARGV[3], ARGV[4])
"""
# What a client raises when its server fails. AttributeError: asyncio in Python 3.12 and 3.13.0
# does where a connection has been reset.
SERVER_ERRORS = (RedisError, AttributeError)


class Missing(enum.Enum):
    """The type of `MISSING`, which says "not there"; None is a value like any other."""

    MISSING = "missing"


MISSING: Final = Missing.MISSING


@dataclass(frozen=True)
class Lives:
    """How long values and leases live in Redis, in milliseconds."""

    value: int
    missing: int
    lease: int

    @classmethod
    def of(cls, l2_ttl: float, negative_ttl: float, lock_ttl: float) -> Lives:
        """Take seconds; raise `ValueError` for what is no lifetime."""
        return cls(
            milliseconds("l2_ttl", l2_ttl),
            milliseconds("negative_ttl", negative_ttl),
            milliseconds("lock_ttl", lock_ttl),
        )

    def of_value(self, value: Any, ttl: float | None = None) -> int:
        """Return the life of a value, which is that of its kind unless `ttl` (seconds) is given."""
        if ttl is not None:
            return milliseconds("ttl", ttl)
        return self.missing if value is MISSING else self.value


class Asked(NamedTuple):
    """When somebody began to ask for a key, and how often it had changed by then."""

    at: float
    changes: int


class LocalLevel:
    """L1: copies in this process, trusted while changes are heard of. Threads may share it."""

    def __init__(self, l1_max: int, l1_ttl: float, clock: Callable[[], float]) -> None:
        self._max = checked_count("l1_max", l1_max)
        self.ttl = milliseconds("l1_ttl", l1_ttl) / 1000
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[bytes, float]] = OrderedDict()  # JSON, when it ends
        self._changes = [0] * 1024  # counted by the hash of the key, so that they do not grow
        self._counts = dict.fromkeys(("l1", "l2", "loads", "errors"), 0)
        self.heard_at = -math.inf

    def look(self, key: str) -> bytes | None:
        """Return the copy of a value, unless it has ended or nothing was heard for `l1_ttl`."""
        with self._lock:
            data, until = self._entries.get(key, (None, 0.0))
            now = self._clock()
            if data is None or now >= until or now - self.heard_at > self.ttl:
                return None
            self._counts["l1"] += 1
            return data

    def changes_of(self, key: str) -> int:
        """Return how often a key has changed, or another of the same hash."""
        return self._changes[hash(key) % len(self._changes)]

    def asked_now(self, key: str) -> Asked:
        """Return what `keep` wants to know about whoever asks Redis or loads from now on."""
        return Asked(self._clock(), self.changes_of(key))

    def keep(self, key: str, data: bytes, life: int, asked: Asked) -> None:
        """Keep what was asked for, for `life` ms at most, unless the key has changed since."""
        with self._lock:
            if asked.changes == self.changes_of(key):
                self._entries[key] = data, asked.at + min(self.ttl, life / 1000)
                self._entries.move_to_end(key)
                self._evict()

    def forget(self, key: str) -> None:
        """Drop a key, and stop what is on its way from being kept or joined."""
        with self._lock:
            self._changes[hash(key) % len(self._changes)] += 1
            self._entries.pop(key, None)

    def forget_all(self) -> None:
        """Drop all keys, as `forget` does."""
        with self._lock:
            self._changes = [count + 1 for count in self._changes]
            self._entries.clear()

    def evict(self) -> None:
        """Drop what is too much and what has ended; whatever comes first ends within `l1_ttl`."""
        with self._lock:
            self._evict()

    def _evict(self) -> None:
        now = self._clock()
        while self._entries and (
            len(self._entries) > self._max or next(iter(self._entries.values()))[1] <= now
        ):
            self._entries.popitem(last=False)

    def hear(self, message: dict[str, Any]) -> None:
        """Note that Redis was heard, and forget what the message says."""
        self.heard_at = self._clock()
        if message["type"] == "message":
            self.forget(message["data"].decode(errors="replace"))
        elif message["type"] == "subscribe":  # after a break: what was missed is unknown
            self.forget_all()

    def stop_trusting(self) -> None:
        """Use no copies until something is heard again."""
        self.heard_at = -math.inf

    def count(self, name: str) -> None:
        """Count one more of "l1", "l2", "loads" or "errors"."""
        with self._lock:
            self._counts[name] += 1

    def stats(self) -> dict[str, int]:
        """Return the counts, and the "size" of this level."""
        return {**self._counts, "size": len(self._entries)}


def pack(value: Any) -> bytes:
    """Return JSON: `[value]`, or `[]` for `MISSING`."""
    wanted = [] if value is MISSING else [value]
    try:
        text = json.dumps(wanted, allow_nan=False, separators=(",", ":"))
        if json.loads(text) == wanted:
            return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{type(value).__qualname__}: {error}") from error
    raise TypeError(f"{type(value).__qualname__} would come back from JSON as something else")


def unpack(data: bytes) -> Any:
    """Return the value, or `MISSING`."""
    found = json.loads(data)
    return found[0] if found else MISSING


def checked_namespace(namespace: str) -> str:
    """Return a name that cannot meet another one's keys; raise `ValueError` for any other."""
    if not namespace or ":" in namespace:
        raise ValueError(f"namespace must be a text without ':', got {namespace!r}")
    return namespace


def keys_of(namespace: str, key: str) -> list[str]:
    """Return the KEYS of the scripts; raise `TypeError` for a key that is no text."""
    if not isinstance(key, str):
        raise TypeError(f"a key is a str, not {key!r}")
    return [f"{namespace}:value:{key}", f"{namespace}:lease:{key}"]


def milliseconds(name: str, seconds: float) -> int:
    """Return what PX takes; raise `ValueError` that names the argument for what is no lifetime."""
    if not (_is_number(seconds) and seconds >= 0.001):
        raise ValueError(f"{name} must be a number of seconds from 0.001, got {seconds!r}")
    return round(seconds * 1000)


def checked_count(name: str, value: int) -> int:
    """Return a whole number of at least 1; raise `ValueError` for anything else."""
    if not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
