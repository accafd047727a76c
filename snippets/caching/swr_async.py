"""Serve what is cached at once, also when it is stale, and refresh it once behind (RFC 5861).

For asyncio. Needs `swr_core.py` and `swr_stores_async.py` beside it.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from swr_core import (
    Ages,
    Entry,
    FailedLoads,
    Served,
    State,
    check_count,
    check_seconds,
    log_error,
    report,
)
from swr_stores_async import AsyncMemoryStore, AsyncRedisStore

V = TypeVar("V")


class AsyncSWRCache:
    """Values that are refreshed while the old ones are served. All times are in seconds.

    Args:
        store: `AsyncMemoryStore()` or `AsyncRedisStore(...)`.
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
        store: AsyncMemoryStore | AsyncRedisStore,
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
        check_seconds("timeout", timeout)
        check_count("max_refreshes", max_refreshes)
        self._store = store
        self._ages = Ages(fresh_for, stale_for, error_for)
        self._failed = FailedLoads(retry_after)
        self._retry_after = retry_after
        self._timeout = timeout
        self._max_refreshes = max_refreshes
        self._clock = clock
        self._on_error = on_error
        self._flights: dict[str, asyncio.Task[Entry[Any]]] = {}  # loads
        self._behind: dict[str, asyncio.Task[None]] = {}  # refreshes, each with or before a load
        self._closed = False

    def state(self, entry: Entry[Any] | None, now: float) -> State:
        """Return the state of an entry; one from the future is stale: the clock was set back."""
        return self._ages.state(entry, now)

    async def get(self, key: str, load: Callable[[], Awaitable[V]]) -> V:
        """Return a value, and see to it that it is refreshed.

        `load` runs in a context of its own, without the caller's context variables.
        Raises what `load` has raised when nothing else can be served, `TimeoutError` when it took
        too long, and `RuntimeError` after `close()`.
        """
        return (await self.fetch(key, load)).value

    async def fetch(self, key: str, load: Callable[[], Awaitable[V]]) -> Served[V]:
        """Do as `get`, and tell how old the value is and why it is served."""
        entry: Entry[V] | None = await self._ask_store(key, self._store.get, key)
        now = self._clock()
        state = self.state(entry, now)
        if entry is not None and state is not State.DEAD:
            if state is State.STALE:
                self._refresh_behind(key, load, now)
            return Served(entry.value, state, now - entry.stored_at)
        usable = self._ages.survives_errors(entry, now)
        error: BaseException | None = None
        if self._closed:
            error = RuntimeError("the cache is closed")
        elif usable:
            error = self._failed.error_of(key, now)
        if error is None:
            task = self._join_flight(key, load)
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
        await self._put_entry(key, Entry(value, now), now)

    async def close(self, timeout: float = 5.0) -> None:
        """Wait for what is running, cancel it after `timeout`; what was cached is still served."""
        check_seconds("timeout", max(timeout, 0.0), or_zero=True)  # below 0: no time is left
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
        if self._failed.error_of(key, now) is None:
            refresh = self._refresh_entry(key, load)
            # Without a reference here the loop may lose it; with a context, the caller's leaks.
            self._behind[key] = asyncio.create_task(refresh, context=contextvars.Context())
            self._behind[key].add_done_callback(lambda _: self._behind.pop(key))

    async def _refresh_entry(self, key: str, load: Callable[[], Awaitable[Any]]) -> None:
        if not await self._ask_store(key, self._store.claim, key, self._timeout):
            return
        pause = 0.0
        try:
            task = self._join_flight(key, load)
            await asyncio.wait([task])
            if task.cancelled() or task.exception():
                pause = self._retry_after
        finally:
            await self._ask_store(key, self._store.release, key, pause)

    def _join_flight(
        self, key: str, load: Callable[[], Awaitable[Any]]
    ) -> asyncio.Task[Entry[Any]]:
        """Return the load of this key that is running, or begin it."""
        if key not in self._flights:
            made = self._load_entry(key, load)
            self._flights[key] = asyncio.create_task(made, context=contextvars.Context())
            self._flights[key].add_done_callback(lambda task: self._land_flight(key, task))
        return self._flights[key]

    def _land_flight(self, key: str, task: asyncio.Task[Entry[Any]]) -> None:
        del self._flights[key]
        if not task.cancelled():
            task.exception()  # looked at, even when every caller has gone

    async def _load_entry(self, key: str, load: Callable[[], Awaitable[Any]]) -> Entry[Any]:
        entry: Entry[Any] | None = await self._ask_store(key, self._store.get, key)
        began = self._clock()
        if entry is not None and self.state(entry, began) is State.FRESH:
            return entry  # by somebody else, since the caller has looked
        try:
            async with asyncio.timeout(self._timeout):
                entry = Entry(await load(), began)
            await self._put_entry(key, entry, self._clock())
        except Exception as error:
            self._note_failure(key, error)
            raise
        self._failed.forget(key)
        return entry

    def _note_failure(self, key: str, error: BaseException) -> None:
        self._failed.note(key, self._clock(), error)
        report(self._on_error, key, error)

    async def _put_entry(self, key: str, entry: Entry[Any], now: float) -> None:
        await self._ask_store(key, self._store.put, key, entry, self._ages.life, now)

    async def _ask_store(
        self, key: str, method: Callable[..., Awaitable[V]], *args: Any
    ) -> V | None:
        """Return what the store answers; None when it fails."""
        try:
            return await method(*args)
        except TypeError:  # a value that the store cannot carry: a mistake, and no failure
            raise
        except Exception as error:  # whatever a client raises
            report(self._on_error, key, error)
            return None
