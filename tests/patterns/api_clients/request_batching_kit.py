"""What the proofs and the benchmark of request-batching share: one run of look-ups and the windows they fall into."""

from __future__ import annotations

import asyncio
import random

from harness import fake_loop
from request_batcher import Batcher


def timeline() -> tuple[list[float], list[tuple[float, int]]]:
    """Return the instants of look-ups, and of each bulk call with its size, in seconds on a fake clock."""
    rng, arrivals, flushes = random.Random(11), list[float](), list[tuple[float, int]]()

    async def fetch(keys: list[int]) -> list[int]:
        flushes.append((asyncio.get_running_loop().time(), len(keys)))
        return keys

    async def main() -> None:
        batcher, tasks = Batcher(fetch, max_wait=0.010, max_size=8), []
        for key in range(40):
            arrivals.append(asyncio.get_running_loop().time())
            tasks.append(asyncio.create_task(batcher.load(key)))
            await asyncio.sleep(0)
            await asyncio.sleep(rng.choice([0.0003, 0.0005, 0.001, 0.002, 0.003]) * (4 if key > 26 else 1))
        await asyncio.gather(*tasks)

    fake_loop.run(main())
    return arrivals, flushes
