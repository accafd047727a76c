"""Proves docs/patterns/resilience/service-warm-up.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import asyncio

from warmup_async import AsyncServices


async def test_your_client_is_made_once_and_closed_once() -> None:
    log: list[str] = []

    async def connect(name: str) -> str:  # yours, with its client replaced
        log.append(f"connect {name}")
        await asyncio.sleep(0)
        return f"client of {name}"

    async def disconnect(client: str) -> None:
        log.append(f"close {client}")

    services = AsyncServices(connect, close=disconnect)
    clients = await asyncio.gather(*(services.get("db") for _ in range(20)))
    assert set(clients) == {"client of db"}
    await services.aclose()
    assert log == ["connect db", "close client of db"]


# --8<-- [end:own]
