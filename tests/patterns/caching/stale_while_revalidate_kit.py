"""What the proofs of stale-while-revalidate share: caches of both colors, and what the page's plot is drawn from."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
import redis.asyncio

from harness.clock import Clock
from harness.color import Blocking, Color
from harness.origin import Origin
from swr_async import AsyncSWRCache
from swr_core import State
from swr_stores_async import AsyncMemoryStore, AsyncRedisStore
from swr_stores_sync import MemoryStore, RedisStore
from swr_sync import SWRCache

TIMES: dict[str, float] = {"fresh_for": 60.0, "stale_for": 30.0}
FRESH_FOR, STALE_FOR, ERROR_FOR = 30, 30, 60  # of the plot


class Cache(Blocking):
    """A cache that proofs call as if it were sync; `load` is a sync function, which may block."""

    def get(self, key: str, load: Callable[[], Any]) -> Any:
        return self.color.call(self.inner.get, key, self.color.function(load))

    def fetch(self, key: str, load: Callable[[], Any]) -> Any:
        return self.color.call(self.inner.fetch, key, self.color.function(load))

    @property
    def store(self) -> Blocking:
        return Blocking(self.color, self.inner._store)

    def idle(self) -> bool:
        return not self.inner._behind and not self.inner._flights


class Maker:
    """Makes stores and caches of one color, on one clock, and notes their errors."""

    def __init__(self, color: Color, clock: Clock) -> None:
        self.color = color
        self.clock = clock
        self.errors: list[tuple[str, str]] = []

    def memory(self, *args: Any, **options: Any) -> Any:
        return self.color.pick(AsyncMemoryStore, MemoryStore)(*args, **options)

    def redis(self, url: str, namespace: str = "test", timeout: float = 5.0) -> Any:
        kind: Any = self.color.pick(redis.asyncio.Redis, redis.Redis)
        client = kind.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout)
        return self.color.pick(AsyncRedisStore, RedisStore)(self.color.closing(client), namespace)

    def store(self, kind: str, url: str) -> Any:
        return self.memory() if kind == "memory" else self.redis(url)

    def cache(self, store: Any = None, **options: Any) -> Cache:
        options = {**TIMES, "clock": self.clock, "on_error": self._note} | options
        inner: Any = self.color.pick(AsyncSWRCache, SWRCache)(store or self.memory(), **options)
        self.color.afterwards(lambda: inner.close(0.1))
        return Cache(self.color, inner)

    def _note(self, key: str, error: BaseException) -> None:
        self.errors.append((key, str(error)))


@pytest.fixture
def maker(color: Color) -> Maker:
    return Maker(color, Clock(1_763_672_400.0))


def answer_when_all_wait(cache: Cache, origin: Origin, callers: int) -> None:
    """Hold the origin back until so many have joined the load, or begun it."""
    origin.go.clear()
    flight, joined = cache.inner._join_flight, list[str]()

    def join(key: str, *load: Any) -> Any:
        joined.append(key)
        if len(joined) == callers:
            threading.Timer(0.02, origin.go.set).start()
        return flight(key, *load)

    cache.inner._join_flight = join


def claims_of(cache: Cache) -> list[str]:
    """Return a list that grows by the key of each claim that is asked for from now on."""
    claims: list[str] = []
    claim = cache.inner._store.claim

    def noted(key: str, seconds: float) -> Any:
        claims.append(key)
        return claim(key, seconds)

    cache.inner._store.claim = noted
    return claims


# --- What the page's plot is drawn from ---


def timeline() -> dict[str, list[tuple[float, float, str]]]:
    """Run the cache at each age up to 120 s, and return from when to when readers get what."""
    return {
        "the origin works": asyncio.run(_timeline(down=False)),
        "the origin is down": asyncio.run(_timeline(down=True)),
    }


async def _timeline(*, down: bool) -> list[tuple[float, float, str]]:
    spans: list[tuple[float, float, str]] = []
    for age in range(120):
        answer = await _answer_at(age, down=down)
        if spans and spans[-1][2] == answer:
            spans[-1] = (spans[-1][0], age + 1, answer)
        else:
            spans.append((age, age + 1, answer))
    return spans


async def _answer_at(age: float, *, down: bool) -> str:
    now, broken = [0.0], False
    cache = AsyncSWRCache(
        AsyncMemoryStore(),
        fresh_for=FRESH_FOR,
        stale_for=STALE_FOR,
        error_for=ERROR_FOR,
        clock=lambda: now[0],
        on_error=lambda key, error: None,
    )

    async def load() -> str:
        if broken:
            raise ConnectionError
        return "new" if now[0] else "old"

    await cache.get("k", load)
    now[0], broken = age, down
    try:
        served = await cache.fetch("k", load)
    except ConnectionError:
        return "error"
    finally:
        await cache.close()
    if served.error:
        return "old, marked"
    return {State.STALE: "old, at once"}.get(served.state, "fresh" if served.value == "old" or not age else "waits")
