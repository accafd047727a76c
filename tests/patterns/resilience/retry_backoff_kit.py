"""For the proofs and the plot of retry-backoff: functions that fail, and a hundred clients that failed together."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from harness.clock import Clock
from retry_backoff import RetryPolicy

CLIENTS, BEFORE, ATTEMPTS, BASE, CAP = 100, 5, 10, 0.1, 2.0
WIDTH, END = 0.1, 9.0


def policy_of(clock: Clock, **settings: Any) -> RetryPolicy:
    """Return a policy on a fake clock that waits as long as it may."""
    fixed: dict[str, Any] = {
        "rng": lambda: 1.0,
        "clock": clock,
        "sleep": clock.sleep,
        "async_sleep": clock.asleep,
        "max_elapsed": math.inf,
    }
    return RetryPolicy(**(fixed | settings))


class Flaky:
    """Fails as often as told, each time with a new error; then answers with how often it was called."""

    def __init__(self, failures: float, error: Callable[[], BaseException] = ConnectionError) -> None:
        self.failures = failures
        self.error = error
        self.calls = 0
        self.raised: list[BaseException] = []

    def __call__(self) -> int:
        self.calls += 1
        if self.calls > self.failures:
            return self.calls
        self.raised.append(self.error())
        raise self.raised[-1]


def no_jitter(rng: random.Random) -> Callable[[int], float]:
    """Return the waits of a client that doubles and does not jitter."""
    return lambda attempt: min(CAP, BASE * 2.0 ** (attempt - 1))


def clamped_jitter(rng: random.Random) -> Callable[[int], float]:
    """Return the waits of a client that adds its jitter and then clamps, as stamina does."""
    return lambda attempt: min(CAP, BASE * 2.0 ** (attempt - 1) + rng.uniform(0, 1))


def full_jitter(rng: random.Random) -> Callable[[int], float]:
    """Return the waits of this pattern."""
    return RetryPolicy(base=BASE, cap=CAP, rng=rng.random).backoff


WAITS: dict[str, Callable[[random.Random], Callable[[int], float]]] = {
    "no jitter": no_jitter,
    "jitter added, then clamped": clamped_jitter,
    "full jitter (this pattern)": full_jitter,
}


def instants(kind: str) -> list[list[float]]:
    """Return the instants in seconds at which each client calls again.

    All of them have failed `BEFORE` times, so that their waits are at the cap, and fail together once more at 0.
    """
    rng = random.Random(2026)
    clients = []
    for _ in range(CLIENTS):
        wait, now, seen = WAITS[kind](rng), 0.0, list[float]()
        for attempt in range(BEFORE + 1, BEFORE + 1 + ATTEMPTS):
            now += wait(attempt)
            seen.append(now)
        clients.append(seen)
    return clients


def crowds(kind: str) -> list[int]:
    """Return how many calls arrive in each `WIDTH` seconds."""
    counts = [0] * round(END / WIDTH)
    for client in instants(kind):
        for instant in client:
            if instant < END:
                counts[int(instant / WIDTH)] += 1
    return counts
