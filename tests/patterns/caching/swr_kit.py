"""What the proofs of stale-while-revalidate share: both colors of the cache, called alike, and helpers.

`Twin` runs the async cache on an event loop in a thread of its own, so that every proof is written once.
"""

from __future__ import annotations

import asyncio
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

import swr
import swr_sync
from servers.valkey import Valkey

MODULES: dict[str, Any] = {"async": swr, "sync": swr_sync}
TIMES: dict[str, float] = {"fresh_for": 60.0, "stale_for": 30.0}


class Cache:
    """A cache of either color, called as if it were sync; `inner` is the cache itself."""

    def __init__(self, twin: Twin, inner: Any) -> None:
        self.twin, self.inner = twin, inner

    def get(self, key: str, load: Callable[[], Any]) -> Any:
        return self.twin.wait_for(self.inner.get(key, self.twin.loader(load)))

    def fetch(self, key: str, load: Callable[[], Any]) -> Any:
        return self.twin.wait_for(self.inner.fetch(key, self.twin.loader(load)))

    def set(self, key: str, value: Any) -> None:
        self.twin.wait_for(self.inner.set(key, value))

    def close(self, timeout: float = 5.0) -> None:
        self.twin.wait_for(self.inner.close(timeout))

    def stored(self, key: str) -> Any:
        return self.twin.wait_for(self.inner._store.get(key))

    def idle(self) -> bool:
        return not self.inner._behind and not self.inner._flights


class Twin:
    """Makes caches of one color, whose event loop (if any) runs in a thread, and closes them."""

    def __init__(self, name: str) -> None:
        self.name, self.module = name, MODULES[name]
        self.clock = Clock()
        self.errors: list[tuple[str, str]] = []
        self._close: list[Callable[[], object]] = []
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(64))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def wait_for(self, result: Any) -> Any:
        if not inspect.iscoroutine(result):
            return result
        return asyncio.run_coroutine_threadsafe(result, self._loop).result(20)

    def loader(self, load: Callable[[], Any]) -> Callable[[], Any]:
        return functools.partial(asyncio.to_thread, load) if self.name == "async" else load

    def memory(self, max_items: int = 1_000) -> Any:
        return self.module.MemoryStore(max_items)

    def redis(self, url: str, namespace: str = "test", timeout: float = 5.0) -> Any:
        kind: Any = redis.asyncio.Redis if self.name == "async" else redis.Redis
        client = kind.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout)
        self._close.append(client.aclose if self.name == "async" else client.close)
        return self.module.RedisStore(client, namespace)

    def store(self, kind: str, url: str) -> Any:
        return self.memory() if kind == "memory" else self.redis(url)

    def cache(self, store: Any = None, **options: Any) -> Cache:
        options = {**TIMES, "clock": self.clock, "on_error": self.note} | options
        inner = self.module.SWRCache(store or self.memory(), **options)
        self._close.append(functools.partial(inner.close, 0.1))
        return Cache(self, inner)

    def note(self, key: str, error: BaseException) -> None:
        self.errors.append((key, str(error)))

    def finish(self) -> None:
        while self._close:
            self.wait_for(self._close.pop()())

    def close(self) -> None:
        self.finish()
        self.wait_for(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(params=["async", "sync"])
def twin(request: pytest.FixtureRequest) -> Iterator[Twin]:
    made = Twin(request.param)
    yield made
    made.close()


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


class Clock:
    """Time that only a test moves."""

    def __init__(self) -> None:
        self.now = 1_763_672_400.0

    def __call__(self) -> float:
        return self.now


class Origin:
    """Where values come from. It counts; while `go` is clear it does not return."""

    def __init__(self) -> None:
        self.loads = 0
        self.error: BaseException | None = None
        self.go = threading.Event()
        self.go.set()

    def __call__(self) -> int:
        self.loads += 1
        value = self.loads
        assert self.go.wait(10)
        if self.error:
            raise self.error
        return value


def until(condition: Callable[..., object], *args: object) -> None:
    begin = time.monotonic()
    while not condition(*args):
        assert time.monotonic() - begin < 10, "it did not happen in time"
        time.sleep(0.001)


def at_once(times: int, call: Callable[[], Any]) -> list[Any]:
    """Call it from so many threads; return results and exceptions."""

    def one(_: int) -> Any:
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(one, range(times)))


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Begin to call it in another thread; the list will have the result, or what was raised."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def answer_when_all_wait(cache: Cache, origin: Origin, callers: int) -> None:
    """Hold the origin back until so many have joined the load, or begun it."""
    origin.go.clear()
    flight, joined = cache.inner._flight, list[str]()

    def join(key: str, *load: Any) -> Any:
        joined.append(key)
        if len(joined) == callers:
            threading.Timer(0.02, origin.go.set).start()
        return flight(key, *load)

    cache.inner._flight = join


def claims_of(cache: Cache) -> list[str]:
    """Return a list that grows by the key of each claim that is asked for from now on."""
    claims: list[str] = []
    claim = cache.inner._store.claim

    def noted(key: str, seconds: float) -> Any:
        claims.append(key)
        return claim(key, seconds)

    cache.inner._store.claim = noted
    return claims
