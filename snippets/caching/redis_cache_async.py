"""Share the results of async functions between processes through Redis or Valkey, computed once.

Needs `cache_codec.py` and `redis_cache_core.py` beside it. One cache belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import random
import secrets
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Generic, ParamSpec, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis

import redis_cache_core as core
from cache_codec import JsonSerializer, Serializer

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
log = logging.getLogger(__name__)


def connect(url: str, *, timeout: float = 0.1, max_connections: int = 50) -> Redis:
    """Return a client that gives up after `timeout` seconds, without the default's 10 retries.

    When all connections are busy a caller waits for one, also `timeout` seconds at most.
    Raises `ValueError` for a `timeout` that is no number over 0.
    """
    core.checked_seconds("timeout", timeout)
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=timeout,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=None,
    )
    return Redis.from_pool(pool)


class AsyncRedisCache:
    """One namespace in Redis: results of functions, and values under names of your own.

    With `fail_open` a failing Redis means computing as if there were no cache; without it,
    `CacheUnavailable`. `lock_ttl` (seconds) must be more than the slowest function takes, or its
    result is not stored; `wait` (seconds) bounds the wait for another caller who computes the same.
    Raise `version` when stored values change their meaning.

    Raises `ValueError` for a client that decodes, a namespace or version that makes no key, and
    times that are not above 0 and finite; `wait` may be 0.
    """

    def __init__(
        self,
        client: Redis,
        *,
        namespace: str,
        version: int = 1,
        serializer: Serializer | None = None,
        fail_open: bool = True,
        lock_ttl: float = 10.0,
        wait: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: Callable[[], float] = random.random,
    ) -> None:
        if client.connection_pool.connection_kwargs.get("decode_responses"):
            raise ValueError("the client must hand out bytes: decode_responses=False")
        self.client = client
        self.fail_open = fail_open
        self._serializer = serializer or JsonSerializer()
        self._keys = core.CacheKeys(namespace, version, self._serializer)
        self._lock_ms = core.milliseconds("lock_ttl", lock_ttl)
        self._wait = core.checked_seconds("wait", wait, or_zero=True)
        self._clock = clock
        self._sleep = sleep
        self._rng = rng
        self._health = core.ServerHealth(clock)
        self._acquire_script = client.register_script(core.ACQUIRE)
        self._store_script = client.register_script(core.STORE)
        self._release_script = client.register_script(core.RELEASE)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **options: Any) -> AsyncRedisCache:
        """Make one from REDIS_URL, CACHE_NAMESPACE and CACHE_VERSION.

        Raises `RuntimeError` naming one that is missing, `ValueError` for one that is malformed.
        """
        url, namespace, version = core.read_settings(environ)
        return cls(connect(url), namespace=namespace, version=version, **options)

    def cached(
        self,
        ttl: float,
        *,
        key: Callable[..., str] | None = None,
        jitter: float = 0.1,
        cache_none: bool = True,
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], AsyncCachedFunction[P, R]]:
        """Decorate a function: its results live `ttl` seconds, give or take the share `jitter`.

        `key` is called with all arguments, defaults too, and returns the text that stands for them
        where they have no text form or do not all matter.

        Raises `TypeError` for a function of the other color, a generator or no function at all, and
        `ValueError` for a `ttl` or `jitter` out of range.
        """

        def decorate(func: Callable[P, Coroutine[Any, Any, R]]) -> AsyncCachedFunction[P, R]:
            plan = core.CachingPlan(
                func, self._keys, ttl, key, jitter, cache_none, asynchronous=True
            )
            return AsyncCachedFunction(self, plan)

        return decorate

    async def get(self, name: str, default: Any = None) -> Any:
        """Return the value that was `set` under `name`, else `default`."""
        key = self._keys.name(name)
        found = await self._ask_if_up(lambda: self.client.mget(key))
        value = core.unwrap(self._serializer, found[0]) if found else core.MISS
        return default if value is core.MISS else value

    async def set(self, name: str, value: Any, ttl: float) -> bool:
        """Keep `value` for `ttl` seconds; return False when Redis could not be told."""
        key, life = self._keys.name(name), core.milliseconds("ttl", ttl)
        data = core.wrap(self._serializer, value)
        return await self._ask_if_up(lambda: self.client.set(key, data, px=life)) is not None

    async def delete(self, name: str) -> bool:
        """Forget the value under `name`; return False when Redis could not be told."""
        return await self.forget(self._keys.name(name))

    async def forget(self, key: str) -> bool:
        """Delete a key of Redis, and the lock of whoever is computing its value now."""
        both = (key, core.lock_of(key))
        return await self._ask_if_up(lambda: self.client.delete(*both), forgetting=key) is not None

    async def fetch(
        self, plan: core.CachingPlan, args: Any, kwargs: Any, *, force: bool = False
    ) -> Any:
        """Return the shared result of a call, or compute it; `force` computes in any case."""
        key, token = plan.key_of(*args, **kwargs), secrets.token_bytes(16)
        keys = [key, core.lock_of(key)]
        try:
            value, leads = await self._find_or_lock(keys, token, force)
        except core.CacheUnavailable:
            if not self.fail_open:
                raise
            value, leads = core.MISS, False
        except GeneratorExit:  # closed with its loop: nothing can be awaited any more
            raise
        except BaseException:  # cancelled or interrupted: the lock may be ours already
            await self._free_lock(keys, token)
            raise
        if value is not core.MISS:
            return value
        if not leads:
            return await plan.func(*args, **kwargs)
        return await self._compute_and_store(plan, args, kwargs, keys, token)

    async def _compute_and_store(
        self, plan: core.CachingPlan, args: Any, kwargs: Any, keys: list[str], token: bytes
    ) -> Any:
        """Call the function with the lock, which ends in any case."""
        began = self._clock()
        try:
            value = await plan.func(*args, **kwargs)
            data = core.wrap(self._serializer, value)
            if value is None and not plan.cache_none:
                await self._free_lock(keys, token)
                return None
            life = plan.life(self._rng)
            stored = await self._ask_if_up(
                lambda: self._store_script(keys=keys, args=[token, data, life])
            )
        except GeneratorExit:  # closed with its loop: nothing can be awaited any more
            raise
        except BaseException:
            await self._free_lock(keys, token)
            raise
        if stored == 0 and (self._clock() - began) * 1000 >= self._lock_ms:
            log.warning("%s took longer than lock_ttl: its result is not stored", plan.label)
        return value

    async def _find_or_lock(self, keys: list[str], token: bytes, force: bool) -> tuple[Any, bool]:
        """Return the value or MISS, and whether the caller has the lock, to compute and store."""
        if force:  # take the lock from whoever has it: what they have read may be older
            await self._ask_server(lambda: self.client.set(keys[1], token, px=self._lock_ms))
            return core.MISS, True
        found = await self._ask_server(lambda: self.client.mget(keys[0]))
        value = core.unwrap(self._serializer, found[0])
        for has_waited in (False, True):
            if value is not core.MISS:
                return value, False
            found, holder = await self._ask_server(
                lambda: self._acquire_script(keys=keys, args=[token, self._lock_ms])
            )
            value = core.unwrap(self._serializer, found)
            if holder == token and value is core.MISS:
                return value, True
            if holder == token:  # stored between the two looks
                await self._free_lock(keys, token)
            elif value is core.MISS and not has_waited:
                value = await self._wait_for_leader(keys, holder)
        return value, False

    async def _wait_for_leader(self, keys: list[str], holder: bytes) -> Any:
        """Return the value when `holder` has stored it; MISS when they give up or take too long."""
        deadline, pause = self._clock() + self._wait, 0.005
        while (left := deadline - self._clock()) > 0:
            await self._sleep(min(pause, left))
            pause = min(1.5 * pause, 0.05)
            found, now = await self._ask_server(lambda: self.client.mget(keys))
            value = core.unwrap(self._serializer, found)
            if value is not core.MISS or now != holder:
                return value
        return core.MISS

    async def _free_lock(self, keys: list[str], token: bytes) -> None:
        with contextlib.suppress(core.CacheUnavailable):  # then the lock ends by itself
            await self._ask_server(lambda: self._release_script(keys=keys, args=[token]))

    async def _ask_if_up(
        self, send: Callable[[], Awaitable[T]], *, forgetting: str = ""
    ) -> T | None:
        try:  # to forget even while Redis is left alone: stale is worse than slow
            return await self._ask_server(send, insist=bool(forgetting))
        except core.CacheUnavailable:
            if not self.fail_open:
                raise
            if forgetting:
                log.warning("could not invalidate %s: it is served until it expires", forgetting)
            return None

    async def _ask_server(self, send: Callable[[], Awaitable[T]], *, insist: bool = False) -> T:
        if self._health.resting() and not insist:
            raise core.CacheUnavailable("left alone after failing")
        try:
            reply = await send()
        except core.ASYNC_SERVER_ERRORS as error:
            if self._health.failed():
                log.warning("the cache is skipped for %g s: %s", core.REST, error)
            raise core.CacheUnavailable(str(error)) from error
        self._health.succeeded()
        return reply


class AsyncCachedFunction(Generic[P, R]):
    """What `@cache.cached(...)` makes of a function; call it as before."""

    def __init__(self, cache: AsyncRedisCache, plan: core.CachingPlan) -> None:
        functools.update_wrapper(self, plan.func)
        self._cache = cache
        self._plan = plan

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the shared result; compute it when there is none."""
        result: R = await self._cache.fetch(self._plan, args, kwargs)
        return result

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Compute now and share the result; until then others are given the old one."""
        result: R = await self._cache.fetch(self._plan, args, kwargs, force=True)
        return result

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Forget the result, and one being computed now; False when Redis could not be told."""
        return await self._cache.forget(self.key_for(*args, **kwargs))

    def key_for(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the name of the result in Redis."""
        return self._plan.key_of(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """Bind to an object, so that a method can be cached."""
        return self if instance is None else types.MethodType(self, instance)
