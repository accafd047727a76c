"""Share the results of async functions between processes through Redis or Valkey, computed once.

Needs `cache_codec.py` and `cache_core.py` beside it. One cache belongs to one event loop.
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

from redis import RedisError
from redis.asyncio import BlockingConnectionPool, Redis

import cache_core as core
from cache_codec import JsonSerializer, Serializer

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
log = logging.getLogger(__name__)


def connect(url: str, *, timeout: float = 0.1, max_connections: int = 50) -> Redis:
    """Return a client that gives up after `timeout` seconds, without the default's 10 retries.

    When all connections are busy a caller waits for one, also `timeout` seconds at most.
    """
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
        self.client, self.fail_open = client, fail_open
        self._serializer = serializer or JsonSerializer()
        self._keys = core.Keys(namespace, version, self._serializer)
        self._lock_ms, self._wait = core.milliseconds(lock_ttl), wait
        self._clock, self._sleep, self._rng = clock, sleep, rng
        self._health = core.Health(clock)
        self._acquire = client.register_script(core.ACQUIRE)
        self._store = client.register_script(core.STORE)
        self._release = client.register_script(core.RELEASE)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **options: Any) -> AsyncRedisCache:
        """Read REDIS_URL, CACHE_NAMESPACE and CACHE_VERSION; `RuntimeError` names a missing one."""
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

        Raises `TypeError` for anything but an `async def` function, and `ValueError` for a `ttl` or
        `jitter` out of range.
        """

        def decorate(func: Callable[P, Coroutine[Any, Any, R]]) -> AsyncCachedFunction[P, R]:
            plan = core.Plan(func, self._keys, ttl, key, jitter, cache_none, asynchronous=True)
            return AsyncCachedFunction(self, plan)

        return decorate

    async def get(self, name: str, default: Any = None) -> Any:
        """Return the value that was `set` under `name`, else `default`."""
        key = self._keys.name(name)
        found = await self._try(lambda: self.client.mget(key))
        value = core.unwrap(self._serializer, found[0]) if found else core.MISS
        return default if value is core.MISS else value

    async def set(self, name: str, value: Any, ttl: float) -> bool:
        """Keep `value` for `ttl` seconds; return False when Redis could not be told."""
        key, life = self._keys.name(name), core.milliseconds(ttl)
        data = core.wrap(self._serializer, value)
        return await self._try(lambda: self.client.set(key, data, px=life)) is not None

    async def delete(self, name: str) -> bool:
        """Forget the value under `name`; return False when Redis could not be told."""
        return await self.forget(self._keys.name(name))

    async def forget(self, key: str) -> bool:
        """Delete a key of Redis, and the lock of whoever is computing its value now."""
        both = (key, core.lock_of(key))
        return await self._try(lambda: self.client.delete(*both), forgetting=key) is not None

    async def fetch(self, plan: core.Plan, args: Any, kwargs: Any, *, force: bool = False) -> Any:
        """Return the shared result of a call, or compute it; `force` computes in any case."""
        key, token = plan.key_of(*args, **kwargs), secrets.token_bytes(16)
        keys = [key, core.lock_of(key)]
        try:
            value, leads = await self._enter(keys, token, force)
        except core.CacheUnavailable:
            if not self.fail_open:
                raise
            value, leads = core.MISS, False
        except asyncio.CancelledError:  # the lock may be ours already
            await self._give_up(keys, token)
            raise
        if value is not core.MISS:
            return value
        if not leads:
            return await plan.func(*args, **kwargs)
        began = self._clock()
        try:
            value = await plan.func(*args, **kwargs)
            data = core.wrap(self._serializer, value)
        except BaseException:
            await self._give_up(keys, token)
            raise
        if value is None and not plan.cache_none:
            await self._give_up(keys, token)
            return None
        life = plan.life(self._rng)
        stored = await self._try(lambda: self._store(keys=keys, args=[token, data, life]))
        if stored == 0 and (self._clock() - began) * 1000 >= self._lock_ms:
            log.warning("%s took longer than lock_ttl: its result is not stored", plan.label)
        return value

    async def _enter(self, keys: list[str], token: bytes, force: bool) -> tuple[Any, bool]:
        """Return the value or MISS, and whether the caller has the lock, to compute and store."""
        if force:  # take the lock from whoever has it: what they have read may be older
            await self._ask(lambda: self.client.set(keys[1], token, px=self._lock_ms))
            return core.MISS, True
        found = await self._ask(lambda: self.client.mget(keys[0]))
        value = core.unwrap(self._serializer, found[0])
        for has_waited in (False, True):
            if value is not core.MISS:
                return value, False
            found, holder = await self._ask(
                lambda: self._acquire(keys=keys, args=[token, self._lock_ms])
            )
            value = core.unwrap(self._serializer, found)
            if holder == token and value is core.MISS:
                return value, True
            if holder == token:  # stored between the two looks
                await self._give_up(keys, token)
            elif value is core.MISS and not has_waited:
                value = await self._wait_for(keys, holder)
        return value, False

    async def _wait_for(self, keys: list[str], holder: bytes) -> Any:
        """Return the value when `holder` has stored it; MISS when they give up or take too long."""
        deadline, pause = self._clock() + self._wait, 0.005
        while (left := deadline - self._clock()) > 0:
            await self._sleep(min(pause, left))
            pause = min(1.5 * pause, 0.05)
            found, now = await self._ask(lambda: self.client.mget(keys))
            value = core.unwrap(self._serializer, found)
            if value is not core.MISS or now != holder:
                return value
        return core.MISS

    async def _give_up(self, keys: list[str], token: bytes) -> None:
        with contextlib.suppress(core.CacheUnavailable):  # then the lock ends by itself
            await self._ask(lambda: self._release(keys=keys, args=[token]))

    async def _try(self, send: Callable[[], Awaitable[T]], *, forgetting: str = "") -> T | None:
        try:  # to forget even while Redis is left alone: stale is worse than slow
            return await self._ask(send, insist=bool(forgetting))
        except core.CacheUnavailable:
            if not self.fail_open:
                raise
            if forgetting:
                log.warning("could not invalidate %s: it is served until it expires", forgetting)
            return None

    async def _ask(self, send: Callable[[], Awaitable[T]], *, insist: bool = False) -> T:
        if self._health.resting() and not insist:
            raise core.CacheUnavailable("left alone after failing")
        try:
            reply = await send()
        # asyncio in Python 3.12 and 3.13.0 raises AttributeError where a connection has been reset.
        except (RedisError, AttributeError) as error:
            if self._health.failed():
                log.warning("the cache is skipped for %g s: %s", core.REST, error)
            raise core.CacheUnavailable(str(error)) from error
        self._health.succeeded()
        return reply


class AsyncCachedFunction(Generic[P, R]):
    """What `@cache.cached(...)` makes of a function; call it as before."""

    def __init__(self, cache: AsyncRedisCache, plan: core.Plan) -> None:
        functools.update_wrapper(self, plan.func)
        self._cache, self._plan = cache, plan

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
