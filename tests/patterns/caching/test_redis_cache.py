"""Proves docs/patterns/caching/redis-cache.md: one result for all processes, computed once, never stale for ever."""

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

import cache_core as core
import redis_cache
from cache_codec import JsonSerializer, UnserializableValue
from patterns.caching import redis_cache_kit as kit
from patterns.caching.redis_cache_kit import Blocking, Color, Counting, Origin, Sleeper, at_once, running, until
from redis_cache import RedisCache

# Fixtures.
color, cache, db = kit.color, kit.cache, kit.db


# --- Results --------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [None, 0, "", [], {}, False, 0.0], ids=repr)
def test_an_empty_result_is_a_result(cache: Blocking, empty: object) -> None:
    runs: list[object] = []

    @cache.cached(ttl=60)
    def f() -> object:
        runs.append(empty)
        return empty

    assert [f(), f(), f()] == [empty] * 3
    assert type(f()) is type(empty)
    assert len(runs) == 1


def test_a_hit_is_one_round_trip_and_a_miss_three(cache: Blocking) -> None:
    f, trips = Origin().cached_by(cache), Counting(cache, "_ask")
    assert [f(), trips.value] == [1, 3]
    assert [f(), trips.value] == [1, 3 + 1]


def test_a_truth_test_computes_empty_results_for_ever(db: Any) -> None:
    origin = Origin()

    def naive() -> Any:
        if cached := JsonSerializer().loads(db.get("naive") or b"null"):
            return cached
        origin()
        db.set("naive", JsonSerializer().dumps([]))
        return []

    assert [naive(), naive(), naive()] == [[], [], []]
    assert origin.runs == 3


def test_none_is_not_kept_when_told_so(cache: Blocking, db: Any) -> None:
    found: list[str | None] = [None, None, "Ada", "Bob"]

    @cache.cached(ttl=60, cache_none=False)
    def find() -> str | None:
        return found.pop(0)

    assert find() is None
    assert db.dbsize() == 0  # no lock is left behind for the next caller to wait for
    assert [find(), find(), find()] == [None, "Ada", "Ada"]


def test_values_can_be_kept_under_names_of_your_own(cache: Blocking, db: Any) -> None:
    assert cache.get("greeting") is None
    assert cache.get("greeting", "none yet") == "none yet"
    assert cache.set("greeting", None, ttl=100) is True
    assert cache.get("greeting", "none yet") is None
    assert 99_000 < db.pttl(db.keys()[0]) <= 100_000
    assert cache.delete("greeting") is True
    assert cache.delete("greeting") is True
    assert cache.get("greeting", "gone") == "gone"


def test_a_value_of_five_megabytes_is_kept(cache: Blocking) -> None:
    runs: list[int] = []

    @cache.cached(ttl=60)
    def f() -> bytes:
        runs.append(1)
        return b"x" * 5_000_000

    assert f() == f() == b"x" * 5_000_000
    assert len(runs) == 1


def test_a_result_that_cannot_be_kept_raises_and_leaves_no_lock(cache: Blocking, db: Any) -> None:
    @cache.cached(ttl=60)
    def f() -> object:
        return object()

    for _ in range(2):
        with pytest.raises(UnserializableValue, match=r"builtins\.object is no type"):
            f()
    with pytest.raises(UnserializableValue):
        cache.set("x", object(), ttl=60)
    assert db.dbsize() == 0


@pytest.mark.parametrize("left", [b"", b"\xff\x00", b'"text"', b"1:{", b"2:7", b"7", ["a", "list"]])
def test_what_another_program_left_under_the_key_is_a_miss_and_overwritten(
    cache: Blocking, db: Any, left: bytes | list[str]
) -> None:
    f = Origin().cached_by(cache)
    db.rpush(f.key_for(), *left) if isinstance(left, list) else db.set(f.key_for(), left)
    assert [f(), f()] == [1, 1]
    assert db.get(f.key_for()) == b"1:1"
    assert 54_000 <= db.pttl(f.key_for()) <= 66_000


def test_lives_differ_and_stay_within_the_jitter(cache: Blocking, db: Any) -> None:
    @cache.cached(ttl=100, jitter=0.1)
    def f(x: int) -> int:
        return x

    for x in range(30):
        f(x)
    lives = [db.pttl(f.key_for(x)) for x in range(30)]
    assert 89_000 < min(lives) < max(lives) <= 110_000
    assert max(lives) - min(lives) > 3_000
    defaults = inspect.signature(cache.target.cached).parameters
    assert (defaults["jitter"].default, defaults["cache_none"].default) == (0.1, True)


def test_the_jitter_is_drawn_from_the_given_source(color: Color, valkey_url: str, db: Any) -> None:
    for chance, life in ((0.0, 90_000), (1.0, 110_000)):
        cache = color.cache(valkey_url, namespace=f"at{chance}", rng=lambda chance=chance: chance)
        f = Origin().cached_by(cache, ttl=100)
        f()
        assert life - 1_000 < db.pttl(f.key_for()) <= life


def test_setex_is_deprecated_and_refuses_nothing_and_fractions(db: Any) -> None:
    for ttl in (0, 0.5):
        with pytest.deprecated_call(), pytest.raises(redis.ResponseError):
            db.setex("naive", ttl, "value")


def test_two_namespaces_and_two_versions_share_nothing(color: Color, valkey_url: str) -> None:
    settings: list[dict[str, Any]] = [{}, {"namespace": "blog"}, {"version": 2}]
    caches = [color.cache(valkey_url, **each) for each in settings]
    functions = [Origin().cached_by(each) for each in caches]
    assert len({f.key_for() for f in functions}) == 3
    for number, each in enumerate(caches):
        each.set("name", number, ttl=60)
        functions[number]()
    assert caches[0].delete("name") is functions[0].invalidate() is True
    assert [each.get("name", "gone") for each in caches] == ["gone", 1, 2]
    assert [f() for f in functions] == [2, 1, 1]


def test_what_a_function_reads_besides_its_arguments_is_not_in_the_key(cache: Blocking) -> None:
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


def test_fifty_callers_who_miss_together_run_the_function_once(cache: Blocking) -> None:
    origin = Origin()
    f = origin.cached_by(cache)
    origin.go.clear()
    threading.Timer(0.05, origin.go.set).start()
    assert at_once(50, f) == [1] * 50
    assert origin.runs == 1


def test_without_a_lock_twenty_callers_run_it_twenty_times(db: Any) -> None:
    together = threading.Barrier(20)
    runs: list[int] = []

    def naive() -> int:
        if (found := db.get("naive")) is not None:
            return int(found)
        together.wait(10)  # the function is slow: everybody has looked before anybody has stored
        runs.append(1)
        db.set("naive", 7)
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
    from redis_cache import RedisCache, connect

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
    environ = os.environ | {"PYTHONPATH": str(Path(redis_cache.__file__).parent)}
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


def test_four_processes_of_both_colors_run_the_function_once_between_them(valkey_url: str, db: Any) -> None:
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
    assert db.get("runs") == b"1"


def test_when_the_computing_caller_fails_the_others_run_side_by_side(cache: Blocking, db: Any) -> None:
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

    waiting = Counting(cache, "_wait_for")
    results = at_once(10, f)
    assert [str(result) for result in results] == ["origin down"] * 10
    assert len(failures) == 9
    assert waiting.value == 9  # nobody waited twice
    assert db.dbsize() == 0


def test_waiting_for_the_lock_naively_runs_failing_calls_one_after_another(db: Any) -> None:
    inside: list[int] = []
    most = 0

    def naive() -> None:
        nonlocal most
        while not db.set("naive:lock", "1", nx=True, px=10_000):
            time.sleep(0.001)
        try:
            inside.append(1)
            most = max(most, len(inside))
            time.sleep(0.005)
            raise ConnectionError("origin down")
        finally:
            inside.pop()
            db.delete("naive:lock")

    assert [str(result) for result in at_once(10, naive)] == ["origin down"] * 10
    assert most == 1


LEADER = """
import sys, time
from redis_cache import RedisCache, connect

cache = RedisCache(connect(sys.argv[1], timeout=5), namespace="test", lock_ttl=float(sys.argv[2]))

@cache.cached(ttl=60)
def load(x=0):
    print("computing", flush=True)
    time.sleep(60)

load()
"""


def test_a_killed_leader_delays_the_others_by_the_life_of_its_lock_at_most(
    cache: Blocking, valkey_url: str, db: Any
) -> None:
    def load(x: int = 0) -> str:
        return "computed by another"

    load.__module__, load.__qualname__ = "__main__", "load"
    f = cache.cached(ttl=60)(load)
    with process(LEADER, valkey_url, "0.3") as child:
        assert child.stdout
        assert child.stdout.readline() == "computing\n"
        child.kill()
    left = db.pttl(core.lock_of(f.key_for()))
    begin = time.monotonic()
    assert at_once(5, f) == ["computed by another"] * 5
    assert left / 1000 - 0.05 < time.monotonic() - begin < 0.3 + 0.3
    assert db.exists(f.key_for()) == 1


def test_a_caller_waits_as_long_as_it_is_told_then_computes_for_itself(color: Color, valkey_url: str, db: Any) -> None:
    sleeper = Sleeper(color)
    cache = color.cache(valkey_url, wait=0.2, **sleeper.options)
    f, stores = Origin().cached_by(cache), Counting(cache, "_store")
    db.set(core.lock_of(f.key_for()), b"a slow leader", px=60_000)
    assert f() == 1
    assert sleeper.pauses[:3] == pytest.approx([0.005, 0.0075, 0.01125])
    assert max(sleeper.pauses) == 0.05
    assert sum(sleeper.pauses) == pytest.approx(0.2)
    assert stores.value == 0  # not the owner, so nothing is sent
    assert db.get(core.lock_of(f.key_for())) == b"a slow leader"


def test_a_waiting_caller_takes_over_from_a_leader_who_gave_up(color: Color, valkey_url: str, db: Any) -> None:
    sleeper = Sleeper(color, each=lambda: db.delete(core.lock_of(f.key_for())))
    f = Origin().cached_by(color.cache(valkey_url, **sleeper.options))
    db.set(core.lock_of(f.key_for()), b"a failing leader", px=60_000)
    assert f() == 1
    assert len(sleeper.pauses) == 1
    assert db.get(f.key_for()) == b"1:1"
    assert not db.exists(core.lock_of(f.key_for()))


def test_a_waiting_caller_does_not_wait_for_the_next_leader_too(color: Color, valkey_url: str, db: Any) -> None:
    sleeper = Sleeper(color, each=lambda: db.set(core.lock_of(f.key_for()), b"second"))
    f = Origin().cached_by(color.cache(valkey_url, **sleeper.options))
    db.set(core.lock_of(f.key_for()), b"first", px=60_000)
    assert f() == 1
    assert len(sleeper.pauses) == 1
    assert not db.exists(f.key_for())


def test_a_value_stored_between_looking_and_locking_is_served(cache: Blocking, db: Any) -> None:
    origin = Origin()
    f = origin.cached_by(cache)
    acquire = cache.target._acquire

    def late(*args: Any, **kwargs: Any) -> Any:
        db.set(f.key_for(), b"1:99")
        return acquire(*args, **kwargs)

    cache.target._acquire = late
    assert f() == 99
    assert origin.runs == 0
    assert not db.exists(core.lock_of(f.key_for()))


def test_a_result_is_not_stored_when_its_lock_expired_meanwhile(
    color: Color, valkey_url: str, db: Any, caplog: pytest.LogCaptureFixture
) -> None:
    origin = Origin()
    f = origin.cached_by(color.cache(valkey_url, lock_ttl=0.02))
    origin.go.clear()
    with running(f) as slow:
        origin.wait_until_running()
        until(lambda: not db.exists(core.lock_of(f.key_for())))
        time.sleep(0.03)
        db.set(core.lock_of(f.key_for()), b"the next leader", px=60_000)
        origin.go.set()
    assert slow == [1]
    assert not db.exists(f.key_for())
    assert db.get(core.lock_of(f.key_for())) == b"the next leader"
    assert "load took longer than lock_ttl: its result is not stored" in caplog.text


@pytest.mark.parametrize(("took", "warned"), [(9.99, False), (10.0, True)])
def test_a_lost_lock_is_only_worth_a_warning_when_it_was_too_short(
    color: Color, valkey_url: str, caplog: pytest.LogCaptureFixture, took: float, warned: bool
) -> None:
    now = [5.0]
    f: Blocking

    def load() -> int:
        now[0] += took
        f.invalidate()
        return 1

    f = color.cache(valkey_url, clock=lambda: now[0]).cached(ttl=60)(load)
    assert f() == 1
    assert ("longer than lock_ttl" in caplog.text) is warned


def test_deleting_a_lock_without_comparing_deletes_the_next_owners(cache: Blocking, db: Any) -> None:
    lock = {"nx": True, "px": 60_000}
    db.set("naive:lock", "first owner", px=1)
    until(lambda: not db.exists("naive:lock"))
    assert db.set("naive:lock", "second owner", **lock)
    db.delete("naive:lock")  # the first owner has finished
    assert db.set("naive:lock", "third owner", **lock)

    release = cache.target._release
    for who, deleted in ((b"first owner", 0), (b"third owner", 1), (b"third owner", 0)):
        reply = release(keys=["naive", "naive:lock"], args=[who])
        assert (cache.color.wait_for(reply)) == deleted


def test_locks_live_ten_seconds_and_callers_wait_five_by_default(cache: Blocking, db: Any) -> None:
    @cache.cached(ttl=60)
    def f() -> int:
        return int(db.pttl(core.lock_of(f.key_for())))

    assert 9_000 < f() <= 10_000
    assert inspect.signature(type(cache.target)).parameters["wait"].default == 5.0


# --- Invalidation ---------------------------------------------------------------------------------


def test_an_invalidated_call_is_computed_again(cache: Blocking, db: Any) -> None:
    f = Origin().cached_by(cache)
    assert [f(1), f(2), f(1)] == [1, 2, 1]
    assert f.invalidate(1) is True
    assert f.invalidate(x=1) is True
    assert db.dbsize() == 1
    assert [f(1), f(2)] == [3, 2]


def test_an_invalidation_while_computing_keeps_the_old_result_out(cache: Blocking, db: Any) -> None:
    origin = Origin()
    f = origin.cached_by(cache)
    origin.go.clear()
    with running(f) as old:
        origin.wait_until_running()  # it has read what is about to change
        assert f.invalidate() is True
        with running(f) as new:  # does not wait for the old one: that would be stale
            origin.wait_until_running()
            origin.go.set()
    assert (old, new) == ([1], [2])
    assert f() == 2
    assert db.keys() == [f.key_for().encode()]


def test_naive_invalidation_is_undone_by_a_running_computation(db: Any) -> None:
    origin = Origin()
    origin.go.clear()

    def naive() -> int:
        value = origin()
        db.set("naive", value)
        return value

    with running(naive):
        origin.wait_until_running()
        db.delete("naive")
        origin.go.set()
    assert db.get("naive") == b"1"  # and so it stays until it expires


def test_a_refresh_computes_at_once_while_others_are_given_the_old_result(cache: Blocking) -> None:
    origin = Origin()
    f = origin.cached_by(cache)
    assert f() == 1
    origin.go.clear()
    with running(f.refresh) as new:
        origin.wait_until_running()
        assert f() == 1
        origin.go.set()
    assert new == [2]
    assert f() == 2


def test_a_refresh_wins_over_a_computation_that_began_before_it(cache: Blocking) -> None:
    first, second = threading.Event(), threading.Event()
    turns = [first, second]
    started = threading.Semaphore(0)

    @cache.cached(ttl=60)
    def f() -> str:
        mine = turns.pop(0)
        started.release()
        assert mine.wait(10)
        return "old" if mine is first else "new"

    with running(f) as old:
        started.acquire(timeout=10)
        with running(f.refresh) as new:
            started.acquire(timeout=10)
            second.set()
        first.set()
    assert (old, new) == (["old"], ["new"])
    assert f() == "new"


def test_a_refresh_that_fails_leaves_the_old_result(cache: Blocking, db: Any) -> None:
    origin = Origin()
    f = origin.cached_by(cache)
    assert f() == 1
    origin.error = ConnectionError("origin down")
    with pytest.raises(ConnectionError, match="origin down"):
        f.refresh()
    assert f() == 1
    assert db.keys() == [f.key_for().encode()]


# --8<-- [start:own]
def test_a_price_is_looked_up_once_and_again_after_it_changed(valkey_url: str) -> None:
    from redis_cache import connect

    prices = {"apple": 100}
    lookups: list[str] = []
    with connect(valkey_url) as client:
        cache = RedisCache(client, namespace="test-shop")

        @cache.cached(ttl=60)
        def price_of(sku: str) -> int:
            lookups.append(sku)
            return prices[sku]

        assert [price_of("apple"), price_of(sku="apple")] == [100, 100]
        assert lookups == ["apple"]

        prices["apple"] = 120
        assert price_of.invalidate("apple")
        assert price_of("apple") == 120


# --8<-- [end:own]
