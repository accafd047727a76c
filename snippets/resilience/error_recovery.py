"""Repairs the known failures of a call by strategies, and repeats it, within budgets."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

R = TypeVar("R")


@runtime_checkable
class Failure(Protocol):
    """An exception that says what went wrong. One without these attributes is never recovered.

    A bug (`TypeError`) has none of them, and so cannot hide behind a fallback.
    """

    status: int | None
    retryable: bool
    retry_after: float | None

    def add_note(self, note: str, /) -> None:
        """Add a line to the traceback, as every exception can."""


@dataclass(frozen=True)
class Retry:
    """Outcome: repeat the call, after so many seconds."""

    after: float = 0.0


@dataclass(frozen=True)
class Fallback:
    """Outcome: take this value instead."""

    value: Any


@dataclass(frozen=True)
class GiveUp:
    """Outcome: nothing can be done; the error is raised as it is."""


Outcome: TypeAlias = Retry | Fallback | GiveUp


class Strategy(Protocol):
    """Knows how to repair one kind of failure."""

    budget: int  # how often, at most, in one run

    def handles(self, err: Failure) -> bool:
        """Tell whether this failure is one of that kind."""

    async def recover(self, err: Failure, attempt: int) -> Outcome:
        """Repair it; `attempt` counts from 1 within a run. Under `run_sync` it must not wait."""


class Recovered(NamedTuple, Generic[R]):
    """A value; `degraded` if it is a fallback; `steps` names the strategies that were needed."""

    value: R
    degraded: bool
    steps: tuple[str, ...]


class RecoveryFailed(Exception):
    """The failure lasted longer than the budgets. `__cause__` is the failure itself.

    If a strategy raised, what it raised is the `__context__`.
    """


class Recovery:
    """Runs calls, and repairs their failures with the first strategy that handles them.

    Holds no state of a run: one serves all calls to a system, from tasks or from threads.
    Raises `ValueError` for a setting out of its range.

    Args:
        strategies: In the order in which they are asked.
        max_recoveries: How many recoveries one run may take, over all strategies.
        deadline: Seconds after which no recovery begins, and within which a wait must end. It
            ends a recovery that hangs (not under `run_sync`), but not the call: that has its own.
        clock: Returns seconds that never go back.
        sleep: Waits in a task; `blocking_sleep` in a thread.

    """

    def __init__(
        self,
        strategies: Sequence[Strategy],
        *,
        max_recoveries: int = 3,
        deadline: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        blocking_sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if not isinstance(max_recoveries, int) or isinstance(max_recoveries, bool):
            raise ValueError(f"max_recoveries must be a whole number, got {max_recoveries!r}")
        if max_recoveries < 0:
            raise ValueError(f"max_recoveries must be 0 or more, got {max_recoveries!r}")
        if not (_is_number(deadline) and deadline > 0):
            raise ValueError(f"deadline must be a number of seconds over 0, got {deadline!r}")
        self._strategies = tuple(strategies)
        self._max_recoveries = max_recoveries
        self._deadline = deadline
        self._clock = clock
        self._sleep = sleep
        self._blocking_sleep = blocking_sleep

    async def run(self, fn: Callable[[], Awaitable[R]]) -> Recovered[R]:
        """Return what `await fn()` returns, sooner or later, or a fallback.

        `fn` may be called several times: make an idempotency key outside of it.

        Raises:
            RecoveryFailed: The strategies did what they may, and it failed again; or one raised.
            Exception: What `fn` raised, if no strategy handles it or if one gives up.

        """
        return await self._run_within_budgets(fn, self._sleep, asyncio.timeout)

    def run_sync(self, fn: Callable[[], R]) -> Recovered[R]:
        """Do the same with a function. A strategy that has to wait for a loop is a `TypeError`."""

        async def call() -> R:
            return fn()

        async def pause(seconds: float) -> None:
            self._blocking_sleep(seconds)

        # A coroutine that waits for nothing runs from start to end in one step, without a loop.
        running = self._run_within_budgets(call, pause, lambda left: contextlib.nullcontext())
        try:
            running.send(None)
        except StopIteration as end:
            result: Recovered[R] = end.value
            return result
        running.close()
        raise TypeError("a strategy waits for an event loop: use run()")

    async def _run_within_budgets(
        self,
        fn: Callable[[], Awaitable[R]],
        sleep: Callable[[float], Awaitable[object]],
        limit: Callable[[float], contextlib.AbstractAsyncContextManager[object]],
    ) -> Recovered[R]:
        ends = self._clock() + self._deadline
        steps: list[str] = []
        used = [0] * len(self._strategies)
        while True:
            try:
                return Recovered(await fn(), False, tuple(steps))
            except Exception as exc:  # it is raised below, if it is not repaired
                err = exc
            # Not within the except: a strategy may raise what it shares with other runs, which
            # would get this error as its context.
            outcome = await self._recover_from(err, used, steps, ends, limit)
            if isinstance(outcome, Fallback):
                return Recovered(outcome.value, True, tuple(steps))
            if isinstance(outcome, GiveUp):
                raise err
            if outcome.after > 0:
                await sleep(outcome.after)

    async def _recover_from(
        self, err: Exception, used: list[int], steps: list[str], ends: float, limit: Any
    ) -> Outcome:
        if not isinstance(err, Failure):
            return GiveUp()
        handled = False
        for number, strategy in enumerate(self._strategies):
            name = type(strategy).__name__
            try:
                if not strategy.handles(err):
                    continue
                handled = True
                left = ends - self._clock()
                spent = used[number] >= strategy.budget or len(steps) >= self._max_recoveries
                if spent or left <= 0:
                    continue
                used[number] += 1
                steps.append(name)
                async with limit(left):
                    outcome = await strategy.recover(err, used[number])
            except Exception as exc:  # it stays the context
                raise RecoveryFailed(f"{name} raised {type(exc).__name__}") from err
            if not isinstance(outcome, Retry) or outcome.after <= ends - self._clock():
                return outcome
        if handled:
            tried = ", ".join(steps) or "nothing"
            raise RecoveryFailed(f"{type(err).__name__}, after {tried}") from err
        return GiveUp()


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
