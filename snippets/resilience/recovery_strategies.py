"""Strategies for `error_recovery`: refresh a token, wait out a limit, fall back to a value."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any

from error_recovery import Failure, Fallback, GiveUp, Outcome, Retry


class RefreshToken:
    """On a 401, gets a new token: one refresh for all who fail with the same token, once a run.

    Args:
        refresh: Gets, keeps for later calls and returns a new token. For `run` a coroutine
            function, which is not cancelled with the caller who began it; for `run_sync` a
            function.
        token_of: Tells, of a failure, the token that the failed call had sent.
        timeout: Seconds until a refresh that hangs has failed (a function cannot be ended).

    Raises:
        ValueError: The timeout is not above 0.

    """

    budget = 1

    def __init__(
        self,
        refresh: Callable[[], Any],
        token_of: Callable[[Any], object],
        *,
        timeout: float = 10.0,
    ) -> None:
        if not (_is_number(timeout) and timeout > 0):
            raise ValueError(f"timeout must be a number of seconds over 0, got {timeout!r}")
        self._refresh = refresh
        self._token_of = token_of
        self._timeout = timeout
        self._waits = inspect.iscoroutinefunction(refresh)
        self._lock = threading.Lock()
        self._token: object = None  # the newest
        self._flight: Future[Exception | None] | None = None  # the refresh under way
        self._refreshing = ContextVar("refreshing", default=False)

    def handles(self, err: Failure) -> bool:
        """Tell whether it is a 401, and not that of the refresh itself."""
        return err.status == 401 and not self._refreshing.get()

    async def recover(self, err: Failure, attempt: int) -> Outcome:
        """Refresh, or wait for the refresh under way, or take the newer token that is there."""
        loop = asyncio.get_running_loop() if self._waits else None
        with self._lock:
            flight, first = self._flight, self._flight is None
            if flight is None:
                if self._token is not None and self._token_of(err) != self._token:
                    return Retry()
                flight = self._flight = Future()
        if loop:
            if first:  # in a task of its own, so that it is not cancelled with the caller
                self._task = loop.create_task(self._refresh_for_all(flight))
            await asyncio.wait([asyncio.wrap_future(flight)])
        elif first:
            await self._refresh_for_all(flight)
        if failure := flight.result(self._timeout):
            raise failure
        return Retry()

    async def _refresh_for_all(self, flight: Future[Exception | None]) -> None:
        failure: Exception | None = RuntimeError("the refresh was interrupted")
        mark = self._refreshing.set(True)
        try:
            token = self._refresh()
            if inspect.isawaitable(token):
                token = await asyncio.wait_for(token, self._timeout)
            self._token, failure = token, None
        except Exception as exc:  # raised by all who wait for it
            failure = exc
        finally:
            self._refreshing.reset(mark)
            self._flight = None  # before anybody learns of the end, and may need the next one
            flight.set_result(failure)


class WaitRateLimit:
    """On a 429 that says for how long, waits, if that is not above `max_wait` seconds.

    `budget` is how often, at most, in one run. Raises `ValueError` for a number out of its range.
    """

    def __init__(self, max_wait: float, *, budget: int = 3) -> None:
        if not (_is_number(max_wait) and max_wait >= 0):
            raise ValueError(f"max_wait must be a number of seconds, 0 or more, got {max_wait!r}")
        if not isinstance(budget, int) or isinstance(budget, bool) or budget < 0:
            raise ValueError(f"budget must be a whole number, 0 or more, got {budget!r}")
        self._max_wait = max_wait
        self.budget = budget

    def handles(self, err: Failure) -> bool:
        """Tell whether it is a 429 whose `retry_after` is there and not too long."""
        wait = err.retry_after
        return err.status == 429 and wait is not None and 0 <= wait <= self._max_wait

    async def recover(self, err: Failure, attempt: int) -> Outcome:
        """Repeat after `retry_after` seconds."""
        return Retry(err.retry_after or 0.0)


class FallbackValue:
    """On a failure that may pass, takes what `producer` returns (or awaits) instead.

    If that raises, there is no fallback: the failure is raised as it is, with a note.

    Args:
        producer: Called without arguments.
        on: Tells which failures it stands in for, by default those that are `retryable`.

    """

    budget = 1

    def __init__(
        self,
        producer: Callable[[], Any],
        *,
        on: Callable[[Failure], bool] = lambda err: err.retryable,
    ) -> None:
        self._producer = producer
        self._on = on

    def handles(self, err: Failure) -> bool:
        """Tell whether the value stands in for this failure."""
        return self._on(err)

    async def recover(self, err: Failure, attempt: int) -> Outcome:
        """Return the value, marked as a fallback."""
        try:
            value = self._producer()
            return Fallback(await value if inspect.isawaitable(value) else value)
        except Exception as exc:  # the original error is the one to see
            err.add_note(f"the fallback raised {type(exc).__name__}")
            return GiveUp()


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
