"""Measures docs/patterns/resilience/service-warm-up.md: what it costs to get a service that is ready."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable

import async_lru
import cachetools

from bench.kit import Table, compare, ratio_table, version
from warmup_async import AsyncServices
from warmup_sync import Services

OURS, CALLS = "this pattern", 2000


async def amake(key: str) -> str:
    return key


def hit_async() -> Table:
    loop, lock, known = asyncio.new_event_loop(), asyncio.Lock(), {"db": "db"}

    async def locked(key: str) -> str:
        async with lock:
            return known[key]

    getters: dict[str, Callable[[str], Awaitable[str]]] = {
        OURS: AsyncServices(amake).get,
        "one lock for all keys": locked,
        version("async-lru"): async_lru.alru_cache(amake),
    }

    def many(get: Callable[[str], Awaitable[str]]) -> Callable[[], object]:
        async def gets() -> None:
            for _ in range(CALLS):
                await get("db")

        return lambda: loop.run_until_complete(gets())

    try:
        seconds = compare({name: many(get) for name, get in getters.items()}, calls=1, rounds=51, per_call=CALLS)
    finally:
        loop.close()
    return ratio_table("hit-async", seconds, base=OURS, note="An awaited `get` of a service that is ready.")


def hit_sync() -> Table:
    lock, known = threading.Lock(), {"db": "db"}

    def locked(key: str) -> str:
        with lock:
            return known[key]

    getters: dict[str, Callable[[str], object]] = {
        OURS: Services(str).get,
        "one lock for all keys": locked,
        f"{version('cachetools')}, with lock": cachetools.cached({}, lock=threading.Lock())(str),
        "functools.cache": functools.cache(str),
    }

    def many(get: Callable[[str], object]) -> Callable[[], object]:
        def gets() -> None:
            for _ in range(CALLS):
                get("db")

        return gets

    seconds = compare({name: many(get) for name, get in getters.items()}, calls=1, rounds=101, per_call=CALLS)
    return ratio_table("hit-sync", seconds, base=OURS, note="A `get` of a service that is ready, from one thread.")


def tables() -> list[Table]:
    return [hit_async(), hit_sync()]
