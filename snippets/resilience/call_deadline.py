"""One time limit for a whole request, passed on to every call within it and to the next service."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType

HEADER = "X-Timeout-Ms"  # what is left, not an instant: clocks of two hosts differ


class DeadlineExceeded(Exception):
    """The deadline `name` has passed.

    It is no `TimeoutError`: a retry or a fallback for one slow call must not take it for that.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"the deadline {self.name!r} has passed"


class Deadline:
    """An instant by which everything must be done. Times are in seconds.

    Make one with `Deadline.after`, at the edge of the service.
    """

    def __init__(self, at: float, name: str, clock: Callable[[], float]) -> None:
        self.at = at
        self.name = name
        self._clock = clock

    @classmethod
    def after(
        cls, seconds: float, *, name: str = "request", clock: Callable[[], float] = time.monotonic
    ) -> Deadline:
        """Return the deadline that many seconds from now. Infinity is no limit.

        Raises `ValueError` for what is no number.
        """
        _check_seconds("seconds", seconds)
        return cls(clock() + seconds, name, clock)

    @classmethod
    def from_header(
        cls,
        value: str | None,
        max_seconds: float,
        *,
        name: str = "request",
        clock: Callable[[], float] = time.monotonic,
    ) -> Deadline:
        """Return the deadline a caller asks for, of at most `max_seconds`; that much for None.

        Raises `ValueError` for a header that is no whole number of milliseconds, and for a
        `max_seconds` that is no number.
        """
        _check_seconds("max_seconds", max_seconds)  # min() would take a NaN for no limit
        if value is None:
            return cls.after(max_seconds, name=name, clock=clock)
        if not re.fullmatch("[0-9]{1,15}", value):
            raise ValueError(f"{HEADER} must be a whole number of milliseconds")
        return cls.after(min(int(value) / 1000, max_seconds), name=name, clock=clock)

    def to_header(self) -> str:
        """Return the time left, in whole milliseconds, for the `HEADER` of an outgoing call."""
        return str(int(self.remaining() * 1000))

    def remaining(self) -> float:
        """Return the time left, 0 when it has passed; the timeout to give to a blocking call."""
        return max(0.0, self.at - self._clock())

    def check(self) -> None:
        """Raise `DeadlineExceeded` when it has passed."""
        if self.at <= self._clock():
            raise DeadlineExceeded(self.name)

    def child(self, cap: float, *, name: str) -> Deadline:
        """Return a deadline `cap` seconds from now, or this one when that is earlier."""
        own = self.after(cap, name=name, clock=self._clock)
        return own if own.at < self.at else self

    def scope(self) -> Scope:
        """Return an async context manager: its body is cancelled when the deadline has passed.

        Then it raises `DeadlineExceeded`, also when the body swallowed the cancellation. It begins
        by raising it when the deadline has passed already. Within, `current_deadline()` is this
        one, or one around it that is earlier.
        """
        return Scope(self)


_current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


def current_deadline() -> Deadline | None:
    """Return the earliest deadline of the scopes around this code, if any."""
    return _current.get()


class Scope:
    """What `Deadline.scope()` returns; to be entered once."""

    _token: Token[Deadline | None]
    _timeout: asyncio.Timeout

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline

    async def __aenter__(self) -> Deadline:
        outer = _current.get()
        if outer is not None and outer.at <= self._deadline.at:
            self._deadline = outer
        deadline = self._deadline
        deadline.check()
        self._timeout = asyncio.timeout(deadline.remaining())
        await self._timeout.__aenter__()
        self._token = _current.set(deadline)
        return deadline

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _current.reset(self._token)
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:  # it only raises this for a cancellation of its own
            raise DeadlineExceeded(self._deadline.name) from error
        if error is None and self._timeout.expired():
            raise DeadlineExceeded(self._deadline.name)


def _check_seconds(name: str, value: float) -> None:
    if not (_is_number(value) or value in (math.inf, -math.inf)):
        raise ValueError(f"{name} must be a number, got {value!r}")


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
