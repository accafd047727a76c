"""Proves docs/patterns/resilience/graceful-shutdown.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from graceful_shutdown import Lifecycle


async def test_your_worker_finishes_its_message_and_takes_no_new_one() -> None:
    lifecycle, done = Lifecycle(drain_delay=0, grace=1), list[str]()

    async def messages() -> AsyncIterator[str]:
        yield "first"
        yield "second"

    async def handle(message: str) -> None:  # yours
        lifecycle.draining = True  # the signal comes while it works on the first
        lifecycle._draining.set()
        await asyncio.sleep(0)
        done.append(message)

    async def consume() -> None:
        async for message in lifecycle.until_draining(messages()):
            await handle(message)

    lifecycle.track(consume(), "consumer")
    report = await lifecycle.stop("test")
    assert (done, report.cancelled) == (["first"], ())


# --8<-- [end:own]
