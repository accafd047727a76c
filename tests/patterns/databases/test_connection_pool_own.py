"""Proves docs/patterns/databases/connection-pool.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import pytest

from pool_async import AsyncDatabase
from pool_core import PoolConfig


async def place_order(db: AsyncDatabase, item: str, amount: int) -> None:
    """Stand in for your own code."""
    async with db.connection() as conn:
        await conn.execute("INSERT INTO orders (item) VALUES (%s)", (item,))
        if amount < 1:
            raise ValueError("nothing ordered")


async def test_a_failed_order_leaves_nothing_behind(database_url: str) -> None:
    async with AsyncDatabase(PoolConfig(database_url, app_name="tests")) as db:
        async with db.connection() as conn:
            await conn.execute("CREATE TABLE orders (item text)")
        await place_order(db, "tea", 1)
        with pytest.raises(ValueError, match="nothing ordered"):
            await place_order(db, "sugar", 0)
        async with db.connection() as conn:
            rows = await (await conn.execute("SELECT item FROM orders")).fetchall()
        assert rows == [{"item": "tea"}]


# --8<-- [end:own]
