"""Remember what functions and methods return, with a limit of results and of time."""

from __future__ import annotations

import functools
import inspect
import time
import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, ParamSpec, TypeVar, cast

from memory_cache import TTLCache

P = ParamSpec("P")
R = TypeVar("R")
_PLAIN = {int, str}
_NAMED = object()  # in a key, before the names of arguments


class Memoized(Generic[P, R]):
    """A function or method that remembers; `memoize` makes it. `cache` is what it remembers.

    Of a method each instance has a `cache` of its own, which goes when the instance goes.
    """

    def __init__(
        self,
        fn: Callable[P, R],
        new_cache: Callable[[], TTLCache[Any, Any]],
        typed: bool,
        key: Callable[P, Hashable] | None,
        copy: Callable[[Any], Any] | None,
    ) -> None:
        functools.update_wrapper(self, fn)
        self.fn, self.cache, self.copy = fn, new_cache(), copy
        self._new_cache, self._typed, self._key = new_cache, typed, key
        self._of_instance: dict[int, tuple[weakref.ref[Any], TTLCache[Any, Any]]] = {}

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

    def forget(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget the result for these arguments; what is being computed will not be stored."""
        self.cache.pop(self.key_of(*args, **kwargs))

    def key_of(self, *args: P.args, **kwargs: P.kwargs) -> Hashable:
        """Return the key of a call."""
        if self._key is not None:
            return self._key(*args, **kwargs)
        values: tuple[Any, ...] = args
        if not kwargs and len(args) == 1 and self._typed and type(args[0]) in _PLAIN:
            return args[0]  # the usual case: nothing else is equal to it
        if kwargs:
            names = tuple(sorted(kwargs))
            values = (*args, _NAMED, names, *map(kwargs.__getitem__, names))
        return (*values, *map(type, values)) if self._typed else values

    def complain(self, error: TypeError, key: Hashable, *args: P.args, **kwargs: P.kwargs) -> None:
        """Raise a clearer error where a key was not hashable."""
        if _hashable(key):
            return
        given = inspect.signature(self.fn).bind(*args, **kwargs).arguments
        name = next((name for name, value in given.items() if not _hashable(value)), "?")
        text = f"argument {name!r} of {self.fn.__qualname__}() is no key ({error})"
        raise TypeError(f"{text}: pass a tuple for it, or give memoize a `key`") from None

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind a method to its instance, which is not kept alive by it."""
        if instance is None:
            return self
        ident, caches = id(instance), self._of_instance
        if ident not in caches:
            ref = weakref.ref(instance, lambda _: caches.pop(ident, None))
            caches.setdefault(ident, (ref, self._new_cache()))
        bound: Memoized[..., R] = object.__new__(type(self))
        bound.__dict__.update(self.__dict__)
        bound.fn, bound.cache = types.MethodType(self.fn, instance), caches[ident][1]
        return bound


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


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
