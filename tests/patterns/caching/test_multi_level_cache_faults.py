"""Proves docs/patterns/caching/multi-level-cache.md: lost connections and messages, a Redis that is down or hangs."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import threading
import time
import uuid
from typing import Any

import pytest
import redis
import redis.asyncio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import multi_level_async
import multi_level_sync
from harness.clock import Clock
from harness.color import Blocking
from harness.depth import examples
from harness.origin import Origin
from harness.waiting import auntil, until
from multi_level_async import AsyncMultiLevelCache
from multi_level_core import MISSING, unpack
from multi_level_sync import MultiLevelCache
from patterns.caching import multi_level_cache_kit as kit
from patterns.caching.multi_level_cache_kit import Maker
from servers.faults import FaultProxy
from servers.valkey import Valkey

# Fixtures.
maker = kit.maker

# --- Anything, in any order ---


class Model(RuleBasedStateMachine):
    """Two processes, one Redis, and the database behind them; lost connections, lost values, time."""

    maker: Maker
    server: Valkey
    reads = 0
    keys = st.sampled_from(["a", "b", "c", "d"])
    who = st.integers(0, 1)
    values = st.one_of(st.none(), st.integers(), st.text(max_size=3))

    def __init__(self) -> None:
        super().__init__()
        self.clock, self.truth = Clock(), dict[str, Any]()
        self.raw = redis.Redis.from_url(self.server.url)
        self.raw.flushall()
        options: dict[str, Any] = {"clock": self.clock, "l1_max": 3}
        self.caches = [self.maker.cache(self.server.url, **options) for _ in range(2)]

    def settle(self) -> None:
        """Wait until both have heard all that was said until now: messages keep their order."""
        last = uuid.uuid4().hex
        before = [cache.level.changes_of(last) for cache in self.caches]
        self.raw.publish(f"{self.maker.namespace}:changed", last)
        until(lambda: all(c.level.changes_of(last) > n for c, n in zip(self.caches, before, strict=True)))

    @rule(key=keys, who=who)
    def read(self, key: str, who: int) -> None:
        type(self).reads += 1
        value = self.caches[who].get_or_load(key, lambda: self.truth.get(key, MISSING))
        assert value == self.truth.get(key, MISSING)

    @rule(key=keys, who=who, value=values, put=st.booleans())
    def write(self, key: str, who: int, value: Any, put: bool) -> None:
        self.truth[key] = value
        assert self.caches[who].set(key, value) if put else self.caches[who].invalidate(key)
        self.settle()

    @rule(key=keys, who=who)
    def miss_a_message(self, key: str, who: int) -> None:
        before = [min(cache.level._changes) for cache in self.caches]
        for client in self.raw.client_list(_type="pubsub"):
            self.raw.client_kill(client["addr"])
        self.truth[key] = uuid.uuid4().hex
        assert self.caches[who].invalidate(key)
        until(lambda: all(min(c.level._changes) > n for c, n in zip(self.caches, before, strict=True)))
        self.settle()

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def lose_what_redis_has(self) -> None:
        self.raw.flushall()

    @invariant()
    def memory_is_small_and_right(self) -> None:
        for cache in self.caches:
            entries = list(cache.level._entries.items())
            assert len(entries) <= 3
            for key, (data, _) in entries:
                assert unpack(data) == self.truth.get(key, MISSING)

    def teardown(self) -> None:
        try:
            for key in ("a", "b", "c", "d"):  # however it came to this
                for who in (0, 1):
                    self.read(key=key, who=who)
        finally:
            self.raw.close()
            self.maker.color.finish()


def test_whatever_happens_nobody_serves_what_a_change_has_replaced(
    maker: Maker, module_valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    machine: Any = type("Machine", (Model,), {"maker": maker, "server": module_valkey})
    limits = settings(max_examples=examples(6), stateful_step_count=12, deadline=None, database=None)
    run_state_machine_as_test(machine, settings=limits)
    assert machine.reads > 0


# --- Broken connections ---------------------------------------------------------------------------


async def test_redis_py_subscribes_again_in_silence_and_the_message_is_lost(module_valkey: Valkey) -> None:
    """The listener of most examples: it never learns that it has missed something."""
    retrying = redis.Redis.from_url(module_valkey.url, retry=redis.retry.Retry(redis.backoff.NoBackoff(), 3))
    aretry = redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 3)
    aretrying = redis.asyncio.Redis.from_url(module_valkey.url, retry=aretry)
    with retrying, redis.Redis.from_url(module_valkey.url) as db, retrying.pubsub() as plain:  # type: ignore[no-untyped-call]
        async with aretrying, aretrying.pubsub() as aplain:
            ignoring: Any = retrying.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
            for pubsub in (plain, ignoring):
                pubsub.subscribe("changed")
                until(lambda each: each.get_message(timeout=0.01) or each is ignoring, pubsub)
            await aplain.subscribe("changed")
            assert (await aplain.get_message(timeout=5) or {})["type"] == "subscribe"
            for client in db.client_list(_type="pubsub"):
                db.client_kill(client["addr"])
            assert db.publish("changed", "lost") == 0
            seen, ignored, aseen = [], [], []
            for _ in range(3):
                seen.append(plain.get_message(timeout=0.02))
                ignored.append(ignoring.get_message(timeout=0.02))
                aseen.append(await aplain.get_message(timeout=0.02))
            ignoring.close()
    for found in (seen, aseen):
        assert [message["type"] for message in found if message] == ["subscribe"]  # the only trace
    assert not any(ignored)  # not even that


def test_client_side_caching_of_redis_py_refuses_valkey(module_valkey: Valkey) -> None:
    with redis.Redis.from_url(module_valkey.url, protocol=3, cache_config=redis.cache.CacheConfig()) as client:  # noqa: SIM117
        with pytest.raises(redis.ConnectionError, match=r"client-side caching is supported by Redis 7\.4 or later"):
            client.ping()


@pytest.mark.parametrize("retries", [0, 3])
def test_after_a_lost_connection_nothing_from_before_is_served(
    maker: Maker, module_valkey: Valkey, retries: int
) -> None:
    client = maker.client(module_valkey.url)
    retry = maker.color.pick(redis.asyncio, redis).retry.Retry(redis.backoff.NoBackoff(), retries)
    client.connection_pool.connection_kwargs["retry"] = retry
    other, one = maker.cache(module_valkey.url, client=client), maker.cache(module_valkey.url)
    with redis.Redis.from_url(module_valkey.url) as db:
        for turn in range(3):
            one.set("k", turn)
            until(lambda value: other.get("k") == value, turn)
            other.get("k")
            before = min(other.level._changes)
            for each in db.client_list(_type="pubsub"):
                db.client_kill(each["addr"])
            assert db.set(f"{maker.namespace}:value:k", b'["unheard"]', px=60_000)
            until(lambda count: min(other.level._changes) > count, before)
            assert other.get("k") == "unheard"
    assert other.stats()["errors"] == (0 if retries else 3)


def test_memory_is_not_trusted_after_silence_of_l1_ttl(
    maker: Maker, module_valkey: Valkey, fault_proxy: type[FaultProxy]
) -> None:
    clock, origin = Clock(), Origin()
    proxy = fault_proxy("127.0.0.1", module_valkey.port)
    client = maker.client(f"redis://127.0.0.1:{proxy.port}", timeout=1.0)
    cache, other = maker.cache(module_valkey.url, client=client, clock=clock), maker.cache(module_valkey.url)
    origin.value = "old"
    assert cache.get_or_load("k", origin) == "old"
    proxy.refuse = True
    proxy.reset_all()
    until(lambda: cache.stats()["errors"])
    origin.value = "new"
    assert other.invalidate("k") is True
    clock.now += 1
    assert cache.get_or_load("k", origin) == "old"  # a second ago it was true
    assert cache.get_or_load("late", origin) == "new"  # kept in memory alone, until second 6
    loads = origin.loads
    clock.now += 4  # nothing heard for 5 s, which is l1_ttl: still trusted
    assert cache.get_or_load("late", origin) == "new"
    assert origin.loads == loads
    clock.now += 0.001
    assert cache.get_or_load("late", origin) == "new"
    assert origin.loads == loads + 1
    assert cache.level._entries["late"][1] > clock.now
    proxy.heal()
    until(lambda: cache.level.heard_at == clock.now)
    assert cache.get_or_load("k", origin) == "new"


def test_a_listener_that_hears_nothing_connects_again(
    maker: Maker, module_valkey: Valkey, fault_proxy: type[FaultProxy]
) -> None:
    proxy = fault_proxy("127.0.0.1", module_valkey.port)
    client = maker.client(f"redis://127.0.0.1:{proxy.port}", timeout=0.5)
    cache = maker.cache(module_valkey.url, client=client, l1_ttl=0.1)
    heard_at = cache.level.heard_at
    until(lambda: cache.level.heard_at > heard_at)  # it pings, and the answer counts
    assert cache.stats()["errors"] == 0
    changes, connections = min(cache.level._changes), proxy.accepted
    proxy.blackhole = True
    until(lambda: cache.stats()["errors"])
    proxy.heal()
    until(lambda: min(cache.level._changes) > changes)
    assert proxy.accepted > connections


class Quiet:
    """A subscription on which nothing comes but what a test has put there."""

    def __init__(self, maker: Maker, *messages: dict[str, Any] | None) -> None:
        self.messages, self.timeouts, self.pings = list(messages), list[float](), 0
        self.get_message = maker.color.quick(self._get_message)
        self.ping = maker.color.quick(self._ping)

    def _get_message(self, timeout: float) -> Any:
        self.timeouts.append(timeout)
        assert len(self.timeouts) < 100, "it waits forever"
        return self.messages.pop(0) if self.messages else None

    def _ping(self) -> None:
        self.pings += 1


@pytest.mark.parametrize(("l1_ttl", "tick", "ticks"), [(0.5, 0.125, 4), (1.0, 0.25, 4), (5.0, 0.25, 20)])
def test_the_listener_asks_for_a_sign_of_life_and_gives_up_after_l1_ttl(
    maker: Maker, valkey_url: str, l1_ttl: float, tick: float, ticks: int
) -> None:
    cache = maker.cache(valkey_url, enter=False, l1_ttl=l1_ttl)
    tried = maker.color.pick(asyncio, threading).Event()
    pubsub = Quiet(maker, None, None, {"type": "pong"}, None, {"type": "message", "data": b"k"})
    with pytest.raises(redis.RedisError, match=f"nothing heard for {l1_ttl} s"):
        Blocking(maker.color, cache.inner._listener)._hear_messages(pubsub, tried)
    assert pubsub.timeouts == [tick] * (5 + ticks)  # from the last message on
    assert 3 + ticks - 1 <= pubsub.pings <= 3 + ticks
    assert tried.is_set()
    assert cache.level.changes_of("k") == 1
    assert sum(cache.level._changes) == 1


@pytest.mark.parametrize("color", ["async"], indirect=True)
def test_the_error_of_asyncio_for_a_reset_connection_is_a_failure_of_redis_too(maker: Maker, valkey_url: str) -> None:
    cache, origin = maker.cache(valkey_url), Origin()

    async def reset(**_: Any) -> None:  # as selector_events.py does when the loop has let go of the socket
        raise AttributeError("'NoneType' object has no attribute '_add_writer'")

    cache.inner._change_script = cache.inner._enter_script = cache.inner._leave_script = reset
    assert [cache.set("k", 7), cache.get("k"), cache.invalidate("k")] == [False, 7, False]
    assert cache.get_or_load("k", origin) == 1
    assert cache.stats()["errors"] == 4


def test_without_redis_memory_and_the_loader_go_on(maker: Maker, own_valkey: Valkey) -> None:
    clock, origin = Clock(), Origin()
    cache = maker.cache(own_valkey.url, clock=clock)
    assert cache.get_or_load("k", origin) == 1
    own_valkey.kill()
    assert [cache.get("k"), cache.get_or_load("k", origin)] == [1, 1]
    assert [cache.get_or_load("new", origin) for _ in range(3)] == [2, 2, 2]  # memory alone keeps it
    assert cache.get("gone") is MISSING
    assert cache.set("k", "changed") is False
    assert cache.get("k") == "changed"  # one level failed, the other did not
    assert cache.invalidate("k") is False
    assert cache.get_or_load("k", origin) == 3
    assert cache.set("brief", 1, ttl=1) is False
    clock.now += 1
    assert cache.get("brief") is MISSING
    assert cache.stats()["errors"] >= 6
    own_valkey.start()
    until(cache.set, "k", "back")
    assert cache.get("k") == "back"


def test_writing_one_level_after_the_other_fails_as_a_whole(own_valkey: Valkey) -> None:
    memory: dict[str, Any] = {}
    client = redis.Redis.from_url(own_valkey.url)
    own_valkey.kill()

    def naive_set(key: str, value: Any) -> None:
        client.set(key, value, px=5_000)
        memory[key] = value

    with pytest.raises(redis.ConnectionError):
        naive_set("k", 1)
    assert memory == {}
    client.close()


def test_a_hung_redis_costs_a_miss_two_timeouts_and_a_hit_in_memory_nothing(
    maker: Maker, module_valkey: Valkey, fault_proxy: type[FaultProxy]
) -> None:
    proxy = fault_proxy("127.0.0.1", module_valkey.port)
    client = maker.client(f"redis://127.0.0.1:{proxy.port}", timeout=0.3)
    cache, origin = maker.cache(module_valkey.url, client=client), Origin()
    assert cache.get_or_load("k", origin) == 1
    proxy.blackhole = True
    begin = time.monotonic()
    assert cache.get_or_load("new", origin) == 2
    assert time.monotonic() - begin > 0.59
    assert cache.stats()["errors"] == 2
    assert [cache.get("k"), cache.get("new")] == [1, 2]


def test_a_process_that_starts_without_redis_works_and_finds_it_later(
    maker: Maker, module_valkey: Valkey, fault_proxy: type[FaultProxy]
) -> None:
    proxy = fault_proxy("127.0.0.1", module_valkey.port)
    for fault in ("refuse", "blackhole"):
        setattr(proxy, fault, True)
        client = maker.client(f"redis://127.0.0.1:{proxy.port}", timeout=0.3)
        namespace, origin = f"{maker.namespace}-{fault}", Origin()
        cache = maker.cache(module_valkey.url, client=client, hears=False, namespace=namespace)
        assert cache.get_or_load("k", origin) == 1
        proxy.heal()
        until(lambda each: each.level.heard_at > 0, cache)
        until(cache.set, "k", 7)
        assert cache.get("k") == 7


def test_without_a_listener_memory_is_not_used(maker: Maker, valkey_url: str) -> None:
    cache, origin = maker.cache(valkey_url, enter=False), Origin()
    assert [cache.get_or_load("k", origin), cache.get("k"), cache.get("k")] == [1, 1, 1]
    assert cache.stats() == {"l1": 0, "l2": 2, "loads": 1, "errors": 0, "size": 1}
    entered = maker.cache(valkey_url)
    entered.get("k")
    maker.color.finish()
    assert entered.level.heard_at < 0
    assert entered.level.look("k") is None


def test_the_client_does_not_wait_as_redis_py_does(maker: Maker, module_valkey: Valkey) -> None:
    defaults = {name: p.default for name, p in inspect.signature(maker.connect).parameters.items()}
    assert (defaults["timeout"], defaults["max_connections"]) == (0.1, 50)
    client = maker.connect(module_valkey.url)
    kwargs = client.connection_pool.connection_kwargs
    assert (kwargs["socket_timeout"], kwargs["socket_connect_timeout"], kwargs["retry"]) == (0.1, 0.1, None)
    pool = client.connection_pool
    assert (pool.timeout, pool.max_connections) == (0.1, 50)
    naive = maker.color.pick(redis.asyncio, redis).Redis(port=module_valkey.port)
    assert naive.connection_pool.connection_kwargs["retry"].get_retries() == 10
    assert naive.connection_pool.connection_kwargs["socket_timeout"] == 5


# --- One color only -------------------------------------------------------------------------------


async def test_an_event_loop_that_was_blocked_serves_nothing_old_after_its_messages(
    valkey_url: str,
) -> None:
    namespace = uuid.uuid4().hex
    with multi_level_sync.connect(valkey_url, timeout=5) as client:
        elsewhere = MultiLevelCache(client, namespace=namespace)
        async with (
            multi_level_async.connect(valkey_url, timeout=5) as aclient,
            AsyncMultiLevelCache(aclient, namespace=namespace) as cache,
        ):
            await cache.set("k", "old")
            assert await cache.get("k") == await cache.get("k") == "old"
            elsewhere.set("k", "new")
            time.sleep(0.3)  # longer than the timeouts and the listener's ping
            async with asyncio.timeout(20):
                while await cache.get("k") == "old":
                    await asyncio.sleep(0)
            assert cache.stats()["errors"] == 0


async def test_a_cancelled_caller_takes_nobody_with_it(valkey_url: str, valkey: Any) -> None:
    namespace, go, loads = uuid.uuid4().hex, asyncio.Event(), list[int]()
    unhandled: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))

    async def load() -> str:
        loads.append(1)
        await go.wait()
        if len(loads) == 2:
            raise ConnectionError("nobody is left to hear this")
        return "value"

    async with (
        multi_level_async.connect(valkey_url, timeout=5) as client,
        AsyncMultiLevelCache(client, namespace=namespace) as cache,
    ):
        callers = [asyncio.create_task(cache.get_or_load("k", load)) for _ in range(3)]
        await auntil(lambda: loads)
        callers[0].cancel()
        await asyncio.sleep(0)
        go.set()
        await asyncio.wait(callers)
        assert [caller.cancelled() for caller in callers] == [True, False, False]
        assert [caller.result() for caller in callers[1:]] == ["value", "value"]
        alone = asyncio.create_task(cache.get_or_load("other", load))
        go.clear()
        await auntil(lambda: len(loads) == 2)
        alone.cancel()
        await asyncio.wait([alone])
        del alone  # its traceback holds what it has waited for
        go.set()
        await auntil(lambda: not cache._flights)
        go.clear()
        last = asyncio.create_task(cache.get_or_load("unfinished", load))
        await auntil(lambda: len(loads) == 3)
        assert valkey.exists(f"{namespace}:lease:unfinished")
    await asyncio.wait([last], timeout=20)
    assert last.cancelled()  # the end of the block stops what is still being loaded
    assert not valkey.exists(f"{namespace}:lease:unfinished")
    gc.collect()
    assert unhandled == []


async def test_leaving_the_block_stops_the_loads_though_it_is_cancelled_itself(valkey_url: str) -> None:
    begun = asyncio.Event()

    async def load() -> Any:
        begun.set()
        await asyncio.Event().wait()

    async with multi_level_async.connect(valkey_url, timeout=5) as client:
        cache = AsyncMultiLevelCache(client, namespace="impatient")
        await cache.__aenter__()
        asking = asyncio.create_task(cache.get_or_load("k", load))
        await begun.wait()
        leaving = asyncio.create_task(cache.__aexit__())
        await asyncio.sleep(0)  # as far as its first await
        leaving.cancel()
        await asyncio.wait([leaving])
        await asyncio.wait([asking], timeout=2)
        assert asking.cancelled()


async def test_leaving_the_block_ends_though_a_cancellation_gets_lost(valkey_url: str) -> None:
    lost: list[int] = []

    async def hear(pubsub: Any, tried: asyncio.Event) -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:  # as asyncio.wait_for of Python 3.11, when its time is up right now
                lost.append(1)
                if len(lost) > 1:
                    raise

    async with multi_level_async.connect(valkey_url, timeout=5) as client:
        cache = AsyncMultiLevelCache(client, namespace="lost")
        listener: Any = cache._listener
        listener._hear_messages = hear
        entering = asyncio.create_task(cache.__aenter__())
        await asyncio.sleep(0.05)
        async with asyncio.timeout(20):
            await cache.__aexit__()
        entering.cancel()
    assert len(lost) == 2
