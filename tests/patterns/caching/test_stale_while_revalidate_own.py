"""Proves docs/patterns/caching/stale-while-revalidate.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

from swr_async import AsyncSWRCache
from swr_core import State
from swr_stores_async import AsyncMemoryStore


async def test_my_report_is_served_while_the_source_is_down() -> None:
    now, source = [0.0], {"rate": 25.1}
    cache = AsyncSWRCache(AsyncMemoryStore(), fresh_for=60, stale_for=30, error_for=600, clock=lambda: now[0])

    async def load() -> float:
        return source["rate"]  # what your code loads

    assert await cache.get("EUR", load) == 25.1
    now[0] = 60.0
    source["rate"] = 25.3
    assert await cache.get("EUR", load) == 25.1  # stale: at once, and refreshed behind ...
    await cache.close()  # ... which has ended now
    assert (await cache.fetch("EUR", load)).state is State.FRESH
    assert await cache.get("EUR", load) == 25.3


# --8<-- [end:own]
