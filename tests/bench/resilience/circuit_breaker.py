"""Measures docs/patterns/resilience/circuit-breaker.md: what a healthy call costs, and who probes in a crowd."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import circuitbreaker
import purgatory

from bench.kit import Table, compare, ratio_table, version
from circuit_breaker import CircuitBreaker

OURS, BARE = "this pattern", "no breaker"
CIRCUITBREAKER, PURGATORY = version("circuitbreaker"), version("purgatory")
CALLS = 1000


def healthy() -> int:
    return 42


async def ahealthy() -> int:
    return 42


def with_failures() -> CircuitBreaker:
    """Return a closed breaker that has failures in its window, which takes the longer way."""
    breaker = CircuitBreaker("failures", window=3600, min_calls=10**9)
    for _ in range(10):
        with contextlib.suppress(ZeroDivisionError):
            breaker.call(lambda: 1 / 0)
    return breaker


def closed_sync() -> Table:
    subjects: dict[str, Callable[[], object]] = {
        OURS: CircuitBreaker("decorated")(healthy),
        "this pattern, by `call`": _by_call(CircuitBreaker("called")),
        "this pattern, failures in the window": with_failures()(healthy),
        CIRCUITBREAKER: circuitbreaker.circuit(name="sync")(healthy),
        PURGATORY: purgatory.SyncCircuitBreakerFactory()("sync")(healthy),
        BARE: healthy,
    }
    seconds = compare(subjects, calls=1000, rounds=201)  # short rounds: few are interrupted
    note = "A successful call of a function that returns at once, through a closed breaker; decorated if not said."
    return ratio_table("closed-sync", seconds, base=OURS, note=note)


def _by_call(breaker: CircuitBreaker) -> Callable[[], object]:
    return lambda: breaker.call(healthy)


def closed_async() -> Table:
    loop = asyncio.new_event_loop()
    factory = purgatory.AsyncCircuitBreakerFactory()
    called, failures = CircuitBreaker("called"), with_failures()
    guarded: dict[str, Callable[[], Awaitable[object]]] = {
        OURS: CircuitBreaker("decorated")(ahealthy),
        "this pattern, by `acall`": lambda: called.acall(ahealthy),
        "this pattern, failures in the window": failures(ahealthy),
        CIRCUITBREAKER: circuitbreaker.circuit(name="async")(ahealthy),
        PURGATORY: factory("async")(ahealthy),
        BARE: ahealthy,
    }

    def many(fn: Callable[[], Awaitable[object]]) -> Callable[[], object]:
        async def loop_of_calls() -> None:
            for _ in range(CALLS):
                await fn()

        return lambda: loop.run_until_complete(loop_of_calls())

    try:
        seconds = compare({name: many(fn) for name, fn in guarded.items()}, calls=1, rounds=201, per_call=CALLS)
    finally:
        loop.close()
    note = "A successful await of a coroutine that returns at once, through a closed breaker; decorated if not said."
    return ratio_table("closed-async", seconds, base=OURS, note=note)


def crowd() -> Table:
    """Count the calls that reach a dependency when a crowd meets a breaker that is ready to probe."""
    tasks, threads, wait = 100, 50, 0.05

    def sync_breakers() -> dict[str, Any]:
        return {
            OURS: CircuitBreaker("crowd", min_calls=1, open_for=wait),
            CIRCUITBREAKER: circuitbreaker.CircuitBreaker(1, wait, name="crowd"),
            PURGATORY: purgatory.SyncCircuitBreakerFactory(default_threshold=1, default_ttl=wait)("crowd"),
        }

    async def in_tasks(name: str) -> int:
        asynchronous = sync_breakers() | {
            PURGATORY: purgatory.AsyncCircuitBreakerFactory(default_threshold=1, default_ttl=wait)("crowd"),
        }
        everybody, reached, broken = asyncio.Barrier(tasks), 0, True

        @asynchronous[name]
        async def dependency() -> None:
            nonlocal reached
            if broken:
                raise ConnectionError
            reached += 1
            await everybody.wait()

        async def caller() -> None:
            try:
                await dependency()
            except Exception:  # refused, each library in its own way
                await everybody.wait()

        with contextlib.suppress(ConnectionError):
            await dependency()
        broken = False
        await asyncio.sleep(wait * 2)
        await asyncio.gather(*(caller() for _ in range(tasks)))
        return reached

    def in_threads(name: str) -> int:
        everybody, reached, broken = Barrier(threads), list[int](), True

        @sync_breakers()[name]
        def dependency() -> None:
            if broken:
                raise ConnectionError
            reached.append(1)
            everybody.wait(10)

        def caller(_: int) -> None:
            try:
                dependency()
            except Exception:  # refused, each library in its own way
                everybody.wait(10)

        with contextlib.suppress(ConnectionError):
            dependency()
        broken = False
        time.sleep(wait * 2)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(caller, range(threads)))
        return len(reached)

    names = (OURS, CIRCUITBREAKER, PURGATORY)
    rows = [[name, str(asyncio.run(in_tasks(name))), str(in_threads(name))] for name in names]
    note = (
        "Calls that reached a dependency which holds each of them, when all callers arrive at once "
        "at a breaker whose waiting time is over."
    )
    return Table("crowd", ("", f"of {tasks} tasks", f"of {threads} threads"), rows, note)


def tables() -> list[Table]:
    return [closed_sync(), closed_async(), crowd()]
