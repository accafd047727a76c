"""Measures docs/patterns/caching/redis-cache.md: what a hit costs, and how often a crowd runs the function."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import redis
import redis.asyncio
from cashews import Cache

import redis_cache_async
import redis_cache_sync
from bench.kit import Plot, Table, compare, ratio_table, version
from servers.valkey import Valkey

ASYNC, SYNC = "this pattern, async", "this pattern, sync"
CASHEWS = version("cashews")
# 1 kB of JSON, as an endpoint would answer.
VALUE = {f"field_{n:02}": "x" * 34 for n in range(19)} | {"id": 7, "tags": ["new", "gift"], "price": 12.5}
ORIGIN_SECONDS = 0.05
CALLERS = 50
CALLS = 200


def hit(server: Valkey) -> Table:
    """Time a hit of a 1 kB value; every asynchronous subject runs on one event loop."""
    loop = asyncio.new_event_loop()
    sync_client = redis_cache_sync.connect(server.url, timeout=5)
    async_client = redis_cache_async.connect(server.url, timeout=5)
    cashews = Cache()
    cashews.setup(server.url)
    bare_sync, bare_async = redis.Redis.from_url(server.url), redis.asyncio.Redis.from_url(server.url)
    bare_sync.set("bare", b"x" * 1000)

    @redis_cache_sync.RedisCache(sync_client, namespace="sync").cached(ttl=3600)
    def ours_sync(user_id: int) -> dict[str, Any]:
        return VALUE

    @redis_cache_async.AsyncRedisCache(async_client, namespace="async").cached(ttl=3600)
    async def ours_async(user_id: int) -> dict[str, Any]:
        return VALUE

    @cashews(ttl=3600, key="user:{user_id}")
    async def theirs(user_id: int) -> dict[str, Any]:
        return VALUE

    def many(call: Callable[[], Awaitable[object]]) -> Callable[[], object]:
        async def calls() -> None:
            for _ in range(CALLS):
                await call()

        return lambda: loop.run_until_complete(calls())

    def many_sync(call: Callable[[], object]) -> Callable[[], object]:
        def calls() -> None:
            for _ in range(CALLS):
                call()

        return calls

    subjects = {
        ASYNC: many(partial(ours_async, 7)),
        CASHEWS: many(partial(theirs, 7)),
        "a GET and nothing else, async": many(partial(bare_async.get, "bare")),
        SYNC: many_sync(partial(ours_sync, 7)),
        "a GET and nothing else, sync": many_sync(partial(bare_sync.get, "bare")),
    }
    try:
        seconds = compare(subjects, calls=2, rounds=15, per_call=CALLS)
    finally:
        for close in (async_client.aclose, bare_async.aclose, cashews.close):
            loop.run_until_complete(close())
        loop.close()
        sync_client.close()
        bare_sync.close()
    note = (
        "One call of a cached function whose result, 1 kB, is in a Valkey on the same machine; one caller. "
        "cashews is asynchronous only, and stores a pickle."
    )
    return ratio_table("hit", seconds, base=ASYNC, note=note)


def crowd(server: Valkey) -> Table:
    """Let 50 callers of one process miss together."""
    runs = 0

    async def origin(turn: int) -> int:
        nonlocal runs
        runs += 1
        await asyncio.sleep(ORIGIN_SECONDS)
        return turn

    def origin_sync(turn: int) -> int:
        nonlocal runs
        runs += 1
        time.sleep(ORIGIN_SECONDS)
        return turn

    sync_client = redis_cache_sync.connect(server.url, timeout=5)
    ours_sync = redis_cache_sync.RedisCache(sync_client, namespace="crowd-sync").cached(ttl=60)(origin_sync)
    threads = ThreadPoolExecutor(CALLERS)

    def in_threads(turn: int) -> list[int]:
        return list(threads.map(ours_sync, [turn] * CALLERS))

    async def in_tasks(cached: Callable[[int], Awaitable[int]], turn: int) -> list[int]:
        return await asyncio.gather(*(cached(turn) for _ in range(CALLERS)))

    with asyncio.Runner() as runner:
        client = redis_cache_async.connect(server.url, timeout=5)
        ours = redis_cache_async.AsyncRedisCache(client, namespace="crowd").cached(ttl=60)(origin)
        cashews = Cache()
        cashews.setup(server.url)
        subjects: dict[str, Callable[[int], list[int]]] = {
            ASYNC: lambda turn: runner.run(in_tasks(ours, turn)),
            SYNC: in_threads,
            CASHEWS: lambda turn: runner.run(in_tasks(plain, turn)),
            f"{CASHEWS}, `lock=True`": lambda turn: runner.run(in_tasks(locked, turn)),
            "no single flight": lambda turn: runner.run(in_tasks(naive, turn)),
        }
        plain = cashews(ttl=60, key="plain:{turn}")(origin)
        locked = cashews(ttl=60, key="locked:{turn}", lock=True)(origin)
        naive = _naive(client, origin)
        samples: dict[str, list[tuple[int, float]]] = {name: [] for name in subjects}
        for turn in range(16):
            for name, call in subjects.items():
                runs, begin = 0, time.perf_counter()
                if call(turn) != [turn] * CALLERS:
                    raise RuntimeError(f"{name} gave a wrong answer")
                samples[name].append((runs, time.perf_counter() - begin))
        runner.run(client.aclose())
        runner.run(cashews.close())
    threads.shutdown()
    sync_client.close()
    rows = []
    for name, measured in samples.items():
        counted, seconds = zip(*measured[1:], strict=True)  # the first turn opens connections
        rows.append([name, f"{statistics.median(counted):g}", f"{statistics.median(seconds) * 1e3:.0f} ms"])
    note = (
        f"{CALLERS} callers of one process miss the same key at the same moment; the function takes "
        f"{ORIGIN_SECONDS * 1e3:.0f} ms. Median of 15 turns; the time is until all have their answer."
    )
    return Table("crowd", ("", "runs of the function", "time for all"), rows, note)


def _naive(client: Any, origin: Callable[[int], Awaitable[int]]) -> Callable[[int], Awaitable[int]]:
    async def cached(turn: int) -> int:
        if (found := await client.get(f"naive:{turn}")) is not None:
            return int(found)
        value = await origin(turn)
        await client.set(f"naive:{turn}", value, px=60_000)
        return value

    return cached


# --- Several processes, for the plot --------------------------------------------------------------


def worker(url: str, kind: str) -> None:
    """Answer each line "turn callers" with a line, after that many tasks have had their result."""

    async def main() -> None:
        client = redis_cache_async.connect(url, timeout=5)
        cashews = Cache()
        cashews.setup(url)

        async def origin(turn: int) -> int:
            await client.incr(f"runs:{kind}:{turn}")
            await asyncio.sleep(ORIGIN_SECONDS)
            return turn

        cached: Callable[[int], Awaitable[int]] = {
            "ours": redis_cache_async.AsyncRedisCache(client, namespace="many").cached(ttl=60)(origin),
            "process": cashews(ttl=60, key="many:{turn}")(origin),
            "none": _naive(client, origin),
        }[kind]
        await cached(-1)  # connect
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            turn, callers = map(int, line.split())
            await asyncio.gather(*(cached(turn) for _ in range(callers)))
            print("done", flush=True)
        await cashews.close()
        await client.aclose()

    asyncio.run(main())


@contextmanager
def worker_process(url: str, kind: str) -> Iterator[subprocess.Popen[str]]:
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, __file__, url, kind]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ) as child:
        yield child
        if child.stdin:
            child.stdin.close()


def runs_of(server: Valkey, kind: str, processes: int, per_process: list[int]) -> list[float]:
    """Return how often the function ran, the median of 9 turns, for each number of callers a process."""
    with ExitStack() as stack, redis.Redis.from_url(server.url) as db:
        children = [stack.enter_context(worker_process(server.url, kind)) for _ in range(processes)]

        def answers() -> list[str]:
            return [child.stdout.readline() for child in children if child.stdout]

        answers()
        medians, turn = [], 0
        for callers in per_process:
            counts = []
            for _ in range(9):
                turn += 1
                for child in children:
                    if child.stdin:
                        child.stdin.write(f"{turn} {callers}\n")
                        child.stdin.flush()
                answers()
                counts.append(int(db.get(f"runs:{kind}:{turn}") or 0))
            medians.append(statistics.median(counts))
        return medians


def tables() -> list[Table]:
    """Return the tables of the page."""
    server = Valkey()
    try:
        return [hit(server), crowd(server)]
    finally:
        server.stop()


def plots() -> list[Plot]:
    """Return the plot of the page."""
    processes, per_process = 4, [1, 2, 4, 8, 12]
    server = Valkey()
    try:
        lines = {
            "no single flight": runs_of(server, "none", processes, per_process),
            "single flight in each process": runs_of(server, "process", processes, per_process),
            "this pattern": runs_of(server, "ours", processes, per_process),
        }
    finally:
        server.stop()
    callers = [processes * each for each in per_process]

    def draw(axes: Any) -> None:
        for (name, runs), marker in zip(lines.items(), "os^", strict=True):
            axes.plot(callers, runs, marker=marker, label=name)
        axes.set_xlabel(f"callers who miss together, in {processes} processes")
        axes.set_ylabel("runs of the function")
        axes.set_xticks(callers)
        axes.set_ylim(bottom=0)
        axes.legend()

    last = {name: f"{runs[-1]:g}" for name, runs in lines.items()}
    alt = (
        f"Runs of the function against the number of callers who miss together in {processes} processes. "
        f"At {callers[-1]} callers: {last['no single flight']} runs without single flight, "
        f"{last['single flight in each process']} with single flight in each process, "
        f"{last['this pattern']} with this pattern."
    )
    return [Plot("origin-calls", alt, draw)]


if __name__ == "__main__":
    worker(*sys.argv[1:])
