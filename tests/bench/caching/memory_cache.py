"""Measures docs/patterns/caching/memory-cache.md: what a hit costs, alone and under eight threads."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import async_lru
import cachetools

from bench.kit import Plot, Table, compare, ratio_table, version
from memoize_async import memoize_async
from memoize_sync import memoize
from memory_cache import TTLCache

OURS, CACHETOOLS = "this pattern", f"{version('cachetools')}, with lock and TTL"
CALLS, THREADS = 2000, 8


def load(key: int) -> int:
    return key


def subjects() -> dict[str, Callable[[int], object]]:
    """Return functions that look a number up, each of which has 100 results in its cache."""
    cache, plain = TTLCache[int, int](1000, 3600), dict[int, int]()
    for key in range(100):
        cache.set(key, key)
        plain[key] = key
    made: dict[str, Callable[[int], object]] = {
        OURS: memoize(1000, 3600)(load),
        "this pattern, `TTLCache.get`": cache.get,
        CACHETOOLS: cachetools.cached(cachetools.TTLCache(1000, 3600), lock=threading.Lock())(load),
        "functools.lru_cache (no TTL)": functools.lru_cache(1000)(load),
        "dict (no limit)": plain.get,
    }
    for fn in made.values():
        for key in range(100):
            fn(key)
    return made


def hits_of(fn: Callable[[int], object], calls: int) -> None:
    for number in range(calls):
        fn(number % 100)


def hit() -> dict[str, float]:
    timed = {name: functools.partial(hits_of, fn, CALLS) for name, fn in subjects().items()}
    return compare(timed, calls=1, rounds=101, per_call=CALLS)


def hit_table(seconds: dict[str, float]) -> Table:
    note = "A hit in a cache of 100 results with one integer argument, from one thread."
    return ratio_table("hit", seconds, base=OURS, note=note)


def crowded() -> Table:
    """Time hits from eight threads that share a cache."""
    samples: dict[str, list[float]] = {name: [] for name in subjects()}
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(15):
            for name, fn in subjects().items():
                begun = time.perf_counter()
                list(pool.map(lambda fn: hits_of(fn, CALLS), [fn] * THREADS))
                samples[name].append((time.perf_counter() - begun) / CALLS / THREADS)
    seconds = {name: sorted(each)[len(each) // 2] for name, each in samples.items()}
    note = "The same from eight threads at once: the time of all, divided by the number of hits."
    return ratio_table("hit-threads", seconds, base=OURS, note=note)


def hit_async() -> Table:
    async def aload(key: int) -> int:
        return key

    loop = asyncio.new_event_loop()
    made: dict[str, Callable[[int], Awaitable[object]]] = {
        OURS: memoize_async(1000, 3600)(aload),
        f"{version('async-lru')}, with TTL": async_lru.alru_cache(1000, ttl=3600)(aload),
        "no cache": aload,
    }

    def many(fn: Callable[[int], Awaitable[object]]) -> Callable[[], object]:
        async def hits() -> None:
            for number in range(CALLS):
                await fn(number % 100)

        return lambda: loop.run_until_complete(hits())

    try:
        seconds = compare({name: many(fn) for name, fn in made.items()}, calls=1, rounds=51, per_call=CALLS)
        loop.run_until_complete(made[f"{version('async-lru')}, with TTL"].cache_close())  # type: ignore[attr-defined]
    finally:
        loop.close()
    note = "An awaited hit in a cache of 100 results; `no cache` awaits a coroutine that returns at once."
    return ratio_table("hit-async", seconds, base=OURS, note=note)


MEASURED: dict[str, float] = {}


def tables() -> list[Table]:
    MEASURED.update(hit())
    return [hit_table(MEASURED), crowded(), hit_async()]


def plots() -> list[Plot]:
    rows = sorted(((name.replace("`", ""), each) for name, each in MEASURED.items()), key=lambda row: row[1])

    def draw(axes: Any) -> None:
        axes.barh([name for name, _ in rows], [seconds * 1e6 for _, seconds in rows], height=0.5)
        axes.set_xlabel("µs a hit")
        axes.invert_yaxis()

    alt = "Time of a hit in µs: " + ", ".join(f"{name} {seconds * 1e6:.2g}" for name, seconds in rows) + "."
    return [Plot("hit-cost", alt, draw, size=(7.0, 2.4))]
