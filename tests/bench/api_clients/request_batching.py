"""Measures docs/patterns/api-clients/request-batching.md: what batching costs, and when a window closes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiodataloader
import strawberry.dataloader

from bench.kit import Plot, Table, compare, ratio_table, version
from patterns.api_clients.request_batching_kit import timeline
from request_batcher import Batcher

OURS, KEYS = "this pattern", 100


async def double(keys: list[int]) -> list[int]:
    return [key * 2 for key in keys]


def one_batch() -> Table:
    loop = asyncio.new_event_loop()
    ours = Batcher(double, max_wait=0)
    full = Batcher(double, max_wait=60, max_size=KEYS)

    async def caller(load: Callable[[int], Awaitable[int]], key: int) -> int:
        return await load(key)

    async def together(load: Callable[[int], Awaitable[int]]) -> None:
        await asyncio.gather(*(caller(load, key) for key in range(KEYS)))

    async def aiodataloaders() -> None:
        await together(aiodataloader.DataLoader(double, cache=False).load)

    async def strawberries() -> None:
        await together(strawberry.dataloader.DataLoader(double, cache=False).load)

    async def many() -> None:
        await ours.load_many(range(KEYS))

    subjects: dict[str, Callable[[], Awaitable[None]]] = {
        OURS: lambda: together(ours.load),
        "this pattern, full window": lambda: together(full.load),
        "this pattern, by `load_many`": many,
        version("aiodataloader"): aiodataloaders,
        version("strawberry-graphql"): strawberries,
    }

    def run(name: str) -> Callable[[], object]:
        return lambda: loop.run_until_complete(subjects[name]())

    try:
        seconds = compare({name: run(name) for name in subjects}, calls=1, rounds=401)
    finally:
        loop.close()
    note = f"{KEYS} tasks that each look one key up, all in one batch, until all have their value; no caches."
    return ratio_table("one-batch", seconds, base=OURS, note=note)


def draw(axes: Any) -> None:
    arrivals, flushes = timeline()
    axes.eventplot([[at * 1000 for at in arrivals]], lineoffsets=[1], linelengths=0.5, colors=["C0"])
    index = 0
    for at, size in flushes:
        opened, index = arrivals[index], index + size
        axes.barh(0, (at - opened) * 1000, left=opened * 1000, height=0.35, color="C1")
        axes.text((opened + at) * 500, -0.4, str(size), ha="center", va="center")
    axes.set_yticks([1, 0], ["look-ups", "windows, and\nkeys in the call"])
    axes.set_ylim(-0.6, 1.5)
    axes.set_xlabel("milliseconds")


def plots() -> list[Plot]:
    arrivals, flushes = timeline()
    alt = (
        f"{len(arrivals)} look-ups over {arrivals[-1] * 1000:.0f} milliseconds, and the windows they fall into. Each "
        "window opens with its first look-up and closes 10 milliseconds later, or at once when it has 8 keys. "
        "Keys in the calls: " + ", ".join(str(size) for _, size in flushes) + "."
    )
    return [Plot("timeline", alt, draw, size=(7.0, 2.2))]


def tables() -> list[Table]:
    return [one_batch()]
