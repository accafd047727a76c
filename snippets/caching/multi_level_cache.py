"""Memory in front of Redis or Valkey: hot keys in this process (L1), the rest shared by all (L2).

A change makes every process forget its copy: at once by a message, within `l1_ttl` if that is lost.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import json
import logging
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final, Self, TypeVar

from redis import RedisError
from redis.asyncio import BlockingConnectionPool, Redis

V = TypeVar("V")
log = logging.getLogger(__name__)

# KEYS of every script: value, lease. The lease holds the token of the one who loads for everybody.
# ARGV: token ('' to look only), life of the lease in ms. Returns {value, ms left} or {nil, holder}.
_ENTER = """
local value = redis.pcall('GET', KEYS[1])
if type(value) == 'string' and string.sub(value, 1, 1) == '[' then
  return {value, redis.call('PTTL', KEYS[1])}
end
if ARGV[1] ~= '' then redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) end
return {false, redis.call('GET', KEYS[2])}
"""
# ARGV: token, value ('' to give up), its life in ms. A change takes the lease away: what was read
# before the change is not stored after it.
_LEAVE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
if ARGV[2] ~= '' then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return redis.call('DEL', KEYS[2])
"""
# ARGV: value ('' to delete), its life in ms, channel, key.
_CHANGE = """
redis.call('DEL', KEYS[1], KEYS[2])
if ARGV[1] ~= '' then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return redis.call('PUBLISH', ARGV[3], ARGV[4])
"""


class Missing(enum.Enum):
    """The type of `MISSING`, which says "not there"; None is a value like any other."""

    MISSING = "missing"


MISSING: Final = Missing.MISSING


def connect(url: str, *, timeout: float = 0.1, max_connections: int = 50) -> Redis:
    """Return a client that gives up after `timeout` seconds, without the default's 10 retries."""
    waits = {"timeout": timeout, "socket_timeout": timeout, "socket_connect_timeout": timeout}
    pool = BlockingConnectionPool.from_url(
        url, max_connections=max_connections, retry=None, **waits
    )
    return Redis.from_pool(pool)


class MultiLevelCache:
    """One namespace, used inside `async with`; outside of it nobody listens, and only L2 is used.

    Every caller gets a copy of the value. Lifetimes are in seconds: `l1_ttl` in memory, where at
    most `l1_max` keys are; `l2_ttl` in Redis; `negative_ttl` for `MISSING`. `l1_ttl` is also how
    long memory is trusted while nothing is heard from Redis. What a load brings after `lock_ttl` is
    returned, not stored. `clock` never goes back; `sleep` waits between two looks for what another
    process loads.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        namespace: str,
        l1_max: int = 10_000,
        l1_ttl: float = 5.0,
        l2_ttl: float = 300.0,
        negative_ttl: float = 2.0,
        lock_ttl: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if redis.connection_pool.connection_kwargs.get("decode_responses"):
            raise ValueError("the client must hand out bytes: decode_responses=False")
        if not namespace or ":" in namespace or l1_max < 1:
            raise ValueError("namespace is a text without ':', and l1_max at least 1")
        self._redis, self._namespace, self._channel = redis, namespace, f"{namespace}:changed"
        self._l1_max, self._l1_ttl = l1_max, _milliseconds(l1_ttl) / 1000
        self._life, self._negative_life = _milliseconds(l2_ttl), _milliseconds(negative_ttl)
        self._lock_life, self._clock, self._sleep = _milliseconds(lock_ttl), clock, sleep
        self._enter = redis.register_script(_ENTER)
        self._leave = redis.register_script(_LEAVE)
        self._change = redis.register_script(_CHANGE)
        self._l1: OrderedDict[str, tuple[bytes, float]] = OrderedDict()  # JSON, when it ends
        self._changes = [0] * 1024  # counted by the hash of the key, so that they do not grow
        self._flights: dict[tuple[str, int], asyncio.Task[bytes]] = {}  # of a key, at a count
        self._heard = -math.inf
        self._counts = dict.fromkeys(("l1", "l2", "loads", "errors"), 0)

    async def __aenter__(self) -> Self:
        """Listen for changes; return when the subscription stands, or Redis has failed."""
        tried = asyncio.Event()
        self._listener = asyncio.create_task(self._listen(tried))
        await tried.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening, and the loads that are still running."""
        tasks: set[asyncio.Task[Any]] = {self._listener, *self._flights.values()}
        while tasks:  # again and again: asyncio.wait_for of Python 3.11 may lose a cancellation
            for task in tasks:
                task.cancel()
            tasks = (await asyncio.wait(tasks, timeout=0.1))[1]
        self._heard = -math.inf

    async def get(self, key: str) -> Any:
        """Return the value, or `MISSING` when there is none or it is known not to exist."""
        data = self._look(key)
        if data is None:
            data, _ = await self._read(key, b"")
        return MISSING if data is None else _unpack(data)

    async def get_or_load(
        self, key: str, load: Callable[[], Awaitable[V | Missing]]
    ) -> V | Missing:
        """Return the value, calling `load` when there is none: once for all who ask for it now.

        `load` returns `MISSING` for what does not exist. What it raises goes to all who wait.
        Raises `TypeError` for a value that does not come through JSON unchanged.
        """
        data = self._look(key)
        if data is None:
            flight = key, self._changed(key)
            task = self._flights.get(flight)
            if task is None:
                task = self._flights[flight] = asyncio.create_task(self._fetch(key, load))
                task.add_done_callback(functools.partial(self._landed, flight))
            await asyncio.wait([task])  # whoever is cancelled here goes alone
            data = task.result()
        value: V | Missing = _unpack(data)
        return value

    async def set(self, key: str, value: Any, ttl: float | None = None) -> bool:
        """Give all processes a value for `ttl` seconds; False when Redis could not be told.

        Raises `TypeError` for a value that does not come through JSON unchanged.
        """
        usual = self._negative_life if value is MISSING else self._life
        return await self._write(key, _pack(value), usual if ttl is None else _milliseconds(ttl))

    async def invalidate(self, key: str) -> bool:
        """Make all processes forget `key`; False when Redis could not be told.

        Call it after the commit: before, somebody else loads and stores the old value.
        """
        return await self._write(key, b"", 0)

    def stats(self) -> dict[str, int]:
        """Return hits in "l1" and "l2", "loads", "errors" of Redis, and the "size" of L1."""
        return {**self._counts, "size": len(self._l1)}

    async def _fetch(self, key: str, load: Callable[[], Awaitable[Any]]) -> bytes:
        token, first, pause = secrets.token_bytes(16), None, 0.005
        try:
            while True:
                data, holder = await self._read(key, token)
                if data is not None:
                    return data
                if holder in (None, token) or holder != (first := first or holder):
                    break  # Redis fails, the lease is ours, or the one we waited for gave it up
                await self._sleep(pause)
                pause = min(1.5 * pause, 0.05)
            began, count = self._clock(), self._changed(key)
            self._counts["loads"] += 1
            value = await load()
            data = _pack(value)
        except BaseException:
            await self._ask(self._leave, key, [token, b"", 0])
            raise
        life = self._negative_life if value is MISSING else self._life
        if await self._ask(self._leave, key, [token, data, life]) != 0:  # None: Redis fails
            self._keep(key, data, life, began, count)
        return data

    def _landed(self, flight: tuple[str, int], task: asyncio.Task[bytes]) -> None:
        del self._flights[flight]
        if not task.cancelled():
            task.exception()  # looked at, even when every caller has gone

    async def _read(self, key: str, token: bytes) -> tuple[bytes | None, bytes | None]:
        """Return the value in L2, else the holder of the lease, else (Redis is no help) nothing."""
        began, count = self._clock(), self._changed(key)
        args = [token, self._lock_life]
        found: tuple[Any, Any] = await self._ask(self._enter, key, args) or (None, None)
        data, detail = found
        if data is None:
            return None, detail
        self._counts["l2"] += 1
        self._keep(key, data, detail, began, count)
        return data, None

    async def _write(self, key: str, data: bytes, life: int) -> bool:
        self._forget(key)
        began, count = self._clock(), self._changed(key)
        told = await self._ask(self._change, key, [data, life, self._channel, key]) is not None
        if told:
            self._forget(key)  # again: what was read meanwhile may be the old value
        elif data:
            self._keep(key, data, life, began, count)
        return told

    async def _ask(self, script: Any, key: str, args: list[Any]) -> Any:
        """Run a script; return None when Redis fails."""
        if not isinstance(key, str):
            raise TypeError(f"a key is a str, not {key!r}")
        try:
            keys = [f"{self._namespace}:value:{key}", f"{self._namespace}:lease:{key}"]
            return await script(keys=keys, args=args)
        # asyncio in Python 3.12 and 3.13.0 raises AttributeError where a connection has been reset.
        except (RedisError, AttributeError) as error:
            return self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._counts["errors"] += 1
        log.warning("cache %s: %s", self._namespace, error)

    def _look(self, key: str) -> bytes | None:
        data, until = self._l1.get(key, (None, 0.0))
        now = self._clock()
        if data is None or now >= until or now - self._heard > self._l1_ttl:
            return None
        self._counts["l1"] += 1
        return data

    def _changed(self, key: str) -> int:
        return self._changes[hash(key) % len(self._changes)]

    def _keep(self, key: str, data: bytes, life: int, began: float, count: int) -> None:
        """Put into L1 what was asked for at `began`, unless the key has changed since."""
        if count == self._changed(key):
            self._l1[key] = data, began + min(self._l1_ttl, life / 1000)
            self._l1.move_to_end(key)
            self._evict()

    def _evict(self) -> None:
        """Drop what is too much and what has ended; whatever comes first ends within `l1_ttl`."""
        now = self._clock()
        while self._l1 and (
            len(self._l1) > self._l1_max or next(iter(self._l1.values()))[1] <= now
        ):
            self._l1.popitem(last=False)

    def _forget(self, key: str | None) -> None:
        """Drop a key, or all, and stop what is on its way from being kept or joined."""
        if key is None:
            self._changes = [count + 1 for count in self._changes]
            self._l1.clear()
        else:
            self._changes[hash(key) % len(self._changes)] += 1
            self._l1.pop(key, None)

    async def _listen(self, tried: asyncio.Event) -> None:
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(self._channel)
                    await self._hear(pubsub, tried)
            except (RedisError, AttributeError) as error:
                self._failed(error)
            tried.set()
            await asyncio.sleep(0.1)

    async def _hear(self, pubsub: Any, tried: asyncio.Event) -> None:
        silent, tick = 0.0, min(self._l1_ttl / 4, 0.25)
        while silent < self._l1_ttl:
            message = await pubsub.get_message(timeout=tick)
            self._evict()
            if message is None:
                silent += tick
                await pubsub.ping()  # the answer shows that the connection lives
            else:
                silent, self._heard = 0.0, self._clock()
                if message["type"] == "message":
                    self._forget(message["data"].decode(errors="replace"))
                elif message["type"] == "subscribe":  # after a break: what was missed is unknown
                    self._forget(None)
            tried.set()
        raise RedisError(f"nothing heard for {self._l1_ttl} s")


def _milliseconds(seconds: float) -> int:
    if not 0.001 <= seconds < math.inf:
        raise ValueError(f"a lifetime is at least 0.001 s and finite, not {seconds!r}")
    return round(seconds * 1000)


def _pack(value: Any) -> bytes:
    """Return JSON: `[value]`, or `[]` for `MISSING`."""
    wanted = [] if value is MISSING else [value]
    try:
        text = json.dumps(wanted, allow_nan=False, separators=(",", ":"))
        if json.loads(text) == wanted:
            return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{type(value).__qualname__}: {error}") from error
    raise TypeError(f"{type(value).__qualname__} would come back from JSON as something else")


def _unpack(data: bytes) -> Any:
    found = json.loads(data)
    return found[0] if found else MISSING
