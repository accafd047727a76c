"""A token bucket for threads: `rate` calls a second, bursts of `capacity`, in order of arrival."""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


class RateLimitTimeout(TimeoutError):
    """The tokens come after `wait` seconds, later than the caller's timeout; none were taken."""

    def __init__(self, wait: float) -> None:
        super().__init__(wait)
        self.wait = wait

    def __str__(self) -> str:
        return f"the rate limit allows this in {self.wait:.3g} s, after the timeout"


class Reservation:
    """Tokens for later: a place in the line whose owner does not sleep there."""

    def __init__(self, seconds: Callable[[], float], leave: Callable[[], None]) -> None:
        self._seconds, self._leave = seconds, leave

    @property
    def wait(self) -> float:
        """Seconds until the tokens are yours, 0 from then on; less when somebody ahead gives up."""
        return self._seconds()

    def cancel(self) -> None:
        """Give the tokens back, and let those behind move up; a second time does nothing.

        Once `wait` is over there is less to give back, by what has flowed in since then.
        """
        self._leave()


@dataclass(eq=False)
class _Place:
    n: float
    event: threading.Event | None = None  # wakes its owner; a reservation has none
    granted: float | None = None  # at which instant


class TokenBucket:
    """Any number of threads take tokens from it; a call waits until there are enough.

    Every method raises ValueError for an `n` that is not above 0 and at most the capacity.

    Args:
        rate: Tokens a second, above 0; may be a fraction.
        capacity: The most tokens it holds, above 0; it is full at first.
        clock: Returns seconds. One that goes back grants nothing, and blocks nobody.
        wait: Called as `wait(event, seconds)`; returns when the event is set or the time is over.

    """

    def __init__(
        self,
        rate: float,
        capacity: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float | None], object] = threading.Event.wait,
    ) -> None:
        if not (0 < rate < math.inf and 0 < capacity < math.inf):
            raise ValueError(f"rate and capacity must be above 0, not {rate!r} and {capacity!r}")
        self._rate, self._capacity, self._clock, self._wait = rate, capacity, clock, wait
        self._tokens, self._stamp = float(capacity), clock()
        self._rounding = rate * 1e-9  # what a nanosecond brings: nobody waits again for that
        self._empty_line()
        _buckets.add(self)

    def _empty_line(self) -> None:
        # Reentrant: a signal handler may use the bucket while its own thread holds the lock.
        self._lock = threading.RLock()
        self._line: OrderedDict[_Place, None] = OrderedDict()  # a set, in order
        self._queued = 0.0  # tokens that the line waits for

    def acquire(self, n: float = 1, *, timeout: float | None = None) -> None:
        """Take `n` tokens, after everybody who came before.

        Raises RateLimitTimeout at once, without waiting, if they come after `timeout` seconds.
        """
        if self.try_acquire(n):
            return
        event = threading.Event()
        place = _Place(n, event)
        try:
            self._join(place, timeout)
            while (seconds := self._turn(place, event)) != 0:
                self._wait(event, seconds)
        except BaseException:  # KeyboardInterrupt too: nobody may stand in the line forever
            self._leave(place)
            raise

    def try_acquire(self, n: float = 1) -> bool:
        """Take `n` tokens and return True; or none, because they are too few or others wait."""
        if not 0 < n <= self._capacity:
            raise ValueError(f"n must be above 0 and at most {self._capacity!r}, not {n!r}")
        with self._lock:
            self._settle()
            if self._line or self._tokens + self._rounding < n:
                return False
            self._tokens -= n
            return True

    def reserve(self, n: float = 1) -> Reservation:
        """Take a place in the line without waiting; the answer tells when its turn comes."""
        place = _Place(n)
        if self.try_acquire(n):
            place.granted = self._stamp
        else:
            self._join(place)
        return Reservation(lambda: self._seconds(place), lambda: self._leave(place))

    def available(self) -> float:
        """Return how many tokens `try_acquire` could take now."""
        with self._lock:
            self._settle()
            return max(0.0, self._tokens - self._queued)

    def _settle(self, changed: bool = False) -> None:
        """Refill, and grant in order of arrival what there is. The lock is held."""
        before, now = self._stamp, self._clock()
        if now > before:
            self._tokens += (now - before) * self._rate
        self._stamp = now  # a clock that went back brings nothing, and goes on from where it is
        while self._line:
            place = next(iter(self._line))
            if place.event:  # takes its tokens now; a reservation took them when they were due
                self._tokens = min(self._tokens, self._capacity)
            if self._tokens + self._rounding < place.n:
                break
            self._tokens -= place.n
            self._remove(place)
            place.granted = max(before, now - self._tokens / self._rate)
            changed = True
            if place.event:
                place.event.set()
        if self._tokens > self._capacity:
            self._tokens = self._capacity
        if changed and (first := self._first()) and first.event:
            first.event.set()  # from now on it watches the clock, and nobody else

    def _first(self) -> _Place | None:
        return next((place for place in self._line if place.event), None)

    def _remove(self, place: _Place) -> None:
        del self._line[place]
        self._queued = self._queued - place.n if self._line else 0.0

    def _join(self, place: _Place, timeout: float | None = None) -> None:
        with self._lock:
            self._settle()
            wait = (self._queued + place.n - self._tokens) / self._rate
            if timeout is not None and not wait <= timeout + 1e-9:
                raise RateLimitTimeout(wait)
            self._line[place] = None
            self._queued += place.n

    def _leave(self, place: _Place) -> None:
        with self._lock:
            self._settle()
            if place in self._line:
                self._remove(place)
            elif place.granted is not None:
                # A bucket that was full would have lost what has come in since then.
                back = place.n - abs(self._stamp - place.granted) * self._rate
                self._tokens = min(self._tokens + max(back, 0.0), self._capacity)
                place.granted = None
            self._settle(changed=True)

    def _seconds(self, place: _Place) -> float:
        """Return how long until `place` has its tokens: 0 when it has."""
        with self._lock:
            self._settle()
            needed = -self._tokens
            for other in self._line:
                needed += other.n
                if other is place:
                    return max(needed / self._rate, 1e-6)  # enough for any clock to move
            return 0.0

    def _turn(self, place: _Place, event: threading.Event) -> float | None:
        """Return how long to sleep: 0 when the tokens are there, None for until woken."""
        with self._lock:
            event.clear()
            self._settle()
            if place in self._line and place is not self._first():
                return None
            return self._seconds(place)


_buckets: weakref.WeakSet[TokenBucket] = weakref.WeakSet()


def _after_fork() -> None:
    for bucket in _buckets:  # the threads that wait, or hold the lock, are not in this process
        bucket._empty_line()  # noqa: SLF001


getattr(os, "register_at_fork", lambda **_: None)(after_in_child=_after_fork)  # not on Windows
