"""What the proofs of redis-cache share: both colors of the cache, called alike, and helpers.

`Color` runs the async cache on an event loop in a thread of its own, so that every proof is written once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
import redis.asyncio

import redis_cache
import redis_cache_async
from redis_cache import RedisCache
from redis_cache_async import AsyncRedisCache
from servers.faults import FaultProxy
from servers.valkey import Valkey

CONNECT: dict[str, Any] = {"sync": redis_cache.connect, "async": redis_cache_async.connect}
CACHE: dict[str, Any] = {"sync": RedisCache, "async": AsyncRedisCache}


class Blocking:
    """Calls a cache, or a function it has decorated, and waits for what comes back, coroutine or not."""

    def __init__(self, color: Color, target: Any) -> None:
        self.color, self.target = color, target

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.color.wait_for(self.target(*args, **kwargs))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.target, name)
        return lambda *args, **kwargs: self.color.wait_for(method(*args, **kwargs))

    def cached(self, *args: Any, **kwargs: Any) -> Callable[[Callable[..., Any]], Blocking]:
        decorate = self.target.cached(*args, **kwargs)
        return lambda func: Blocking(self.color, decorate(self.color.function(func)))


class Color:
    """Makes caches of one color that tests call as if they were all sync."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._clients: list[Any] = []
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(64))
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def cache(self, url: str, *, timeout: float = 5.0, **options: Any) -> Blocking:
        self._clients.append(CONNECT[self.name](url, timeout=timeout))
        return Blocking(self, CACHE[self.name](self._clients[-1], **{"namespace": "test"} | options))

    def function(self, func: Callable[..., Any]) -> Callable[..., Any]:
        if self.name == "sync":
            return func

        @functools.wraps(func)
        async def twin(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(func, *args, **kwargs)

        return twin

    def wait_for(self, result: Any) -> Any:
        if not inspect.iscoroutine(result):
            return result
        return asyncio.run_coroutine_threadsafe(result, self._loop).result(20)

    def close(self) -> None:
        for client in self._clients:
            self.wait_for(client.aclose() if self.name == "async" else client.close())
        self.wait_for(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(params=["sync", "async"])
def color(request: pytest.FixtureRequest) -> Iterator[Color]:
    made = Color(request.param)
    yield made
    made.close()


@pytest.fixture
def cache(color: Color, valkey_url: str) -> Blocking:
    return color.cache(valkey_url)


@pytest.fixture
def db(valkey_url: str) -> Iterator[Any]:
    """The same database, seen without the cache."""
    with redis.Redis.from_url(valkey_url) as client:
        yield client


@pytest.fixture
def server() -> Iterator[Valkey]:
    """A server of this test's own, to be killed."""
    made = Valkey()
    yield made
    made.stop()


@pytest.fixture
def proxy(server: Valkey, fault_proxy: type[FaultProxy]) -> FaultProxy:
    return fault_proxy("127.0.0.1", server.port)


class Origin:
    """The expensive function. It counts its runs; while `go` is clear it does not return."""

    def __init__(self) -> None:
        self.runs = 0
        self.error: BaseException | None = None
        self.started = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()
        self._lock = threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            self.runs += 1
            run = self.runs
        self.started.release()
        assert self.go.wait(10)
        if self.error:
            raise self.error
        return run

    def wait_until_running(self) -> None:
        assert self.started.acquire(timeout=10)

    def cached_by(self, cache: Blocking, **options: Any) -> Blocking:
        def load(x: int = 0) -> int:
            return self()

        return cache.cached(**{"ttl": 60} | options)(load)


def at_once(times: int, call: Callable[[], Any]) -> list[Any]:
    """Call it from `times` threads at the same moment; return results and exceptions."""
    gate = threading.Barrier(times)

    def one(_: int) -> Any:
        gate.wait(10)
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(one, range(times)))


@contextlib.contextmanager
def running(call: Callable[[], Any]) -> Iterator[list[Any]]:
    """Call it in another thread during the block; after it, the list has the result."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    try:
        yield results
    finally:
        thread.join(10)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


class Counting:
    """Counts the calls of a method of the cache."""

    def __init__(self, cache: Blocking, method: str) -> None:
        self.value = 0
        original = getattr(cache.target, method)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.value += 1
            return original(*args, **kwargs)

        setattr(cache.target, method, counted)


class Sleeper:
    """A clock that only moves when somebody sleeps; `each` runs at every pause."""

    def __init__(self, color: Color, each: Callable[[], object] = lambda: None) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self.options: dict[str, Any] = {"clock": lambda: self.now}

        def sleep(seconds: float) -> None:
            self.pauses.append(seconds)
            self.now += seconds
            each()

        async def sleep_async(seconds: float) -> None:
            await asyncio.to_thread(sleep, seconds)

        self.options["sleep"] = sleep if color.name == "sync" else sleep_async
