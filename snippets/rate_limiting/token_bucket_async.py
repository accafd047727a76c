"""A token bucket for tasks: `rate` calls a second, bursts of `capacity`, in order of arrival."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from token_bucket_core import Place, Reservation, TokenLine, check_timeout


async def _wait_for_event(event: asyncio.Event, seconds: float | None) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


class AsyncTokenBucket:
    """The tasks of an event loop take tokens from it; a call waits until there are enough.

    It belongs to one loop at a time and is not safe for threads.

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
        wait: Callable[[asyncio.Event, float | None], Awaitable[object]] = _wait_for_event,
    ) -> None:
        self._tokens = TokenLine(rate, capacity, clock)
        self._wait = wait
        self._loop: asyncio.AbstractEventLoop | None = None  # of those who wait

    async def acquire(self, n: float = 1, *, timeout: float | None = None) -> None:
        """Take `n` tokens, after everybody who came before.

        Raises RateLimitTimeout at once, without waiting, if they come after `timeout` seconds,
        ValueError for a `timeout` that is neither None nor a finite number, and RuntimeError if
        tasks of another event loop are waiting.
        """
        check_timeout(timeout)
        if self.try_acquire(n):
            return
        loop = asyncio.get_running_loop()
        if self._loop is not loop and self._line.first_owner():
            raise RuntimeError("tasks of another event loop wait here: make a bucket for each loop")
        self._loop = loop
        event = asyncio.Event()
        place = Place(n, event)
        try:
            self._line.join(place, timeout)
            while (seconds := self._sleep_of(place, event)) != 0:
                await self._wait(event, seconds)
        except BaseException:  # above all CancelledError
            self._line.leave(place)
            raise

    def try_acquire(self, n: float = 1) -> bool:
        """Take `n` tokens and return True; or none, because they are too few or others wait."""
        return self._line.take(n)

    def reserve(self, n: float = 1) -> Reservation:
        """Take a place in the line without waiting; the answer tells when its turn comes."""
        place = self._line.reserve(n)
        return Reservation(lambda: self._line.seconds_until(place), lambda: self._line.leave(place))

    def available(self) -> float:
        """Return how many tokens `try_acquire` could take now."""
        return self._line.available()

    @property
    def _line(self) -> TokenLine:
        """The line, without the tasks of a loop that is closed: nobody there wakes up any more."""
        if self._loop and self._loop.is_closed():
            self._tokens.drop_owners()
            self._loop = None
        return self._tokens

    def _sleep_of(self, place: Place, event: asyncio.Event) -> float | None:
        event.clear()
        return self._line.sleep_of(place)
