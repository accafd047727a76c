"""Remember what functions and methods return, with a limit of results and of time."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Hashable
from typing import Any, ParamSpec, TypeVar, cast

from memoize_core import MemoizedFunction
from memory_cache import TTLCache

P = ParamSpec("P")
R = TypeVar("R")


class Memoized(MemoizedFunction[P, R]):
    """A function or method that remembers; `memoize` makes it."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the remembered result, or call the function.

        Raises what the function raises, and `TypeError` naming an argument that cannot be a key.
        """
        key = self.key_of(*args, **kwargs)
        try:
            found = self.cache.get_or_compute(key, self.fn, *args, **kwargs)
        except TypeError as error:
            self.complain(error, key, *args, **kwargs)
            raise
        return cast("R", found if self.copy is None else self.copy(found))


def memoize(
    max_items: int,
    ttl: float,
    *,
    typed: bool = True,
    key: Callable[..., Hashable] | None = None,
    copy: Callable[[Any], Any] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[Callable[P, R]], Memoized[P, R]]:
    """Remember the results of a function or method, as a decorator.

    `f(1)` and `f(x=1)` are remembered apart, as are arguments that are equal but of another type.
    The decorated function has `cache`, a `TTLCache`, and `forget(*args)`. Raises `ValueError` for
    a limit that is not above 0, `TypeError` for a coroutine or generator function.

    Args:
        max_items: How many results there may be; of a method, for each instance.
        ttl: How long a result is served, in seconds.
        typed: Whether `1`, `1.0` and `True` are different arguments.
        key: Makes the key from the arguments; without the instance, of a method.
        copy: Makes each caller's own result, `copy.deepcopy` for one that callers may change.
        clock: Returns seconds that never go back.

    """

    def decorate(fn: Callable[P, R]) -> Memoized[P, R]:
        if inspect.iscoroutinefunction(fn):
            raise TypeError(f"{fn!r} is a coroutine function: use memoize_async")
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise TypeError(f"{fn!r} is a generator function: its result can be read only once")
        return Memoized(
            fn, functools.partial(TTLCache, max_items, ttl, clock=clock), typed, key, copy
        )

    return decorate
