"""At most `limit` hits in any `window`: exactly, by a log, or cheaply, by two counters a key."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Generic, NamedTuple, TypeVar


class Decision(NamedTuple):
    """A limiter's answer; true if the hit is allowed.

    `remaining` more hits fit now. `retry_after` is 0 if the hit is allowed, else the seconds after
    which it will be, as far as nobody else comes: exactly from a log, at most from a counter.
    """

    allowed: bool
    remaining: int
    retry_after: float

    def __bool__(self) -> bool:  # any other tuple of three is true, also when it refuses
        return self.allowed


_decision = partial(tuple.__new__, Decision)  # half the price of Decision(...)


@dataclass
class _Line:
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    length: int = 0


K = TypeVar("K")  # what is kept of a key


class _SlidingWindow(ABC, Generic[K]):
    def __init__(
        self,
        limit: int,
        window: float,
        *,
        max_keys: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        for name, count in (("limit", limit), ("max_keys", max_keys)):
            if not (_is_count(count) and count >= 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}")
        if not (_is_number(window) and window > 0):
            raise ValueError(f"window must be a number of seconds over 0, got {window!r}")
        self._limit = limit
        self._window = window
        self._max_keys = max_keys
        self._rounding = limit * 1e-9
        self._clock = clock
        self._sleep = sleep
        self._now = clock()
        self._behind = 0.0
        # Reentrant: a signal handler may use it while its own thread holds the lock.
        self._lock = threading.RLock()
        self._kept: OrderedDict[str, K] = OrderedDict()  # least recently used first
        self._counted: OrderedDict[str, float] = OrderedDict()  # when last; longest ago first
        self._lines: dict[tuple[str, asyncio.AbstractEventLoop], _Line] = {}

    def hit(self, key: str = "", cost: int = 1) -> Decision:
        """Count `cost` hits of `key` if they all fit now, else none; raise like `peek`."""
        return self._decide_hit(key, cost, True)

    def peek(self, key: str = "", cost: int = 1) -> Decision:
        """Return what `hit` would, and count nothing.

        Raises ValueError if `cost` is no whole number from 1 to the limit, so that it never fits.
        """
        return self._decide_hit(key, cost, False)

    async def wait(self, key: str = "", cost: int = 1) -> None:
        """Return when the hit is allowed and counted; who waits for a key goes in order of arrival.

        Raises like `peek`. A `hit` by somebody else does not stand in the line.
        """
        self.peek(key, cost)
        place = (key, asyncio.get_running_loop())
        line = self._lines.setdefault(place, _Line())
        line.length += 1
        try:
            async with line.turn:  # only the first sleeps; the others wait for the lock
                while not (decision := self.hit(key, cost)):
                    await self._sleep(max(decision.retry_after, 1e-6))  # any clock moves by that
        finally:
            line.length -= 1
            if not line.length:
                del self._lines[place]

    def _decide_hit(self, key: str, cost: int, count: bool) -> Decision:
        if not (_is_count(cost) and 1 <= cost <= self._limit):
            raise ValueError(f"cost must be a whole number of 1 to {self._limit}, got {cost!r}")
        self._lock.acquire()  # half the price of a with statement
        try:
            now = self._clock() + self._behind
            if now < self._now:  # it went back: time stands still, and goes on from there
                self._behind += self._now - now
                now = self._now
            self._now = now
            kept = self._kept.get(key)
            if kept is None:
                kept = self._new_record()
                if count:
                    self._make_room(now)
                    self._kept[key] = kept
            elif count:
                self._kept.move_to_end(key)
            return self._take_hits(key, kept, now, cost, count)
        finally:
            self._lock.release()

    def _note_hit(self, key: str, now: float) -> None:
        self._counted[key] = now
        self._counted.move_to_end(key)

    def _make_room(self, now: float) -> None:
        """Forget two keys whose window has ended, so that old ones go faster than new ones come."""
        for key in list(islice(self._counted, 2)):
            if self._window_has_ended(self._counted[key], now):
                del self._kept[key], self._counted[key]
        if len(self._kept) >= self._max_keys:
            key, _ = self._kept.popitem(last=False)
            self._counted.pop(key, None)

    @abstractmethod
    def _new_record(self) -> K: ...

    @abstractmethod
    def _take_hits(self, key: str, kept: K, now: float, cost: int, count: bool) -> Decision: ...

    @abstractmethod
    def _window_has_ended(self, counted: float, now: float) -> bool: ...


class SlidingWindowLog(_SlidingWindow[deque[float]]):
    """Keeps the time of every hit: never more than `limit` in any window, in O(limit) memory a key.

    It is safe for threads, and `wait` for any number of event loops.

    Args:
        limit: How many hits of a key a window may have, at least 1.
        window: Seconds, above 0. A hit counts until exactly so long after it, and then no more.
        max_keys: How many keys are kept. One more takes the place of a key whose window has ended,
            or else of the least recently used, which starts afresh when it comes again.
        clock: Returns seconds. When it goes back, windows last no longer than if it had stopped.
        sleep: What `wait` sleeps with.

    """

    def _new_record(self) -> deque[float]:
        return deque()  # when each hit counts no more, in order

    def _take_hits(
        self, key: str, kept: deque[float], now: float, cost: int, count: bool
    ) -> Decision:
        while kept and kept[0] <= now:
            kept.popleft()
        free = self._limit - len(kept)
        if cost > free:
            return _decision((False, free, kept[cost - free - 1] - now))
        if count:
            self._note_hit(key, now)
            kept.extend([now + self._window] * cost)
            free -= cost
        return _decision((True, free, 0.0))

    def _window_has_ended(self, counted: float, now: float) -> bool:
        return counted + self._window <= now


@dataclass(slots=True)
class _Counts:
    index: float = math.nan  # of the window, from the clock's zero
    end: float = 0.0
    current: int = 0
    previous: int = 0


class SlidingWindowCounter(_SlidingWindow[_Counts]):
    """Counts hits by fixed window, and takes those of the window before for evenly spread.

    The arguments are those of `SlidingWindowLog`.
    """

    def _new_record(self) -> _Counts:
        return _Counts()

    def _take_hits(self, key: str, kept: _Counts, now: float, cost: int, count: bool) -> Decision:
        index = now // self._window
        if index != kept.index:
            kept.previous = kept.current if index == kept.index + 1 else 0
            kept.index, kept.current, kept.end = index, 0, (index + 1) * self._window
        free: float = self._limit - kept.current
        if kept.previous:
            free -= kept.previous * (kept.end - now) / self._window - self._rounding
        if cost > free:
            return _decision((False, int(free), self._seconds_until(kept, now, self._limit - cost)))
        if count:
            if not kept.current:
                self._note_hit(key, now)  # once a window is enough: they all end together
            kept.current += cost
            free -= cost
        return _decision((True, int(free), 0.0))

    def _seconds_until(self, kept: _Counts, now: float, room: int) -> float:
        """Return the seconds until the estimate has fallen to `room`."""
        left = kept.end - now
        if kept.current <= room:  # when enough of the window before has passed
            return left - self._window * (room - kept.current) / kept.previous
        return left + self._window * (1 - room / kept.current)  # the same, one window later

    def _window_has_ended(self, counted: float, now: float) -> bool:
        return counted // self._window + 2 <= now // self._window


def _is_count(value: object) -> bool:
    """Tell whether this is a whole number; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
