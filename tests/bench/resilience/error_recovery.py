"""Measures docs/patterns/resilience/error-recovery.md: what a call that needs no recovery pays."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from bench.kit import Table, compare, ratio_table
from error_recovery import Recovery
from recovery_strategies import FallbackValue, RefreshToken, WaitRateLimit

CALLS = 1000


async def ahealthy() -> int:
    return 42


def healthy() -> int:
    return 42


def tables() -> list[Table]:
    loop = asyncio.new_event_loop()
    recovery = Recovery([RefreshToken(ahealthy, str), WaitRateLimit(5), FallbackValue(healthy)])

    def awaited(fn: Callable[[], Awaitable[object]]) -> Callable[[], object]:
        async def many() -> None:
            for _ in range(CALLS):
                await fn()

        return lambda: loop.run_until_complete(many())

    def called(fn: Callable[[], object]) -> Callable[[], object]:
        def many() -> None:
            for _ in range(CALLS):
                fn()

        return many

    ours = "this pattern, `run`"
    subjects = {
        ours: awaited(lambda: recovery.run(ahealthy)),
        "a bare await": awaited(lambda: ahealthy()),
        "this pattern, `run_sync`": called(lambda: recovery.run_sync(healthy)),
        "a bare call": called(lambda: healthy()),
    }
    try:
        seconds = compare(subjects, calls=1, rounds=201, per_call=CALLS)
    finally:
        loop.close()
    note = "A call that succeeds and returns at once, with three strategies that are not needed."
    return [ratio_table("no-error", seconds, base=ours, note=note)]
