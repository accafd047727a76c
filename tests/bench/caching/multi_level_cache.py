"""Measures docs/patterns/caching/multi-level-cache.md: the cost of a hit at each level, and how fast changes spread."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from cashews import Cache

import multi_level_async
import multi_level_sync
from bench.kit import Plot, Table, compare, ratio_table, version
from servers.valkey import Valkey

ASYNC, SYNC = "this pattern, async", "this pattern, sync"
CASHEWS = f"{version('cashews')}, `client_side=True, protocol=2`"
RESP3 = f"{version('cashews')}, `client_side=True` alone"
# 1 kB of JSON, as an endpoint would answer.
VALUE = {f"field_{n:02}": "x" * 34 for n in range(19)} | {"id": 7, "tags": ["new", "gift"], "price": 12.5}
LOAD_SECONDS = 0.005
CALLS = 500
CHANGES = 300


def cashews(url: str, **options: Any) -> Cache:
    cache = Cache()
    cache.setup(url, client_side=True, **options)
    return cache


def levels(server: Valkey) -> dict[str, dict[str, float]]:
    """Return the seconds of a hit in memory, a hit in Redis, and a load, by subject."""
    runner = asyncio.Runner()
    peer = cashews(server.url, protocol=2)
    client, sync_client = (m.connect(server.url, timeout=5) for m in (multi_level_async, multi_level_sync))
    ours = multi_level_async.AsyncMultiLevelCache(client, namespace="async", l1_ttl=60)
    ours_sync = multi_level_sync.MultiLevelCache(sync_client, namespace="sync", l1_ttl=60)

    async def load() -> dict[str, Any]:
        await asyncio.sleep(LOAD_SECONDS)
        return VALUE

    def load_sync() -> dict[str, Any]:
        time.sleep(LOAD_SECONDS)
        return VALUE

    def many(call: Callable[[], Awaitable[object]], calls: int) -> Callable[[], object]:
        async def loop() -> None:
            for _ in range(calls):
                await call()

        return lambda: runner.run(loop())

    def many_sync(call: Callable[[], object], calls: int) -> Callable[[], object]:
        def loop() -> None:
            for _ in range(calls):
                call()

        return loop

    async def from_redis() -> None:
        ours._level._entries.clear()
        await ours.get("k")

    def from_redis_sync() -> None:
        ours_sync._level._entries.clear()
        ours_sync.get("k")

    fresh = iter(range(10**9))
    runner.run(ours.__aenter__())
    ours_sync.__enter__()
    try:
        runner.run(ours.set("k", VALUE))
        ours_sync.set("k", VALUE)
        runner.run(peer.set("k", VALUE, expire=3600))
        runner.run(asyncio.sleep(0.3))  # the messages of these changes have come
        memory = {
            ASYNC: many(lambda: ours.get("k"), CALLS),
            CASHEWS: many(lambda: peer.get("k"), CALLS),
            SYNC: many_sync(lambda: ours_sync.get("k"), CALLS),
        }
        redis = {ASYNC: many(from_redis, 50), SYNC: many_sync(from_redis_sync, 50)}
        loads = {
            ASYNC: many(lambda: ours.get_or_load(str(next(fresh)), load), 5),
            SYNC: many_sync(lambda: ours_sync.get_or_load(str(next(fresh)), load_sync), 5),
        }
        return {
            "memory": compare(memory, calls=1, rounds=41, per_call=CALLS),
            "Redis": compare(redis, calls=1, rounds=21, per_call=50),
            "load": compare(loads, calls=1, rounds=9, per_call=5),
        }
    finally:
        runner.run(ours.__aexit__())
        ours_sync.__exit__()
        runner.run(client.aclose())
        sync_client.close()
        runner.run(peer.close())
        runner.close()


def watch(url: str, kind: str) -> None:
    """Print when each next value of the key is seen first, in a process of its own."""

    async def main() -> None:
        if kind == "cashews":
            peer = cashews(url, protocol=2)
            get: Callable[[], Awaitable[Any]] = lambda: peer.get("k", default=-1)  # noqa: E731
        else:
            client = multi_level_async.connect(url, timeout=5)
            ours = multi_level_async.AsyncMultiLevelCache(client, namespace="watch", l1_ttl=60)
            await ours.__aenter__()
            get = lambda: ours.get("k")  # noqa: E731
        print("ready", flush=True)
        for turn in range(CHANGES):
            while await get() != turn:
                await asyncio.sleep(0.0001)
            print(time.monotonic(), flush=True)

    asyncio.run(main())


def spread(server: Valkey) -> Table:
    """Change a key in this process, and ask another when it served the new value."""

    async def main(kind: str) -> list[float]:
        client = multi_level_async.connect(server.url, timeout=5)
        ours = multi_level_async.AsyncMultiLevelCache(client, namespace="watch")
        peer = cashews(server.url, protocol=2)
        argv = [sys.executable, "-P", __file__, server.url, kind]  # this file has the name of the module
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        samples = []
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environ) as child:
            assert child.stdout
            await asyncio.to_thread(child.stdout.readline)
            for turn in range(CHANGES):
                await asyncio.sleep(0.005)  # the old value is in the other's memory by now
                begin = time.monotonic()
                await (peer.set("k", turn, expire=3600) if kind == "cashews" else ours.set("k", turn))
                samples.append(float(await asyncio.to_thread(child.stdout.readline)) - begin)
        await peer.close()
        await client.aclose()
        return samples

    async def hears_by_default() -> bool:
        """Say whether a change is seen within a second when redis-py 8 chooses the protocol."""
        one, other = cashews(server.url), cashews(server.url)
        await one.set("default", "old", expire=3600)
        await other.get("default")
        await one.set("default", "new", expire=3600)
        await asyncio.sleep(1)
        seen = await other.get("default")
        await one.close()
        await other.close()
        return bool(seen == "new")

    rows = []
    for kind, name in (("ours", ASYNC), ("cashews", CASHEWS)):
        cuts = statistics.quantiles(asyncio.run(main(kind))[20:], n=100)
        rows.append([name, *(f"{cuts[percent - 1] * 1e3:.2g} ms" for percent in (50, 99))])
    rows.append([RESP3, *(["yes"] * 2 if asyncio.run(hears_by_default()) else ["not within 1 s"] * 2)])
    note = (
        "From the call of `set` in one process until another process, which had the old value in memory and asks for "
        f"it every 0.1 ms, serves the new one. {CHANGES - 20} changes, a Valkey on the same machine."
    )
    return Table("spread", ("", "median", "99 of 100 within"), rows, note)


def tables() -> list[Table]:
    """Return the tables of the page."""
    server = Valkey()
    try:
        note = (
            "A read of one key whose value, 1 kB of JSON, is in this process's memory. This pattern gives every caller "
            "a copy of the value; cashews hands out the stored object itself."
        )
        MEASURED.update(levels(server))
        return [ratio_table("memory", MEASURED["memory"], base=ASYNC, note=note), spread(server)]
    finally:
        server.stop()


MEASURED: dict[str, dict[str, float]] = {}


def _said(seconds: float) -> str:
    micros = seconds * 1e6
    return f"{micros:.1f} µs" if micros < 10 else f"{micros:.0f} µs" if micros < 1000 else f"{micros / 1e3:.1f} ms"


def plots() -> list[Plot]:
    """Return the plot of the page, of what `tables` has measured."""
    names = {"memory": "memory (L1)", "Redis": "Redis (L2)", "load": f"load of {LOAD_SECONDS * 1e3:g} ms, and store"}

    def draw(axes: Any) -> None:
        for offset, subject in ((-0.2, ASYNC), (0.2, SYNC)):
            seconds = [MEASURED[level][subject] for level in names]
            places = [place + offset for place in range(3)]
            bars = axes.barh(places, [each * 1e6 for each in seconds], 0.38, label=subject.rpartition(" ")[2])
            axes.bar_label(bars, [_said(each) for each in seconds], padding=3)
        axes.set_xscale("log")
        axes.set_xlim(1, 100_000)
        axes.set_yticks(range(3), names.values())
        axes.invert_yaxis()
        axes.set_xlabel("microseconds a read, logarithmic")
        axes.legend(loc="upper right")

    said = "; ".join(
        f"{name}: {_said(MEASURED[level][ASYNC])} async, {_said(MEASURED[level][SYNC])} sync"
        for level, name in names.items()
    )
    return [
        Plot("levels", f"Time of a read by the level that answers, on a logarithmic axis. {said}.", draw, (7.0, 2.8))
    ]


if __name__ == "__main__":
    watch(*sys.argv[1:])
