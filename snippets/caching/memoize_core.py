"""What decorated functions of both colors share: keys of calls, and a cache for each instance."""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, ParamSpec, TypeVar, cast

from memory_cache import TTLCache

P = ParamSpec("P")
R = TypeVar("R")
_PLAIN = {int, str}
_NAMED = object()  # in a key, before the names of arguments


class MemoizedFunction(Generic[P, R]):
    """A function or method that remembers. `cache` is what it remembers.

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
        functools.update_wrapper(cast("Any", self), fn)
        self.fn = fn
        self.cache = new_cache()
        self.copy = copy
        self._new_cache = new_cache
        self._typed = typed
        self._key = key
        self._of_instance: dict[int, tuple[weakref.ref[Any], TTLCache[Any, Any]]] = {}

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
        bound: MemoizedFunction[..., R] = object.__new__(type(self))
        bound.__dict__.update(self.__dict__)
        bound.fn, bound.cache = types.MethodType(self.fn, instance), caches[ident][1]
        return bound


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
