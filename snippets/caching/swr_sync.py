"""Serve what is cached at once, also when it is stale, and refresh it once behind (RFC 5861).

For threads; each load runs in a thread of its own. Needs `swr_core.py` and `swr_stores_sync.py`
beside it.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
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
from swr_stores_sync import MemoryStore, RedisStore

V = TypeVar("V")


class SWRCache:
    """Values that are refreshed while the old ones are served. All times are in seconds.

    Args:
        store: `MemoryStore()` or `RedisStore(...)`.
        fresh_for: Age up to which a value is served, and nothing else happens.
        stale_for: How much longer it is served while one refresh runs behind.
        error_for: How long after `fresh_for` it is served when a load fails (stale-if-error).
        retry_after: How long a key is left alone after a failed load.
        timeout: How long callers wait for a load. A thread cannot be stopped: give the client that
            `load` uses a timeout, too.
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
        self._flights: dict[str, Future[Entry[Any]]] = {}  # loads
        self._behind: set[str] = set()  # keys that are being refreshed
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()  # held while these change, never during a load
        self._closed = False
        self._dropped = False

    def state(self, entry: Entry[Any] | None, now: float) -> State:
        """Return the state of an entry; one from the future is stale: the clock was set back."""
        return self._ages.state(entry, now)

    def get(self, key: str, load: Callable[[], V]) -> V:
        """Return a value, and see to it that it is refreshed.

        `load` runs in a context of its own, without the caller's context variables.
        Raises what `load` has raised when nothing else can be served, `TimeoutError` when it took
        too long, and `RuntimeError` after `close()`.
        """
        return self.fetch(key, load).value

    def fetch(self, key: str, load: Callable[[], V]) -> Served[V]:
        """Do as `get`, and tell how old the value is and why it is served."""
        entry: Entry[V] | None = self._ask_store(key, self._store.get, key)
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
            flight, leads = self._join_flight(key)
            if leads:
                self._start_thread(self._load_entry, key, load, flight)
            wait([flight], self._timeout)
            if not flight.done():
                error = TimeoutError(
                    f"the load of {key!r} has taken {self._timeout} s, and goes on"
                )
                self._note_failure(key, error)
            elif (error := flight.exception()) is None:
                made: Entry[V] = flight.result()
                return Served(made.value, State.FRESH, self._clock() - made.stored_at)
        if entry is None or not usable:
            raise error
        return Served(entry.value, state, now - entry.stored_at, error)

    def set(self, key: str, value: Any) -> None:
        """Put a value there; a refresh that began earlier does not overwrite it."""
        now = self._clock()
        self._put_entry(key, Entry(value, now), now)

    def close(self, timeout: float = 5.0) -> None:
        """Wait up to `timeout` for what is running; drop what ends later. Old values are served."""
        check_seconds("timeout", max(timeout, 0.0), or_zero=True)  # below 0: no time is left
        self._closed = True
        end = time.monotonic() + timeout
        for thread in list(self._threads):
            thread.join(max(0.0, end - time.monotonic()))
        self._dropped = True

    def _refresh_behind(self, key: str, load: Callable[[], Any], now: float) -> None:
        with self._lock:
            full = key in self._behind or len(self._behind) >= self._max_refreshes
            if self._closed or full or self._failed.error_of(key, now) is not None:
                return
            self._behind.add(key)
        self._start_thread(self._refresh_entry, key, load)

    def _start_thread(self, work: Callable[..., None], *args: Any) -> None:
        def run() -> None:
            contextvars.Context().run(work, *args)  # or the caller's context leaks (Python 3.14)
            self._threads.discard(thread)

        thread = threading.Thread(target=run, daemon=True)  # one that hangs does not stop the exit
        self._threads.add(thread)
        thread.start()

    def _refresh_entry(self, key: str, load: Callable[[], Any]) -> None:
        try:
            if not self._ask_store(key, self._store.claim, key, self._timeout):
                return
            flight, leads = self._join_flight(key)
            if leads:
                self._load_entry(key, load, flight)
            wait([flight], self._timeout)
            failed = not flight.done() or flight.exception()
            self._ask_store(key, self._store.release, key, self._retry_after if failed else 0.0)
        finally:
            with self._lock:
                self._behind.discard(key)

    def _join_flight(self, key: str) -> tuple[Future[Entry[Any]], bool]:
        """Return the load of this key, and whether the caller is to begin it."""
        mine = Future[Entry[Any]]()
        with self._lock:
            flight = self._flights.setdefault(key, mine)
        return flight, flight is mine

    def _load_entry(self, key: str, load: Callable[[], Any], flight: Future[Entry[Any]]) -> None:
        try:
            entry: Entry[Any] | None = self._ask_store(key, self._store.get, key)
            began = self._clock()
            # Somebody else may have loaded it since the caller has looked.
            if entry is None or self.state(entry, began) is not State.FRESH:
                entry = Entry(load(), began)
                if not self._dropped:
                    self._put_entry(key, entry, self._clock())
        except BaseException as error:  # it goes to all who wait
            self._note_failure(key, error)
            flight.set_exception(error)
        else:
            self._failed.forget(key)
            flight.set_result(entry)
        with self._lock:
            del self._flights[key]

    def _note_failure(self, key: str, error: BaseException) -> None:
        self._failed.note(key, self._clock(), error)
        report(self._on_error, key, error)

    def _put_entry(self, key: str, entry: Entry[Any], now: float) -> None:
        self._ask_store(key, self._store.put, key, entry, self._ages.life, now)

    def _ask_store(self, key: str, method: Callable[..., V], *args: Any) -> V | None:
        """Return what the store answers; None when it fails."""
        try:
            return method(*args)
        except TypeError:  # a value that the store cannot carry: a mistake, and no failure
            raise
        except Exception as error:  # whatever a client raises
            report(self._on_error, key, error)
            return None
