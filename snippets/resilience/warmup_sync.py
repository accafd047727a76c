"""Make costly services (pools, clients, models) once a key, on demand or ahead of traffic."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import CancelledError, Future
from typing import Any, Generic, TypeVar

from warmup_core import KnownFailures, ServicesClosed, check_timeout, forget_after_fork, own_copy

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Making(Future[Any]):
    """A creation under way, and the thread it runs in."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()


class Services(Generic[K, V]):
    """One service a key, made by the thread that asks first while all others wait.

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
        create: Callable[[K], V],
        *,
        prewarm: Callable[[V], object] | None = None,
        close: Callable[[V], object] | None = None,
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
        self._lock = threading.Lock()
        self._ready: dict[K, V] = {}  # in the order of creation
        self._making: dict[K, _Making] = {}
        self._failed.forget_all()

    def get(self, key: K) -> V:
        """Return the service of a key, made now if need be.

        Raises what `create` or `prewarm` raised, `ServicesClosed` after `close()`, and
        `RuntimeError` for a service that needs itself.
        """
        while True:
            if key in self._ready:
                with contextlib.suppress(KeyError):  # discarded in between
                    return self._ready[key]
            making, mine = self._join_creation(key)
            if making is None:
                continue
            if mine:
                return self._make_service(key, making)
            try:
                result: V = making.result()
            except CancelledError:  # its thread was interrupted, so somebody else has to
                continue
            except Exception as error:  # raised below
                failure = error
            else:
                return result
            raise own_copy(failure)

    def warm(self, keys: Iterable[K], *, timeout: float) -> dict[K, Exception | None]:
        """Make the services of all keys at once; return for each None, or why it is not ready.

        A key that is not ready after `timeout` seconds is a `TimeoutError`. A thread cannot be
        stopped: its creation goes on, and is kept if it ends well. One key does not stop
        the others. Raises `ValueError` for a timeout that is not above 0.
        """
        check_timeout(timeout)
        outcomes: dict[K, Exception | None] = {}

        def make(key: K) -> None:
            try:
                self.get(key)
            except Exception as error:  # for the report, whatever it is
                outcomes[key] = error
            else:
                outcomes[key] = None

        wanted = list(dict.fromkeys(keys))
        threads = [threading.Thread(target=make, args=(key,), daemon=True) for key in wanted]
        for thread in threads:
            thread.start()
        end = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        unfinished = f"not ready after {timeout} s"
        return {key: outcomes.get(key, TimeoutError(unfinished)) for key in wanted}

    def peek(self, key: K) -> V | None:
        """Return the service of a key if it is ready, without making it."""
        return self._ready.get(key)

    def discard(self, key: K) -> None:
        """Close the service of a key, after its creation; the next `get` makes a new one."""
        if making := self._making.get(key):
            with contextlib.suppress(Exception):
                making.result()
        with self._lock:
            self._failed.forget(key)
            if key not in self._ready:
                return
            service = self._ready.pop(key)
        self._close_service(service)

    def close(self) -> None:
        """Close all services, the newest first, after those that are still being made.

        Raises an `ExceptionGroup` of what `close` raised, after all are closed.
        """
        with self._lock:
            self._closed = True
            being_made = list(self._making.values())
        for making in being_made:
            with contextlib.suppress(Exception):
                making.result()
        errors = []
        while self._ready:
            try:
                self._close_service(self._ready.popitem()[1])
            except Exception as error:  # raised below, with the others
                errors.append(error)
        if errors:
            raise ExceptionGroup("services that did not close", errors)

    def _join_creation(self, key: K) -> tuple[_Making | None, bool]:
        """Return the creation of a key and whether it is ours; None when it is ready by now."""
        with self._lock:
            if self._closed:
                raise ServicesClosed
            if key in self._ready:
                return None, False
            making = self._making.get(key)
            if making is None:
                self._failed.raise_known(key)
                making = self._making[key] = _Making()
                return making, True
        if making.thread == threading.get_ident():
            raise RuntimeError(f"the service of {key!r} needs itself")
        return making, False

    def _make_service(self, key: K, making: _Making) -> V:
        try:
            service = self._create(key)
            try:
                if self._prewarm is not None:
                    self._prewarm(service)
            except BaseException:
                with contextlib.suppress(Exception):  # what failed first is what to tell
                    self._close_service(service)
                raise
        except BaseException as error:
            with self._lock:
                del self._making[key]
                if isinstance(error, Exception):
                    self._failed.keep(key, error)
            making.set_exception(error if isinstance(error, Exception) else CancelledError())
            raise
        with self._lock:
            self._ready[key] = service
            del self._making[key]
        making.set_result(service)
        return service

    def _close_service(self, service: V) -> None:
        if self._close is not None:
            self._close(service)
