"""Collect single look-ups that are made at the same time into bulk calls."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar, cast

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BatchError(Exception):
    """What can go wrong with a look-up besides what the bulk call itself reports for a key."""


class KeyMissing(BatchError):
    """The bulk call answered without this key: `key`."""

    def __init__(self, key: Hashable) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"the answer of the bulk call has no {self.key!r}"


class BatchShapeError(BatchError):
    """The bulk call answered with a sequence of another length than it was asked for."""


class BatchFailed(BatchError):
    """The bulk call raised; its error is the `__cause__`."""


class BatcherClosed(BatchError):
    """The batcher was closed before this look-up."""


class Batcher(Generic[K, V]):
    """Look keys up one by one; they are fetched together. For one event loop.

    The first key opens a window. After `max_wait`, or as soon as `max_size` keys are in it, they go
    to the bulk function as one list without duplicates. Nothing is cached: a key that is asked for
    again in the next window is fetched again. Raises `ValueError` for a setting out of its range.

    Args:
        fn: Fetches a list of keys: a mapping from key to value, or a sequence of values in the
            order of the keys. An exception as a value is raised to those who asked for that key.
        max_size: How many keys go into one call.
        max_wait: How long the first key of a window waits for others, in seconds; with 0 until the
            tasks that are ready now have run.
        max_concurrent: How many calls run at the same time; further ones wait.

    """

    def __init__(
        self,
        fn: Callable[[list[K]], Awaitable[Mapping[K, V | Exception] | Sequence[V | Exception]]],
        *,
        max_size: int = 100,
        max_wait: float = 0.005,
        max_concurrent: int = 4,
    ) -> None:
        for name, count in (("max_size", max_size), ("max_concurrent", max_concurrent)):
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}")
        if not _is_number(max_wait) or max_wait < 0:
            raise ValueError(f"max_wait must be a number of seconds from 0, got {max_wait!r}")
        self._fetch_many = fn
        self._max_size = max_size
        self._max_wait = max_wait
        self._slots = asyncio.Semaphore(max_concurrent)
        self._waiting: dict[K, list[asyncio.Future[V]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def load(self, key: K) -> V:
        """Return the value of one key.

        Raises what the bulk function gave for the key, `KeyMissing` when it gave nothing,
        `BatchFailed` when it raised, `BatchShapeError`, and `BatcherClosed` after `aclose()`.
        """
        return await self._queue_key(key)

    async def load_many(self, keys: Iterable[K]) -> list[V | Exception]:
        """Return for each key its value, or the exception that `load` would raise."""
        keys = list(keys)
        set(keys)  # one that is not hashable: a TypeError before any is queued
        answers = await asyncio.gather(*map(self._queue_key, keys), return_exceptions=True)
        return cast("list[V | Exception]", answers)

    async def aclose(self) -> None:
        """Fetch what was asked for, wait for all calls, and refuse every further look-up."""
        self._closed = True
        self._close_window()
        while self._calls:
            await asyncio.wait(self._calls)

    def _queue_key(self, key: K) -> asyncio.Future[V]:
        if self._closed:
            raise BatcherClosed("the batcher is closed")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError("this batcher belongs to another event loop: make one for each")
        future: asyncio.Future[V] = loop.create_future()
        self._waiting.setdefault(key, []).append(future)
        if len(self._waiting) >= self._max_size:
            self._close_window()
        elif self._timer is None:
            self._timer = loop.call_later(self._max_wait, self._close_window)
        return future

    def _close_window(self) -> None:
        """Hand the window over to a call of its own."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            waiting, self._waiting = self._waiting, {}
            # A clean context: the batch belongs to no single caller, nor do its context variables.
            # A task of its own: no caller who leaves can take it along.
            empty = contextvars.Context()
            call = asyncio.get_running_loop().create_task(self._run_batch(waiting), context=empty)
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _run_batch(self, waiting: dict[K, list[asyncio.Future[V]]]) -> None:
        async with self._slots:
            waiting = {key: futures for key, futures in waiting.items() if _unanswered([futures])}
            if not waiting:
                return
            try:
                answers = _pair_by_key(list(waiting), await self._fetch_many(list(waiting)))
            except BaseException as error:
                # An error for each, or their tracebacks tangle.
                for future in _unanswered(waiting.values()):
                    future.set_exception(_failure(error))
                if not isinstance(error, Exception):
                    raise
                return
        for key, futures in waiting.items():
            for future in _unanswered([futures]):
                if key not in answers:
                    future.set_exception(KeyMissing(key))
                elif isinstance(answer := answers[key], Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)


def _unanswered(groups: Iterable[list[asyncio.Future[V]]]) -> Iterable[asyncio.Future[V]]:
    """Return those whose caller is still there."""
    return [future for futures in groups for future in futures if not future.done()]


def _pair_by_key(keys: list[K], answers: object) -> dict[K, V | Exception]:
    if isinstance(answers, Mapping):
        return dict(answers)
    if not isinstance(answers, Sequence):
        kind = type(answers).__name__
        raise BatchShapeError(f"the bulk call answered {kind}, not a mapping or a sequence")
    if len(answers) != len(keys):
        raise BatchShapeError(f"the bulk call gave {len(answers)} values for {len(keys)} keys")
    return dict(zip(keys, answers, strict=True))


def _failure(error: BaseException) -> BatchError:
    if isinstance(error, BatchShapeError):
        return BatchShapeError(*error.args)
    failure = BatchFailed(f"the bulk call raised {type(error).__name__}")
    failure.__cause__ = error
    return failure


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
