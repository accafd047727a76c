"""Proves docs/patterns/resilience/timeout-bulkhead.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import asyncio

import pytest

from call_bulkhead import Bulkhead, BulkheadFull


async def test_your_service_refuses_the_call_that_does_not_fit_and_works_again_after_it() -> None:
    search = Bulkhead("search", max_concurrent=2)
    slow = asyncio.Event()

    async def ask() -> str:  # yours, with its client replaced by something that hangs
        await slow.wait()
        return "found"

    running = [asyncio.create_task(search.acall(ask)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(BulkheadFull):
        await search.acall(ask)

    slow.set()
    assert await asyncio.gather(*running) == ["found", "found"]
    assert await search.acall(ask) == "found"


# --8<-- [end:own]
