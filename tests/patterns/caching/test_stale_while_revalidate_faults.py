"""Proves docs/patterns/caching/stale-while-revalidate.md: real origins that fail, one refresh a cluster, Redis."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import swr
from patterns.caching import swr_kit as kit
from patterns.caching.swr_kit import Origin, Twin, answer_when_all_wait, at_once, until
from servers.faults import FaultProxy
from servers.http import Uvicorn
from servers.valkey import Valkey

# Fixtures.
twin, db, server = kit.twin, kit.db, kit.server


class HttpOrigin:
    """A real origin. It counts its requests, takes its time, and fails when told so."""

    def __init__(self) -> None:
        self.requests, self.delay, self.failing = 0, 0.0, False

        async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
            await self._answer(scope, receive, send)

        self._server = Uvicorn(application)
        self._client = httpx2.Client(base_url=self._server.url, timeout=5)

    async def _answer(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.requests += 1
        number = self.requests
        await asyncio.sleep(self.delay)
        await send({"type": "http.response.start", "status": 503 if self.failing else 200, "headers": []})
        await send({"type": "http.response.body", "body": str(number).encode()})

    def __call__(self) -> int:
        return int(self._client.get("/").raise_for_status().text)

    def stop(self) -> None:
        self._client.close()
        self._server.stop()


@pytest.fixture
def origin() -> Iterator[HttpOrigin]:
    made = HttpOrigin()
    yield made
    made.stop()


# --- The origin -----------------------------------------------------------------------------------


def test_readers_of_a_slow_origin_never_wait_for_it(twin: Twin, origin: HttpOrigin) -> None:
    cache = twin.cache()
    assert cache.get("page", origin) == 1
    origin.delay = 0.2
    values, meanwhile = list[int](), 0
    for turn in (1, 2, 3):
        twin.clock.now += 60
        while not values or values[-1] == turn:
            values.append(cache.get("page", origin))
            meanwhile += not cache.idle()
            time.sleep(0.002)
    assert origin.requests == 4
    assert values == sorted(values)
    assert set(values) == {1, 2, 3, 4}
    assert meanwhile >= 3 * 3  # reads that were answered while the origin was being asked


def test_an_origin_that_fails_for_a_minute_is_asked_once_each_retry_after_unnoticed(
    twin: Twin, origin: HttpOrigin
) -> None:
    cache = twin.cache(error_for=600.0, retry_after=10.0)
    assert cache.get("page", origin) == 1
    twin.clock.now += 60
    origin.failing = True
    for _ in range(60):
        assert at_once(3, lambda: cache.get("page", origin)) == [1] * 3
        until(cache.idle)
        twin.clock.now += 1
    assert 1 + 6 <= origin.requests <= 1 + 7
    assert len(twin.errors) == origin.requests - 1
    assert "503" in twin.errors[0][1]
    origin.failing = False
    twin.clock.now += 10
    assert cache.get("page", origin) == origin.requests  # dead, so this one waited


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_a_clock_set_back_an_hour_costs_one_refresh(twin: Twin, valkey_url: str, kind: str) -> None:
    cache, origin = twin.cache(twin.store(kind, valkey_url)), Origin()
    cache.get("k", origin)
    written = twin.clock.now
    twin.clock.now -= 3_600
    naive_age = twin.clock.now - written
    assert naive_age < 60  # "fresh", for 61 minutes
    assert cache.fetch("k", origin).state.name == "STALE"
    until(cache.idle)
    served = cache.fetch("k", origin)
    assert (served.value, served.state.name, served.age) == (2, "FRESH", 0)
    assert cache.stored("k").stored_at == twin.clock.now
    origin.error = ConnectionError("down")
    twin.clock.now += 60
    cache.get("k", origin)
    until(cache.idle)
    twin.wait_for(cache.inner._store.release("k", 0))  # which Redis keeps in its own time
    twin.clock.now -= 3_600  # the pause after the failure is over too
    cache.get("k", origin)
    until(cache.idle)
    assert origin.loads == 4


# --- Redis ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stale_for", "error_for", "life"), [(30, 0, 90), (30, 600, 660), (30, 10, 90), (0, 0, 60)])
def test_an_entry_in_redis_ends_when_it_can_serve_nobody(
    twin: Twin, valkey_url: str, db: Any, stale_for: float, error_for: float, life: float
) -> None:
    cache = twin.cache(twin.redis(valkey_url), stale_for=stale_for, error_for=error_for)
    cache.get("k", Origin())
    assert life * 1_000 - 5_000 < db.pttl("test:entry:k") <= life * 1_000
    cache.set("other", 1)
    assert all(db.pttl(name) > 0 for name in db.scan_iter())
    store = twin.redis(valkey_url)
    twin.wait_for(store.put("brief", twin.module.Entry(1, 1.0), 0.0001, 1.0))  # less than Redis can count
    assert twin.wait_for(store.claim("brief", 30.0)) is True
    assert 25_000 < db.pttl("test:claim:brief") <= 30_000
    twin.wait_for(store.release("brief", 2.0))
    assert 1_000 < db.pttl("test:claim:brief") <= 2_000
    twin.wait_for(store.release("brief", 0))
    assert not db.exists("test:claim:brief")


def test_of_two_caches_on_one_redis_one_refreshes(twin: Twin, valkey_url: str, db: Any) -> None:
    caches = [twin.cache(twin.redis(valkey_url), retry_after=7.0) for _ in range(2)]
    origin, other = Origin(), Origin()
    assert caches[0].get("k", origin) == caches[1].get("k", other) == 1
    twin.clock.now += 60
    origin.go.clear()
    assert caches[0].get("k", origin) == 1
    until(lambda: origin.loads == 2)
    assert 5_000 < db.pttl("test:claim:k") <= 10_000  # no longer than a load may take
    for _ in range(5):
        assert caches[1].get("k", other) == 1
        until(caches[1].idle)
    origin.go.set()
    until(caches[0].idle)
    assert not db.exists("test:claim:k")
    assert (caches[1].get("k", other), origin.loads, other.loads) == (2, 2, 0)
    origin.error = ConnectionError("down")
    twin.clock.now += 60
    assert caches[0].get("k", origin) == 2
    until(caches[0].idle)
    assert 1_000 < db.pttl("test:claim:k") <= 7_000  # the other one leaves it alone as well
    assert caches[1].get("k", other) == 2
    until(caches[1].idle)
    assert other.loads == 0


def test_a_refresh_looks_again_once_it_has_the_claim(twin: Twin, valkey_url: str) -> None:
    cache, origin = twin.cache(twin.redis(valkey_url)), Origin()
    cache.get("k", origin)
    twin.clock.now += 60
    cache.set("k", "refreshed by another")
    refresh = cache.inner._refresh("k", twin.loader(origin))  # begun for the old value, a moment ago
    twin.wait_for(refresh)
    assert origin.loads == 1
    assert cache.get("k", origin) == "refreshed by another"
    assert twin.wait_for(cache.inner._store.claim("k", 1)) is True  # the claim was given back


WORKER = """
import asyncio, sys, time
import redis, redis.asyncio

url, color = sys.argv[1:]
db = redis.Redis.from_url(url)

def load():
    db.incr("loads")
    time.sleep(0.05)
    return "new"

times = dict(fresh_for=0.001, stale_for=3600)
if color == "sync":
    from swr_sync import RedisStore, SWRCache

    with redis.Redis.from_url(url) as client:
        cache = SWRCache(RedisStore(client, "test"), **times)
        print("ready", flush=True)
        sys.stdin.readline()
        print({cache.get("k", load) for _ in range(20)}, flush=True)
        cache.close()
else:
    from swr import RedisStore, SWRCache

    async def main():
        async with redis.asyncio.Redis.from_url(url) as client:
            cache = SWRCache(RedisStore(client, "test"), **times)
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            values = [await cache.get("k", lambda: asyncio.to_thread(load)) for _ in range(20)]
            print(set(values), flush=True)
            await cache.close()

    asyncio.run(main())
"""


def test_two_processes_refresh_once_between_them(valkey_url: str, db: Any) -> None:
    db.set("test:entry:k", f'{time.time() - 60}\n"old"', px=60_000)
    environ = os.environ | {"PYTHONPATH": str(Path(swr.__file__).parent)}
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
        db.set("test:claim:k", 1, px=60_000)
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        assert [child.stdout.readline() for child in children] == ["{'old'}\n"] * 2
    assert db.get("loads") is None


def test_what_is_no_entry_in_redis_is_a_miss_and_overwritten(twin: Twin, valkey_url: str, db: Any) -> None:
    cache = twin.cache(twin.redis(valkey_url))
    for number, left in enumerate([b"", b"\xff\xfe x", b"1.5", b"1.5\n{", b"later\n1"], 1):
        db.set("test:entry:k", left)
        assert cache.get("k", functools.partial(int, number)) == number
        assert len(twin.errors) == 2 * number  # told at each look, and there are two before a load
        assert db.get("test:entry:k").endswith(f"\n{number}".encode())
    db.delete("test:entry:k")
    db.rpush("test:entry:k", "a list")
    assert cache.get("k", lambda: "text") == "text"
    assert db.get("test:entry:k").endswith(b'\n"text"')
    text = twin.cache(twin.redis(f"{valkey_url}?decode_responses=true"))
    assert text.get("k", lambda: "unused") == "text"


def test_of_two_entries_in_redis_the_one_whose_load_began_later_is_kept(twin: Twin, valkey_url: str) -> None:
    store, entry = twin.redis(valkey_url), twin.module.Entry

    def put(value: str, began: float, now: float) -> str:
        twin.wait_for(store.put("k", entry(value, began), 60, now))
        return str(twin.wait_for(store.get("k")).value)

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
@settings(max_examples=60, deadline=None, database=None)
def test_whatever_json_can_say_comes_back_with_its_stamp(value: Any, began: float) -> None:
    for module in (swr, kit.MODULES["sync"]):
        stamp, text = module._pack(module.Entry(value, began)).encode().split(maxsplit=1)
        assert (float(stamp), module.json.loads(text)) == (began, value)


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
    twin: Twin, valkey_url: str, db: Any, value: object, message: str
) -> None:
    cache = twin.cache(twin.redis(valkey_url))
    with pytest.raises(TypeError, match=f"^{message}"):
        cache.set("k", value)
    with pytest.raises(TypeError, match=f"^{message}"):
        cache.get("k", lambda: value)
    assert db.dbsize() == 0
    assert twin.cache().get("k", lambda: value) is value  # memory carries everything


def test_without_redis_callers_share_a_load_and_the_errors_are_told(
    twin: Twin, server: Valkey, fault_proxy: type[FaultProxy]
) -> None:
    proxy = fault_proxy("127.0.0.1", server.port)
    cache, origin = twin.cache(twin.redis(f"redis://127.0.0.1:{proxy.port}", timeout=0.2)), Origin()
    assert [cache.get("k", origin), cache.get("k", origin)] == [1, 1]
    proxy.blackhole = True
    begin = time.monotonic()
    assert cache.get("k", origin) == 2  # two timeouts to look, one to store
    assert 0.6 <= time.monotonic() - begin < 3.0
    assert len(twin.errors) == 3
    proxy.heal()
    server.kill()
    answer_when_all_wait(cache, origin, 5)
    assert at_once(5, lambda: cache.get("k", origin)) == [3] * 5
    cache.set("k", "nobody keeps it")
    server.start()
    until(lambda: cache.get("k", origin) == cache.get("k", origin))


def test_a_claim_that_cannot_be_made_means_no_refresh(twin: Twin, valkey_url: str) -> None:
    cache, origin = twin.cache(twin.redis(valkey_url)), Origin()
    cache.get("k", origin)
    twin.clock.now += 60

    def refuse(key: str, seconds: float) -> Any:
        raise ConnectionError("no")

    cache.inner._store.claim = refuse if twin.name == "sync" else _async(refuse)
    assert cache.get("k", origin) == 1
    until(cache.idle)
    assert (origin.loads, twin.errors) == (1, [("k", "no")])


def _async(call: Any) -> Any:
    async def twin(*args: Any) -> Any:
        return call(*args)

    return twin


def test_a_refresh_that_hangs_is_given_up_and_blocks_neither_readers_nor_the_claim(
    twin: Twin, valkey_url: str, db: Any
) -> None:
    cache = twin.cache(twin.redis(valkey_url), timeout=0.05, retry_after=5.0)
    origin = Origin()
    cache.set("k", "old")
    twin.clock.now += 60
    origin.go.clear()
    assert cache.get("k", origin) == "old"
    until(lambda: origin.loads == 1)
    if twin.name == "async":  # the load is cancelled, and the key left alone for retry_after
        until(cache.idle)
        assert [key for key, _ in twin.errors] == ["k"]
        assert 1_000 < db.pttl("test:claim:k") <= 5_000
    else:  # a thread goes on; its claim ends by itself, so that another process can try
        until(lambda: not db.exists("test:claim:k"))
        assert not cache.idle()
    assert cache.get("k", origin) == "old"
    origin.go.set()
    until(cache.idle)


def test_a_refresh_that_joins_a_load_of_a_waiting_caller_waits_for_it(twin: Twin) -> None:
    cache, origin = twin.cache(retry_after=5.0), Origin()
    origin.go.clear()
    thread, results = kit.in_thread(lambda: cache.get("k", origin))
    until(lambda: origin.loads == 1)
    cache.set("k", "stale")
    twin.clock.now += 60
    assert cache.get("k", origin) == "stale"
    time.sleep(0.02)
    assert (origin.loads, len(cache.inner._behind)) == (1, 1)
    origin.go.set()
    thread.join(10)
    until(cache.idle)
    assert results == [1]
    assert origin.loads == 1


def test_a_refresh_does_not_hang_on_the_load_of_a_waiting_caller() -> None:
    with contextlib.closing(Twin("sync")) as twin:
        cache, origin = twin.cache(timeout=0.05, retry_after=5.0), Origin()
        origin.go.clear()
        with pytest.raises(TimeoutError, match=r"the load of 'k' has taken 0\.05 s, and goes on"):
            cache.get("k", origin)
        cache.set("k", "stale")
        twin.clock.now += 60
        assert cache.get("k", origin) == "stale"
        assert cache.inner._behind == {"k"}
        until(lambda: not cache.inner._behind)  # its place is free for others
        assert not cache.idle()
        origin.go.set()
        until(cache.idle)
        assert origin.loads == 1
