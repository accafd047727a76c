"""Proves docs/patterns/caching/multi-level-cache.md: two levels, one load, and a change that reaches every process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import multi_level_core
from harness.clock import Clock
from harness.color import Blocking
from harness.origin import Origin
from harness.waiting import each_at_once, in_thread, until
from multi_level_core import MISSING
from patterns.caching import multi_level_cache_kit as kit
from patterns.caching.multi_level_cache_kit import Maker, commands_of, put

# Fixtures.
maker = kit.maker

# --- Levels ---------------------------------------------------------------------------------------


def test_a_hit_in_memory_sends_no_command(maker: Maker, valkey_url: str) -> None:
    cache, origin = maker.cache(valkey_url), Origin()
    assert cache.get_or_load("k", origin) == 1
    sent = commands_of(cache)
    assert [cache.get("k"), cache.get_or_load("k", origin)] == [1, 1]
    assert sent == []
    assert cache.stats() == {"l1": 2, "l2": 0, "loads": 1, "errors": 0, "size": 1}


def test_a_hit_in_redis_is_one_round_trip_and_a_miss_two(maker: Maker, valkey_url: str) -> None:
    first, second, origin = maker.cache(valkey_url), maker.cache(valkey_url), Origin()
    first.get_or_load("warm", origin)  # the scripts are known now
    second.get_or_load("warm", origin)
    sent = commands_of(first)
    assert first.get_or_load("k", origin) == 2
    assert sent == ["EVALSHA"] * 2
    sent = commands_of(second)
    assert second.get("k") == 2
    assert sent == ["EVALSHA"]
    assert (second.stats()["l2"], second.stats()["loads"]) == (2, 0)


def test_lifetimes_are_kept_to_the_millisecond(maker: Maker, valkey_url: str, valkey: Any) -> None:
    clock = Clock()
    options: dict[str, Any] = {"clock": clock, "l1_ttl": 3.0}
    cache, other = maker.cache(valkey_url, **options), maker.cache(valkey_url, **options)
    for key, ttl, life in (("a", None, 300_000), ("b", 40.0, 40_000), ("c", 2.0, 2_000)):
        put(cache, key, key, ttl, others=[other])
        left = valkey.pttl(f"{maker.namespace}:value:{key}")
        assert life - 1_900 < left <= life
        hits = other.stats()["l1"]
        assert [other.get(key), other.get(key)] == [key, key]
        assert other.stats()["l1"] == hits + 1
        memory = other.level._entries[key][1] - clock.now
        assert memory == 3.0 if key != "c" else left - 500 < memory * 1000 <= 2_000
    clock.now += 2.999  # strictly before its end
    assert [other.get("b"), other.stats()["l2"]] == ["b", 3]
    clock.now = other.level._entries["b"][1]
    assert [other.get("b"), other.stats()["l2"]] == ["b", 4]
    defaults = {name: p.default for name, p in inspect.signature(type(cache.inner)).parameters.items()}
    assert [defaults[name] for name in ("l1_max", "l1_ttl", "l2_ttl", "negative_ttl", "lock_ttl")] == [
        *(10_000, 5.0, 300.0, 2.0, 10.0)
    ]


def test_filling_memory_with_its_full_lifetime_outlives_redis_and_the_rest_does_not(
    maker: Maker, valkey_url: str, valkey: Any
) -> None:
    one, other = maker.cache(valkey_url), maker.cache(valkey_url)
    put(one, "k", "old", ttl=0.2, others=[other])
    naive = {"k": (other.get("k"), time.monotonic() + 5.0)}  # whatever is left in Redis, 5 s here
    assert naive["k"][0] == other.get("k") == "old"
    until(lambda: not valkey.exists(f"{maker.namespace}:value:k"))
    assert other.get("k") is MISSING
    assert naive["k"][1] > time.monotonic() + 4  # the naive level goes on serving it


@pytest.mark.parametrize("empty", [None, 0, "", [], {}, False, 0.0], ids=repr)
def test_an_empty_value_is_a_hit_at_every_level(maker: Maker, valkey_url: str, empty: object) -> None:
    loads: list[int] = []

    def load() -> object:
        loads.append(1)
        return empty

    one, other = maker.cache(valkey_url), maker.cache(valkey_url)
    results = [one.get_or_load("k", load), one.get("k"), other.get("k"), other.get_or_load("k", load)]
    assert results == [empty] * 4
    assert {type(result) for result in results} == {type(empty)}
    assert len(loads) == 1


def test_a_truth_test_loads_empty_values_forever(valkey: Any) -> None:
    memory: dict[str, Any] = {}
    origin = Origin(0)

    def naive() -> Any:
        if value := memory.get("k"):
            return value
        if value := json.loads(valkey.get("naive") or "null"):
            return value
        memory["k"] = origin()
        valkey.set("naive", json.dumps(memory["k"]))
        return memory["k"]

    assert [naive(), naive(), naive()] == [0, 0, 0]
    assert origin.loads == 3


def test_what_does_not_exist_is_remembered_briefly_then_asked_for_again(
    maker: Maker, valkey_url: str, valkey: Any
) -> None:
    clock = Clock()
    one = maker.cache(valkey_url, clock=clock)
    other = maker.cache(valkey_url, clock=clock, negative_ttl=0.05)
    origin = Origin(MISSING)
    assert [one.get_or_load("k", origin), one.get_or_load("k", origin)] == [MISSING] * 2
    assert other.get_or_load("k", origin) is MISSING
    assert origin.loads == 1
    assert 1_000 < valkey.pttl(f"{maker.namespace}:value:k") <= 2_000
    clock.now += 2  # gone from memory, not from Redis
    assert one.get_or_load("k", origin) is one.get("k") is MISSING
    assert origin.loads == 1
    assert other.get_or_load("brief", origin) is MISSING
    until(lambda: not valkey.exists(f"{maker.namespace}:value:brief"))
    clock.now += 0.05
    assert other.get_or_load("brief", origin) is MISSING
    assert origin.loads == 3
    assert one.set("by hand", MISSING) is True
    assert one.get_or_load("by hand", origin) is MISSING
    assert valkey.pttl(f"{maker.namespace}:value:by hand") <= 2_000
    assert origin.loads == 3


@pytest.mark.parametrize("how", ["set", "invalidate"])
def test_creating_a_record_ends_the_memory_of_its_absence(maker: Maker, valkey_url: str, how: str) -> None:
    origin = Origin(MISSING)
    one, other = maker.cache(valkey_url), maker.cache(valkey_url)
    assert one.get_or_load("k", origin) is other.get_or_load("k", origin) is MISSING
    origin.value = "born"
    one.set("k", "born") if how == "set" else one.invalidate("k")
    assert one.get_or_load("k", origin) == "born"
    until(lambda: other.get_or_load("k", origin) == "born")
    assert origin.loads == (1 if how == "set" else 2)


def test_a_returned_object_can_be_changed_without_changing_the_cached_one(maker: Maker, valkey_url: str) -> None:
    cache, origin = maker.cache(valkey_url), Origin({"roles": ["reader"]})
    naive: dict[str, Any] = {"k": {"roles": ["reader"]}}
    for mine in (cache.get_or_load("k", origin), cache.get("k"), naive["k"]):
        mine["roles"].append("admin")
    assert cache.get("k") == cache.get_or_load("k", origin) == {"roles": ["reader"]}
    assert naive["k"] == {"roles": ["reader", "admin"]}  # one request has made the next one an admin
    assert origin.value == {"roles": ["reader"]}
    origin.go.clear()
    origin.value = ["shared?"]
    loading = in_thread(cache.get_or_load, "new", origin)
    until(lambda: origin.loads == 2)
    joining = in_thread(cache.get_or_load, "new", origin)
    time.sleep(0.01)
    origin.go.set()
    first, second = loading.result(20), joining.result(20)
    assert first == second == ["shared?"]
    assert first is not second


DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((1, 2), "tuple would come back from JSON as something else"),
        ({1: "one"}, "dict would come back"),
        ([{"deep": (1,)}], "list would come back"),
        (datetime(2026, 11, 20, tzinfo=UTC), "datetime: Object of type datetime is not JSON serializable"),
        (float("nan"), "float: Out of range float values are not JSON compliant"),
        (DEEP, "list: maximum recursion"),
    ],
    ids=["tuple", "int key", "nested tuple", "datetime", "nan", "deep"],
)
def test_what_json_cannot_carry_is_refused_by_name(
    maker: Maker, valkey_url: str, valkey: Any, value: object, message: str
) -> None:
    cache = maker.cache(valkey_url)
    with pytest.raises(TypeError, match=f"^{message}"):
        cache.set("k", value)
    with pytest.raises(TypeError, match=f"^{message}"):
        cache.get_or_load("k", lambda: value)
    assert valkey.dbsize() == 0  # no lease is left behind
    assert cache.stats()["size"] == 0


def test_settings_that_cannot_work_are_refused(maker: Maker, valkey_url: str) -> None:
    make = functools.partial(maker.kind, maker.client(valkey_url), namespace="n")
    wrong: Any
    for name in ("l1_ttl", "l2_ttl", "negative_ttl", "lock_ttl"):
        for wrong in (0, 0.0009, math.inf, math.nan, True):
            message = re.escape(f"{name} must be a number of seconds from 0.001, got {wrong!r}")
            with pytest.raises(ValueError, match=f"^{message}$"):
                make(**{name: wrong})
        make(**{name: 0.001})
    assert make(l1_ttl=1.001)._level.ttl == 1.001  # rounded, not cut
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"^l1_max must be a whole number of at least 1, got {wrong}$"):
            make(l1_max=wrong)
    for wrong in ("", "a:b"):
        with pytest.raises(ValueError, match=f"^namespace must be a text without ':', got '{wrong}'$"):
            make(namespace=wrong)
    with pytest.raises(ValueError, match=r"^timeout must be a number of seconds from 0\.001, got nan$"):
        maker.connect(valkey_url, timeout=math.nan)
    with pytest.raises(ValueError, match="decode_responses=False"):
        maker.kind(maker.client(f"{valkey_url}?decode_responses=true"), namespace="n")
    cache = maker.cache(valkey_url)
    with pytest.raises(ValueError, match=r"^ttl must be a number of seconds from 0\.001, got 0$"):
        cache.set("k", 1, ttl=0)
    seven: Any = 7
    for call in (cache.get, cache.invalidate):
        with pytest.raises(TypeError, match="a key is a str, not 7"):
            call(seven)


@pytest.mark.parametrize("left", [b"", b"\x80\x04", b'"text"', b"7", ["a", "list"]])
def test_what_another_program_left_under_the_key_is_a_miss_and_overwritten(
    maker: Maker, valkey_url: str, valkey: Any, left: bytes | list[str]
) -> None:
    cache, origin, name = maker.cache(valkey_url), Origin(), f"{maker.namespace}:value:k"
    valkey.rpush(name, *left) if isinstance(left, list) else valkey.set(name, left)
    assert cache.get("k") is MISSING
    assert cache.get_or_load("k", origin) == 1
    assert valkey.get(name) == b"[1]"


# --- Memory is bounded ----------------------------------------------------------------------------


def test_memory_holds_no_more_than_it_may_and_the_first_goes_first(maker: Maker, valkey_url: str) -> None:
    cache = maker.cache(valkey_url, l1_max=3)
    naive: dict[str, Any] = {}
    for key in "abcad":
        put(cache, key, key)
        naive[key] = cache.get(key)
    assert list(cache.level._entries) == ["c", "a", "d"]  # set again, "a" is new
    assert cache.stats()["size"] == 3
    assert len(naive) == 4


def test_what_has_ended_leaves_memory_though_nobody_asks(maker: Maker, valkey_url: str) -> None:
    clock = Clock()
    cache = maker.cache(valkey_url, clock=clock, l1_ttl=0.04)
    naive = {}
    for number in range(50):
        cache.get_or_load(str(number), Origin())
        naive[str(number)] = clock() + 0.04
    until(lambda: cache.stats()["size"] == 50)
    clock.now += 0.04
    until(lambda: cache.stats()["size"] == 0)
    assert len(naive) == 50  # checked on reading only, it stays forever


# --- One load -------------------------------------------------------------------------------------


def test_fifty_callers_of_two_caches_load_once(maker: Maker, valkey_url: str) -> None:
    caches = [maker.cache(valkey_url) for _ in range(2)]
    origin = Origin()
    origin.go.clear()
    threading.Timer(0.05, origin.go.set).start()
    assert each_at_once(lambda n: caches[n % 2].get_or_load("k", origin), range(50)) == [1] * 50
    assert origin.loads == 1
    assert [cache.stats()["loads"] + cache.stats()["l2"] for cache in caches] == [1, 1]


WORKER = """
import asyncio, json, sys, time
import redis

url, color, namespace = sys.argv[1:]
db = redis.Redis.from_url(url)

def load():
    db.incr("loads")
    time.sleep(0.05)
    return db.get("truth").decode()

if color == "sync":
    from concurrent.futures import ThreadPoolExecutor
    from multi_level_sync import MultiLevelCache, connect

    with connect(url, timeout=5) as client, MultiLevelCache(client, namespace=namespace) as cache:
        print("ready", flush=True)
        for line in sys.stdin:
            with ThreadPoolExecutor(8) as pool:
                print(sorted({*pool.map(lambda _: cache.get_or_load("k", load), range(8))}), flush=True)
else:
    from multi_level_async import AsyncMultiLevelCache, connect

    async def main():
        async with connect(url, timeout=5) as client, AsyncMultiLevelCache(client, namespace=namespace) as cache:
            print("ready", flush=True)
            while await asyncio.to_thread(sys.stdin.readline):
                loads = (cache.get_or_load("k", lambda: asyncio.to_thread(load)) for _ in range(8))
                print(sorted({*await asyncio.gather(*loads)}), flush=True)

    asyncio.run(main())
"""


@pytest.mark.parametrize("color", ["sync"], indirect=True)
def test_three_processes_load_once_between_them_and_all_hear_of_a_change(
    maker: Maker, valkey_url: str, valkey: Any
) -> None:
    environ = os.environ | {"PYTHONPATH": str(Path(multi_level_core.__file__).parent)}
    with contextlib.ExitStack() as stack:
        children: list[Any] = []
        for color in ("sync", "async"):
            argv = [sys.executable, "-c", WORKER, valkey_url, color, maker.namespace]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            children.append(stack.enter_context(subprocess.Popen(argv, env=environ, **pipes)))
            stack.callback(children[-1].kill)
        cache = maker.cache(valkey_url)

        def answers(order: str) -> list[str]:
            for child in children if order else ():
                child.stdin.write(order)
                child.stdin.flush()
            return [child.stdout.readline().strip() for child in children]

        assert answers("") == ["ready"] * 2
        for turn, truth in enumerate(("old", "new"), 1):
            valkey.set("truth", truth)
            assert cache.invalidate("k") is True
            time.sleep(0.05)  # the message is on its way to both
            assert answers("go\n") == [f"['{truth}']"] * 2
            assert valkey.get("loads") == str(turn).encode()


def test_an_error_of_the_loader_goes_to_all_who_wait_and_nothing_is_kept(
    maker: Maker, valkey_url: str, valkey: Any
) -> None:
    cache, origin = maker.cache(valkey_url), Origin()
    origin.error = ConnectionError("the database is down")
    origin.go.clear()
    callers = [in_thread(cache.get_or_load, "k", origin)]
    until(lambda: origin.loads)
    callers.append(in_thread(cache.get_or_load, "k", origin))
    time.sleep(0.02)
    origin.go.set()
    assert [str(caller.exception(20)) for caller in callers] == ["the database is down"] * 2
    assert origin.loads == 1
    assert valkey.dbsize() == 0
    origin.error = None
    assert cache.get_or_load("k", origin) == 2
    assert cache.inner._flights == {}


@pytest.mark.parametrize(
    ("then", "loads", "kept"),
    [("stores", 0, b'["theirs"]'), ("gives up", 1, b"[1]"), ("is followed by another", 1, None)],
)
def test_a_process_waits_for_one_other_that_loads_and_not_for_the_next(
    maker: Maker, clock: Clock, valkey_url: str, valkey: Any, then: str, loads: int, kept: bytes | None
) -> None:
    value, lease = f"{maker.namespace}:value:k", f"{maker.namespace}:lease:k"
    valkey.set(lease, b"somebody", px=60_000)
    then_do: dict[str, Callable[[], object]] = {
        "stores": lambda: valkey.set(value, b'["theirs"]', px=60_000),
        "gives up": lambda: valkey.delete(lease),
        "is followed by another": lambda: valkey.set(lease, b"the next", px=60_000),
    }

    def at_pause(seconds: float) -> None:
        assert len(clock.pauses) < 100, "it waits forever"
        if len(clock.pauses) == 8:
            then_do[then]()

    clock.at_pause = at_pause
    cache = maker.cache(valkey_url, sleep=maker.color.pick(clock.asleep, clock.sleep))
    origin = Origin()
    assert cache.get_or_load("k", origin) == ("theirs" if then == "stores" else 1)
    assert clock.pauses == pytest.approx([0.005, 0.0075, 0.01125, 0.016875, 0.0253125, 0.03796875, 0.05, 0.05])
    assert origin.loads == loads
    assert valkey.get(value) == kept
    assert cache.stats()["size"] == (0 if kept is None else 1)
    if then == "is followed by another":
        assert valkey.get(lease) == b"the next"


def test_a_killed_loader_delays_the_others_by_lock_ttl_at_most(maker: Maker, valkey_url: str, valkey: Any) -> None:
    cache, origin, lease = maker.cache(valkey_url, lock_ttl=0.1), Origin(), f"{maker.namespace}:lease:k"
    valkey.set(lease, b"killed", px=100)
    begin = time.monotonic()
    assert cache.get_or_load("k", origin) == 1
    assert time.monotonic() - begin > 0.05
    origin.go.clear()
    slow = in_thread(cache.get_or_load, "slow", origin)
    until(lambda: origin.loads == 2)
    assert valkey.pttl(f"{maker.namespace}:lease:slow") <= 100
    until(lambda: not valkey.exists(f"{maker.namespace}:lease:slow"))
    origin.go.set()
    assert slow.result(20) == 2
    assert not valkey.exists(f"{maker.namespace}:value:slow")  # too late, so somebody may have changed it


# --- Changes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["set", "invalidate"])
def test_what_one_process_changes_another_serves_at_once(maker: Maker, valkey_url: str, how: str) -> None:
    one, other, origin = maker.cache(valkey_url), maker.cache(valkey_url), Origin("old")
    assert one.get_or_load("k", origin) == other.get_or_load("k", origin) == "old"
    origin.value = "new"
    assert one.set("k", "new") if how == "set" else one.invalidate("k")
    assert one.get_or_load("k", origin) == "new"  # here, without any waiting
    until(lambda: other.get_or_load("k", origin) == "new")
    assert other.stats()["errors"] == 0


def test_the_own_message_causes_no_second_load(maker: Maker, valkey_url: str) -> None:
    cache, origin = maker.cache(valkey_url), Origin()
    for turn in range(1, 6):
        before = cache.level.changes_of("k")
        cache.invalidate("k")
        assert cache.get_or_load("k", origin) == turn
        until(lambda count: cache.level.changes_of("k") == count, before + 3)  # before, after, and by message
        assert cache.get_or_load("k", origin) == turn
    assert origin.loads == cache.stats()["loads"] == 5


@pytest.mark.parametrize("by", ["the same process", "another process"])
def test_what_was_being_loaded_when_the_change_came_is_returned_but_not_kept(
    maker: Maker, valkey_url: str, valkey: Any, by: str
) -> None:
    one, other, origin = maker.cache(valkey_url), maker.cache(valkey_url), Origin("old")
    origin.go.clear()
    first = in_thread(one.get_or_load, "k", origin)
    until(lambda: origin.loads == 1)
    origin.value = "new"
    before = one.level.changes_of("k")
    assert (one if by == "the same process" else other).invalidate("k")
    until(lambda: one.level.changes_of("k") > before)
    second = in_thread(one.get_or_load, "k", origin)  # does not join the old load
    until(lambda: origin.loads == 2)
    origin.go.set()
    assert (first.result(20), second.result(20)) == ("old", "new")
    assert [one.get("k"), other.get("k"), valkey.get(f"{maker.namespace}:value:k")] == ["new", "new", b'["new"]']
    assert origin.loads == 2


def test_an_old_value_read_from_redis_is_not_kept_after_the_change(maker: Maker, valkey_url: str) -> None:
    cache, other = maker.cache(valkey_url), maker.cache(valkey_url)
    other.set("k", "old")
    naive: dict[str, Any] = {}

    def change_now() -> None:
        before = cache.level.changes_of("k")
        other.invalidate("k")
        naive.pop("k", None)  # there is nothing yet to drop
        until(lambda: cache.level.changes_of("k") > before)

    enter = cache.inner._enter_script
    ask = Blocking(maker.color, enter)

    def late(**kwargs: Any) -> Any:
        reply = ask(**kwargs)
        change_now()
        return reply

    cache.inner._enter_script = maker.color.function(late)
    naive["k"] = cache.get("k")  # read, overtaken, stored
    cache.inner._enter_script = enter
    assert naive["k"] == "old"
    assert cache.get("k") is MISSING


def test_a_thousand_keys_are_invalidated_at_once(maker: Maker, valkey_url: str) -> None:
    one = maker.cache(valkey_url, client=maker.client(valkey_url, max_connections=8))
    other = maker.cache(valkey_url, l1_ttl=60)
    keys = [str(number) for number in range(1_000)]
    for key in keys:
        other.level._entries[key] = (b'["old"]', float("inf"))

    async def all_async() -> None:
        await asyncio.gather(*map(one.inner.invalidate, keys))

    maker.color.run(all_async()) if maker.color.is_async else [one.invalidate(key) for key in keys]
    until(lambda: other.stats()["size"] == 0)
    assert {other.get(key) for key in keys[::50]} == {MISSING}
    assert one.stats()["errors"] == other.stats()["errors"] == 0


def test_a_malformed_message_harms_nobody(maker: Maker, valkey_url: str, valkey: Any) -> None:
    cache = maker.cache(valkey_url)
    cache.set("k", 1)
    for junk in (b"", b"\xff\xfe", b"{", b"x" * 100_000, b"*"):
        valkey.publish(f"{maker.namespace}:changed", junk)
    before = cache.level.changes_of("k")
    assert cache.get("k") == 1
    valkey.publish(f"{maker.namespace}:changed", "k")
    until(lambda: cache.level.changes_of("k") > before)
    assert cache.get("k") == 1
    assert cache.stats()["errors"] == 0


def test_two_namespaces_share_nothing(maker: Maker, valkey_url: str) -> None:
    shop, blog = (maker.cache(valkey_url, namespace=f"{maker.namespace}-{name}") for name in ("shop", "blog"))
    put(shop, "k", "shop")
    put(blog, "k", "blog")
    assert blog.get("k") == "blog"
    before = sum(blog.level._changes)
    assert shop.invalidate("k")
    assert [shop.get("k"), blog.get("k")] == [MISSING, "blog"]
    time.sleep(0.02)
    assert sum(blog.level._changes) == before


def test_invalidating_before_the_commit_lets_the_old_value_back_in(maker: Maker, valkey_url: str) -> None:
    one, other = maker.cache(valkey_url), maker.cache(valkey_url)
    row = Origin("old")
    assert one.get_or_load("k", row) == "old"
    one.invalidate("k")  # wrong: first
    assert other.get_or_load("k", row) == "old"  # somebody asks in between
    row.value = "new"  # then the commit
    assert one.get_or_load("k", row) == "old"
    one.invalidate("k")  # right: after it
    assert one.get_or_load("k", row) == "new"
