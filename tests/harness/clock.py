"""Time that only a test moves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable


class Clock:
    """A clock to hand to a module: called, it tells the time; `sleep` and `asleep` let it pass at once.

    `now` is in seconds and may be set. `pauses` are the seconds that somebody slept, in order.
    `at_pause`, when set, is called with the seconds of each pause, after the clock has moved.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.pauses: list[float] = []
        self.at_pause: Callable[[float], object] = lambda seconds: None
        self._lock = threading.Lock()  # threads that sleep at once must lose no second

    def __call__(self) -> float:
        """Tell the time, as `time.monotonic` or `time.time` would."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass while nobody sleeps."""
        with self._lock:
            self.now += seconds

    def sleep(self, seconds: float) -> None:
        """Sleep, as `time.sleep` would, without waiting."""
        with self._lock:
            self.pauses.append(seconds)
            self.now += seconds
        self.at_pause(seconds)

    async def asleep(self, seconds: float) -> None:
        """Sleep, as `asyncio.sleep` would: other tasks have a turn."""
        self.sleep(seconds)
        await asyncio.sleep(0)
