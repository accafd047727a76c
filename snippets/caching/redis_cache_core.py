"""What the sync and the async Redis cache decide alike, without any input or output.

Keys that no two different calls share, lifetimes, the Lua scripts of the lock, and the rest that a
failing server is given. Needs `cache_codec.py` beside it.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from redis import RedisError

from cache_codec import JsonSerializer, Serializer, UnserializableValue

# KEYS of every script: value, lock. The lock holds the random token of the one caller who computes.
# ARGV: token, life of the lock in ms. Returns the value, which may be there by now, and the holder.
ACQUIRE = """
local value = redis.pcall('GET', KEYS[1])
if type(value) == 'table' then value = false end
local holder = redis.call('GET', KEYS[2])
if not holder then
  holder = ARGV[1]
  redis.call('SET', KEYS[2], holder, 'PX', ARGV[2])
end
return {value, holder}
"""
# ARGV: token, value, life of the value in ms. The token is the fence: an invalidation deletes the
# lock, a refresh replaces it, its expiry frees it, and then this result is no longer wanted.
STORE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return redis.call('DEL', KEYS[2])
"""
# ARGV: token. Compare and delete in one step: a plain DEL may delete the next owner's lock.
RELEASE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[2])
"""
MISS: Final[Any] = object()  # not in the cache; None is a value like any other
# What a client raises when its server fails. AttributeError: asyncio in Python 3.12 and 3.13.0
# does where a connection has been reset; a client for threads raises it for a mistake alone.
SERVER_ERRORS = (RedisError,)
ASYNC_SERVER_ERRORS = (*SERVER_ERRORS, AttributeError)
FAILURES, REST = 5, 3.0  # after so many failures in a row the server is left alone for REST seconds
_FORMAT = b"1:"  # stands before every value: what another program left under a key is a miss


class UnkeyableArgument(TypeError):
    """An argument has no lasting text form: pass an id instead of the object, or give `key=`."""


class CacheUnavailable(Exception):
    """Redis failed, or is left alone after failing; callers see it only with `fail_open=False`."""


def wrap(serializer: Serializer, value: Any) -> bytes:
    """Return what is stored for `value`; raise `UnserializableValue`."""
    return _FORMAT + serializer.dumps(value)


def unwrap(serializer: Serializer, data: Any) -> Any:
    """Return the value, or `MISS` for nothing and for bytes that `wrap` did not make."""
    if data is None or not data.startswith(_FORMAT):
        return MISS
    try:
        return serializer.loads(data[len(_FORMAT) :])
    except ValueError:
        return MISS


def lock_of(key: str) -> str:
    """Return the name of the lock that guards `key`."""
    return f"{key}:lock"


def checked_seconds(name: str, value: float, *, or_zero: bool = False) -> float:
    """Return a time above 0; raise `ValueError` that names the argument for anything else."""
    if not (_is_number(value) and (value > 0 or (or_zero and value == 0))):
        least = "from 0" if or_zero else "over 0"
        raise ValueError(f"{name} must be a number of seconds {least}, got {value!r}")
    return value


def milliseconds(name: str, seconds: float) -> int:
    """Return what PX takes, at least 1; raise as `checked_seconds` does."""
    return max(1, round(checked_seconds(name, seconds) * 1000))


def read_settings(environ: Mapping[str, str]) -> tuple[str, str, int]:
    """Return REDIS_URL, CACHE_NAMESPACE and CACHE_VERSION (1 when it is not set).

    Raises `RuntimeError` naming one that is missing, `ValueError` for a version that is no number.
    """
    for name in ("REDIS_URL", "CACHE_NAMESPACE"):
        if not environ.get(name):
            raise RuntimeError(f"{name} is not set, or is empty")
    version = environ.get("CACHE_VERSION") or "1"
    if not re.fullmatch("[0-9]{1,9}", version):
        raise ValueError(f"CACHE_VERSION must be a whole number of 1 to 9 digits, got {version!r}")
    return environ["REDIS_URL"], environ["CACHE_NAMESPACE"], int(version)


class CacheKeys:
    """Names in Redis, "namespace:v1:{label:sha-256}": under 200 bytes whatever the arguments."""

    def __init__(self, namespace: str, version: int, serializer: Serializer) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,48}", namespace):
            raise ValueError(f"namespace must be 1 to 48 of A-Z a-z 0-9 _ . -, got {namespace!r}")
        whole = isinstance(version, int) and not isinstance(version, bool)
        if not whole or not 0 <= version < 10**9:
            raise ValueError(f"version must be a whole number of 0 to 999,999,999, got {version!r}")
        self._prefix = f"{namespace}:v{version:d}:"
        # What may be stored may be an argument too.
        self._json = serializer if isinstance(serializer, JsonSerializer) else JsonSerializer()

    def name(self, label: str, arguments: Any = None) -> str:
        """Return the key of `label` and `arguments`; raise `UnserializableValue`."""
        digest = hashlib.sha256(self._json.dumps([label, arguments], canonical=True)).hexdigest()
        readable = re.sub(r"[^A-Za-z0-9_.]", "_", label[-48:])
        # The braces are a hash tag: in a cluster a value and its lock live on the same node.
        return f"{self._prefix}{{{readable}:{digest}}}"


class CachingPlan:
    """How one function is cached: the keys of its calls, the life of its results.

    Raises `TypeError` for no function, a generator or the other color, `ValueError` for a `ttl` or
    `jitter` out of range.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        keys: CacheKeys,
        ttl: float,
        key: Callable[..., str] | None,
        jitter: float,
        cache_none: bool,
        *,
        asynchronous: bool,
    ) -> None:
        if not inspect.isfunction(func):
            raise TypeError(f"{func!r} is not a function made with def")
        self.label = f"{func.__module__}.{func.__qualname__}"
        if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
            raise TypeError(f"{self.label} is a generator: what it yields is gone after one use")
        if inspect.iscoroutinefunction(func) is not asynchronous:
            other = "RedisCache" if asynchronous else "AsyncRedisCache"
            raise TypeError(f"{self.label} belongs to an {other}")
        if not (_is_number(jitter) and 0 <= jitter < 1):
            raise ValueError(f"jitter must be a number of 0 to under 1, got {jitter!r}")
        self.func = func
        self.cache_none = cache_none
        self._keys = keys
        self._key = key
        self._ttl = checked_seconds("ttl", ttl)
        self._jitter = jitter
        self._signature = inspect.signature(func)

    def key_of(self, *args: Any, **kwargs: Any) -> str:
        """Return the key of a call, the same however its arguments are written."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        part = self._key(*bound.args, **bound.kwargs) if self._key else bound.arguments
        try:
            return self._keys.name(self.label, part)
        except UnserializableValue as error:
            raise UnkeyableArgument(f"{self.label}: {error}; or give key=") from error

    def life(self, rng: Callable[[], float]) -> int:
        """Return the life of one result in ms: results made together do not expire together."""
        return milliseconds("ttl", self._ttl * (1 + self._jitter * (2 * rng() - 1)))


class ServerHealth:
    """Counts failures in a row. A lost update between threads costs one attempt more, no harm."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures = 0
        self._rest_until = -math.inf

    def resting(self) -> bool:
        """Say whether the server is to be left alone now."""
        return self._clock() < self._rest_until

    def succeeded(self) -> None:
        """Begin to count again."""
        self._failures = 0

    def failed(self) -> bool:
        """Count a failure; say whether a rest begins."""
        self._failures += 1
        if self._failures < FAILURES:
            return False
        self._rest_until = self._clock() + REST
        return True


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
