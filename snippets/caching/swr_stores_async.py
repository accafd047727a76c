"""Where a stale-while-revalidate cache keeps its entries: in this process, or in Redis (async)."""

from __future__ import annotations

import math
from typing import Any

from redis.asyncio import Redis

from swr_core import PUT, Entry, EntryTable, pack, unpack


class AsyncMemoryStore:
    """Entries in this process. It hands out the stored object itself: do not change it."""

    def __init__(self, max_items: int = 10_000) -> None:
        self._table = EntryTable(max_items)

    async def get(self, key: str) -> Entry[Any] | None:
        """Return the entry, or None."""
        return self._table.get(key)

    async def put(self, key: str, entry: Entry[Any], ttl: float, now: float) -> None:
        """Keep it for `ttl` seconds, unless there is one whose load began later."""
        self._table.put(key, entry, ttl, now)

    async def claim(self, key: str, seconds: float) -> bool:
        """Return True: the caller may refresh. One at a time in a process is the cache's matter."""
        return True

    async def release(self, key: str, after: float) -> None:
        """Let the next one refresh `key` after so many seconds."""


class AsyncRedisStore:
    """Entries in Redis or Valkey, as JSON; all processes share them, and the right to refresh.

    Make the client with `socket_timeout`. Its failures go to `on_error`, and count as a miss.
    """

    def __init__(self, redis: Redis, namespace: str) -> None:
        self._redis = redis
        self._namespace = namespace
        self._put_script: Any = redis.register_script(PUT)

    async def get(self, key: str) -> Entry[Any] | None:
        """Return the entry, or None; raise `ValueError` for what is none."""
        return unpack(await self._redis.get(f"{self._namespace}:entry:{key}"))

    async def put(self, key: str, entry: Entry[Any], ttl: float, now: float) -> None:
        """Keep it for `ttl` seconds, unless there is one whose load began later.

        Raises `TypeError` for a value that does not come through JSON unchanged.
        """
        args = [pack(entry), entry.stored_at, now, math.ceil(ttl * 1000)]
        await self._put_script(keys=[f"{self._namespace}:entry:{key}"], args=args)

    async def claim(self, key: str, seconds: float) -> bool:
        """Say whether the caller may refresh; nobody else may until `seconds` are over."""
        name = f"{self._namespace}:claim:{key}"
        return bool(await self._redis.set(name, 1, nx=True, px=math.ceil(seconds * 1000)))

    async def release(self, key: str, after: float) -> None:
        """Let the next one refresh `key` after so many seconds."""
        # Whose claim it is does not matter: at worst two refresh, and who began later is kept.
        name = f"{self._namespace}:claim:{key}"
        if after:
            await self._redis.set(name, 1, px=math.ceil(after * 1000))
        else:
            await self._redis.delete(name)
