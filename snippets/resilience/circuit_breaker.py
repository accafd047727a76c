"""A circuit breaker: fail fast while a dependency is down; one caller finds out when it is back."""

from __future__ import annotations

import functools
import inspect
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from types import CoroutineType
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


class CircuitOpen(Exception):
    """The call was refused: the dependency behind the breaker `name` was not touched.

    `retry_after` is how long it takes, in seconds and at most, until a caller is let through.
    """

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__(name, retry_after)  # both are its args, so that it can be pickled
        self.name = name
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"circuit {self.name!r} is open, retry in {self.retry_after:.1f} s"


@dataclass(frozen=True)
class Snapshot:
    """A breaker at one instant; `calls` and `failures` are those in the window."""

    name: str
    state: str
    calls: int
    failures: int
    retry_after: float


@dataclass
class _Slice:  # a tenth of the window, so that memory does not grow with traffic
    begin: float
    calls: int = 0
    failures: int = 0


class CircuitBreaker:
    """Guards one dependency, for threads and tasks at once. Times are in seconds.

    What is raised but is no `Exception` (a cancellation, `KeyboardInterrupt`) says nothing about
    the dependency: it counts neither as a failure nor as a success. Raises `ValueError` for a
    setting out of its range.

    Args:
        name: What errors, snapshots and logs call it.
        window: How long an outcome counts; it leaves in the last tenth of that time.
        min_calls: Fewer outcomes than this in the window do not open the breaker.
        failure_rate: Failures / calls in the window that open it, above 0 and at most 1.
        open_for: How long to refuse every call before a probe; also how long a probe may take
            before its place is given to another caller.
        half_open_max: How many probes may run at the same time.
        close_after: How many probes must succeed in a row to close the breaker.
        counts: Tells whether an exception is a failure, as every `Exception` is by default. One
            that is not (a 404, a validation error) is proof of life, as good as a success.
        on_change: Called as `on_change(name, before, after)` by the caller who changed the state,
            outside the lock. What it raises is logged and goes no further.
        clock: Returns seconds that never go back.

    """

    def __init__(
        self,
        name: str,
        *,
        window: float = 10.0,
        min_calls: int = 20,
        failure_rate: float = 0.5,
        open_for: float = 30.0,
        half_open_max: int = 1,
        close_after: int = 1,
        counts: Callable[[Exception], bool] = lambda error: True,
        on_change: Callable[[str, str, str], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for setting, seconds in (("window", window), ("open_for", open_for)):
            if not (_is_number(seconds) and seconds > 0):
                raise ValueError(f"{setting} must be a number of seconds over 0, got {seconds!r}")
        if not (_is_number(failure_rate) and 0 < failure_rate <= 1):
            raise ValueError(f"failure_rate must be over 0 and at most 1, got {failure_rate!r}")
        counted = {"min_calls": min_calls, "half_open_max": half_open_max}
        for setting, count in (counted | {"close_after": close_after}).items():
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ValueError(f"{setting} must be a whole number over 0, got {count!r}")
        self.name = name
        self._window = window
        self._width = window / 10
        self._open_for = open_for
        self._min_calls = min_calls
        self._failure_rate = failure_rate
        self._half_open_max = half_open_max
        self._close_after = close_after
        self._counts = counts
        self._on_change = on_change
        self._clock = clock
        # Reentrant: a signal handler may use the breaker while its own thread holds the lock.
        self._lock = threading.RLock()
        self._probing: ContextVar[object] = ContextVar("probing", default=None)
        self._enter_state("closed")

    def call(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return `fn(*args, **kwargs)`; raise what it raises, or `CircuitOpen` without calling it.

        A coroutine function is a `TypeError`: it fails only when awaited, so use `acall`.
        """
        return self._guard_function(fn)(*args, **kwargs)

    async def acall(self, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return `await fn(*args, **kwargs)`; raise as `call` does."""
        return await self._guard_coroutine_function(fn)(*args, **kwargs)

    def __call__(self, fn: F) -> F:
        """Guard every call of a function or coroutine function, as a decorator.

        A generator function is a `TypeError`: it fails only after the call.
        """
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise TypeError(f"{fn!r} is a generator function: guard the calls inside it")
        guard = (
            self._guard_coroutine_function
            if inspect.iscoroutinefunction(fn)
            else self._guard_function
        )
        return cast("F", functools.wraps(fn)(guard(fn)))

    @property
    def state(self) -> str:
        """`closed`, `open`, or `half_open` from the first probe to the verdict."""
        return self._state

    def snapshot(self) -> Snapshot:
        """Return the state, the counts and the seconds to wait, all of the same instant."""
        with self._lock:
            now = self._clock()
            self._slide_window(now)
            return Snapshot(
                self.name, self._state, self._calls, self._failures, self._seconds_to_wait(now)
            )

    def force_open(self) -> None:
        """Refuse every call until `reset()`."""
        self._force_state("open", math.inf)

    def reset(self) -> None:
        """Close with an empty window; calls that are already running will not count."""
        self._force_state("closed")

    def _guard_function(self, fn: Callable[P, R]) -> Callable[P, R]:
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            ticket = self._ticket or self._admit_call()
            try:
                result = fn(*args, **kwargs)
                if isinstance(result, CoroutineType):
                    result.close()
                    raise TypeError(f"{fn!r} is a coroutine function: use acall()")
            except BaseException as error:
                self._book_outcome(ticket, error)
                raise
            self._book_success(ticket)
            return result

        return guarded

    def _guard_coroutine_function(
        self, fn: Callable[P, Awaitable[R]]
    ) -> Callable[P, Coroutine[Any, Any, R]]:
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            ticket = self._ticket or self._admit_call()
            try:
                result = await fn(*args, **kwargs)
            except BaseException as error:
                self._book_outcome(ticket, error)
                raise
            self._book_success(ticket)
            return result

        return guarded

    def _enter_state(self, state: str, until: float = -math.inf) -> None:
        """Begin a state, with nothing counted. The tickets of calls begun before it are void."""
        self._state: str = state
        self._until = until  # open: when to probe; half-open: when to give up a probe
        self._ticket = object() if state == "closed" else None  # one for all calls while closed
        self._probes: set[object] = set()  # one ticket each
        self._successes = self._calls = self._failures = 0
        self._slices: deque[_Slice] = deque()

    def _force_state(self, state: str, until: float = -math.inf) -> None:
        with self._lock:
            before = self._state
            self._enter_state(state, until)
        self._announce_change(before, state)

    def _admit_call(self) -> object:
        """Return a ticket, or refuse the call: the breaker was not closed a moment ago."""
        with self._lock:
            if self._ticket:
                return self._ticket
            now = self._clock()
            if self._probing.get() in self._probes and now < self._until:
                return object()  # a call within the probe, which must not refuse itself
            if wait := self._seconds_to_wait(now):
                raise CircuitOpen(self.name, wait)
            before = self._state
            if before == "open":
                self._enter_state("half_open")
            self._until = now + self._open_for
            probe = object()
            self._probes.add(probe)
            self._probing.set(probe)
        self._announce_change(before, "half_open")
        return probe

    def _seconds_to_wait(self, now: float) -> float:
        if self._state == "half_open" and len(self._probes) < self._half_open_max:
            return 0.0
        if self._open_for < self._until - now < math.inf:  # a clock that went back: wait once more
            self._until = now + self._open_for
        return min(max(self._until - now, 0.0), self._open_for)

    def _book_success(self, ticket: object) -> None:
        """Book a success, by the shortest way when nothing failed lately."""
        self._lock.acquire()  # half the price of a with statement
        try:
            if ticket is self._ticket and self._slices and not self._failures:
                newest = self._slices[-1]
                if 0 <= self._clock() - newest.begin < self._width:
                    newest.calls += 1
                    self._calls += 1
                    return
        finally:
            self._lock.release()
        self._book_outcome(ticket)

    def _book_outcome(self, ticket: object, error: BaseException | None = None) -> None:
        """Book the outcome of a call: what it raised, or None."""
        failed: bool | None = None  # it says nothing
        try:
            if error is None or isinstance(error, Exception):
                failed = error is not None and bool(self._counts(error))
        finally:
            with self._lock:
                before = self._state
                if ticket in self._probes:
                    self._probes.remove(ticket)
                    self._judge_probe(failed)
                elif ticket is self._ticket and failed is not None:
                    self._count_outcome(failed)
                after = self._state
            self._announce_change(before, after)

    def _judge_probe(self, failed: bool | None) -> None:
        if failed:
            self._enter_state("open", self._clock() + self._open_for)
        elif failed is False:
            self._successes += 1
            if self._successes >= self._close_after:
                self._enter_state("closed")

    def _count_outcome(self, failed: bool) -> None:
        now = self._clock()
        self._slide_window(now)
        if not self._slices or now - self._slices[-1].begin >= self._width:
            self._slices.append(_Slice(now))
        self._slices[-1].calls += 1
        self._slices[-1].failures += failed
        self._calls += 1
        self._failures += failed
        # Divided, because 3 / 30 is 0.1 but 0.1 * 30 is more than 3.
        if self._calls >= self._min_calls and self._failures / self._calls >= self._failure_rate:
            self._enter_state("open", now + self._open_for)

    def _slide_window(self, now: float) -> None:
        while self._slices and not 0 <= now - self._slices[0].begin <= self._window:
            oldest = self._slices.popleft()
            self._calls -= oldest.calls
            self._failures -= oldest.failures

    def _announce_change(self, before: str, after: str) -> None:
        if self._on_change is None or before == after:
            return
        try:
            self._on_change(self.name, before, after)
        except Exception:
            logging.getLogger(__name__).exception("on_change of circuit %r raised", self.name)


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
