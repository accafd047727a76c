"""Proves docs/patterns/caching/stale-while-revalidate.md: real origins that fail, one refresh a cluster, Redis."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import swr_core
from harness import tls
from harness.color import Blocking
from harness.depth import examples
from harness.origin import Origin
from harness.scripted import Answer, Script, Seen
from harness.waiting import at_once, in_thread, until
from patterns.caching import stale_while_revalidate_kit as kit
from patterns.caching.stale_while_revalidate_kit import Maker, answer_when_all_wait
from servers.faults import FaultProxy
from servers.valkey import Valkey
from swr_core import Entry, pack, unpack

# Fixtures.
maker = kit.maker


class HttpOrigin:
    """A real origin. It counts its requests, answers while `go` is set, and fails when told so."""

    def __init__(self, script: Script) -> None:
        self.failing = False
        self.go = threading.Event()
        self.go.set()
        self._script = script
        script.answer(self._answer)
        self._client = httpx2.Client(base_url=script.url, timeout=20, verify=tls.NOBODY)

    @property
    def requests(self) -> int:
        return len(self._script.seen)

    def _answer(self, seen: Seen) -> Answer:
        assert self.go.wait(20)
        return Answer(503 if self.failing else 200, str(self.requests).encode())

    def __call__(self) -> int:
        return int(self._client.get("/").raise_for_status().text)

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def origin(scripted: Script) -> Iterator[HttpOrigin]:
    with contextlib.closing(HttpOrigin(scripted)) as made:
        yield made


# --- The origin -----------------------------------------------------------------------------------


def test_readers_of_a_slow_origin_never_wait_for_it(maker: Maker, origin: HttpOrigin) -> None:
    cache = maker.cache()
    assert cache.get("page", origin) == 1
    for turn in (1, 2, 3):
        maker.clock.now += 60
        origin.go.clear()
        values = [cache.get("page", origin) for _ in range(5)]
        until(lambda requests: origin.requests == requests, turn + 1)
        values += [cache.get("page", origin) for _ in range(5)]  # while the origin is being asked
        assert values == [turn] * 10
        assert not cache.idle()
        origin.go.set()
        until(cache.idle)
    assert cache.get("page", origin) == origin.requests == 4


def test_an_origin_that_fails_for_a_minute_is_asked_once_each_retry_after_unnoticed(
    maker: Maker, origin: HttpOrigin
) -> None:
    cache = maker.cache(error_for=600.0, retry_after=10.0)
    assert cache.get("page", origin) == 1
    maker.clock.now += 60
    origin.failing = True
    for _ in range(60):
        assert at_once(3, lambda: cache.get("page", origin)) == [1] * 3
        until(cache.idle)
        maker.clock.now += 1
    assert 1 + 6 <= origin.requests <= 1 + 7
    assert len(maker.errors) == origin.requests - 1
    assert "503" in maker.errors[0][1]
    origin.failing = False
    maker.clock.now += 10
    assert cache.get("page", origin) == origin.requests  # dead, so this one waited


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_a_clock_set_back_an_hour_costs_one_refresh(maker: Maker, valkey_url: str, kind: str) -> None:
    cache, origin = maker.cache(maker.store(kind, valkey_url)), Origin()
    cache.get("k", origin)
    written = maker.clock.now
    maker.clock.now -= 3_600
    naive_age = maker.clock.now - written
    assert naive_age < 60  # "fresh", for 61 minutes
    assert cache.fetch("k", origin).state.name == "STALE"
    until(cache.idle)
    served = cache.fetch("k", origin)
    assert (served.value, served.state.name, served.age) == (2, "FRESH", 0)
    assert cache.store.get("k").stored_at == maker.clock.now
    origin.error = ConnectionError("down")
    maker.clock.now += 60
    cache.get("k", origin)
    until(cache.idle)
    cache.store.release("k", 0)  # which Redis keeps in its own time
    maker.clock.now -= 3_600  # the pause after the failure is over too
    cache.get("k", origin)
    until(cache.idle)
    assert origin.loads == 4


# --- Redis ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stale_for", "error_for", "life"), [(30, 0, 90), (30, 600, 660), (30, 10, 90), (0, 0, 60)])
def test_an_entry_in_redis_ends_when_it_can_serve_nobody(
    maker: Maker, valkey_url: str, valkey: Any, stale_for: float, error_for: float, life: float
) -> None:
    cache = maker.cache(maker.redis(valkey_url), stale_for=stale_for, error_for=error_for)
    cache.get("k", Origin())
    assert life * 1_000 - 5_000 < valkey.pttl("test:entry:k") <= life * 1_000
    cache.set("other", 1)
    assert all(valkey.pttl(name) > 0 for name in valkey.scan_iter())
    store = Blocking(maker.color, maker.redis(valkey_url))
    store.put("brief", Entry(1, 1.0), 0.0001, 1.0)  # less than Redis can count
    assert store.claim("brief", 30.0) is True
    assert 25_000 < valkey.pttl("test:claim:brief") <= 30_000
    store.release("brief", 2.0)
    assert 1_000 < valkey.pttl("test:claim:brief") <= 2_000
    store.release("brief", 0)
    assert not valkey.exists("test:claim:brief")


def test_of_two_caches_on_one_redis_one_refreshes(maker: Maker, valkey_url: str, valkey: Any) -> None:
    caches = [maker.cache(maker.redis(valkey_url), retry_after=7.0) for _ in range(2)]
    origin, other = Origin(), Origin()
    assert caches[0].get("k", origin) == caches[1].get("k", other) == 1
    maker.clock.now += 60
    origin.go.clear()
    assert caches[0].get("k", origin) == 1
    until(lambda: origin.loads == 2)
    assert 5_000 < valkey.pttl("test:claim:k") <= 10_000  # no longer than a load may take
    for _ in range(5):
        assert caches[1].get("k", other) == 1
        until(caches[1].idle)
    origin.go.set()
    until(caches[0].idle)
    assert not valkey.exists("test:claim:k")
    assert (caches[1].get("k", other), origin.loads, other.loads) == (2, 2, 0)
    origin.error = ConnectionError("down")
    maker.clock.now += 60
    assert caches[0].get("k", origin) == 2
    until(caches[0].idle)
    assert 1_000 < valkey.pttl("test:claim:k") <= 7_000  # the other one leaves it alone as well
    assert caches[1].get("k", other) == 2
    until(caches[1].idle)
    assert other.loads == 0


def test_a_refresh_looks_again_once_it_has_the_claim(maker: Maker, valkey_url: str) -> None:
    cache, origin = maker.cache(maker.redis(valkey_url)), Origin()
    cache.get("k", origin)
    maker.clock.now += 60
    cache.set("k", "refreshed by another")
    cache._refresh_entry("k", maker.color.function(origin))  # begun for the old value, a moment ago
    assert origin.loads == 1
    assert cache.get("k", origin) == "refreshed by another"
    assert cache.store.claim("k", 1) is True  # the claim was given back


WORKER = """
import asyncio, sys, time
import redis, redis.asyncio

url, color = sys.argv[1:]
db = redis.Redis.from_url(url)

def load():
    valkey.incr("loads")
    time.sleep(0.05)
    return "new"

times = dict(fresh_for=0.001, stale_for=3600)
if color == "sync":
    from swr_stores_sync import RedisStore
    from swr_sync import SWRCache

    with redis.Redis.from_url(url) as client:
        cache = SWRCache(RedisStore(client, "test"), **times)
        print("ready", flush=True)
        sys.stdin.readline()
        print({cache.get("k", load) for _ in range(20)}, flush=True)
        cache.close()
else:
    from swr_async import AsyncSWRCache
    from swr_stores_async import AsyncRedisStore

    async def main():
        async with redis.asyncio.Redis.from_url(url) as client:
            cache = AsyncSWRCache(AsyncRedisStore(client, "test"), **times)
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            values = [await cache.get("k", lambda: asyncio.to_thread(load)) for _ in range(20)]
            print(set(values), flush=True)
            await cache.close()

    asyncio.run(main())
"""


def test_two_processes_refresh_once_between_them(valkey_url: str, valkey: Any) -> None:
    valkey.set("test:entry:k", f'{time.time() - 60}\n"old"', px=60_000)
    environ = os.environ | {"PYTHONPATH": str(Path(swr_core.__file__).parent)}
    with contextlib.ExitStack() as stack:
        children = []
        for color in ("sync", "async"):
            argv = [sys.executable, "-c", WORKER, valkey_url, color]
            child: Any = stack.enter_context(
                subprocess.Popen(argv, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(child.kill)
            children.append(child)
        assert [child.stdout.readline() for child in children] == ["ready\n"] * 2
        # Both would begin: the claim of a third one holds them back until the last moment.
        valkey.set("test:claim:k", 1, px=60_000)
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        assert [child.stdout.readline() for child in children] == ["{'old'}\n"] * 2
    assert valkey.get("loads") is None


def test_what_is_no_entry_in_redis_is_a_miss_and_overwritten(maker: Maker, valkey_url: str, valkey: Any) -> None:
    cache = maker.cache(maker.redis(valkey_url))
    for number, left in enumerate([b"", b"\xff\xfe x", b"1.5", b"1.5\n{", b"later\n1"], 1):
        valkey.set("test:entry:k", left)
        assert cache.get("k", functools.partial(int, number)) == number
        assert len(maker.errors) == 2 * number  # told at each look, and there are two before a load
        assert valkey.get("test:entry:k").endswith(f"\n{number}".encode())
    valkey.delete("test:entry:k")
    valkey.rpush("test:entry:k", "a list")
    assert cache.get("k", lambda: "text") == "text"
    assert valkey.get("test:entry:k").endswith(b'\n"text"')
    text = maker.cache(maker.redis(f"{valkey_url}?decode_responses=true"))
    assert text.get("k", lambda: "unused") == "text"


def test_of_two_entries_in_redis_the_one_whose_load_began_later_is_kept(maker: Maker, valkey_url: str) -> None:
    store = Blocking(maker.color, maker.redis(valkey_url))

    def put(value: str, began: float, now: float) -> str:
        store.put("k", Entry(value, began), 60, now)
        return str(store.get("k").value)

    assert put("first", 1_000.5, 1_000.5) == "first"
    assert put("began before", 1_000.25, 1_001.0) == "first"
    assert put("same instant", 1_000.5, 1_001.0) == "same instant"
    assert put("later", 1_000.75, 1_001.0) == "later"
    assert put("clock set back, exactly then", 1_000.0, 1_000.75) == "later"
    assert put("clock set back", 1_000.0, 1_000.5) == "clock set back"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=JSON, began=st.floats(0, 4e9, allow_subnormal=False))
@settings(max_examples=examples(60), deadline=None, database=None)
def test_whatever_json_can_say_comes_back_with_its_stamp(value: Any, began: float) -> None:
    text = pack(Entry(value, began))
    assert unpack(text) == unpack(text.encode()) == Entry(value, began)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((1, 2), "tuple would come back from JSON as something else"),
        ({1: "one"}, "dict would come back"),
        (datetime(2026, 11, 20, tzinfo=UTC), "datetime: Object of type datetime is not JSON serializable"),
        (math.nan, "float: Out of range float values are not JSON compliant"),
    ],
    ids=["tuple", "int key", "datetime", "nan"],
)
def test_what_json_cannot_carry_is_refused_by_name(
    maker: Maker, valkey_url: str, valkey: Any, value: object, message: str
) -> None:
    cache = maker.cache(maker.redis(valkey_url))
    with pytest.raises(TypeError, match=f"^{message}"):
        cache.set("k", value)
    with pytest.raises(TypeError, match=f"^{message}"):
        cache.get("k", lambda: value)
    assert valkey.dbsize() == 0
    assert maker.cache().get("k", lambda: value) is value  # memory carries everything


def test_without_redis_callers_share_a_load_and_the_errors_are_told(
    maker: Maker, own_valkey: Valkey, fault_proxy: type[FaultProxy]
) -> None:
    proxy = fault_proxy("127.0.0.1", own_valkey.port)
    cache, origin = maker.cache(maker.redis(f"redis://127.0.0.1:{proxy.port}", timeout=0.4)), Origin()
    assert [cache.get("k", origin), cache.get("k", origin)] == [1, 1]
    proxy.blackhole = True
    begin = time.monotonic()
    assert cache.get("k", origin) == 2  # two timeouts to look, one to store
    assert time.monotonic() - begin >= 1.2
    assert len(maker.errors) == 3
    proxy.heal()
    own_valkey.kill()
    answer_when_all_wait(cache, origin, 5)
    assert at_once(5, lambda: cache.get("k", origin)) == [3] * 5
    cache.set("k", "nobody keeps it")
    own_valkey.start()
    until(lambda: cache.get("k", origin) == cache.get("k", origin))


def test_a_claim_that_cannot_be_made_means_no_refresh(maker: Maker, valkey_url: str) -> None:
    cache, origin = maker.cache(maker.redis(valkey_url)), Origin()
    cache.get("k", origin)
    maker.clock.now += 60

    def refuse(key: str, seconds: float) -> Any:
        raise ConnectionError("no")

    cache.inner._store.claim = maker.color.quick(refuse)
    assert cache.get("k", origin) == 1
    until(cache.idle)
    assert (origin.loads, maker.errors) == (1, [("k", "no")])


def test_a_refresh_that_hangs_is_given_up_and_blocks_neither_readers_nor_the_claim(
    maker: Maker, valkey_url: str, valkey: Any
) -> None:
    cache = maker.cache(maker.redis(valkey_url), timeout=0.05, retry_after=5.0)
    origin = Origin()
    cache.set("k", "old")
    maker.clock.now += 60
    origin.go.clear()
    assert cache.get("k", origin) == "old"
    until(lambda: origin.loads == 1)
    if maker.color.is_async:  # the load is cancelled, and the key left alone for retry_after
        until(cache.idle)
        assert [key for key, _ in maker.errors] == ["k"]
        assert 1_000 < valkey.pttl("test:claim:k") <= 5_000
    else:  # a thread goes on; its claim ends by itself, so that another process can try
        until(lambda: not valkey.exists("test:claim:k"))
        assert not cache.idle()
    assert cache.get("k", origin) == "old"
    origin.go.set()
    until(cache.idle)


def test_a_refresh_that_joins_a_load_of_a_waiting_caller_waits_for_it(maker: Maker) -> None:
    cache, origin = maker.cache(retry_after=5.0), Origin()
    origin.go.clear()
    reading = in_thread(cache.get, "k", origin)
    until(lambda: origin.loads == 1)
    cache.set("k", "stale")
    maker.clock.now += 60
    assert cache.get("k", origin) == "stale"
    time.sleep(0.02)
    assert (origin.loads, len(cache.inner._behind)) == (1, 1)
    origin.go.set()
    assert reading.result(20) == 1
    until(cache.idle)
    assert origin.loads == 1


@pytest.mark.parametrize("color", ["sync"], indirect=True)
def test_a_refresh_does_not_hang_on_the_load_of_a_waiting_caller(maker: Maker) -> None:
    cache, origin = maker.cache(timeout=0.05, retry_after=5.0), Origin()
    origin.go.clear()
    with pytest.raises(TimeoutError, match=r"the load of 'k' has taken 0\.05 s, and goes on"):
        cache.get("k", origin)
    cache.set("k", "stale")
    maker.clock.now += 60
    assert cache.get("k", origin) == "stale"
    assert cache.inner._behind == {"k"}
    until(lambda: not cache.inner._behind)  # its place is free for others
    assert not cache.idle()
    origin.go.set()
    until(cache.idle)
    assert origin.loads == 1
