"""Remember what coroutine functions return: one task computes for all who wait."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar, cast

from memoize_core import MemoizedFunction
from memory_cache import Missing, TTLCache

P = ParamSpec("P")
R = TypeVar("R")

_computing: ContextVar[frozenset[object]] = ContextVar("computing", default=frozenset())


class AsyncMemoized(MemoizedFunction[P, Coroutine[Any, Any, R]]):
    """A coroutine function or method that remembers; `memoize_async` makes it."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the remembered result, or await the function.

        What is awaited is a task of its own. A caller who is cancelled leaves it running for the
        others, and its result is stored even when nobody waits any more.
        """
        cache, key = self.cache, self.key_of(*args, **kwargs)
        try:
            found = cache.get(key)
        except TypeError as error:
            self.complain(error, key, *args, **kwargs)
            raise
        if isinstance(found, Missing):
            found = await self._join_flight(key, *args, **kwargs)
        return cast("R", found if self.copy is None else self.copy(found))

    async def _join_flight(self, key: Hashable, *args: P.args, **kwargs: P.kwargs) -> Any:
        loop, flights = asyncio.get_running_loop(), self.cache.flights
        with self.cache.lock:
            flight = flights.get(key)
            if flight is None or flight.get_loop() is not loop:  # another loop's cannot be awaited
                computing = _compute(self.cache, key, functools.partial(self.fn, *args, **kwargs))
                flight = flights[key] = loop.create_task(computing)
        if flight in _computing.get():
            raise RuntimeError(f"the computation for {key!r} asks for its own result")
        return await asyncio.shield(flight)


async def _compute(
    cache: TTLCache[Any, R], key: Hashable, compute: Callable[[], Awaitable[R]]
) -> R:
    flight = asyncio.current_task()
    _computing.set(_computing.get() | {flight})
    try:
        value = await compute()
    except BaseException:
        cache.land(key, flight)
        raise
    cache.land(key, flight, value)
    return value


def memoize_async(
    max_items: int,
    ttl: float,
    *,
    typed: bool = True,
    key: Callable[..., Hashable] | None = None,
    copy: Callable[[Any], Any] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], AsyncMemoized[P, R]]:
    """Remember the results of a coroutine function or method, as a decorator.

    The arguments are those of `memoize_sync.memoize`. Raises `TypeError` for any other function.
    """

    def decorate(fn: Callable[P, Coroutine[Any, Any, R]]) -> AsyncMemoized[P, R]:
        if not inspect.iscoroutinefunction(fn):
            raise TypeError(f"{fn!r} is no coroutine function: use memoize")
        new_cache = functools.partial(TTLCache[Any, R], max_items, ttl, clock=clock)
        return AsyncMemoized(fn, new_cache, typed, key, copy)

    return decorate
