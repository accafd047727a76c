"""A token bucket for threads: `rate` calls a second, bursts of `capacity`, in order of arrival."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable

from token_bucket_core import Place, Reservation, TokenLine, check_timeout


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
        self._line = TokenLine(rate, capacity, clock)
        self._wait = wait
        self._forget_waiters()
        _buckets.add(self)

    def _forget_waiters(self) -> None:
        """Forget who waits or holds the lock: after a fork none of those threads is left."""
        # Reentrant: a signal handler may use the bucket while its own thread holds the lock.
        self._lock = threading.RLock()
        self._line.clear()

    def acquire(self, n: float = 1, *, timeout: float | None = None) -> None:
        """Take `n` tokens, after everybody who came before.

        Raises RateLimitTimeout at once, without waiting, if they come after `timeout` seconds, and
        ValueError for a `timeout` that is neither None nor a finite number.
        """
        check_timeout(timeout)
        if self.try_acquire(n):
            return
        event = threading.Event()
        place = Place(n, event)
        try:
            with self._lock:
                self._line.join(place, timeout)
            while (seconds := self._sleep_of(place, event)) != 0:
                self._wait(event, seconds)
        except BaseException:  # KeyboardInterrupt too: nobody may stand in the line forever
            self._leave(place)
            raise

    def try_acquire(self, n: float = 1) -> bool:
        """Take `n` tokens and return True; or none, because they are too few or others wait."""
        with self._lock:
            return self._line.take(n)

    def reserve(self, n: float = 1) -> Reservation:
        """Take a place in the line without waiting; the answer tells when its turn comes."""
        with self._lock:
            place = self._line.reserve(n)
        return Reservation(lambda: self._seconds_until(place), lambda: self._leave(place))

    def available(self) -> float:
        """Return how many tokens `try_acquire` could take now."""
        with self._lock:
            return self._line.available()

    def _sleep_of(self, place: Place, event: threading.Event) -> float | None:
        with self._lock:
            event.clear()
            return self._line.sleep_of(place)

    def _seconds_until(self, place: Place) -> float:
        with self._lock:
            return self._line.seconds_until(place)

    def _leave(self, place: Place) -> None:
        with self._lock:
            self._line.leave(place)


_buckets: weakref.WeakSet[TokenBucket] = weakref.WeakSet()


def _after_fork() -> None:
    for bucket in _buckets:
        bucket._forget_waiters()


getattr(os, "register_at_fork", lambda **_: None)(after_in_child=_after_fork)  # not on Windows
