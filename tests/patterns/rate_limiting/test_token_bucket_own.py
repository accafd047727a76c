"""Proves docs/patterns/rate-limiting/token-bucket.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import asyncio

import pytest

from token_bucket_async import AsyncTokenBucket


async def test_your_calls_go_out_in_a_burst_and_then_at_the_rate() -> None:
    now = 0.0

    async def wait(event: asyncio.Event, seconds: float | None) -> None:
        nonlocal now
        await asyncio.sleep(0) if seconds else await event.wait()
        now += seconds or 0

    bucket = AsyncTokenBucket(rate=10, capacity=5, clock=lambda: now, wait=wait)
    sent = []

    async def call_the_api() -> None:  # yours, with its client replaced
        await bucket.acquire()
        sent.append(now)

    await asyncio.gather(*(call_the_api() for _ in range(25)))
    assert sent[:5] == [0.0] * 5
    assert sent[5:] == pytest.approx([0.1 * n for n in range(1, 21)])


# --8<-- [end:own]
