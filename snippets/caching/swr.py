"""Serve what is cached at once, also when it is stale, and refresh it once behind (RFC 5861)."""

from __future__ import annotations

import asyncio
import contextvars
import enum
import json
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from redis.asyncio import Redis

V = TypeVar("V")
log = logging.getLogger(__name__)

# KEYS: entry. ARGV: entry, when its load began, now, life in ms. Who began earlier has the older
# value, also when they end later. A stamp from the future means nothing: the clock was set back.
_PUT = """
local old = redis.pcall('GET', KEYS[1])
local began = type(old) == 'string' and tonumber(string.match(old, '^[^\\n]*'))
if began and began > tonumber(ARGV[2]) and began <= tonumber(ARGV[3]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[4])
return 1
"""


class State(enum.Enum):
    """FRESH: served. STALE: served, and refreshed behind. DEAD: the caller waits for a load."""

    FRESH = "fresh"
    STALE = "stale"
    DEAD = "dead"


@dataclass(frozen=True)
class Entry(Generic[V]):
    """A value, and the time before its load began: a slow load makes nothing fresh for longer."""

    value: V
    stored_at: float


@dataclass(frozen=True)
class Served(Generic[V]):
    """A value, its state, its age in seconds, and the error for which a dead value is served."""

    value: V
    state: State
    age: float
    error: BaseException | None = None


class MemoryStore:
    """Entries in this process. It hands out the stored object itself: do not change it."""

    def __init__(self, max_items: int = 10_000) -> None:
        if max_items < 1:
            raise ValueError("max_items must be at least 1")
        self._max_items = max_items
        self._entries: OrderedDict[str, tuple[Entry[Any], float]] = OrderedDict()  # and its end

    async def get(self, key: str) -> Entry[Any] | None:
        """Return the entry, or None."""
        return self._entries.get(key, (None, 0.0))[0]

    async def put(self, key: str, entry: Entry[Any], ttl: float, now: float) -> None:
        """Keep it for `ttl` seconds, unless there is one whose load began later."""
        old = await self.get(key)
        if old is not None and entry.stored_at < old.stored_at <= now:
            return
        self._entries[key] = entry, now + ttl
        self._entries.move_to_end(key)
        while len(self._entries) > self._max_items or next(iter(self._entries.values()))[1] <= now:
            self._entries.popitem(last=False)

    async def claim(self, key: str, seconds: float) -> bool:
        """Return True: the caller may refresh. One at a time in a process is the cache's matter."""
        return True

    async def release(self, key: str, after: float) -> None:
        """Let the next one refresh `key` after so many seconds."""


class RedisStore:
    """Entries in Redis or Valkey, as JSON; all processes share them, and the right to refresh.

    Make the client with `socket_timeout`. Its failures go to `on_error`, and count as a miss.
    """

    def __init__(self, redis: Redis, namespace: str) -> None:
        self._redis, self._namespace = redis, namespace
        self._script: Any = redis.register_script(_PUT)

    async def get(self, key: str) -> Entry[Any] | None:
        """Return the entry, or None; raise `ValueError` for what is none."""
        data: Any = await self._redis.get(f"{self._namespace}:entry:{key}")
        if data is None:
            return None
        stamp, text = data.split(maxsplit=1)
        return Entry(json.loads(text), float(stamp))

    async def put(self, key: str, entry: Entry[Any], ttl: float, now: float) -> None:
        """Keep it for `ttl` seconds, unless there is one whose load began later.

        Raises `TypeError` for a value that does not come through JSON unchanged.
        """
        args = [_pack(entry), entry.stored_at, now, math.ceil(ttl * 1000)]
        await self._script(keys=[f"{self._namespace}:entry:{key}"], args=args)

    async def claim(self, key: str, seconds: float) -> bool:
        """Say whether the caller may refresh; nobody else may until `seconds` are over."""
        name = f"{self._namespace}:claim:{key}"
        return bool(await self._redis.set(name, 1, nx=True, px=math.ceil(seconds * 1000)))

    async def release(self, key: str, after: float) -> None:
        """Let the next one refresh `key` after so many seconds."""
        # Whose claim it is does not matter: at worst two refresh, and who began later is kept.
        name = f"{self._namespace}:claim:{key}"
        if after:
            await self._redis.set(name, 1, px=math.ceil(after * 1000))
        else:
            await self._redis.delete(name)


def _pack(entry: Entry[Any]) -> str:
    try:
        text = json.dumps(entry.value, allow_nan=False)
        if json.loads(text) == entry.value:
            return f"{entry.stored_at!r}\n{text}"
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{type(entry.value).__qualname__}: {error}") from error
    raise TypeError(f"{type(entry.value).__qualname__} would come back from JSON as something else")


def log_error(key: str, error: BaseException) -> None:
    """Log a failed load, or a failed store."""
    log.warning("cache: %s: %r", key, error)


class SWRCache:
    """Values that are refreshed while the old ones are served. All times are in seconds.

    Args:
        store: `MemoryStore()` or `RedisStore(...)`.
        fresh_for: Age up to which a value is served, and nothing else happens.
        stale_for: How much longer it is served while one refresh runs behind.
        error_for: How long after `fresh_for` it is served when a load fails (stale-if-error).
        retry_after: How long a key is left alone after a failed load.
        timeout: How long a load may take.
        max_refreshes: How many refreshes run at once; what is too much is not queued, but skipped.
        clock: The time that all who share the store agree on.
        on_error: Called as `on_error(key, error)` for each failed load and for each failure of the
            store; what it raises is logged.

    """

    def __init__(
        self,
        store: MemoryStore | RedisStore,
        *,
        fresh_for: float,
        stale_for: float,
        error_for: float = 0.0,
        retry_after: float = 1.0,
        timeout: float = 10.0,
        max_refreshes: int = 32,
        clock: Callable[[], float] = time.time,
        on_error: Callable[[str, BaseException], object] = log_error,
    ) -> None:
        if min(fresh_for, timeout) <= 0 or min(stale_for, error_for, retry_after) < 0:
            raise ValueError("fresh_for and timeout are above 0, and nothing is below")
        self._store, self._fresh_for, self._stale_for = store, fresh_for, stale_for
        self._error_for, self._retry_after, self._timeout = error_for, retry_after, timeout
        self._max_refreshes, self._clock, self._on_error = max_refreshes, clock, on_error
        self._flights: dict[str, asyncio.Task[Entry[Any]]] = {}  # loads
        self._behind: dict[str, asyncio.Task[None]] = {}  # refreshes, each with or before a load
        self._failed: dict[str, tuple[float, BaseException]] = {}
        self._closed = False

    def state(self, entry: Entry[Any] | None, now: float) -> State:
        """Return the state of an entry; one from the future is stale: the clock was set back."""
        if entry is None or now - entry.stored_at >= self._fresh_for + self._stale_for:
            return State.DEAD
        return State.FRESH if 0 <= now - entry.stored_at < self._fresh_for else State.STALE

    async def get(self, key: str, load: Callable[[], Awaitable[V]]) -> V:
        """Return a value, and see to it that it is refreshed.

        `load` runs in a context of its own, without the caller's context variables.
        Raises what `load` has raised when nothing else can be served, `TimeoutError` when it took
        too long, and `RuntimeError` after `close()`.
        """
        return (await self.fetch(key, load)).value

    async def fetch(self, key: str, load: Callable[[], Awaitable[V]]) -> Served[V]:
        """Do as `get`, and tell how old the value is and why it is served."""
        entry: Entry[V] | None = await self._ask(key, self._store.get(key))
        now = self._clock()
        state = self.state(entry, now)
        if entry is not None and state is not State.DEAD:
            if state is State.STALE:
                self._refresh_behind(key, load, now)
            return Served(entry.value, state, now - entry.stored_at)
        usable = entry is not None and now - entry.stored_at < self._fresh_for + self._error_for
        error: BaseException | None = None
        if self._closed:
            error = RuntimeError("the cache is closed")
        elif usable:
            error = self._failure(key, now)
        if error is None:
            task = self._flight(key, load)
            await asyncio.wait([task])  # unlike awaiting it: whoever is cancelled here goes alone
            if task.cancelled():
                error = RuntimeError(f"the load of {key!r} was cancelled")
            elif (error := task.exception()) is None:
                made: Entry[V] = task.result()
                return Served(made.value, State.FRESH, self._clock() - made.stored_at)
        if entry is None or not usable:
            raise error
        return Served(entry.value, state, now - entry.stored_at, error)

    async def set(self, key: str, value: Any) -> None:
        """Put a value there; a refresh that began earlier does not overwrite it."""
        now = self._clock()
        await self._put(key, Entry(value, now), now)

    async def close(self, timeout: float = 5.0) -> None:  # it has two deadlines
        """Wait for what is running, cancel it after `timeout`; what was cached is still served."""
        self._closed = True
        if tasks := [*self._flights.values(), *self._behind.values()]:
            await asyncio.wait(tasks, timeout=timeout)
        while tasks := [*self._flights.values(), *self._behind.values()]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.1)

    def _refresh_behind(self, key: str, load: Callable[[], Awaitable[Any]], now: float) -> None:
        if self._closed or key in self._behind or len(self._behind) >= self._max_refreshes:
            return
        if self._failure(key, now) is None:
            refresh = self._refresh(key, load)
            # Without a reference here the loop may lose it; with a context, the caller's leaks.
            self._behind[key] = asyncio.create_task(refresh, context=contextvars.Context())
            self._behind[key].add_done_callback(lambda _: self._behind.pop(key))

    async def _refresh(self, key: str, load: Callable[[], Awaitable[Any]]) -> None:
        if not await self._ask(key, self._store.claim(key, self._timeout)):
            return
        pause = 0.0
        try:
            task = self._flight(key, load)
            await asyncio.wait([task])
            if task.cancelled() or task.exception():
                pause = self._retry_after
        finally:
            await self._ask(key, self._store.release(key, pause))

    def _flight(self, key: str, load: Callable[[], Awaitable[Any]]) -> asyncio.Task[Entry[Any]]:
        """Return the load of this key that is running, or begin it."""
        if key not in self._flights:
            made = self._load(key, load)
            self._flights[key] = asyncio.create_task(made, context=contextvars.Context())
            self._flights[key].add_done_callback(lambda task: self._landed(key, task))
        return self._flights[key]

    def _landed(self, key: str, task: asyncio.Task[Entry[Any]]) -> None:
        del self._flights[key]
        if not task.cancelled():
            task.exception()  # looked at, even when every caller has gone

    async def _load(self, key: str, load: Callable[[], Awaitable[Any]]) -> Entry[Any]:
        entry: Entry[Any] | None = await self._ask(key, self._store.get(key))
        began = self._clock()
        if entry is not None and self.state(entry, began) is State.FRESH:
            return entry  # by somebody else, since the caller has looked
        try:
            async with asyncio.timeout(self._timeout):
                entry = Entry(await load(), began)
            await self._put(key, entry, self._clock())
        except Exception as error:
            self._note(key, error)
            raise
        self._failed.pop(key, None)
        return entry

    def _note(self, key: str, error: BaseException) -> None:
        now = self._clock()
        self._failed = {k: f for k, f in self._failed.items() if self._failure(k, now)}
        self._failed[key] = now, error
        self._report(key, error)

    def _failure(self, key: str, now: float) -> BaseException | None:
        """Return what the last load raised, while the key is to be left alone for it."""
        at, error = self._failed.get(key, (now, None))
        return error if 0 <= now - at < self._retry_after else None

    async def _put(self, key: str, entry: Entry[Any], now: float) -> None:
        ttl = self._fresh_for + max(self._stale_for, self._error_for)
        await self._ask(key, self._store.put(key, entry, ttl, now))

    async def _ask(self, key: str, answer: Awaitable[V]) -> V | None:
        """Return what the store answers; None when it fails."""
        try:
            return await answer
        except TypeError:  # a value that the store cannot carry: a mistake, and no failure
            raise
        except Exception as error:  # whatever a client raises
            self._report(key, error)
            return None

    def _report(self, key: str, error: BaseException) -> None:
        try:
            self._on_error(key, error)
        except Exception:
            log.exception("on_error raised")
