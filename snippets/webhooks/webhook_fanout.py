"""Hand one event to several handlers: side by side, each on its own, each until it has succeeded.

It dispatches any object with a `source`, an `id` and a `type`, such as a receiver's `Delivery`.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol

logger = logging.getLogger(__name__)
Handler = Callable[[Any], Any]


class _Arrived(Protocol):
    @property
    def source(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def type(self) -> str: ...


class DoneStore(Protocol):
    """Remembers which handlers are done with an event. What it raises, `dispatch` raises."""

    async def done(self, source: str, event_id: str) -> Collection[str]:
        """Return the names of the handlers that are done."""
        ...

    async def mark(self, source: str, event_id: str, handler: str) -> None:
        """Remember one, durably."""
        ...


class MemoryDone:
    """A `DoneStore` for tests: what it knows is gone with the process."""

    def __init__(self) -> None:
        self._done: dict[tuple[str, str], set[str]] = {}

    async def done(self, source: str, event_id: str) -> Collection[str]:
        """Return the names of the handlers that are done."""
        return frozenset(self._done.get((source, event_id), ()))

    async def mark(self, source: str, event_id: str, handler: str) -> None:
        """Remember one."""
        self._done.setdefault((source, event_id), set()).add(handler)


@dataclass(frozen=True, slots=True)
class Report:
    """What became of an event, by handler name: done now, failed with an error, done before.

    The errors are not in the repr: their texts may hold what the event holds.
    """

    ok: Sequence[str] = ()
    failed: Mapping[str, BaseException] = field(default_factory=dict, repr=False)
    skipped: Sequence[str] = ()


class FanoutIncomplete(Exception):
    """A required handler failed. Those that succeeded are marked, and will not run again."""

    def __init__(self, report: Report, required: Sequence[str]) -> None:
        super().__init__(f"failed: {', '.join(required)}")
        self.report = report


class DuplicateHandler(ValueError):
    """Two handlers have one name, and would share their marks."""


@dataclass(frozen=True, slots=True)
class _Registered:
    handler: Handler
    types: Sequence[str]
    required: bool


class Fanout:
    """Runs the handlers of an event.

    Args:
        done: Remembers who is done.
        timeout: How many seconds each handler may take. A plain function runs in a thread, which
            nobody can stop: it is reported as failed, and goes on.
        max_parallel: How many handlers run at a time, over all events.
        patience: How many seconds a cancelled handler has to end; then it is left behind.
        unhandled: Called with the type of an event that has no handler: count it.

    Raises:
        ValueError: A number is not above 0.
    """

    def __init__(
        self,
        done: DoneStore,
        *,
        timeout: float = 10.0,
        max_parallel: int = 20,
        patience: float = 1.0,
        unhandled: Callable[[str], object] = lambda kind: None,
    ) -> None:
        for name, seconds in (("timeout", timeout), ("patience", patience)):
            if not (_is_number(seconds) and seconds > 0):
                raise ValueError(f"{name} must be a number of seconds over 0, got {seconds!r}")
        if not isinstance(max_parallel, int) or isinstance(max_parallel, bool) or max_parallel < 1:
            raise ValueError(f"max_parallel must be a whole number over 0, got {max_parallel!r}")
        self._done = done
        self._timeout = timeout
        self._patience = patience
        self._unhandled = unhandled
        self._slots = asyncio.Semaphore(max_parallel)
        self._handlers: dict[str, _Registered] = {}

    def register(
        self,
        name: str,
        handler: Handler,
        *,
        types: Sequence[str] = ("*",),
        required: bool = True,
    ) -> None:
        """Add a handler: a coroutine function, or a plain one that may block.

        Args:
            name: Under which its success is remembered. Changing it runs old events again.
            handler: Gets a copy of the event. What it raises is a failure.
            types: Of events, such as "invoice.paid" or "invoice.*".
            required: False if its failure is to be logged, and no reason to deliver again.

        Raises:
            DuplicateHandler: The name is taken.
        """
        if name in self._handlers:
            raise DuplicateHandler(f"there is a handler {name!r} already")
        if isinstance(types, str):
            raise TypeError("types must be a sequence of strings")
        self._handlers[name] = _Registered(handler, tuple(types), required)

    async def dispatch(self, delivery: _Arrived) -> Report:
        """Run all handlers that are not yet done with the event. Acknowledge it when this returns.

        Raises:
            FanoutIncomplete: A required handler failed, or could not be marked as done.
            Exception: What the done-store raised before any handler ran.
        """
        wanted = {
            name: entry
            for name, entry in self._handlers.items()
            if any(fnmatchcase(delivery.type, pattern) for pattern in entry.types)
        }
        if not wanted:
            self._unhandled(delivery.type)
            return Report()
        known = await self._done.done(delivery.source, delivery.id)
        tasks = {
            name: asyncio.create_task(self._run_handler(name, entry.handler, delivery))
            for name, entry in wanted.items()
            if name not in known
        }
        try:
            if tasks:
                await asyncio.wait(tasks.values())
        finally:
            for task in tasks.values():
                task.cancel()
            ended = await asyncio.gather(*tasks.values(), return_exceptions=True)
        errors = {name: error for name, error in zip(tasks, ended, strict=True) if error}
        report = Report(
            ok=tuple(name for name in tasks if name not in errors),
            failed=errors,
            skipped=tuple(name for name in wanted if name in known),
        )
        if missing := [name for name in errors if wanted[name].required]:
            raise FanoutIncomplete(report, missing)
        return report

    async def _run_handler(
        self, name: str, handler: Handler, delivery: _Arrived
    ) -> BaseException | None:
        async with self._slots:
            error = await self._error_in_time(handler, delivery)
        if error is None:
            # The effect has happened: a cancellation must not keep it from being marked.
            mark = asyncio.ensure_future(self._done.mark(delivery.source, delivery.id, name))
            try:
                await asyncio.shield(mark)
            except asyncio.CancelledError:
                await asyncio.wait({mark}, timeout=self._patience)
                raise
            except Exception as failure:  # not marked, so not done
                error = failure
        if error is not None:
            kind = type(error).__name__
            logger.warning("handler %s failed for %s: %s", name, delivery.id, kind)
        return error

    async def _error_in_time(self, handler: Handler, delivery: _Arrived) -> BaseException | None:
        task = asyncio.create_task(_error_of(handler, delivery))
        try:
            await asyncio.wait({task}, timeout=self._timeout)
            if task.done():
                return asyncio.CancelledError() if task.cancelled() else task.result()
            task.cancel()
            await asyncio.wait({task}, timeout=self._patience)
            return TimeoutError(f"not done within {self._timeout} s")
        finally:
            task.cancel()


async def _error_of(handler: Handler, delivery: _Arrived) -> BaseException | None:
    try:
        own = copy.deepcopy(delivery)
        if _is_async(handler):
            await handler(own)
            return None
        result, error = await asyncio.to_thread(_in_thread, handler, own)
        if inspect.isawaitable(result):  # a lambda around a coroutine function
            await result
    except asyncio.CancelledError:
        raise
    except BaseException as failure:  # a SystemExit would end the loop of all others
        return failure
    return error


def _in_thread(handler: Handler, own: _Arrived) -> tuple[Any, BaseException | None]:
    try:
        return handler(own), None
    except BaseException as failure:  # a StopIteration would never reach the loop
        return None, failure


def _is_async(handler: Handler) -> bool:
    # An object is, if its class has an async __call__.
    return any(map(inspect.iscoroutinefunction, (handler, type(handler).__call__)))


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
