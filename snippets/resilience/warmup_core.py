"""What the async and the sync services share: errors, known failures, the keys to warm, forks."""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)


class ServicesClosed(Exception):
    """The services were closed: none is handed out any more."""

    def __init__(self, message: str = "the services are closed") -> None:
        super().__init__(message)  # its args make it again, so that it can be copied and pickled


class KnownFailures(Generic[K]):
    """Failures of the last `ttl` seconds by key, repeated without a new attempt. 0 keeps none.

    Not thread-safe: ask under a lock. Raises `ValueError` for a `ttl` below 0.
    """

    def __init__(self, ttl: float, clock: Callable[[], float]) -> None:
        if not (_is_number(ttl) and ttl >= 0):
            raise ValueError(f"failure_ttl must be a number of seconds, 0 or more, got {ttl!r}")
        self._ttl = ttl
        self._clock = clock
        self._failed: dict[K, tuple[Exception, float]] = {}  # and until when

    def keep(self, key: K, error: Exception) -> None:
        """Remember why the service of a key could not be made."""
        if self._ttl > 0:
            self._failed[key] = error, self._clock() + self._ttl

    def raise_known(self, key: K) -> None:
        """Raise the failure of a key while it is known; forget all that are too old."""
        now = self._clock()
        for old in [old for old, (_, until) in self._failed.items() if now >= until]:
            del self._failed[old]
        if key in self._failed:
            raise own_copy(self._failed[key][0])

    def forget(self, key: K) -> None:
        """Let the next attempt be made at once."""
        self._failed.pop(key, None)

    def forget_all(self) -> None:
        """Let the next attempt of every key be made at once."""
        self._failed.clear()

    def __len__(self) -> int:
        return len(self._failed)


def own_copy(error: Exception) -> Exception:
    """Return a copy for one caller, or the tracebacks of all who waited tangle; if it can be."""
    try:
        own = copy.copy(error)
    except Exception:  # its constructor wants more than its args
        return error
    own.__cause__ = error
    return own


def check_timeout(timeout: float) -> None:
    """Raise `ValueError` for a timeout that is no number of seconds over 0."""
    if not (_is_number(timeout) and timeout > 0):
        raise ValueError(f"timeout must be a number of seconds over 0, got {timeout!r}")


def keys_from_env(
    name: str = "WARM_ON_START", environ: Mapping[str, str] = os.environ
) -> list[str]:
    """Return the keys that an environment variable lists, separated by commas; none if unset."""
    return [key.strip() for key in environ.get(name, "").split(",") if key.strip()]


class Forgetful(Protocol):
    """What belongs to the process that made it."""

    def forget(self) -> None:
        """Begin with nothing."""


def forget_after_fork(services: Forgetful) -> None:
    """Call `services.forget()` in every child that this process forks."""
    _all.add(services)


_all: weakref.WeakSet[Forgetful] = weakref.WeakSet()


def _after_fork() -> None:
    for services in _all:
        services.forget()


# Not on Windows, where nothing forks.
getattr(os, "register_at_fork", lambda **_: None)(after_in_child=_after_fork)


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
