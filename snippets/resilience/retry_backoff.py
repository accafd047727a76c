"""Repeat a call that failed for a passing reason: full jitter, a deadline, the original error."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
import random
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import AsyncGeneratorType, GeneratorType
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
logger = logging.getLogger(__name__)


class RetryBudget:
    """Bounds what retries add to the traffic, over all the calls and policies that share it.

    Every call earns `ratio` of a retry and every retry costs one. So n calls make at most
    `n + ratio * n + reserve` attempts, however long the outage. Thread-safe. Raises `ValueError`
    for a setting out of its range.

    Args:
        ratio: Retries that a call earns, above 0.
        reserve: Retries there are at the start, and how many can be saved up; at least 1.

    """

    def __init__(self, ratio: float = 0.1, reserve: int = 10) -> None:
        if not (_is_number(ratio) and ratio > 0):
            raise ValueError(f"ratio must be a number over 0, got {ratio!r}")
        if not (_is_number(reserve) and reserve >= 1):
            raise ValueError(f"reserve must be a number of retries, 1 or more, got {reserve!r}")
        # Counted in calls, not in retries: ten times 0.1 is less than 1.
        self._cost = 1 / ratio
        self._most = reserve / ratio
        self._saved = self._most
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Book a call."""
        with self._lock:
            self._saved = min(self._saved + 1, self._most)

    def spend(self) -> bool:
        """Book a retry; False when there is none left."""
        with self._lock:
            if self._saved < self._cost:
                return False
            self._saved -= self._cost
            return True


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """What to repeat, how often, and how long to wait. Times are in seconds.

    A policy keeps no state: any number of threads and tasks may share one. What is raised but is
    no `Exception` (a cancellation, `KeyboardInterrupt`) is never retried. Raises `ValueError` or
    `TypeError` for a setting that makes no sense.

    Args:
        attempts: How often to call at most; 1 means no retry.
        base: The longest wait after the first failure; it doubles with each further one.
        cap: The longest wait at all. The actual wait is a random share of it ("full jitter").
        max_elapsed: No wait is begun that would end later than this after the first call began.
            It does not stop a call that runs: give the client a timeout. Infinity is no limit.
        retry_on: The exceptions worth repeating: a class, a tuple of classes, or a function.
        retry_after: Returns how long the failed server asked to wait, or None. The jittered wait
            comes on top, or all who were asked the same would return together.
        budget: Bounds the retries of all who share it.
        rng: Returns a random number from 0 to 1.
        clock: Returns seconds that never go back.
        sleep: Waits, for `retry`.
        async_sleep: Waits, for `aretry`.

    """

    attempts: int = 5
    base: float = 0.1
    cap: float = 10.0
    max_elapsed: float = 30.0
    retry_on: type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool] = (
        ConnectionError,
        TimeoutError,
    )
    retry_after: Callable[[Exception], float | None] = lambda error: None
    budget: RetryBudget | None = None
    rng: Callable[[], float] = random.random
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep
    async_sleep: Callable[[float], Awaitable[object]] = asyncio.sleep

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, int) or isinstance(self.attempts, bool):
            raise ValueError(f"attempts must be a whole number, got {self.attempts!r}")
        if self.attempts < 1:
            raise ValueError(f"attempts must be 1 or more, got {self.attempts!r}")
        for name, seconds in (("base", self.base), ("cap", self.cap)):
            if not (_is_number(seconds) and seconds >= 0):
                raise ValueError(f"{name} must be a number of seconds, 0 or more, got {seconds!r}")
        if self.base > self.cap:
            raise ValueError(f"base must be at most cap, {self.cap!r}, got {self.base!r}")
        longest = self.max_elapsed
        if not (longest == math.inf or (_is_number(longest) and longest > 0)):
            raise ValueError(f"max_elapsed must be a number of seconds over 0, got {longest!r}")
        if isinstance(self.retry_on, tuple):
            isinstance(None, self.retry_on)  # a TypeError now, not within the first failure

    def backoff(self, attempt: int) -> float:
        """Return a random wait after failed attempt number `attempt`, which counts from 1."""
        longest = self.base * 2.0 ** min(attempt - 1, 1000)  # beyond, a float has no room
        return self.rng() * min(self.cap, longest)

    def wait(self, error: Exception, attempt: int, elapsed: float) -> float | None:
        """Return how long to wait before the next attempt; None to give up, noted on the error."""
        if not self._worth_repeating(error):
            reason = "not an error to retry"
        elif attempt >= self.attempts:
            reason = "none left"
        else:
            pause = max(0.0, self.retry_after(error) or 0.0) + self.backoff(attempt)
            if max(0.0, elapsed) + pause > self.max_elapsed:
                reason = f"a wait of {pause:.1f} s would pass max_elapsed"
            elif self.budget is not None and not self.budget.spend():
                reason = "the retry budget is spent"
            else:  # the error is only named: its text may hold secrets, or raise
                name = type(error).__name__
                logger.info(
                    "attempt %d of %d: %s, next in %.2f s", attempt, self.attempts, name, pause
                )
                return pause
        error.add_note(f"attempt {attempt} of {self.attempts}, {elapsed:.1f} s: {reason}")
        return None

    def _worth_repeating(self, error: Exception) -> bool:
        if isinstance(self.retry_on, (type, tuple)):
            return isinstance(error, self.retry_on)
        return self.retry_on(error)


def retry(policy: RetryPolicy, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Return `fn(*args, **kwargs)`, called again by the policy while it fails.

    Raises the last error of `fn`, the same object, with a note such as
    "attempt 5 of 5, 3.2 s: none left". A `fn` that returns an awaitable or a generator is a
    `TypeError`: nothing of it has run, so no failure would be seen.
    """
    if policy.budget is not None:
        policy.budget.earn()
    attempt, begun = 1, policy.clock()
    while True:
        try:
            result = fn(*args, **kwargs)
        except Exception as error:
            pause = policy.wait(error, attempt, policy.clock() - begun)
            if pause is None:
                raise
            policy.sleep(pause)
        else:
            lazy = isinstance(result, (GeneratorType, AsyncGeneratorType))
            if lazy or hasattr(type(result), "__await__"):
                if inspect.iscoroutine(result):
                    result.close()
                raise TypeError(f"{fn!r} returned {type(result).__name__}, which has not run yet")
            return result
        attempt += 1


async def aretry(
    policy: RetryPolicy, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
) -> R:
    """Return `await fn(*args, **kwargs)`; retry and raise as `retry` does."""
    if policy.budget is not None:
        policy.budget.earn()
    attempt, begun = 1, policy.clock()
    while True:
        try:
            return await fn(*args, **kwargs)
        except Exception as error:
            pause = policy.wait(error, attempt, policy.clock() - begun)
            if pause is None:
                raise
            await policy.async_sleep(pause)
        attempt += 1


def retrying(policy: RetryPolicy) -> Callable[[F], F]:
    """Retry every call of a function or coroutine function, as a decorator.

    A generator function is a `TypeError`: it fails only while it is iterated, after the call.
    """

    def decorate(fn: F) -> F:
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise TypeError(f"{fn!r} is a generator function: retry the calls inside it")

        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            return retry(policy, fn, *args, **kwargs)

        @functools.wraps(fn)
        async def acall(*args: Any, **kwargs: Any) -> Any:
            return await aretry(policy, fn, *args, **kwargs)

        return cast("F", acall if inspect.iscoroutinefunction(fn) else call)

    return decorate


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
