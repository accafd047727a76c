"""A compartment for one dependency: so many calls at once, so many waiting, the rest refused."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_held: contextvars.ContextVar[tuple[Bulkhead, ...]] = contextvars.ContextVar("held", default=())


class BulkheadFull(Exception):
    """The call was refused: the compartment `name` is full, and so is its queue."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"bulkhead {self.name!r} is full"


@dataclass(frozen=True)
class Stats:
    """A compartment at one instant; `refused` counts since it was made."""

    name: str
    in_use: int
    waiting: int
    refused: int


class _Waiter:
    """One in the queue. `wake` is called with the lock held, once a slot is theirs."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.granted = False


class Bulkhead:
    """Limits how many calls of one dependency run at once, for threads and tasks together.

    Use it as `with` or `async with`, around the call. Who waits is served in order of arrival.
    Within a slot, a further entry of the same bulkhead does not wait: it would wait for itself.
    Raises `ValueError` for a setting out of its range.

    Args:
        name: What errors and statistics call it.
        max_concurrent: How many slots there are.
        max_waiting: How many may wait for one; further ones are refused at once.
        max_wait: How long one waits before it is refused, in seconds.

    """

    def __init__(
        self, name: str, max_concurrent: int, max_waiting: int = 0, max_wait: float = 0.0
    ) -> None:
        if not (_is_count(max_concurrent) and max_concurrent > 0):
            raise ValueError(
                f"max_concurrent must be a whole number over 0, got {max_concurrent!r}"
            )
        if not (_is_count(max_waiting) and max_waiting >= 0):
            raise ValueError(f"max_waiting must be a whole number, 0 or more, got {max_waiting!r}")
        if not (_is_number(max_wait) and max_wait >= 0):
            raise ValueError(f"max_wait must be a number of seconds, 0 or more, got {max_wait!r}")
        if bool(max_waiting) != bool(max_wait):
            raise ValueError("max_waiting and max_wait go together: set both or none")
        self.name = name
        self._max_concurrent = max_concurrent
        self._max_waiting = max_waiting
        self._max_wait = max_wait
        self._lock = threading.Lock()
        self._in_use = 0
        self._refused = 0
        self._queue: deque[_Waiter] = deque()

    def stats(self) -> Stats:
        """Return the counts, all of the same instant."""
        with self._lock:
            return Stats(self.name, self._in_use, len(self._queue), self._refused)

    def call(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return `fn(*args, **kwargs)`, within a slot; raise `BulkheadFull` if there is none."""
        with self:
            return fn(*args, **kwargs)

    async def acall(self, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return `await fn(*args, **kwargs)`, within a slot."""
        async with self:
            return await fn(*args, **kwargs)

    async def run_in_thread(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return `fn(*args, **kwargs)`, called in a thread of its own.

        A thread cannot be cancelled. It keeps its slot until it ends, whether or not the caller
        still waits, so a dependency that hangs occupies its compartment and no more.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[R] = loop.create_future()

        def tell(settle: Callable[[Any], None], outcome: object) -> None:
            if not result.done():  # else the caller has left
                settle(outcome)

        def work() -> None:
            _held.set((*_held.get(), self))
            settle: Callable[[Any], None] = result.set_exception
            try:
                outcome: Any = fn(*args, **kwargs)
                settle = result.set_result
            except BaseException as error:  # raised to the caller
                outcome = error
            self._release_slot()
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(tell, settle, outcome)

        await self._acquire_slot_async()
        run = contextvars.copy_context().run
        try:
            threading.Thread(target=run, args=(work,), name=self.name, daemon=True).start()
        except BaseException:  # no thread can be started
            self._release_slot()
            raise
        return await result

    def __enter__(self) -> None:
        self._acquire_slot()
        _held.set((*_held.get(), self))

    def __exit__(self, *_: object) -> None:
        self._leave_slot()

    async def __aenter__(self) -> None:
        if not self._take_slot():
            await self._acquire_slot_async()
        _held.set((*_held.get(), self))

    async def __aexit__(self, *_: object) -> None:
        self._leave_slot()

    def _leave_slot(self) -> None:
        held = _held.get()
        if self in held:  # not when an async generator is closed by another task
            index = held.index(self)
            _held.set(held[:index] + held[index + 1 :])
        self._release_slot()

    def _acquire_slot(self) -> None:
        if self._take_slot():
            return
        ready = threading.Event()
        waiter = self._enter_queue(ready.set)
        if waiter is not None and not ready.wait(self._max_wait):
            self._give_up_waiting(waiter)

    async def _acquire_slot_async(self) -> None:
        if self._take_slot():
            return
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()  # set from whichever thread leaves
        waiter = self._enter_queue(lambda: loop.call_soon_threadsafe(ready.set))
        if waiter is None:
            return
        try:
            async with asyncio.timeout(self._max_wait):
                await ready.wait()
        except TimeoutError:
            self._give_up_waiting(waiter)
        except BaseException:  # cancelled: the slot, if it came at the same time, goes on
            if not self._leave_queue(waiter):
                self._release_slot()
            raise

    def _take_slot(self) -> bool:
        with self._lock:
            if self._in_use < self._max_concurrent:  # then nobody waits: slots are handed over
                self._in_use += 1
                return True
            return False

    def _enter_queue(self, wake: Callable[[], object]) -> _Waiter | None:
        """Take a slot and return None, or a place in the queue and return that."""
        with self._lock:
            if self._in_use < self._max_concurrent:  # freed just now
                self._in_use += 1
                return None
            if len(self._queue) >= self._max_waiting or self in _held.get():
                self._refused += 1
                raise BulkheadFull(self.name)
            waiter = _Waiter(wake)
            self._queue.append(waiter)
            return waiter

    def _give_up_waiting(self, waiter: _Waiter) -> None:
        """Raise `BulkheadFull`, unless the slot came at the last moment."""
        if self._leave_queue(waiter):
            with self._lock:
                self._refused += 1
            raise BulkheadFull(self.name) from None

    def _leave_queue(self, waiter: _Waiter) -> bool:
        """Leave the queue; False when the slot was handed over already."""
        with self._lock:
            if not waiter.granted:
                self._queue.remove(waiter)
            return not waiter.granted

    def _release_slot(self) -> None:
        with self._lock:
            while self._queue:  # the slot goes to the next, so that nobody who comes now is faster
                waiter = self._queue.popleft()
                waiter.granted = True
                with contextlib.suppress(RuntimeError):  # its event loop has ended
                    waiter.wake()
                    return
            self._in_use -= 1


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
