"""A cache in memory: a limit of entries, a limit of time, one computation for all who wait."""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, Final, Generic, ParamSpec, TypeVar, cast, overload

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")
P = ParamSpec("P")


class Missing:
    """The type of `MISSING`, which says that there is no entry."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()


class _Flight(Future[Any]):
    """A computation under way, and the thread it runs in."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()


@dataclass(frozen=True)
class Stats:
    """What a cache did so far; `evicted` counts live entries that had to make room."""

    hits: int
    misses: int
    evicted: int
    size: int


class TTLCache(Generic[K, V]):
    """At most `max_items` entries, each served for less than `ttl` seconds. Thread-safe.

    A full cache drops expired entries first, then the one that was not used for longest. Values
    are handed out as they are: whoever changes one changes it for everybody. Raises `ValueError`
    for a limit that is no number above 0.

    Args:
        max_items: How many entries there may be.
        ttl: How long an entry is served, in seconds; `math.inf`: for as long as there is room.
        clock: Returns seconds that never go back.

    """

    def __init__(
        self, max_items: int, ttl: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not (_is_number(max_items) and isinstance(max_items, int) and max_items >= 1):
            raise ValueError(f"max_items must be a whole number of at least 1, got {max_items!r}")
        if not (ttl == math.inf or (_is_number(ttl) and ttl > 0)):
            raise ValueError(f"ttl must be a number of seconds over 0, or math.inf, got {ttl!r}")
        self._max_items = max_items
        self._ttl = ttl
        self._clock = clock
        self._entries: OrderedDict[K, tuple[V, float]] = OrderedDict()  # value and end, by last use
        self._ends: OrderedDict[K, float] = OrderedDict()  # the same keys, by end
        self._hits = 0
        self._misses = 0
        self._evicted = 0
        self.renew_locks()
        _caches.add(self)

    def renew_locks(self) -> None:
        """Forget who holds or computes anything: after a fork none of those threads is left."""
        self.lock = threading.RLock()  # reentrant: the __eq__ of a key may use the cache
        self.flights: dict[K, Any] = {}  # what is being computed; with the lock held

    @overload
    def get(self, key: K) -> V | Missing: ...
    @overload
    def get(self, key: K, default: D) -> V | D: ...
    def get(self, key: K, default: Any = MISSING) -> Any:
        """Return the value, or `default` when there is none or its time is over."""
        with self.lock:
            entry = self._entries.get(key)
            if entry is None or self._clock() >= entry[1]:
                self._misses += 1
                return default
            self._hits += 1
            self._entries.move_to_end(key)
            return entry[0]

    def set(self, key: K, value: V) -> None:
        """Store a value for the next `ttl` seconds."""
        with self.lock:
            self.pop(key)
            self._drop_expired()
            if len(self._entries) >= self._max_items:
                unused, _ = self._entries.popitem(last=False)
                self._ends.pop(unused, None)
                self._evicted += 1
            self._ends[key] = end = self._clock() + self._ttl
            self._entries[key] = value, end

    def pop(self, key: K) -> None:
        """Forget a key. What is being computed for it will not be stored."""
        with self.lock:
            self.flights.pop(key, None)
            self._entries.pop(key, None)
            self._ends.pop(key, None)

    def clear(self) -> None:
        """Forget everything. What is being computed will not be stored."""
        with self.lock:
            self.flights.clear()
            self._entries.clear()
            self._ends.clear()

    def __len__(self) -> int:
        with self.lock:
            self._drop_expired()
            return len(self._entries)

    def stats(self) -> Stats:
        """Return the counts, all of the same instant."""
        with self.lock:
            return Stats(self._hits, self._misses, self._evicted, len(self))

    def get_or_compute(
        self, key: K, compute: Callable[P, V], /, *args: P.args, **kwargs: P.kwargs
    ) -> V:
        """Return the value, or `compute(*args, **kwargs)`, which one calls for all who ask at once.

        What `compute` raises is raised to all of them, and is not stored. A `compute` that asks
        for its own key is a `RuntimeError`: it would wait for itself.
        """
        while True:
            with self.lock:
                entry = self._entries.get(key)
                if entry is not None and self._clock() < entry[1]:
                    self._hits += 1
                    self._entries.move_to_end(key)
                    return entry[0]
                self._misses += 1
                flight = self.flights.get(key)
                if flight is None:
                    flight = self.flights[key] = _Flight()
                    break
            if flight.thread == threading.get_ident():
                raise RuntimeError(f"the computation for {key!r} asks for its own result")
            try:
                return cast("V", flight.result())
            except CancelledError:  # who computed was interrupted, so somebody else has to
                continue
        try:
            value = compute(*args, **kwargs)
        except BaseException as error:
            self.land(key, flight)
            flight.set_exception(error if isinstance(error, Exception) else CancelledError())
            raise
        self.land(key, flight, value)
        flight.set_result(value)
        return value

    def land(self, key: K, flight: object, value: V | Missing = MISSING) -> None:
        """End a computation, and store its value unless the key was set or forgotten meanwhile."""
        with self.lock:
            if self.flights.get(key) is flight:
                del self.flights[key]
                if not isinstance(value, Missing):
                    self.set(key, value)

    def _drop_expired(self) -> None:
        now = self._clock()
        while self._ends and now >= next(iter(self._ends.values())):
            key, _ = self._ends.popitem(last=False)
            self._entries.pop(key, None)


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


_caches: weakref.WeakSet[TTLCache[Any, Any]] = weakref.WeakSet()


def _renew_all() -> None:
    for cache in _caches:
        cache.renew_locks()


# Not on Windows, where nothing forks.
getattr(os, "register_at_fork", lambda **_: None)(after_in_child=_renew_all)
