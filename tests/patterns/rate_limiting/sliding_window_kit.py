"""What the proofs of the sliding windows share: a naive window, and what the page's plot is drawn from."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from harness.clock import Clock
from sliding_window import SlidingWindowCounter, SlidingWindowLog


class FixedWindow:
    """Counts by minute (or any window) and key, and keeps every count forever."""

    def __init__(self, limit: int, window: float, *, clock: Callable[[], float]) -> None:
        self.limit, self.window, self.clock = limit, window, clock
        self.counts: Counter[tuple[str, float]] = Counter()

    def hit(self, key: str = "") -> bool:
        place = (key, self.clock() // self.window)
        self.counts[place] += 1
        return self.counts[place] <= self.limit


def hits_in_the_last_minute(kind: str) -> list[tuple[float, int]]:
    """Return how many hits of the last 60 s were allowed, every half second.

    The limit is 100 in 60 s, and 20 hits a second come from 50 s on.
    """
    clock = Clock(0.0)
    limiter: SlidingWindowLog | SlidingWindowCounter | FixedWindow = {
        "fixed": FixedWindow,
        "counter": SlidingWindowCounter,
        "log": SlidingWindowLog,
    }[kind](100, 60, clock=clock)
    allowed: deque[float] = deque()
    counted = []
    for tick in range(20 * 40, 20 * 180):
        clock.now = tick / 20
        if clock.now >= 50 and limiter.hit():
            allowed.append(clock.now)
        while allowed and allowed[0] <= clock.now - 60:
            allowed.popleft()
        if tick % 10 == 0:
            counted.append((clock.now, len(allowed)))
    return counted
