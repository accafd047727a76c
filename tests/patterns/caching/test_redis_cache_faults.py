"""Proves docs/patterns/caching/redis-cache.md: what a dead, hung or lying server does, and a misused decorator."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio

import redis_cache_async
import redis_cache_core as core
import redis_cache_sync
from harness.clock import Clock
from harness.color import Blocking, Color
from harness.origin import Origin
from harness.waiting import at_once, until
from patterns.caching import redis_cache_kit as kit
from patterns.caching.redis_cache_kit import CACHE, CONNECT, Cache, Counting, Make, cached_by
from redis_cache_async import AsyncRedisCache
from redis_cache_core import CacheUnavailable
from redis_cache_sync import RedisCache
from servers.faults import FaultProxy
from servers.valkey import Valkey

# Fixtures.
cache, make, proxy = kit.cache, kit.make, kit.proxy


# --- Redis fails ----------------------------------------------------------------------------------


def test_a_dead_server_costs_little_and_the_cache_comes_back_by_itself(
    make: Make, clock: Clock, own_valkey: Valkey
) -> None:
    origin = Origin()
    cache = make(own_valkey.url, clock=clock)
    f = cached_by(cache, origin)
    assert [f(), f()] == [1, 1]
    own_valkey.kill()
    looks, stores = (Counting(cache, script) for script in ("_acquire_script", "_store_script"))
    asked = Counting(cache, "_ask_server")
    assert [f() for _ in range(5)] == [2, 3, 4, 5, 6]
    assert (asked.value, looks.value, stores.value) == (5, 0, 0)  # one failure a call is enough
    assert cache.get("x", "default") == "default"
    assert cache.set("x", 1, ttl=60) is False
    assert f.invalidate() is False
    own_valkey.start()  # empty: the scripts are gone too
    assert [f(), f()] == [7, 8]  # still left alone
    clock.advance(core.REST)
    assert [f(), f()] == [9, 9]
    assert cache.set("x", 1, ttl=60) is True


def test_a_hung_server_costs_one_timeout_and_after_five_nothing(make: Make, clock: Clock, proxy: FaultProxy) -> None:
    origin = Origin()
    cache = make(f"redis://127.0.0.1:{proxy.port}", timeout=0.5, clock=clock)
    f = cached_by(cache, origin)
    assert f() == 1
    asked = Counting(cache, "_ask_server")
    proxy.blackhole = True  # accepts, and says nothing
    assert [f() for _ in range(5)] == [2, 3, 4, 5, 6]
    assert asked.value == 5
    connections = proxy.accepted
    assert [f() for _ in range(20)] == list(range(7, 27))
    assert proxy.accepted == connections  # not even tried
    proxy.heal()
    clock.advance(core.REST)
    assert f() == 1


async def test_the_attribute_error_of_a_reset_connection_is_a_failure_of_the_cache(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with redis_cache_async.connect(valkey_url, timeout=5) as client:
        cache = redis_cache_async.AsyncRedisCache(client, namespace="test")

        async def reset(*keys: str) -> None:  # as selector_events.py does when the loop has let go of the socket
            raise AttributeError("'NoneType' object has no attribute '_add_writer'")

        monkeypatch.setattr(client, "mget", reset)

        @cache.cached(ttl=60)
        async def answer() -> int:
            return 42

        assert await answer() == 42


def test_a_mistake_in_the_client_of_threads_is_no_failure_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = RedisCache(redis.Redis(), namespace="test")

    def mistaken(*keys: str) -> None:  # such as a provider of credentials with a misspelled name
        raise AttributeError("'Vault' object has no attribute 'pasword'")

    monkeypatch.setattr(cache.client, "mget", mistaken)
    with pytest.raises(AttributeError, match="pasword"):
        cache.get("k")


@pytest.mark.parametrize("computing", [False, True])
def test_a_call_that_is_closed_with_its_loop_awaits_nothing_more(
    computing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = AsyncRedisCache(redis.asyncio.Redis(), namespace="test")

    @types.coroutine
    def hang(*_: object, **__: object) -> Iterator[None]:
        yield

    async def lead(*_: object) -> tuple[Any, bool]:
        return core.MISS, True

    @cache.cached(ttl=60)
    async def answer() -> None:
        await hang()

    monkeypatch.setattr(cache, "_ask_server", hang)
    if computing:
        monkeypatch.setattr(cache, "_find_or_lock", lead)
    call = answer()
    call.send(None)
    call.close()  # RuntimeError: coroutine ignored GeneratorExit
    assert inspect.getcoroutinestate(call) == inspect.CORO_CLOSED


def test_a_server_that_hangs_while_computing_costs_the_store_only(make: Make, proxy: FaultProxy) -> None:
    cache = make(f"redis://127.0.0.1:{proxy.port}", timeout=0.2)
    assert cache.get("connected") is None
    asked: list[Counting] = []

    def load() -> int:
        proxy.blackhole = True
        asked.append(Counting(cache, "_ask_server"))
        return 7

    assert cache.cached(ttl=60)(load)() == 7
    assert asked[0].value == 1


def test_a_server_that_dies_while_callers_wait_for_a_leader_stops_the_wait(
    make: Make, color: Color, clock: Clock, own_valkey: Valkey
) -> None:
    cache = make(own_valkey.url, clock=clock, sleep=color.pick(clock.asleep, clock.sleep))
    f = cached_by(cache, Origin())
    clock.at_pause = lambda _: own_valkey.kill()
    with redis.Redis.from_url(own_valkey.url) as db:
        db.set(core.lock_of(f.key_for()), b"a leader", px=60_000)
    assert f() == 1
    assert len(clock.pauses) == 1


def test_callers_notice_nothing_of_a_server_killed_under_load(
    make: Make, own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "REST", 0.03)
    runs: list[int] = []
    stop = threading.Event()

    def square(x: int) -> int:
        runs.append(x)
        return x * x

    f = make(own_valkey.url, timeout=0.5).cached(ttl=60)(square)

    def load() -> list[bool]:
        right: list[bool] = []
        while not stop.is_set():
            right += [f(x) == x * x for x in range(5)]
        return right

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(load) for _ in range(4)]
        until(lambda: len(runs) >= 5)
        own_valkey.kill()
        until(lambda: len(runs) > 100)
        own_valkey.start()

        def all_hits() -> bool:
            before = len(runs)
            return [f(x) for x in range(5)] == [0, 1, 4, 9, 16] and len(runs) == before

        until(all_hits)
        stop.set()
        for caller in callers:
            answers = caller.result(10)
            assert answers
            assert all(answers)


def test_an_answer_cut_off_in_the_middle_is_a_failure_and_not_a_value(make: Make, proxy: FaultProxy) -> None:
    runs: list[int] = []

    def load() -> bytes:
        runs.append(1)
        return b"x" * 100_000

    f = make(f"redis://127.0.0.1:{proxy.port}").cached(ttl=60)(load)
    f()
    proxy.cut_after = 10_000
    assert f() == b"x" * 100_000
    assert len(runs) == 2
    proxy.heal()
    assert f() == b"x" * 100_000
    assert len(runs) == 2


def test_without_fail_open_every_failure_is_raised(make: Make, own_valkey: Valkey) -> None:
    cache = make(own_valkey.url, fail_open=False)
    origin = Origin()
    f = cached_by(cache, origin)
    assert f() == 1
    own_valkey.kill()
    calls: list[Callable[[], Any]] = [
        f,
        f.refresh,
        f.invalidate,
        lambda: cache.get("x"),
        lambda: cache.set("x", 1, ttl=60),
        lambda: cache.delete("x"),
    ]
    for call in calls:
        with pytest.raises(CacheUnavailable) as caught:
            call()
        if call is f:
            assert isinstance(caught.value.__cause__, redis.RedisError)
            assert str(caught.value) == str(caught.value.__cause__)
    with pytest.raises(CacheUnavailable, match=r"^left alone after failing$"):
        f()
    assert origin.loads == 1


def test_a_failing_function_is_not_hidden_by_a_failing_server(make: Make, own_valkey: Valkey) -> None:
    def load() -> None:
        own_valkey.kill()
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        make(own_valkey.url, fail_open=False).cached(ttl=60)(load)()


def test_an_invalidation_that_fails_says_so_and_is_never_skipped(
    make: Make, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make(f"redis://127.0.0.1:{proxy.port}")
    f = cached_by(cache, Origin())
    assert f() == 1
    proxy.refuse = True
    proxy.reset_all()
    assert f.invalidate() is cache.delete("x") is False
    assert f"could not invalidate {f.key_for()}: it is served until it expires" in caplog.text
    assert [f() for _ in range(3)] == [2, 3, 4]
    assert "the cache is skipped for 3 s: " in caplog.text
    proxy.heal()
    assert cache.get("x", "left alone") == "left alone"
    assert f.invalidate() is True  # tried although the server is left alone
    assert f() == 5  # and an answer ends the count, not the rest; the old value is gone
    caplog.clear()
    assert f.invalidate() is True
    assert caplog.text == ""


def test_a_client_made_without_a_pool_retries_ten_times_and_this_one_never(
    own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_valkey.kill()
    sleeps: list[float] = []
    monkeypatch.setattr("redis.retry.sleep", sleeps.append)  # or this test would take them too
    attempts: list[Any] = []
    connect: Any = redis.Connection._connect

    def counted(self: redis.Connection) -> Any:
        attempts.append(self)
        return connect(self)

    monkeypatch.setattr(redis.Connection, "_connect", counted)

    def tries(client: redis.Redis) -> tuple[int, int]:
        attempts.clear()
        sleeps.clear()
        with client, pytest.raises(redis.ConnectionError):
            client.get("x")
        return len(attempts), len(sleeps)

    assert tries(redis.Redis(port=own_valkey.port)) == (11, 10)
    # A shorter timeout does not help: every attempt has its own.
    short = redis.Redis(port=own_valkey.port, socket_timeout=0.2, socket_connect_timeout=0.2)
    assert tries(short) == (11, 10)
    assert tries(redis.Redis.from_url(own_valkey.url)) == (1, 0)  # makes a pool, and a pool does not retry
    assert tries(redis_cache_sync.connect(own_valkey.url)) == (1, 0)


def test_a_full_default_pool_raises_and_this_one_waits(color: Color, valkey_url: str) -> None:
    with redis.ConnectionPool.from_url(valkey_url, max_connections=2) as naive:
        taken = [naive.get_connection(), naive.get_connection()]
        with pytest.raises(redis.exceptions.MaxConnectionsError):
            naive.get_connection()
        for connection in taken:
            naive.release(connection)

    client = color.closing(CONNECT[color.name](valkey_url, timeout=5.0, max_connections=2))
    cache = Cache(color, CACHE[color.name](client, namespace="test", fail_open=False))
    f = cache.cached(ttl=60)(lambda x=0: 1)
    assert at_once(20, f) == [1] * 20


def test_the_client_waits_a_tenth_of_a_second_for_everything_and_tries_once(color: Color) -> None:
    def settings(options: str) -> list[Any]:
        client = color.closing(CONNECT[color.name](f"redis://127.0.0.1:1{options}"))
        pool = client.connection_pool
        names = ("socket_timeout", "socket_connect_timeout", "retry")
        return [pool.max_connections, pool.timeout, *(pool.connection_kwargs[name] for name in names)]

    assert settings("") == [50, 0.1, 0.1, 0.1, None]
    assert settings("?socket_timeout=0.25&max_connections=20") == [20, 0.1, 0.25, 0.1, None]


def test_a_client_that_decodes_is_refused(color: Color) -> None:
    clients = {"sync": redis.Redis, "async": redis.asyncio.Redis}
    client: Any = clients[color.name](decode_responses=True)
    with pytest.raises(ValueError, match="must hand out bytes: decode_responses=False"):
        CACHE[color.name](client, namespace="test")


def test_clocks_that_disagree_change_nothing(make: Make, valkey_url: str, valkey: Any) -> None:
    early = make(valkey_url, clock=lambda: -1e9)
    late = make(valkey_url, clock=lambda: 1e9)
    origin = Origin()
    f, g = cached_by(early, origin), cached_by(late, origin)
    assert [f(), g(), f()] == [1, 1, 1]
    assert 54_000 <= valkey.pttl(f.key_for()) <= 66_000


def test_a_wall_clock_set_back_would_rest_for_an_hour(color: Color, monkeypatch: pytest.MonkeyPatch) -> None:
    wall = [7_200.0]
    naive = core.ServerHealth(lambda: wall[0])
    while not naive.failed():
        pass
    wall[0] -= 3_600
    assert naive.resting()
    wall[0] += 3_599
    assert naive.resting()
    assert inspect.signature(CACHE[color.name]).parameters["clock"].default is time.monotonic


# --- Functions ------------------------------------------------------------------------------------


def test_a_function_of_the_other_color_is_refused(cache: Cache) -> None:
    async def asynchronous() -> None: ...

    def synchronous() -> None: ...

    def generator() -> Iterator[int]:
        yield 1

    async def async_generator() -> Any:
        yield 1

    wrong, other = (asynchronous, "AsyncRedisCache")
    if cache.color.is_async:
        wrong, other = (synchronous, "RedisCache")  # type: ignore[assignment]
    with pytest.raises(TypeError, match=f"synchronous belongs to an {other}$"):
        cache.inner.cached(ttl=60)(wrong)
    for each in (generator, async_generator):
        with pytest.raises(TypeError, match="generator is a generator: what it yields is gone"):
            cache.inner.cached(ttl=60)(each)
    for nothing in (len, functools.partial(synchronous), staticmethod(synchronous), Origin):
        with pytest.raises(TypeError, match="is not a function made with def"):
            cache.inner.cached(ttl=60)(nothing)


async def test_a_sync_wrapper_around_an_async_function_caches_a_coroutine() -> None:
    @functools.cache
    def naive() -> Any:
        return load()

    async def load() -> int:
        return 1

    assert await naive() == 1
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        await naive()


def test_a_method_is_cached_by_what_identifies_its_object(cache: Cache) -> None:
    runs: list[int] = []

    def total(self: Any, day: int) -> int:
        runs.append(day)
        return int(self.number) * day

    decorate = cache.inner.cached(ttl=60, key=lambda self, day: f"{self.number}/{day}")

    class Shop:
        all_totals = decorate(cache.color.function(total))

        def __init__(self, number: int) -> None:
            self.number = number

    one, two, wait_for = Shop(1), Shop(2), cache.color.run
    assert [wait_for(shop.all_totals(3)) for shop in (one, one, two, Shop(1))] == [3, 3, 6, 3]
    assert runs == [3, 3]
    assert wait_for(one.all_totals.invalidate(one, 3)) is True
    assert [wait_for(shop.all_totals(3)) for shop in (one, two)] == [3, 6]
    assert runs == [3, 3, 3]


def test_a_decorated_function_looks_like_the_one_it_wraps(cache: Cache) -> None:
    @cache.cached(ttl=60)
    def price_of(sku: str, currency: str = "EUR") -> int:
        """Look a price up."""
        return 1

    made = price_of.inner
    assert (made.__name__, made.__doc__) == ("price_of", "Look a price up.")
    assert list(inspect.signature(made).parameters) == ["sku", "currency"]
    # FastAPI asks this to decide between the event loop and a thread.
    assert inspect.iscoroutinefunction(made.__call__) is cache.color.is_async


def test_an_interrupted_computation_leaves_no_lock(valkey_url: str, valkey: Any) -> None:
    with redis_cache_sync.connect(valkey_url, timeout=5) as client:

        @RedisCache(client, namespace="test").cached(ttl=60)
        def f() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            f()
    assert valkey.dbsize() == 0


async def test_a_cancelled_leader_leaves_no_lock(valkey_url: str, valkey: Any) -> None:
    async with redis_cache_async.connect(valkey_url, timeout=5) as client:
        cache = AsyncRedisCache(client, namespace="test")
        started = asyncio.Event()

        @cache.cached(ttl=60)
        async def f() -> None:
            started.set()
            await asyncio.sleep(60)

        leader = asyncio.create_task(f())
        await started.wait()
        assert valkey.exists(core.lock_of(f.key_for()))
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        assert valkey.dbsize() == 0


async def test_a_caller_cancelled_while_taking_the_lock_leaves_none(valkey_url: str, valkey: Any) -> None:
    async with redis_cache_async.connect(valkey_url, timeout=5) as client:
        cache = AsyncRedisCache(client, namespace="test")
        acquire: Any = cache._acquire_script
        locked = asyncio.Event()

        async def slow(**kwargs: Any) -> Any:
            await acquire(**kwargs)
            locked.set()
            await asyncio.sleep(60)  # the answer is on its way

        cache._acquire_script = slow  # type: ignore[assignment]

        @cache.cached(ttl=60)
        async def f() -> None: ...

        caller = asyncio.create_task(f())
        await locked.wait()
        assert valkey.exists(core.lock_of(f.key_for()))
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert valkey.dbsize() == 0


async def test_cancelled_callers_do_not_leave_their_answers_to_others(
    valkey_url: str, fault_proxy: type[FaultProxy]
) -> None:
    parts = urlsplit(valkey_url)
    proxy = fault_proxy(str(parts.hostname), int(parts.port or 6379))
    address = f"redis://127.0.0.1:{proxy.port}{parts.path}"
    async with redis_cache_async.connect(address, timeout=5, max_connections=4) as client:
        cache = AsyncRedisCache(client, namespace="test")

        @cache.cached(ttl=60)
        async def f(x: int) -> int:
            return x

        assert await asyncio.gather(*map(f, range(20))) == list(range(20))
        proxy.latency = 0.005
        for _ in range(3):
            callers = [asyncio.create_task(f(x)) for x in range(20)]
            await asyncio.sleep(0.003)
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
        proxy.heal()
        assert await asyncio.gather(*map(f, range(20))) == list(range(20))


@pytest.mark.parametrize("script", ["_acquire_script", "_store_script"])
def test_a_caller_interrupted_while_redis_answers_leaves_no_lock(cache: Cache, valkey: Any, script: str) -> None:
    interruption: type[BaseException] = cache.color.pick(asyncio.CancelledError, KeyboardInterrupt)
    ask = Blocking(cache.color, getattr(cache.inner, script))

    def interrupted(**kwargs: Any) -> None:
        if script == "_acquire_script":  # the lock is taken, and nobody has heard of it
            ask(**kwargs)
        raise interruption

    setattr(cache.inner, script, cache.color.function(interrupted))
    f = cached_by(cache, Origin())
    with pytest.raises(interruption):
        f()
    assert valkey.dbsize() == 0


def test_a_cache_is_made_from_the_environment(
    color: Color, valkey_url: str, monkeypatch: pytest.MonkeyPatch, valkey: Any
) -> None:
    monkeypatch.delenv("CACHE_VERSION", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("CACHE_NAMESPACE", "shop")
    with pytest.raises(RuntimeError, match=r"^REDIS_URL is not set, or is empty$"):
        CACHE[color.name].from_env()
    # A busy machine may take longer than the default of 0.1 s, which is not the question here.
    monkeypatch.setenv("REDIS_URL", f"{valkey_url}?socket_timeout=5&socket_connect_timeout=5")
    for version in ("1", "2"):
        environ = {**os.environ, "CACHE_VERSION": version}
        cache = Cache(color, CACHE[color.name].from_env(environ, fail_open=False))
        color.closing(cache.inner.client)
        assert cache.fail_open is False
        cache.set("x", version, ttl=60)
    assert {key.split(b":{")[0] for key in valkey.scan_iter()} == {b"shop:v1", b"shop:v2"}
