"""Measures docs/patterns/rate-limiting/sliding-window.md: a hit, a million keys, and what passes the edge."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import limits
import pyrate_limiter
import throttled

from bench.kit import Plot, Table, compare, ratio_table, version
from patterns.rate_limiting.sliding_window_kit import hits_in_the_last_minute
from sliding_window import SlidingWindowCounter, SlidingWindowLog

LIMITS = version("limits")
LIMIT = 1000  # of the logs; in a window so short that its hits go again as fast as they come
PLENTY = 10**9  # of the counters, which no benchmark reaches


def hit() -> Table:
    storage = limits.storage.MemoryStorage()
    moving = limits.strategies.MovingWindowRateLimiter(storage)
    sliding = limits.strategies.SlidingWindowCounterRateLimiter(storage)
    thousand, plenty = limits.RateLimitItemPerSecond(LIMIT), limits.RateLimitItemPerSecond(PLENTY)
    pyrate = pyrate_limiter.Limiter(
        pyrate_limiter.InMemoryBucket([pyrate_limiter.Rate(LIMIT, pyrate_limiter.Duration.SECOND)])
    )
    throttle = throttled.Throttled(key="client", using="sliding_window", quota=throttled.rate_limiter.per_sec(PLENTY))
    log, counter = SlidingWindowLog(LIMIT, 1), SlidingWindowCounter(PLENTY, 60)
    passing = SlidingWindowLog(LIMIT, 0.001)
    subjects: dict[str, Callable[[], object]] = {
        "this pattern, counter": lambda: counter.hit("client"),
        f"{LIMITS}, sliding counter": lambda: sliding.hit(plenty, "client"),
        f"{version('throttled-py')}, sliding counter": lambda: throttle.limit("client"),
        "this pattern, log": lambda: log.hit("client"),
        "this pattern, log, every hit allowed": lambda: passing.hit("client"),
        f"{LIMITS}, moving window": lambda: moving.hit(thousand, "client"),
        f"{version('pyrate-limiter')}, log": lambda: pyrate.try_acquire("client", blocking=False),
    }
    seconds = compare(subjects, calls=100, rounds=301)  # short rounds: few are interrupted
    pyrate.close()
    note = (
        "One hit of one key, in memory, from one thread. Every hit is allowed by the counters; the logs have a limit "
        f"of {LIMIT:,} a second, so most are refused, if not said otherwise."
    )
    return ratio_table("hit", seconds, base="this pattern, counter", note=note)


def memory() -> Table:
    """Let a million keys come, and see what is left of them."""
    million = 1_000_000
    rows = []
    for name, limiter in (
        ("counter", SlidingWindowCounter(100, 60)),
        ("log", SlidingWindowLog(100, 60)),
    ):
        tracemalloc.start()
        for number in range(million):
            limiter.hit(f"client {number}")
        rows.append([f"this pattern, {name}", f"{tracemalloc.get_traced_memory()[0] / 1e6:.1f} MB"])
        tracemalloc.stop()
    note = f"Memory after {million:,} keys have come once each, with `max_keys` left at 10,000."
    return Table("memory", ("", "memory"), rows, note)


def tables() -> list[Table]:
    """Return the tables of the page."""
    return [hit(), memory()]


def plots() -> list[Plot]:
    """Return the plot of the page; it is computed on a clock that is told the time, not measured."""
    lines = {
        "fixed window": hits_in_the_last_minute("fixed"),
        "sliding counter": hits_in_the_last_minute("counter"),
        "log": hits_in_the_last_minute("log"),
    }

    def draw(axes: Any) -> None:
        for (name, counted), style in zip(lines.items(), ("-", "--", "-"), strict=True):
            axes.plot(*zip(*counted, strict=True), style, label=name)
        axes.axhline(100, color=axes.spines["left"].get_edgecolor(), linewidth=0.8)
        for edge in (60, 120):
            axes.axvline(edge, color=axes.spines["left"].get_edgecolor(), linewidth=0.8, linestyle=":")
        axes.set_xlabel("seconds")
        axes.set_ylabel("allowed in the last 60 s")
        axes.set_xlim(40, 180)
        axes.set_ylim(0, 215)
        axes.legend(loc="lower right")

    most = {name: max(count for _, count in counted) for name, counted in lines.items()}
    alt = (
        "How many hits of the last 60 seconds were allowed, with a limit of 100 in 60 s, while 20 hits a second come "
        "from 50 s on. All three limiters allow 100 by 55 s. At the edge of the fixed window, at 60 s, the fixed "
        f"window allows another 100 at once, which makes {most['fixed window']} within a minute. "
        f"The sliding counter lets more through little by little, up to {most['sliding counter']} at 110 s. "
        f"The log stays at {most['log']}."
    )
    return [Plot("edge", alt, draw)]
