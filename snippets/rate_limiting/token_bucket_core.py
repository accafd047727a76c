"""What both token buckets share: the tokens, and the line of those who wait for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


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
        self._seconds = seconds
        self._leave = leave

    @property
    def wait(self) -> float:
        """Seconds until the tokens are yours, 0 from then on; less when somebody ahead gives up."""
        return self._seconds()

    def cancel(self) -> None:
        """Give the tokens back, and let those behind move up; a second time does nothing.

        Once `wait` is over there is less to give back, by what has flowed in since then.
        """
        self._leave()


class WakeUp(Protocol):
    """What a waiting owner of a place sleeps on: an event of either color."""

    def set(self) -> None:
        """Wake the owner."""
        ...


@dataclass(eq=False)
class Place:
    """A place in the line for `n` tokens."""

    n: float
    event: WakeUp | None = None  # wakes its owner; a reservation has none
    granted: float | None = None  # at which instant


class TokenLine:
    """Tokens that flow in at `rate` a second up to `capacity`, and a line that gets them in order.

    It neither waits nor locks: a bucket for threads calls it with its lock held.
    """

    def __init__(self, rate: float, capacity: float, clock: Callable[[], float]) -> None:
        for name, value in (("rate", rate), ("capacity", capacity)):
            if not (_is_number(value) and value > 0):
                raise ValueError(f"{name} must be a number over 0, got {value!r}")
        self._rate = rate
        self._capacity = capacity
        self._clock = clock
        self._tokens = float(capacity)
        self._stamp = clock()
        self._rounding = rate * 1e-9  # what a nanosecond brings: nobody waits again for that
        self._places: OrderedDict[Place, None] = OrderedDict()  # a set, in order
        self._queued = 0.0  # tokens that the line waits for

    def take(self, n: float) -> bool:
        """Take `n` tokens and return True; or none, because they are too few or others wait."""
        if not (_is_number(n) and 0 < n <= self._capacity):
            raise ValueError(f"n must be a number over 0 and at most {self._capacity!r}, got {n!r}")
        self._settle()
        if self._places or self._tokens + self._rounding < n:
            return False
        self._tokens -= n
        return True

    def reserve(self, n: float) -> Place:
        """Return a place for `n` tokens, which are taken already if they are there."""
        place = Place(n)
        if self.take(n):
            place.granted = self._stamp
        else:
            self.join(place)
        return place

    def available(self) -> float:
        """Return how many tokens `take` could take now."""
        self._settle()
        return max(0.0, self._tokens - self._queued)

    def join(self, place: Place, timeout: float | None = None) -> None:
        """Put a place at the end; raise `RateLimitTimeout` if its turn comes after `timeout`."""
        self._settle()
        wait = (self._queued + place.n - self._tokens) / self._rate
        if timeout is not None and wait > timeout + 1e-9:
            raise RateLimitTimeout(wait)
        self._places[place] = None
        self._queued += place.n

    def leave(self, place: Place) -> None:
        """Take a place out of the line, or give back what it was granted."""
        self._settle()
        if place in self._places:
            self._remove(place)
        elif place.granted is not None:
            # A bucket that was full would have lost what has come in since then.
            back = place.n - abs(self._stamp - place.granted) * self._rate
            self._tokens = min(self._tokens + max(back, 0.0), self._capacity)
            place.granted = None
        self._settle(changed=True)

    def seconds_until(self, place: Place) -> float:
        """Return how long until `place` has its tokens: 0 when it has."""
        self._settle()
        needed = -self._tokens
        for other in self._places:
            needed += other.n
            if other is place:
                return max(needed / self._rate, 1e-6)  # enough for any clock to move
        return 0.0

    def sleep_of(self, place: Place) -> float | None:
        """Return how long its owner sleeps: 0 when the tokens are there, None for until woken."""
        self._settle()
        if place in self._places and place is not self.first_owner():
            return None
        return self.seconds_until(place)

    def first_owner(self) -> Place | None:
        """Return the first place whose owner sleeps in the line."""
        return next((place for place in self._places if place.event), None)

    def drop_owners(self) -> None:
        """Forget those who sleep in the line: nobody there wakes up any more."""
        for place in [place for place in self._places if place.event]:
            self._remove(place)

    def clear(self) -> None:
        """Forget the whole line."""
        self._places.clear()
        self._queued = 0.0

    def _settle(self, changed: bool = False) -> None:
        """Refill, and grant in order of arrival what there is."""
        before, now = self._stamp, self._clock()
        if now > before:
            self._tokens += (now - before) * self._rate
        self._stamp = now  # a clock that went back brings nothing, and goes on from where it is
        while self._places:
            place = next(iter(self._places))
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
        if changed and (first := self.first_owner()) and first.event:
            first.event.set()  # from now on it watches the clock, and nobody else

    def _remove(self, place: Place) -> None:
        del self._places[place]
        self._queued = self._queued - place.n if self._places else 0.0


def check_timeout(timeout: float | None) -> None:
    """Raise `ValueError` for what is neither None nor a finite number; one below 0 is over."""
    if not (timeout is None or _is_number(timeout)):
        raise ValueError(f"timeout must be a number of seconds or None, got {timeout!r}")


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
