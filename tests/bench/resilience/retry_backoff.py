"""Measures docs/patterns/resilience/retry-backoff.md: what a call that succeeds costs, and when a crowd returns."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from bench.kit import Plot, Table, compare, ratio_table, version
from patterns.resilience.retry_backoff_kit import END, WAITS, WIDTH, crowds
from retry_backoff import RetryPolicy, aretry, retry, retrying

OURS = "this pattern"
CALLS = 1000


def fine() -> int:
    return 42


async def afine() -> int:
    return 42


def success_sync() -> Table:
    import backon
    import opnieuw
    import stamina
    import tenacity

    policy = RetryPolicy()
    subjects: dict[str, Callable[[], object]] = {
        OURS: retrying(policy)(fine),
        "this pattern, by `retry`": lambda: retry(policy, fine),
        "a loop written by hand": by_hand,
        version("opnieuw"): opnieuw.retry(retry_on_exceptions=ConnectionError)(fine),
        version("backon"): backon.on_exception(backon.expo, ConnectionError, max_tries=5)(fine),
        version("stamina"): stamina.retry(on=ConnectionError, attempts=5)(fine),
        version("tenacity"): tenacity.retry(
            stop=tenacity.stop_after_attempt(5), wait=tenacity.wait_random_exponential(0.1, 10)
        )(fine),
        "no retry": fine,
    }
    seconds = compare(subjects, calls=200, rounds=101)
    note = "A call that succeeds at once, of a function that does nothing; decorated if not said."
    return ratio_table("success-sync", seconds, base=OURS, note=note)


def by_hand() -> int:
    for attempt in range(5):
        try:
            return fine()
        except ConnectionError:
            if attempt == 4:
                raise
    raise AssertionError


def success_async() -> Table:
    import backon
    import opnieuw
    import stamina
    import tenacity

    policy, loop = RetryPolicy(), asyncio.new_event_loop()
    subjects: dict[str, Callable[[], Awaitable[object]]] = {
        OURS: retrying(policy)(afine),
        "this pattern, by `aretry`": lambda: aretry(policy, afine),
        version("opnieuw"): opnieuw.retry_async(retry_on_exceptions=ConnectionError)(afine),
        version("backon"): backon.on_exception(backon.expo, ConnectionError, max_tries=5)(afine),
        version("stamina"): stamina.retry(on=ConnectionError, attempts=5)(afine),
        version("tenacity"): tenacity.retry(
            stop=tenacity.stop_after_attempt(5), wait=tenacity.wait_random_exponential(0.1, 10)
        )(afine),
        "no retry": afine,
    }

    def many(fn: Callable[[], Awaitable[object]]) -> Callable[[], object]:
        async def loop_of_calls() -> None:
            for _ in range(CALLS):
                await fn()

        return lambda: loop.run_until_complete(loop_of_calls())

    try:
        seconds = compare({name: many(fn) for name, fn in subjects.items()}, calls=1, rounds=31, per_call=CALLS)
    finally:
        loop.close()
    note = "An await that succeeds at once, of a coroutine that does nothing; decorated if not said."
    return ratio_table("success-async", seconds, base=OURS, note=note)


def draw(axes: Any) -> None:
    """Draw the crowds, a row for each kind."""
    edges = [number * WIDTH for number in range(round(END / WIDTH) + 1)]
    for row, kind in enumerate(reversed(WAITS)):
        counts = crowds(kind)
        axes.stairs([row * 130 + count for count in counts], edges, baseline=row * 130, fill=True)
        axes.text(0.1, row * 130 + 115, f"{kind}: at most {max(counts)} calls at once", va="center")
    axes.set_xlim(0, END)
    axes.set_ylim(0, 390)
    axes.set_yticks([])
    axes.set_xlabel("seconds after 100 clients, in the middle of an outage, failed together")


def plots() -> list[Plot]:
    most = {kind: max(crowds(kind)) for kind in WAITS}
    alt = (
        "Calls per 100 milliseconds over the nine seconds after 100 clients, whose waits have grown to a cap of two "
        "seconds, failed together. Without jitter all of them return in the same instant, every two seconds. With "
        "jitter that is added and then clamped it is just the same. With full jitter the calls are spread over the "
        "whole time. Most calls within 100 ms: " + ", ".join(f"{count} ({kind})" for kind, count in most.items()) + "."
    )
    return [Plot("instants", alt, draw, size=(7.0, 3.6))]


def tables() -> list[Table]:
    return [success_sync(), success_async()]
