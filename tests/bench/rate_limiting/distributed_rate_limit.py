"""Measures docs/patterns/rate-limiting/distributed-rate-limit.md: what a decision costs, against a PING."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import limits
import limits.storage
import limits.strategies
import throttled

from bench.kit import Plot, Table, compare, ratio_table, version
from redis_limiter_async import AsyncRedisLimiter
from redis_limiter_async import connect as connect_async
from redis_limiter_core import Limit
from redis_limiter_fallback import Fallback
from redis_limiter_sync import RedisLimiter
from redis_limiter_sync import connect as connect_sync
from servers.valkey import Valkey

OURS, CALLS = "this pattern", 200
PLENTY = 10**9


def hits_sync(url: str) -> Table:
    client = connect_sync(url, timeout=5)
    limiter, one = RedisLimiter(client), [Limit(PLENTY, 1, burst=1_000_000)]
    storage = limits.storage.RedisStorage(url)
    item = limits.RateLimitItemPerSecond(1_000_000)
    name = version("limits")
    fixed = limits.strategies.FixedWindowRateLimiter(storage)
    counter = limits.strategies.SlidingWindowCounterRateLimiter(storage)
    gcra = throttled.Throttled(
        using="gcra",
        quota=throttled.rate_limiter.per_sec(1_000_000, burst=1_000_000),
        store=throttled.RedisStore(server=url),
    )
    subjects: dict[str, Callable[[], object]] = {
        OURS: lambda: limiter.hit("bench", one),
        f"{name}, fixed window": lambda: fixed.hit(item, "bench"),
        f"{name}, sliding counter": lambda: counter.hit(item, "bench"),
        f"{version('throttled-py')}, GCRA": lambda: gcra.limit("bench"),
        "a plain PING": client.ping,
    }
    try:
        seconds = compare(subjects, calls=CALLS, rounds=41)
    finally:
        client.close()
    note = "A hit that is allowed, of one key with one limit, on a Valkey of the same machine."
    return ratio_table("hit-sync", seconds, base=OURS, note=note)


def hits_async(url: str) -> Table:
    loop = asyncio.new_event_loop()
    client = connect_async(url, timeout=5)
    limiter, one = AsyncRedisLimiter(client, timeout=5), [Limit(PLENTY, 1, burst=1_000_000)]
    subjects: dict[str, Callable[[], Awaitable[object]]] = {
        OURS: lambda: limiter.hit("bench", one),
        "a plain PING": client.ping,
    }

    def many(call: Callable[[], Awaitable[object]]) -> Callable[[], object]:
        async def calls() -> None:
            for _ in range(CALLS):
                await call()

        return lambda: loop.run_until_complete(calls())

    try:
        seconds = compare({name: many(call) for name, call in subjects.items()}, calls=1, rounds=41, per_call=CALLS)
        loop.run_until_complete(client.aclose())
    finally:
        loop.close()
    return ratio_table("hit-async", seconds, base=OURS, note="The same, awaited one after the other.")


def tables() -> list[Table]:
    server = Valkey()
    try:
        return [hits_sync(server.url), hits_async(server.url)]
    finally:
        server.stop()


def timeline() -> list[tuple[float, bool, int]]:
    """Return (instant, allowed, remaining) of hits against 1/s with a burst of 5, by the limiter's own arithmetic."""
    now = 0.0
    fallback, limit, found = Fallback("local", 1, lambda: now), [Limit(rate=1, per=1, burst=5)], []
    for now in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0, 1.2, 2.1, 2.2, 3.5, 4.2, 4.3, 8.0, 8.1):
        decision = fallback.decide("ann", limit, 1, None)
        found.append((now, decision.allowed, decision.remaining))
    return found


def draw(axes: Any) -> None:
    hits = timeline()
    for allowed, label in ((True, "allowed"), (False, "refused")):
        chosen = [(at, left) for at, ok, left in hits if ok is allowed]
        axes.plot(*zip(*chosen, strict=True), "o" if allowed else "x", label=label, color="C0" if allowed else "C1")
    axes.set_xlabel("seconds")
    axes.set_ylabel("left after the hit")
    axes.set_yticks(range(5))
    axes.legend()


def plots() -> list[Plot]:
    hits = timeline()
    alt = (
        "Hits over eight seconds against a rate of one a second with a burst of five: five pass at once, the sixth at "
        "half a second is refused, one passes after each further second, and after a pause several at once. Refused at "
        + ", ".join(f"{at:g}" for at, ok, _ in hits if not ok)
        + " s."
    )
    return [Plot("timeline", alt, draw, size=(7.0, 2.4))]
