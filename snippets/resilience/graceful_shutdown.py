"""Stop without dropping work: drain, close, finish within a grace time, then clean up."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What became of a stop: names of the tasks that were cancelled, errors of the callbacks."""

    reason: str
    cancelled: tuple[str, ...]
    errors: tuple[Exception, ...]


class Lifecycle:
    """The end of a process, in steps. For one event loop. Times are in seconds.

    1. A signal: `draining` is true and `ready()` false, and everything works on, so that load
       balancers can notice. Consumers take no new message.
    2. After `drain_delay` the server closes its listener. Streams end (`until_closing`).
    3. Within `grace`, requests and tracked tasks finish; what has not is cancelled and reported.
    4. The callbacks run, the last registered first.

    All of it takes at most `drain_delay + grace + 1`. A second signal ends the process at once.
    Raises `ValueError` for a time out of its range.

    Args:
        drain_delay: How long to go on serving after the signal: longer than load balancers take to
            see that `ready()` is false.
        grace: How long requests and tasks may take after that. Give the server the same limit
            (uvicorn: `timeout_graceful_shutdown`), and the orchestrator more than both together.
        clock: Returns seconds that never go back.

    """

    def __init__(
        self,
        drain_delay: float = 5.0,
        grace: float = 20.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, seconds in (("drain_delay", drain_delay), ("grace", grace)):
            if not (_is_number(seconds) and seconds >= 0):
                raise ValueError(f"{name} must be a number of seconds, 0 or more, got {seconds!r}")
        self.drain_delay = drain_delay
        self.grace = grace
        self._clock = clock
        self.draining = False  # may be read from any thread
        self._draining = asyncio.Event()
        self._closing = asyncio.Event()
        self._ends: float | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._callbacks: list[Callable[[], Awaitable[object]]] = []
        self._stopping: asyncio.Task[Report] | None = None
        self._servers: dict[int, Any] = {}  # their handlers, by signal

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Lifecycle:
        """Read DRAIN_DELAY_S and GRACE_S; `ValueError` names one that is no number from 0."""

        def seconds(name: str, default: str) -> float:
            text = environ.get(name) or default
            if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
                raise ValueError(f"{name} must be a number of seconds, 0 or more, got {text!r}")
            return float(text)

        return cls(seconds("DRAIN_DELAY_S", "5"), seconds("GRACE_S", "20"))

    def ready(self) -> bool:
        """Tell load balancers whether to send requests here."""
        return not self.draining

    def install_signals(self, *signals: int) -> None:
        """Begin to drain on SIGTERM and SIGINT, or the signals given.

        Call it in the main thread after the server has installed its own handlers, as in the
        lifespan of the application: they are called when the drain is over.
        """
        loop = asyncio.get_running_loop()

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self.draining:  # the second one: whoever sent it does not want to wait
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self.draining = True
            loop.call_soon_threadsafe(self._begin_drain, number)

        for number in signals or (signal.SIGTERM, signal.SIGINT):
            self._servers[number] = signal.signal(number, on_signal)

    def track(self, coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start background work that has until the end of `grace`; its failure is logged.

        Raises `RuntimeError` once the process is stopping.
        """
        if self._stopping is not None:
            coro.close()
            raise RuntimeError(f"the process is stopping: {name!r} was not started")
        task = asyncio.get_running_loop().create_task(coro, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._report_task)
        return task

    def on_stop(self, callback: Callable[[], Awaitable[object]]) -> None:
        """Have an async function called at the end, before those that were registered earlier."""
        self._callbacks.append(callback)

    async def wait_closing(self) -> None:
        """Return when the drain is over: for the main function of a worker without a server."""
        await self._closing.wait()

    def until_draining(self, source: AsyncIterator[T]) -> AsyncIterator[T]:
        """Yield from `source` until the drain begins: for consumers. No item is lost."""
        return _items_until(source, self._draining)

    def until_closing(self, source: AsyncIterator[T]) -> AsyncIterator[T]:
        """Yield from `source` until the drain is over: for streams to clients."""
        return _items_until(source, self._closing)

    async def stop(self, reason: str) -> Report:
        """Let the tracked tasks finish, cancel those that do not, call the callbacks. Once.

        Call it when the server has stopped: at the end of the lifespan. Raises nothing; what went
        wrong is in the report and in the log.
        """
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop_work(reason))
        return await asyncio.shield(self._stopping)

    def _begin_drain(self, number: int) -> None:
        self._draining.set()
        self._ends = self._clock() + self.drain_delay + self.grace
        logger.info("%s: draining for %.1f s", signal.Signals(number).name, self.drain_delay)
        asyncio.get_running_loop().call_later(self.drain_delay, self._close_server, number)

    def _close_server(self, number: int) -> None:
        self._closing.set()
        if callable(server := self._servers[number]):
            server(number, None)

    async def _stop_work(self, reason: str) -> Report:
        self.draining = True
        self._draining.set()
        self._closing.set()
        ends = self._clock() + self.grace if self._ends is None else self._ends
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=max(0.0, ends - self._clock()))
        ends = max(ends, self._clock()) + 1.0  # for the cancelled and the callbacks together
        cancelled = [task for task in self._tasks if not task.done()]
        for task in cancelled:
            task.cancel()
        if cancelled:
            names = ", ".join(sorted(task.get_name() for task in cancelled))
            logger.warning("%s: cancelled after the grace time: %s", reason, names)
            await asyncio.wait(cancelled, timeout=0.5)  # one that swallows it is left behind
        errors = []
        for callback in reversed(self._callbacks):
            try:
                async with asyncio.timeout(max(0.0, ends - self._clock())):
                    await callback()
            except Exception as error:
                logger.exception("%s: a callback failed", reason)
                errors.append(error)
        for number, server in self._servers.items():
            signal.signal(number, server or signal.SIG_DFL)
        return Report(reason, tuple(sorted(t.get_name() for t in cancelled)), tuple(errors))

    def _report_task(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error("background task %s failed", task.get_name(), exc_info=error)


async def _items_until(source: AsyncIterator[T], event: asyncio.Event) -> AsyncIterator[T]:
    end = asyncio.ensure_future(event.wait())
    item: asyncio.Future[T] | None = None
    try:
        while not event.is_set():
            item = asyncio.ensure_future(anext(source))
            await asyncio.wait([item, end], return_when=asyncio.FIRST_COMPLETED)
            if not item.done():
                item.cancel()
                await asyncio.wait([item])
            if item.cancelled():
                return
            try:
                value = item.result()  # also one that came in spite of the cancellation
            except StopAsyncIteration:
                return
            yield value
    finally:
        end.cancel()
        if item is not None:
            item.cancel()


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
