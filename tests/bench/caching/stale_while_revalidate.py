"""Measures docs/patterns/caching/stale-while-revalidate.md: what readers wait when values expire under them."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from bench.kit import SERIES, Plot, Table, version
from patterns.caching.stale_while_revalidate_kit import ERROR_FOR, FRESH_FOR, STALE_FOR, timeline
from swr_async import AsyncSWRCache
from swr_stores_async import AsyncMemoryStore

LOAD_SECONDS = 0.05
READS, EXPIRIES = 10_000, 3


async def _waits(get: Callable[[], Awaitable[object]]) -> tuple[list[float], int]:
    """Return what each of many reads has waited; they are spread over three lifetimes of a value."""
    waits: list[float] = []

    async def reader() -> None:
        begin = time.perf_counter()
        await get()
        waits.append(time.perf_counter() - begin)

    await get()
    tasks = []
    lifetime, pause = 1.0, EXPIRIES * 1.0 / (READS / 20)
    end = time.perf_counter() + lifetime * EXPIRIES + 0.2
    while time.perf_counter() < end:
        tasks += [asyncio.create_task(reader()) for _ in range(20)]
        await asyncio.sleep(pause)
    await asyncio.gather(*tasks)
    return waits, len(waits)


async def reads() -> Table:
    """Read one key while it expires three times, and its origin takes 50 ms."""
    from cashews import Cache

    loads = dict.fromkeys(("ours", "early", "plain"), 0)

    def origin(name: str) -> Callable[[], Awaitable[int]]:
        async def load() -> int:
            loads[name] += 1
            await asyncio.sleep(LOAD_SECONDS)
            return loads[name]

        return load

    ours = AsyncSWRCache(AsyncMemoryStore(), fresh_for=0.8, stale_for=60)
    peer = Cache()
    peer.setup("mem://")
    load = origin("ours")
    subjects: dict[str, Callable[[], Awaitable[object]]] = {
        "ours": lambda: ours.get("k", load),
        "early": peer.early(ttl=1.0, early_ttl=0.8, key="early")(origin("early")),
        "plain": peer(ttl=1.0, key="plain")(origin("plain")),
    }
    names = {
        "ours": "this pattern",
        "early": f"{version('cashews')}, `early`",
        "plain": f"{version('cashews')}, expiry alone",
    }
    rows = []
    for name, get in subjects.items():
        waits, count = await _waits(get)
        cuts = statistics.quantiles(waits, n=1000)
        rows.append([names[name], *(_said(cuts[at - 1]) for at in (500, 990, 999)), str(loads[name]), f"{count:,}"])
    await ours.close()
    await peer.close()
    note = (
        "Readers of one key, twenty at a time, over three lifetimes of its value; the origin takes "
        f"{LOAD_SECONDS * 1e3:.0f} ms. A value is fresh for 0.8 s, in memory. Waits include that of the event loop."
    )
    return Table("reads", ("", "median", "99 of 100", "999 of 1000", "loads", "reads"), rows, note)


def _said(seconds: float) -> str:
    milli = seconds * 1e3
    return f"{seconds * 1e6:.2g} µs" if milli < 0.1 else f"{milli:.2g} ms" if milli < 10 else f"{milli:.0f} ms"


def tables() -> list[Table]:
    """Return the table of the page."""
    return [asyncio.run(reads())]


def plots() -> list[Plot]:
    """Return the plot of the page, made by running the module with a clock of its own."""
    spans = timeline()
    looks = {
        "fresh": (0, 0.35),
        "old, at once": (1, 0.35),
        "old, marked": (1, 0.2),
        "waits": (2, 0.35),
        "error": (3, 0.35),
    }

    def draw(axes: Any) -> None:
        for row, name in enumerate(spans):
            for begin, end, answer in spans[name]:
                color, alpha = looks[answer]
                axes.barh(row, end - begin, 0.6, begin, color=SERIES[color], alpha=alpha)
                axes.text((begin + end) / 2, row, answer.replace(", ", ",\n"), ha="center", va="center")
        axes.set_yticks(range(len(spans)), [name.removeprefix("the ") for name in spans])
        axes.invert_yaxis()
        axes.set_xlim(0, 120)
        ends = [0, FRESH_FOR, FRESH_FOR + STALE_FOR, FRESH_FOR + ERROR_FOR]
        axes.set_xticks(ends, ["0", "fresh_for", "fresh_for\n+ stale_for", "fresh_for\n+ error_for"])
        axes.set_xlabel("age of the entry")

    said = "; ".join(
        f"when {name}: " + ", ".join(f"from {begin:g} to {end:g} s {answer}" for begin, end, answer in spans[name])
        for name in spans
    )
    alt = (
        f"What a reader gets by the age of the entry, with fresh_for={FRESH_FOR}, stale_for={STALE_FOR} and "
        f"error_for={ERROR_FOR} seconds. {said[0].upper()}{said[1:]}."
    )
    return [Plot("timeline", alt, draw, (7.0, 2.4))]
