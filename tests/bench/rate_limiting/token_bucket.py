"""Measures docs/patterns/rate-limiting/token-bucket.md: what a call costs that need not wait, and how tokens flow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiolimiter
import limits
import pyrate_limiter
import throttled

from bench.kit import Plot, Table, compare, ratio_table, version
from patterns.rate_limiting.token_bucket_kit import a_few_seconds, grants_of_a_hundred
from token_bucket_async import AsyncTokenBucket
from token_bucket_sync import TokenBucket

OURS = "this pattern"
PLENTY = 10**9  # a rate and a capacity that no benchmark exhausts
CALLS = 1000


def free_sync() -> Table:
    bucket = TokenBucket(PLENTY, PLENTY)
    throttle = throttled.Throttled(
        key="calls", using="token_bucket", quota=throttled.rate_limiter.per_sec(PLENTY, burst=PLENTY)
    )
    storage = limits.storage.MemoryStorage()
    fixed, per_second = limits.strategies.FixedWindowRateLimiter(storage), limits.RateLimitItemPerSecond(PLENTY)
    pyrate = pyrate_limiter.Limiter(
        pyrate_limiter.InMemoryBucket([pyrate_limiter.Rate(PLENTY, pyrate_limiter.Duration.SECOND)])
    )
    subjects: dict[str, Callable[[], object]] = {
        OURS: bucket.acquire,
        "this pattern, `try_acquire`": bucket.try_acquire,
        f"{version('throttled-py')}, token bucket": throttle.limit,
        f"{version('limits')}, fixed window": lambda: fixed.hit(per_second, "calls"),
        version("pyrate-limiter"): lambda: pyrate.try_acquire("calls"),
    }
    seconds = compare(subjects, calls=200, rounds=201)  # short rounds: few are interrupted
    pyrate.close()
    note = "One call that need not wait, from one thread; everything in memory."
    return ratio_table("free-sync", seconds, base=OURS, note=note)


def free_async() -> Table:
    loop = asyncio.new_event_loop()
    acquires: dict[str, Callable[[], Awaitable[object]]] = {
        OURS: AsyncTokenBucket(PLENTY, PLENTY).acquire,
        version("aiolimiter"): aiolimiter.AsyncLimiter(PLENTY, 1).acquire,
    }

    def many(acquire: Callable[[], Awaitable[object]]) -> Callable[[], object]:
        async def calls() -> None:
            for _ in range(CALLS):
                await acquire()

        return lambda: loop.run_until_complete(calls())

    try:
        seconds = compare({name: many(call) for name, call in acquires.items()}, calls=1, rounds=201, per_call=CALLS)
    finally:
        loop.close()
    return ratio_table("free-async", seconds, base=OURS, note="One awaited call that need not wait, in one task.")


def tables() -> list[Table]:
    """Return the tables of the page."""
    return [free_sync(), free_async()]


def plots() -> list[Plot]:
    """Return the plots of the page; they are computed on a clock that is told the time, not measured."""
    tokens, granted = a_few_seconds()
    good, bad = grants_of_a_hundred(naive=False), grants_of_a_hundred(naive=True)

    def draw_tokens(axes: Any) -> None:
        axes.plot(*zip(*tokens, strict=True), label="tokens")
        axes.plot(granted, [-0.7] * len(granted), "|", markersize=9, label="a call goes through")
        axes.set_xlabel("seconds")
        axes.set_ylim(-1.4, 13)
        axes.set_yticks(range(0, 11, 2))
        axes.legend(loc="upper right", ncols=2)

    def draw_naive(axes: Any) -> None:
        for grants, label in ((bad, "check, sleep, subtract"), (good, "this pattern")):
            instants = [at for at, _ in grants]
            axes.step([*instants, 9.5], [*range(1, 101), 100], where="post", label=label)
        axes.plot([0, 9], [10, 100], "--", label="capacity + rate × time")
        axes.set_xlabel("seconds")
        axes.set_ylabel("calls let through")
        axes.set_xlim(-0.2, 9.5)
        axes.set_ylim(0, 108)
        axes.legend(loc="lower right")

    return [
        Plot(
            "tokens",
            "Tokens over five seconds in a bucket of 10 that gains 10 a second. Of 20 calls at 0 s ten go through "
            "at once, which empties the bucket, and the others one every 0.1 s. Left alone it fills up to 10 and "
            "stays there. Six calls at 2.5 s take six tokens at once. Of calls every 0.04 s from 3 s on, the first "
            "go through as they come, until the bucket is empty; from then on they go one every 0.1 s.",
            draw_tokens,
        ),
        Plot(
            "naive",
            "Calls let through over time when 100 come at once, with a capacity of 10 and a rate of 10 a second. "
            "A limiter that checks, sleeps and subtracts lets ten through at 0 s and the other ninety at 0.1 s. "
            "This pattern lets ten through at once and then one every 0.1 s up to 9 s, on the line of the limit.",
            draw_naive,
        ),
    ]
