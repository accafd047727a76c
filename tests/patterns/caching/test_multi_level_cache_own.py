"""Proves docs/patterns/caching/multi-level-cache.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import asyncio

from multi_level_async import AsyncMultiLevelCache, connect
from multi_level_core import MISSING, Missing


async def test_a_renamed_user_has_the_new_name_in_the_other_worker_too(valkey_url: str) -> None:
    names = {"7": "Ada"}

    async def load() -> str | Missing:
        return names.get("7", MISSING)

    async with (
        connect(valkey_url, timeout=5) as redis_client,
        AsyncMultiLevelCache(redis_client, namespace="test") as one,  # two workers of yours
        AsyncMultiLevelCache(redis_client, namespace="test") as other,
    ):
        assert await one.get_or_load("user:7", load) == "Ada"
        assert await other.get_or_load("user:7", load) == "Ada"
        names["7"] = "Grace"  # your UPDATE and its commit ...
        assert await one.invalidate("user:7")  # ... and what your code must not forget
        async with asyncio.timeout(20):
            while await other.get_or_load("user:7", load) == "Ada":
                await asyncio.sleep(0.001)
        assert await other.get_or_load("user:7", load) == "Grace"
        assert one.stats()["loads"] + other.stats()["loads"] == 2


# --8<-- [end:own]
