"""What the proofs of multi-level-cache share: both colors of the cache, called alike, and helpers.

`Twin` runs the async cache on an event loop in a thread of its own, so that every proof is written once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

import multi_level_cache
import multi_level_cache_sync
from servers.valkey import Valkey

MODULES: dict[str, Any] = {"async": multi_level_cache, "sync": multi_level_cache_sync}


class Cache:
    """A cache of either color, called as if it were sync; `inner` is the cache itself."""

    def __init__(self, twin: Twin, inner: Any) -> None:
        self.twin, self.inner = twin, inner
        self.stats: Callable[[], dict[str, int]] = inner.stats

    def get(self, key: str) -> Any:
        return self.twin.wait_for(self.inner.get(key))

    def get_or_load(self, key: str, load: Callable[[], Any]) -> Any:
        return self.twin.wait_for(self.inner.get_or_load(key, self.twin.loader(load)))

    def set(self, key: str, value: Any, ttl: float | None = None) -> Any:
        return self.twin.wait_for(self.inner.set(key, value, ttl))

    def invalidate(self, key: str) -> Any:
        return self.twin.wait_for(self.inner.invalidate(key))


class Twin:
    """Makes caches of one color, whose event loop (if any) runs in a thread, and closes them."""

    def __init__(self, name: str) -> None:
        self.name, self.module = name, MODULES[name]
        self.MISSING = self.module.MISSING
        self.namespace = uuid.uuid4().hex
        self._close: list[Callable[[], object]] = []
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(64))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def wait_for(self, result: Any) -> Any:
        if not inspect.iscoroutine(result):
            return result
        return asyncio.run_coroutine_threadsafe(result, self._loop).result(20)

    def answer(self, value: Any) -> Any:
        """Return the value, or what gives it when awaited."""

        async def give() -> Any:
            return value

        return give() if self.name == "async" else value

    def loader(self, load: Callable[[], Any]) -> Callable[[], Any]:
        return functools.partial(asyncio.to_thread, load) if self.name == "async" else load

    def client(self, url: str, **options: Any) -> Any:
        client = self.module.connect(url, **{"timeout": 5.0} | options)
        self._close.append(client.aclose if self.name == "async" else client.close)
        return client

    def cache(self, url: str, *, client: Any = None, enter: bool = True, hears: bool = True, **options: Any) -> Cache:
        options = {"namespace": self.namespace} | options
        inner = self.module.MultiLevelCache(client or self.client(url), **options)
        if enter:
            self.wait_for(inner.__aenter__() if self.name == "async" else inner.__enter__())
            self._close.append(functools.partial(self.leave, inner, url))
            until(lambda: inner._heard > 0 or not hears)
        return Cache(self, inner)

    def leave(self, inner: Any, url: str) -> Any:
        if self.name == "async":
            return inner.__aexit__(None, None, None)
        inner._stop.set()
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(url, retry=None) as db:
            db.publish(inner._channel, "")  # it hears that it is to stop, instead of at its next tick
        return inner.__exit__(None, None, None)

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


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    """A server where every subscriber may be killed."""
    made = Valkey()
    yield made
    made.stop()


@pytest.fixture
def mortal() -> Iterator[Valkey]:
    """A server of this test's own, to be killed itself."""
    made = Valkey()
    yield made
    made.stop()


class Clock:
    """Time that only a test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Origin:
    """Where values come from. It counts; while `go` is clear it does not return."""

    def __init__(self, value: Any = None) -> None:
        self.value, self.loads = value, 0
        self.error: Exception | None = None
        self.go, self.started = threading.Event(), threading.Semaphore(0)
        self.go.set()

    def __call__(self) -> Any:
        self.loads += 1
        value = self.value if self.value is not None else self.loads  # read first, then slow
        self.started.release()
        assert self.go.wait(10)
        if self.error:
            raise self.error
        return value


def until(condition: Callable[..., object], *args: object) -> float:
    """Wait, and return how long it took."""
    begin = time.monotonic()
    while not condition(*args):
        assert time.monotonic() - begin < 10, "it did not happen in time"
        time.sleep(0.001)
    return time.monotonic() - begin


@contextlib.contextmanager
def running(call: Callable[[], Any]) -> Iterator[list[Any]]:
    """Call it in another thread during the block; after it, the list has the result, or what was raised."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield results
    finally:
        thread.join(10)


def at_once(times: int, call: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(call, range(times)))


def commands_of(cache: Cache) -> list[Any]:
    """Return a list that grows by each command that the cache sends from now on."""
    sent: list[Any] = []
    client = cache.inner._redis
    original = client.execute_command

    def counted(*args: Any, **kwargs: Any) -> Any:
        sent.append(args[0])
        return original(*args, **kwargs)

    client.execute_command = counted
    return sent


def put(cache: Cache, key: str, value: Any, ttl: float | None = None, *, others: Sequence[Cache] = ()) -> None:
    """Set, and wait until this cache has heard its own message, and the others too."""
    wanted = [(cache, cache.inner._changed(key) + 3)]  # before, after, and by message
    wanted += [(other, other.inner._changed(key) + 1) for other in others]
    assert cache.set(key, value, ttl) is True
    until(lambda: all(each.inner._changed(key) == count for each, count in wanted))
