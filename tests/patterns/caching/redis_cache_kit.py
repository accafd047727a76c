"""What the proofs of redis-cache share: caches of both colors, and a function that they cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import redis_cache_async
import redis_cache_sync
from harness.color import Blocking, Color
from harness.origin import Origin
from redis_cache_async import AsyncRedisCache
from redis_cache_sync import RedisCache
from servers.faults import FaultProxy
from servers.valkey import Valkey

CONNECT: dict[str, Any] = {"async": redis_cache_async.connect, "sync": redis_cache_sync.connect}
CACHE: dict[str, Any] = {"async": AsyncRedisCache, "sync": RedisCache}

Make = Callable[..., "Cache"]


class Cache(Blocking):
    """A cache that proofs call as if it were sync; so are the functions that it has decorated."""

    def cached(self, *args: Any, **kwargs: Any) -> Callable[[Callable[..., Any]], Blocking]:
        decorate = self.inner.cached(*args, **kwargs)
        return lambda func: Blocking(self.color, decorate(self.color.function(func)))


@pytest.fixture
def make(color: Color) -> Make:
    """Make caches of this color; their clients are closed with it."""

    def made(url: str, *, timeout: float = 5.0, **options: Any) -> Cache:
        client = color.closing(CONNECT[color.name](url, timeout=timeout))
        return Cache(color, CACHE[color.name](client, **{"namespace": "test"} | options))

    return made


@pytest.fixture
def cache(make: Make, valkey_url: str) -> Cache:
    return make(valkey_url)


@pytest.fixture
def proxy(own_valkey: Valkey, fault_proxy: type[FaultProxy]) -> FaultProxy:
    """A way to a server of this test's own that can be disturbed."""
    return fault_proxy("127.0.0.1", own_valkey.port)


def cached_by(cache: Cache, origin: Origin, **options: Any) -> Blocking:
    """Return a function that loads from `origin`, cached for a minute."""

    def load(x: int = 0) -> Any:
        return origin()

    return cache.cached(**{"ttl": 60} | options)(load)


class Counting:
    """Counts the calls of a method of the cache."""

    def __init__(self, cache: Cache, method: str) -> None:
        self.value = 0
        original = getattr(cache.inner, method)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.value += 1
            return original(*args, **kwargs)

        setattr(cache.inner, method, counted)
