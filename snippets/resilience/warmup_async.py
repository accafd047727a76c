"""Make costly services (pools, clients, models) once a key, on demand or ahead of traffic."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import time
import weakref
from collections.abc import Awaitable, Callable, Hashable, Iterable
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ServicesClosed(Exception):
    """`aclose()` was called: no service is handed out any more."""


class _Making(Generic[V]):
    """A creation under way, and how many wait for it."""

    def __init__(self) -> None:
        self.task: asyncio.Task[V]
        self.waiters = 0


# What the current task is making, and for what: to notice a service that needs itself.
_inside: ContextVar[frozenset[_Making[Any]]] = ContextVar("inside", default=frozenset())


class AsyncServices(Generic[K, V]):
    """One service a key, made by whoever asks first while all others wait. For one event loop.

    After a fork the child begins with none: connections cannot be shared. Raises `ValueError`
    for a `failure_ttl` below 0.

    Args:
        create: Makes the service of a key. It may ask for other keys.
        prewarm: Readies a new service (opens connections, loads weights) before it is handed out.
            When it raises, the service is closed.
        close: Closes a service.
        failure_ttl: How long a failure is repeated without a new attempt, in seconds.
        clock: Returns seconds that never go back.

    """

    def __init__(
        self,
        create: Callable[[K], Awaitable[V]],
        *,
        prewarm: Callable[[V], Awaitable[object]] | None = None,
        close: Callable[[V], Awaitable[object]] | None = None,
        failure_ttl: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not failure_ttl >= 0:
            raise ValueError(f"failure_ttl must be 0 or more, not {failure_ttl}")
        self._create, self._prewarm, self._close = create, prewarm, close
        self._failure_ttl, self._clock = failure_ttl, clock
        self._closed = False
        self.forget()
        _all.add(self)

    def forget(self) -> None:
        """Begin with none, and close none: in a forked child they belong to the parent."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: dict[K, V] = {}  # in the order of creation
        self._making: dict[K, _Making[V]] = {}
        self._tasks: set[asyncio.Task[V]] = set()  # those in _making, and those nobody waits for
        self._failed: dict[K, tuple[Exception, float]] = {}  # and until when

    async def get(self, key: K) -> V:
        """Return the service of a key, made now if need be.

        Raises what `create` or `prewarm` raised, `ServicesClosed` after `aclose()`, and
        `RuntimeError` for a service that needs itself or belongs to another event loop. A creation
        goes on while anybody waits for it; when the last one is cancelled, so is the creation.
        """
        if asyncio.get_running_loop() is self._loop and key in self._ready:
            return self._ready[key]
        making = self._joined(key)
        making.waiters += 1
        try:
            return await asyncio.shield(making.task)
        except Exception as error:  # raised below
            failure = error
        finally:
            making.waiters -= 1
            if making.waiters == 0 and not making.task.done():
                del self._making[key]
                making.task.cancel()
        raise _own(failure)

    async def warm(
        self, keys: Iterable[K], *, timeout: float
    ) -> dict[K, Exception | None]:  # of each
        """Make the services of all keys at once; return for each None, or why it is not ready.

        A key that is not ready after `timeout` seconds is a `TimeoutError`; unless others wait for
        it, its creation is cancelled. One key does not stop the others.
        """

        async def outcome(key: K) -> Exception | None:
            try:
                async with asyncio.timeout(timeout):
                    await self.get(key)
            except Exception as error:  # for the report, whatever it is
                return error
            return None

        wanted = list(dict.fromkeys(keys))
        return dict(zip(wanted, await asyncio.gather(*map(outcome, wanted)), strict=True))

    def peek(self, key: K) -> V | None:
        """Return the service of a key if it is ready, without making it."""
        return self._ready.get(key)

    async def discard(self, key: K) -> None:
        """Close the service of a key, after its creation; the next `get` makes a new one."""
        if making := self._making.get(key):
            await asyncio.wait([making.task])
        self._failed.pop(key, None)
        if key in self._ready:
            await self._shut(self._ready.pop(key))

    async def aclose(self) -> None:
        """Close all services, the newest first, after those that are still being made.

        Raises an `ExceptionGroup` of what `close` raised, after all are closed.
        """
        self._closed = True
        while self._tasks:
            await asyncio.wait(self._tasks)
        errors = []
        while self._ready:
            try:
                await self._shut(self._ready.popitem()[1])
            except Exception as error:  # raised below, with the others
                errors.append(error)
        if errors:
            raise ExceptionGroup("services that did not close", errors)

    def _joined(self, key: K) -> _Making[V]:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise ServicesClosed("the services are closed")
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError("these services belong to another event loop: make some for each")
        making = self._making.get(key)
        if making is None:
            self._raise_known_failure(key)
            making = self._making[key] = _Making()
            making.task = loop.create_task(self._make(key, making))
            self._tasks.add(making.task)
            making.task.add_done_callback(self._tasks.discard)
        elif making in _inside.get():
            raise RuntimeError(f"the service of {key!r} needs itself")
        return making

    async def _make(self, key: K, making: _Making[V]) -> V:
        _inside.set(_inside.get() | {making})
        try:
            service = await self._create(key)
            try:
                if self._prewarm is not None:
                    await self._prewarm(service)
            except BaseException:
                with contextlib.suppress(Exception):  # what failed first is what to tell
                    await self._shut(service)
                raise
        except Exception as error:
            if self._failure_ttl > 0:
                self._failed[key] = error, self._clock() + self._failure_ttl
            raise
        finally:
            wanted = self._making.get(key) is making
            if wanted:
                del self._making[key]
        if not wanted:  # everybody left, and it did not heed the cancellation
            await self._shut(service)
            raise asyncio.CancelledError
        self._ready[key] = service
        return service

    async def _shut(self, service: V) -> None:
        if self._close is not None:
            await self._close(service)

    def _raise_known_failure(self, key: K) -> None:
        now = self._clock()
        for old in [old for old, (_, until) in self._failed.items() if now >= until]:
            del self._failed[old]
        if key in self._failed:
            raise _own(self._failed[key][0])


def _own(error: Exception) -> Exception:
    """Return a copy for one caller, or the tracebacks of all who waited tangle; if it can be."""
    try:
        own = copy.copy(error)
    except Exception:  # its constructor wants more than its args
        return error
    own.__cause__ = error
    return own


def keys_to_warm(variable: str = "WARM_ON_START") -> list[str]:
    """Return the keys that an environment variable lists, separated by commas; none if unset."""
    return [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]


_all: weakref.WeakSet[AsyncServices[Any, Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for services in _all:
        services.forget()


# Not on Windows, where nothing forks.
getattr(os, "register_at_fork", lambda **_: None)(after_in_child=_after_fork)
