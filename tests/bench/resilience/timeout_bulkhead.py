"""Measures docs/patterns/resilience/timeout-bulkhead.md: what entering and leaving costs when nobody waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

from bench.kit import Table, compare, ratio_table
from call_bulkhead import Bulkhead
from call_deadline import Deadline

CALLS = 2000


def timed(subjects: dict[str, Callable[[], Awaitable[None]]]) -> dict[str, float]:
    loop = asyncio.new_event_loop()

    def many(enter: Callable[[], Awaitable[None]]) -> Callable[[], object]:
        async def entries() -> None:
            for _ in range(CALLS):
                await enter()

        return lambda: loop.run_until_complete(entries())

    try:
        return compare({name: many(enter) for name, enter in subjects.items()}, calls=1, rounds=51, per_call=CALLS)
    finally:
        loop.close()


def bulkheads() -> Table:
    bulkhead, semaphore = Bulkhead("bench", 10, 10, 1.0), asyncio.Semaphore(10)

    async def ours() -> None:
        async with bulkhead:
            pass

    async def theirs() -> None:
        async with semaphore:
            pass

    note = "Enter and leave from a task, with slots free."
    return ratio_table(
        "bulkhead", timed({"this pattern": ours, "asyncio.Semaphore": theirs}), base="this pattern", note=note
    )


def bulkheads_sync() -> Table:
    bulkhead, semaphore = Bulkhead("bench", 10, 10, 1.0), threading.Semaphore(10)

    def ours() -> None:
        for _ in range(CALLS):
            with bulkhead:
                pass

    def theirs() -> None:
        for _ in range(CALLS):
            with semaphore:
                pass

    seconds = compare({"this pattern": ours, "threading.Semaphore": theirs}, calls=1, rounds=51, per_call=CALLS)
    return ratio_table(
        "bulkhead-threads", seconds, base="this pattern", note="Enter and leave from a thread, with slots free."
    )


def deadlines() -> Table:
    deadline = Deadline.after(3600)

    async def ours() -> None:
        async with deadline.scope():
            pass

    async def theirs() -> None:
        async with asyncio.timeout(3600):
            pass

    note = "Enter and leave a scope whose time is not up."
    return ratio_table(
        "deadline", timed({"this pattern": ours, "asyncio.timeout": theirs}), base="this pattern", note=note
    )


def tables() -> list[Table]:
    return [bulkheads(), bulkheads_sync(), deadlines()]
