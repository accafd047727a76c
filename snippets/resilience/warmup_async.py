"""Make costly services (pools, clients, models) once a key, on demand or ahead of traffic."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

from warmup_core import KnownFailures, ServicesClosed, check_timeout, forget_after_fork, own_copy

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


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
        self._create = create
        self._prewarm = prewarm
        self._close = close
        self._failed: KnownFailures[K] = KnownFailures(failure_ttl, clock)
        self._closed = False
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """Begin with none, and close none: in a forked child they belong to the parent."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: dict[K, V] = {}  # in the order of creation
        self._making: dict[K, _Making[V]] = {}
        self._tasks: set[asyncio.Task[V]] = set()  # those in _making, and those nobody waits for
        self._failed.forget_all()

    async def get(self, key: K) -> V:
        """Return the service of a key, made now if need be.

        Raises what `create` or `prewarm` raised, `ServicesClosed` after `aclose()`, and
        `RuntimeError` for a service that needs itself or belongs to another event loop. A creation
        goes on while anybody waits for it; when the last one is cancelled, so is the creation.
        """
        if asyncio.get_running_loop() is self._loop and key in self._ready:
            return self._ready[key]
        making = self._join_creation(key)
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
        raise own_copy(failure)

    async def warm(self, keys: Iterable[K], *, timeout: float) -> dict[K, Exception | None]:
        """Make the services of all keys at once; return for each None, or why it is not ready.

        A key that is not ready after `timeout` seconds is a `TimeoutError`; unless others wait for
        it, its creation is cancelled. One key does not stop the others. Raises `ValueError` for a
        timeout that is not above 0.
        """
        check_timeout(timeout)

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
        self._failed.forget(key)
        if key in self._ready:
            await self._close_service(self._ready.pop(key))

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
                await self._close_service(self._ready.popitem()[1])
            except Exception as error:  # raised below, with the others
                errors.append(error)
        if errors:
            raise ExceptionGroup("services that did not close", errors)

    def _join_creation(self, key: K) -> _Making[V]:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise ServicesClosed
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError("these services belong to another event loop: make some for each")
        making = self._making.get(key)
        if making is None:
            self._failed.raise_known(key)
            making = self._making[key] = _Making()
            making.task = loop.create_task(self._make_service(key, making))
            self._tasks.add(making.task)
            making.task.add_done_callback(self._tasks.discard)
        elif making in _inside.get():
            raise RuntimeError(f"the service of {key!r} needs itself")
        return making

    async def _make_service(self, key: K, making: _Making[V]) -> V:
        _inside.set(_inside.get() | {making})
        try:
            service = await self._create(key)
            try:
                if self._prewarm is not None:
                    await self._prewarm(service)
            except BaseException:
                with contextlib.suppress(Exception):  # what failed first is what to tell
                    await self._close_service(service)
                raise
        except Exception as error:
            self._failed.keep(key, error)
            raise
        finally:
            wanted = self._making.get(key) is making
            if wanted:
                del self._making[key]
        if not wanted:  # everybody left, and it did not heed the cancellation
            await self._close_service(service)
            raise asyncio.CancelledError
        self._ready[key] = service
        return service

    async def _close_service(self, service: V) -> None:
        if self._close is not None:
            await self._close(service)
