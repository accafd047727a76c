"""Proves docs/patterns/caching/redis-cache.md: one result for all processes, computed once, never stale forever."""

from __future__ import annotations

import contextlib
import inspect
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

import redis_cache_core as core
import redis_cache_sync
from cache_codec import JsonSerializer, UnserializableValue
from harness.clock import Clock
from harness.color import Blocking, Color
from harness.origin import Origin
from harness.waiting import at_once, in_thread, until
from patterns.caching import redis_cache_kit as kit
from patterns.caching.redis_cache_kit import Cache, Counting, Make, cached_by

# Fixtures.
cache, make = kit.cache, kit.make


# --- Results --------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [None, 0, "", [], {}, False, 0.0], ids=repr)
def test_an_empty_result_is_a_result(cache: Cache, empty: object) -> None:
    runs: list[object] = []

    @cache.cached(ttl=60)
    def f() -> object:
        runs.append(empty)
        return empty

    assert [f(), f(), f()] == [empty] * 3
    assert type(f()) is type(empty)
    assert len(runs) == 1


def test_a_hit_is_one_round_trip_and_a_miss_three(cache: Cache) -> None:
    f, trips = cached_by(cache, Origin()), Counting(cache, "_ask_server")
    assert [f(), trips.value] == [1, 3]
    assert [f(), trips.value] == [1, 3 + 1]


def test_a_truth_test_computes_empty_results_forever(valkey: Any) -> None:
    origin = Origin()

    def naive() -> Any:
        if cached := JsonSerializer().loads(valkey.get("naive") or b"null"):
            return cached
        origin()
        valkey.set("naive", JsonSerializer().dumps([]))
        return []

    assert [naive(), naive(), naive()] == [[], [], []]
    assert origin.loads == 3


def test_none_is_not_kept_when_told_so(cache: Cache, valkey: Any) -> None:
    found: list[str | None] = [None, None, "Ada", "Bob"]

    @cache.cached(ttl=60, cache_none=False)
    def find() -> str | None:
        return found.pop(0)

    assert find() is None
    assert valkey.dbsize() == 0  # no lock is left behind for the next caller to wait for
    assert [find(), find(), find()] == [None, "Ada", "Ada"]


def test_values_can_be_kept_under_names_of_your_own(cache: Cache, valkey: Any) -> None:
    assert cache.get("greeting") is None
    assert cache.get("greeting", "none yet") == "none yet"
    assert cache.set("greeting", None, ttl=100) is True
    assert cache.get("greeting", "none yet") is None
    assert 99_000 < valkey.pttl(valkey.keys()[0]) <= 100_000
    assert cache.delete("greeting") is True
    assert cache.delete("greeting") is True
    assert cache.get("greeting", "gone") == "gone"


def test_a_value_of_five_megabytes_is_kept(cache: Cache) -> None:
    runs: list[int] = []

    @cache.cached(ttl=60)
    def f() -> bytes:
        runs.append(1)
        return b"x" * 5_000_000

    assert f() == f() == b"x" * 5_000_000
    assert len(runs) == 1


def test_a_result_that_cannot_be_kept_raises_and_leaves_no_lock(cache: Cache, valkey: Any) -> None:
    @cache.cached(ttl=60)
    def f() -> object:
        return object()

    for _ in range(2):
        with pytest.raises(UnserializableValue, match=r"builtins\.object is no type"):
            f()
    with pytest.raises(UnserializableValue):
        cache.set("x", object(), ttl=60)
    assert valkey.dbsize() == 0


@pytest.mark.parametrize("left", [b"", b"\xff\x00", b'"text"', b"1:{", b"2:7", b"7", ["a", "list"]])
def test_what_another_program_left_under_the_key_is_a_miss_and_overwritten(
    cache: Cache, valkey: Any, left: bytes | list[str]
) -> None:
    f = cached_by(cache, Origin())
    valkey.rpush(f.key_for(), *left) if isinstance(left, list) else valkey.set(f.key_for(), left)
    assert [f(), f()] == [1, 1]
    assert valkey.get(f.key_for()) == b"1:1"
    assert 54_000 <= valkey.pttl(f.key_for()) <= 66_000


def test_lives_differ_and_stay_within_the_jitter(cache: Cache, valkey: Any) -> None:
    @cache.cached(ttl=100, jitter=0.1)
    def f(x: int) -> int:
        return x

    for x in range(30):
        f(x)
    lives = [valkey.pttl(f.key_for(x)) for x in range(30)]
    assert 89_000 < min(lives) < max(lives) <= 110_000
    assert max(lives) - min(lives) > 3_000
    defaults = inspect.signature(cache.inner.cached).parameters
    assert (defaults["jitter"].default, defaults["cache_none"].default) == (0.1, True)


def test_the_jitter_is_drawn_from_the_given_source(make: Make, valkey_url: str, valkey: Any) -> None:
    for chance, life in ((0.0, 90_000), (1.0, 110_000)):
        cache = make(valkey_url, namespace=f"at{chance}", rng=lambda chance=chance: chance)
        f = cached_by(cache, Origin(), ttl=100)
        f()
        assert life - 1_000 < valkey.pttl(f.key_for()) <= life


def test_setex_is_deprecated_and_refuses_nothing_and_fractions(valkey: Any) -> None:
    for ttl in (0, 0.5):
        with pytest.deprecated_call(), pytest.raises(redis.ResponseError):
            valkey.setex("naive", ttl, "value")


def test_two_namespaces_and_two_versions_share_nothing(make: Make, valkey_url: str) -> None:
    settings: list[dict[str, Any]] = [{}, {"namespace": "blog"}, {"version": 2}]
    caches = [make(valkey_url, **each) for each in settings]
    functions = [cached_by(each, Origin()) for each in caches]
    assert len({f.key_for() for f in functions}) == 3
    for number, each in enumerate(caches):
        each.set("name", number, ttl=60)
        functions[number]()
    assert caches[0].delete("name") is functions[0].invalidate() is True
    assert [each.get("name", "gone") for each in caches] == ["gone", 1, 2]
    assert [f() for f in functions] == [2, 1, 1]


def test_what_a_function_reads_besides_its_arguments_is_not_in_the_key(cache: Cache) -> None:
    tenant = "red"

    @cache.cached(ttl=60)
    def careless(x: int) -> str:
        return f"{tenant} {x}"

    @cache.cached(ttl=60, key=lambda x: f"{tenant}/{x}")
    def careful(x: int) -> str:
        return f"{tenant} {x}"

    assert [careless(1), careful(1)] == ["red 1", "red 1"]
    tenant = "blue"
    assert [careless(1), careful(1)] == ["red 1", "blue 1"]


# --- Single flight --------------------------------------------------------------------------------


def test_fifty_callers_who_miss_together_run_the_function_once(cache: Cache) -> None:
    origin = Origin()
    f = cached_by(cache, origin)
    origin.go.clear()
    threading.Timer(0.05, origin.go.set).start()
    assert at_once(50, f) == [1] * 50
    assert origin.loads == 1


def test_without_a_lock_twenty_callers_run_it_twenty_times(valkey: Any) -> None:
    together = threading.Barrier(20)
    runs: list[int] = []

    def naive() -> int:
        if (found := valkey.get("naive")) is not None:
            return int(found)
        together.wait(10)  # the function is slow: everybody has looked before anybody has stored
        runs.append(1)
        valkey.set("naive", 7)
        return 7

    assert at_once(20, naive) == [7] * 20
    assert len(runs) == 20


WORKER = """
import asyncio, sys, threading, time
import redis

url, color = sys.argv[1:]
origin = redis.Redis.from_url(url)

def run():
    origin.incr("runs")
    time.sleep(0.05)
    return {"runs": 1}

print("ready", flush=True)
sys.stdin.readline()
if color == "sync":
    from redis_cache_sync import RedisCache, connect

    cache = RedisCache(connect(url, timeout=5), namespace="test")

    @cache.cached(ttl=60)
    def load(x):
        return run()

    results = []
    threads = [threading.Thread(target=lambda: results.append(load(x=1))) for _ in range(8)]
    for step in ("start", "join"):
        for thread in threads:
            getattr(thread, step)()
    print(results)
else:
    from redis_cache_async import AsyncRedisCache, connect

    cache = AsyncRedisCache(connect(url, timeout=5), namespace="test")

    @cache.cached(ttl=60)
    async def load(x):
        return await asyncio.to_thread(run)

    async def main():
        print(await asyncio.gather(*(load(1) for _ in range(8))))
        await cache.client.aclose()

    asyncio.run(main())
"""


@contextlib.contextmanager
def process(script: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script in a process of its own, with the modules of the pattern beside it."""
    environ = os.environ | {"PYTHONPATH": str(Path(redis_cache_sync.__file__).parent)}
    with subprocess.Popen(
        [sys.executable, "-c", script, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def test_four_processes_of_both_colors_run_the_function_once_between_them(valkey_url: str, valkey: Any) -> None:
    with contextlib.ExitStack() as stack:
        colors = ("sync", "async") * 2
        children = [stack.enter_context(process(WORKER, valkey_url, each)) for each in colors]
        for child in children:
            assert child.stdout
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin
            child.stdin.write("go\n")
            child.stdin.flush()
        outputs = [child.communicate(timeout=10)[0] for child in children]
    assert outputs == [f"{[{'runs': 1}] * 8}\n"] * 4
    assert valkey.get("runs") == b"1"


def test_when_the_computing_caller_fails_the_others_run_side_by_side(cache: Cache, valkey: Any) -> None:
    together = threading.Barrier(9)
    leader = threading.Lock()
    failures: list[int] = []

    @cache.cached(ttl=60)
    def f() -> None:
        if leader.acquire(blocking=False):
            until(lambda: waiting.value == 9)
            raise ConnectionError("origin down")
        failures.append(1)
        together.wait(10)  # passes only when all nine are in here at the same time
        raise ConnectionError("origin down")

    waiting = Counting(cache, "_wait_for_leader")
    results = at_once(10, f)
    assert [str(result) for result in results] == ["origin down"] * 10
    assert len(failures) == 9
    assert waiting.value == 9  # nobody waited twice
    assert valkey.dbsize() == 0


def test_waiting_for_the_lock_naively_runs_failing_calls_one_after_another(valkey: Any) -> None:
    inside: list[int] = []
    most = 0

    def naive() -> None:
        nonlocal most
        while not valkey.set("naive:lock", "1", nx=True, px=10_000):
            time.sleep(0.001)
        try:
            inside.append(1)
            most = max(most, len(inside))
            time.sleep(0.005)
            raise ConnectionError("origin down")
        finally:
            inside.pop()
            valkey.delete("naive:lock")

    assert [str(result) for result in at_once(10, naive)] == ["origin down"] * 10
    assert most == 1


LEADER = """
import sys, time
from redis_cache_sync import RedisCache, connect

cache = RedisCache(connect(sys.argv[1], timeout=5), namespace="test", lock_ttl=float(sys.argv[2]))

@cache.cached(ttl=60)
def load(x=0):
    print("computing", flush=True)
    time.sleep(60)

load()
"""


def test_a_killed_leader_delays_the_others_by_the_life_of_its_lock_at_most(
    cache: Cache, valkey_url: str, valkey: Any
) -> None:
    def load(x: int = 0) -> str:
        return "computed by another"

    load.__module__, load.__qualname__ = "__main__", "load"
    f = cache.cached(ttl=60)(load)
    with process(LEADER, valkey_url, "0.3") as child:
        assert child.stdout
        assert child.stdout.readline() == "computing\n"
        child.kill()
    left = valkey.pttl(core.lock_of(f.key_for()))
    begin = time.monotonic()
    assert at_once(5, f) == ["computed by another"] * 5
    assert left / 1000 - 0.05 < time.monotonic() - begin
    assert valkey.exists(f.key_for()) == 1


def test_a_caller_waits_as_long_as_it_is_told_then_computes_for_itself(
    make: Make, color: Color, clock: Clock, valkey_url: str, valkey: Any
) -> None:
    cache = make(valkey_url, wait=0.2, clock=clock, sleep=color.pick(clock.asleep, clock.sleep))
    f, stores = cached_by(cache, Origin()), Counting(cache, "_store_script")
    valkey.set(core.lock_of(f.key_for()), b"a slow leader", px=60_000)
    assert f() == 1
    assert clock.pauses[:3] == pytest.approx([0.005, 0.0075, 0.01125])
    assert max(clock.pauses) == 0.05
    assert sum(clock.pauses) == pytest.approx(0.2)
    assert stores.value == 0  # not the owner, so nothing is sent
    assert valkey.get(core.lock_of(f.key_for())) == b"a slow leader"


def test_a_waiting_caller_takes_over_from_a_leader_who_gave_up(
    make: Make, color: Color, clock: Clock, valkey_url: str, valkey: Any
) -> None:
    cache = make(valkey_url, clock=clock, sleep=color.pick(clock.asleep, clock.sleep))
    f = cached_by(cache, Origin())
    lock = core.lock_of(f.key_for())
    clock.at_pause = lambda _: valkey.delete(lock)
    valkey.set(lock, b"a failing leader", px=60_000)
    assert f() == 1
    assert len(clock.pauses) == 1
    assert valkey.get(f.key_for()) == b"1:1"
    assert not valkey.exists(core.lock_of(f.key_for()))


def test_a_waiting_caller_does_not_wait_for_the_next_leader_too(
    make: Make, color: Color, clock: Clock, valkey_url: str, valkey: Any
) -> None:
    cache = make(valkey_url, clock=clock, sleep=color.pick(clock.asleep, clock.sleep))
    f = cached_by(cache, Origin())
    lock = core.lock_of(f.key_for())
    clock.at_pause = lambda _: valkey.set(lock, b"second")
    valkey.set(lock, b"first", px=60_000)
    assert f() == 1
    assert len(clock.pauses) == 1
    assert not valkey.exists(f.key_for())


def test_a_value_stored_between_looking_and_locking_is_served(cache: Cache, valkey: Any) -> None:
    origin = Origin()
    f = cached_by(cache, origin)
    key, acquire = f.key_for(), cache.inner._acquire_script

    def late(*args: Any, **kwargs: Any) -> Any:
        valkey.set(key, b"1:99")
        return acquire(*args, **kwargs)

    cache.inner._acquire_script = late
    assert f() == 99
    assert origin.loads == 0
    assert not valkey.exists(core.lock_of(f.key_for()))


def test_a_result_is_not_stored_when_its_lock_expired_meanwhile(
    make: Make, valkey_url: str, valkey: Any, caplog: pytest.LogCaptureFixture
) -> None:
    origin = Origin()
    f = cached_by(make(valkey_url, lock_ttl=0.02), origin)
    origin.go.clear()
    slow = in_thread(f)
    origin.wait_until_running()
    until(lambda: not valkey.exists(core.lock_of(f.key_for())))
    time.sleep(0.03)
    valkey.set(core.lock_of(f.key_for()), b"the next leader", px=60_000)
    origin.go.set()
    assert slow.result(20) == 1
    assert not valkey.exists(f.key_for())
    assert valkey.get(core.lock_of(f.key_for())) == b"the next leader"
    assert "load took longer than lock_ttl: its result is not stored" in caplog.text


@pytest.mark.parametrize(("took", "warned"), [(9.99, False), (10.0, True)])
def test_a_lost_lock_is_only_worth_a_warning_when_it_was_too_short(
    make: Make, clock: Clock, valkey_url: str, caplog: pytest.LogCaptureFixture, took: float, warned: bool
) -> None:
    f: Blocking

    def load() -> int:
        clock.advance(took)
        f.invalidate()
        return 1

    f = make(valkey_url, clock=clock).cached(ttl=60)(load)
    assert f() == 1
    assert ("longer than lock_ttl" in caplog.text) is warned


def test_deleting_a_lock_without_comparing_deletes_the_next_owners(cache: Cache, valkey: Any) -> None:
    lock = {"nx": True, "px": 60_000}
    valkey.set("naive:lock", "first owner", px=1)
    until(lambda: not valkey.exists("naive:lock"))
    assert valkey.set("naive:lock", "second owner", **lock)
    valkey.delete("naive:lock")  # the first owner has finished
    assert valkey.set("naive:lock", "third owner", **lock)

    release = Blocking(cache.color, cache.inner._release_script)
    for who, deleted in ((b"first owner", 0), (b"third owner", 1), (b"third owner", 0)):
        assert release(keys=["naive", "naive:lock"], args=[who]) == deleted


def test_locks_live_ten_seconds_and_callers_wait_five_by_default(cache: Cache, valkey: Any) -> None:
    @cache.cached(ttl=60)
    def f() -> int:
        return int(valkey.pttl(core.lock_of(f.key_for())))

    assert 9_000 < f() <= 10_000
    assert inspect.signature(type(cache.inner)).parameters["wait"].default == 5.0


# --- Invalidation ---------------------------------------------------------------------------------


def test_an_invalidated_call_is_computed_again(cache: Cache, valkey: Any) -> None:
    f = cached_by(cache, Origin())
    assert [f(1), f(2), f(1)] == [1, 2, 1]
    assert f.invalidate(1) is True
    assert f.invalidate(x=1) is True
    assert valkey.dbsize() == 1
    assert [f(1), f(2)] == [3, 2]


def test_an_invalidation_while_computing_keeps_the_old_result_out(cache: Cache, valkey: Any) -> None:
    origin = Origin()
    f = cached_by(cache, origin)
    origin.go.clear()
    old = in_thread(f)
    origin.wait_until_running()  # it has read what is about to change
    assert f.invalidate() is True
    new = in_thread(f)  # does not wait for the old one: that would be stale
    origin.wait_until_running()
    origin.go.set()
    assert (old.result(20), new.result(20)) == (1, 2)
    assert f() == 2
    assert valkey.keys() == [f.key_for().encode()]


def test_naive_invalidation_is_undone_by_a_running_computation(valkey: Any) -> None:
    origin = Origin()
    origin.go.clear()

    def naive() -> Any:
        value = origin()
        valkey.set("naive", value)
        return value

    computation = in_thread(naive)
    origin.wait_until_running()
    valkey.delete("naive")
    origin.go.set()
    assert computation.result(20) == 1
    assert valkey.get("naive") == b"1"  # and so it stays until it expires


def test_a_refresh_computes_at_once_while_others_are_given_the_old_result(cache: Cache) -> None:
    origin = Origin()
    f = cached_by(cache, origin)
    assert f() == 1
    origin.go.clear()
    new = in_thread(f.refresh)
    origin.wait_until_running()
    assert f() == 1
    origin.go.set()
    assert new.result(20) == 2
    assert f() == 2


def test_a_refresh_wins_over_a_computation_that_began_before_it(cache: Cache) -> None:
    first, second = threading.Event(), threading.Event()
    turns = [first, second]
    started = threading.Semaphore(0)

    @cache.cached(ttl=60)
    def f() -> str:
        mine = turns.pop(0)
        started.release()
        assert mine.wait(10)
        return "old" if mine is first else "new"

    old = in_thread(f)
    assert started.acquire(timeout=10)
    new = in_thread(f.refresh)
    assert started.acquire(timeout=10)
    second.set()
    assert new.result(20) == "new"
    first.set()
    assert old.result(20) == "old"
    assert f() == "new"


def test_a_refresh_that_fails_leaves_the_old_result(cache: Cache, valkey: Any) -> None:
    origin = Origin()
    f = cached_by(cache, origin)
    assert f() == 1
    origin.error = ConnectionError("origin down")
    with pytest.raises(ConnectionError, match="origin down"):
        f.refresh()
    assert f() == 1
    assert valkey.keys() == [f.key_for().encode()]
