"""Proves docs/patterns/resilience/service-warm-up.md: services on an event loop are made once, kept, and closed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis

import warmup_async
from harness.fake_loop import on_fake_time
from patterns.resilience.service_warm_up_kit import Service
from warmup_async import AsyncServices


class Factory:
    """Makes services on a loop with fake time, slowly if told, and remembers them."""

    def __init__(self, takes: float = 0.0, fails: Callable[[Any], BaseException | None] = lambda key: None) -> None:
        self.takes = takes
        self.fails = fails
        self.made: list[Service] = []
        self.calls: list[Any] = []
        self.closed: list[Any] = []

    async def create(self, key: Any) -> Service:
        self.calls.append(key)
        await asyncio.sleep(self.takes)
        if error := self.fails(key):
            raise error
        self.made.append(Service(key))
        return self.made[-1]

    async def prewarm(self, service: Service) -> None:
        await asyncio.sleep(0)
        service.warmed += 1

    async def close(self, service: Service) -> None:
        await asyncio.sleep(0)
        service.closed += 1
        self.closed.append(service.key)

    def services(self, **settings: Any) -> AsyncServices[Any, Service]:
        return AsyncServices(self.create, **({"prewarm": self.prewarm, "close": self.close} | settings))


def now() -> float:
    return asyncio.get_running_loop().time()


# --- made once


@on_fake_time
async def test_five_slow_keys_warm_together_in_the_time_of_one() -> None:
    factory = Factory(takes=0.2)
    services = factory.services()
    begun = now()
    assert await services.warm("abcde", timeout=1) == dict.fromkeys("abcde")
    assert now() - begun == pytest.approx(0.2)
    assert [service.warmed for service in factory.made] == [1] * 5


@on_fake_time
async def test_a_hit_is_returned_without_a_turn_of_the_event_loop() -> None:
    factory = Factory()
    services = factory.services()
    await services.get("ready")
    factory.takes = 10
    slow = asyncio.create_task(services.get("slow"))
    await asyncio.sleep(0)
    hit = services.get("ready")
    with pytest.raises(StopIteration):  # returned without ever waiting
        hit.send(None)
    assert services.peek("slow") is None
    await slow
    assert now() == pytest.approx(10)


# --- cancelled


@on_fake_time
async def test_the_first_waiter_s_cancel_does_not_end_the_creation_while_others_wait() -> None:
    factory = Factory(takes=1)
    services = factory.services()
    first, second = (asyncio.create_task(services.get("db")) for _ in range(2))
    await asyncio.sleep(0.5)
    first.cancel()
    assert (await second).warmed == 1
    assert first.cancelled()
    assert factory.calls == ["db"]


@on_fake_time
async def test_when_all_waiters_leave_the_creation_ends_and_what_was_built_is_closed() -> None:
    factory = Factory()

    async def slow(service: Service) -> None:
        await asyncio.sleep(10)

    services = factory.services(prewarm=slow)
    tasks = [asyncio.create_task(services.get("db")) for _ in range(3)]
    await asyncio.sleep(1)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await asyncio.sleep(0.001)
    assert [service.closed for service in factory.made] == [1]
    assert services._making == {}
    assert not services._tasks
    assert now() < 2


@on_fake_time
async def test_a_creation_that_does_not_heed_its_cancellation_is_closed_and_not_kept() -> None:
    factory = Factory()

    async def stubborn(key: str) -> Service:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(10)
        return await factory.create(key)

    services = AsyncServices(stubborn, close=factory.close)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(services.get("db"), 1)
    newer = await services.get("db")
    assert [service.closed for service in factory.made] == [1, 0]
    assert await services.get("db") is newer


@on_fake_time
async def test_who_comes_while_an_abandoned_creation_winds_down_gets_a_new_one() -> None:
    factory = Factory()

    async def slow_to_close(service: Service) -> None:
        await asyncio.sleep(5)
        service.closed += 1

    async def slow_once(service: Service) -> None:
        if len(factory.made) == 1:
            await asyncio.sleep(10)

    services = factory.services(prewarm=slow_once, close=slow_to_close)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(services.get("db"), 1)
    service = await services.get("db")
    assert service is factory.made[1]
    await services.aclose()
    assert [each.closed for each in factory.made] == [1, 1]


# --- warming


@on_fake_time
async def test_in_warm_a_key_that_fails_or_hangs_does_not_stop_the_others() -> None:
    factory = Factory(fails=lambda key: ConnectionError("refused") if key == "bad" else None)

    async def create(key: str) -> Service:
        if key == "hangs":
            await asyncio.sleep(3600)
        return await factory.create(key)

    services = AsyncServices(create, close=factory.close)
    report = await services.warm(["good", "bad", "hangs", "good"], timeout=2)
    assert list(report) == ["good", "bad", "hangs"]
    assert report["good"] is None
    assert repr(report["bad"]) == "ConnectionError('refused')"
    assert isinstance(report["hangs"], TimeoutError)
    assert now() == pytest.approx(2)
    assert services._making == {}


# --- odd factories


@on_fake_time
async def test_a_factory_that_waits_in_a_circle_by_tasks_of_its_own_is_an_error() -> None:
    needs = {"app": "db", "db": "vault", "vault": None, "a": "b", "b": "a", "self": "self"}

    async def create(key: str) -> Service:
        if need := needs[key]:
            await asyncio.gather(services.get(need))
        return Service(key)

    services = AsyncServices(create)
    assert (await services.get("app")).key == "app"
    assert list(services._ready) == ["vault", "db", "app"]
    for key in ("a", "self"):
        with pytest.raises(RuntimeError, match=f"the service of '{key}' needs itself"):
            await asyncio.wait_for(services.get(key), 5)


@on_fake_time
async def test_ten_thousand_keys_leave_nothing_behind_but_their_services() -> None:
    factory = Factory()
    services = factory.services()
    await asyncio.gather(*(services.get(key) for key in range(10_000)))
    assert len(services._ready) == 10_000
    assert services._making == {}
    assert not services._tasks
    assert len(services._failed) == 0


def test_another_event_loop_is_refused_even_for_what_is_ready() -> None:
    services = AsyncServices(Factory().create)
    asyncio.run(services.get("db"))
    for key in ("db", "other"):
        with pytest.raises(RuntimeError, match="belong to another event loop: make some for each"):
            asyncio.run(services.get(key))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.parametrize("kind", ["warmup_async", "warmup_sync"])
def test_after_a_fork_the_child_makes_its_own_and_closes_none_of_its_parent(kind: str) -> None:
    program = {
        "warmup_async": """
import asyncio, os
from warmup_async import AsyncServices
async def create(key): return os.getpid()
async def close(service): assert service == os.getpid(), "closed the parent's"
services = AsyncServices(create, close=close)
loop = asyncio.new_event_loop()
assert loop.run_until_complete(services.get("db")) == os.getpid()
child = os.fork()
if child == 0:
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(services.get("db")) == os.getpid()
    loop.run_until_complete(services.aclose())
    os._exit(7)
""",
        "warmup_sync": """
import os
from warmup_sync import Services
def close(service): assert service == os.getpid(), "closed the parent's"
services = Services(lambda key: os.getpid(), close=close)
assert services.get("db") == os.getpid()
services._lock.acquire()
child = os.fork()
if child == 0:
    assert services.get("db") == os.getpid()
    services.close()
    os._exit(7)
""",
    }[kind]
    program += "os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={"PYTHONPATH": str(Path(warmup_async.__file__).parent)},
        timeout=20,
        check=False,
    )
    assert run.returncode == 7


# --- gotchas


@on_fake_time
async def test_one_lock_for_all_makes_five_services_one_after_the_other_and_a_hit_wait() -> None:
    class Naive:
        def __init__(self, create: Callable[[Any], Awaitable[Any]]) -> None:
            self.create = create
            self.lock = asyncio.Lock()
            self.known: dict[Any, Any] = {}

        async def get(self, key: Any) -> Any:
            async with self.lock:
                if key not in self.known:
                    self.known[key] = await self.create(key)
                return self.known[key]

    async def times(get: Callable[[Any], Awaitable[Any]]) -> tuple[float, float]:
        begun = now()
        await asyncio.gather(*(get(key) for key in "abcde"))
        five = now() - begun
        slow = asyncio.ensure_future(get("slow"))
        await asyncio.sleep(0.01)
        begun = now()
        await get("a")
        hit = now() - begun
        await slow
        return five, hit

    assert await times(Naive(Factory(0.2).create).get) == pytest.approx((1.0, 0.19))
    assert await times(Factory(0.2).services().get) == pytest.approx((0.2, 0.0))


@on_fake_time
async def test_a_cached_task_fails_forever_and_dies_with_its_first_waiter_and_here_neither() -> None:
    def naive(create: Callable[[Any], Coroutine[Any, Any, Any]]) -> Callable[[Any], Awaitable[Any]]:
        @functools.cache
        def task_of(key: Any) -> asyncio.Task[Any]:
            return asyncio.create_task(create(key))

        async def get(key: Any) -> Any:
            return await task_of(key)

        return get

    async def after_a_blip(get: Callable[[Any], Awaitable[Any]]) -> bool:
        for _ in range(3):
            with contextlib.suppress(ConnectionError):
                await get("db")
                return True
        return False

    async def after_a_cancel(get: Callable[[Any], Awaitable[Any]]) -> bool:
        first, second = (asyncio.ensure_future(get("db")) for _ in range(2))
        await asyncio.sleep(0.05)
        first.cancel()
        await asyncio.wait([first, second])
        return not second.cancelled()

    def flaky() -> Factory:
        errors = iter([ConnectionError("blip")])
        return Factory(0.1, lambda key: next(errors, None))

    assert not await after_a_blip(naive(flaky().create))
    assert await after_a_blip(flaky().services().get)
    assert not await after_a_cancel(naive(Factory(0.1).create))
    assert await after_a_cancel(Factory(0.1).services().get)


@on_fake_time
async def test_check_await_insert_makes_two_and_leaks_one() -> None:
    factory, known = Factory(0.1), dict[str, Service]()

    async def naive(key: str) -> Service:
        if key not in known:
            known[key] = await factory.create(key)
        return known[key]

    await asyncio.gather(naive("db"), naive("db"))
    assert len(factory.made) == 2  # and nobody will ever close the first

    factory = Factory(0.1)
    services = factory.services()
    await asyncio.gather(services.get("db"), services.get("db"))
    assert len(factory.made) == 1


@on_fake_time
async def test_a_table_of_locks_grows_with_every_key_that_failed() -> None:
    locks: dict[int, asyncio.Lock] = {}
    factory = Factory(fails=lambda key: ConnectionError())

    async def naive(key: int) -> Service:
        async with locks.setdefault(key, asyncio.Lock()):
            return await factory.create(key)

    services = factory.services()
    for key in range(1000):
        for get in (naive, services.get):
            with contextlib.suppress(ConnectionError):
                await get(key)
    assert len(locks) == 1000
    assert len(services._making) + len(services._ready) + len(services._failed) + len(services._tasks) == 0


# --- real servers


async def test_a_crowd_opens_one_connection_to_valkey(valkey_url: str) -> None:
    async def create(name: str) -> redis.Redis:
        return redis.Redis.from_url(valkey_url, client_name=name)

    async def prewarm(client: redis.Redis) -> None:
        await client.ping()

    services = AsyncServices(create, prewarm=prewarm, close=redis.Redis.aclose)
    clients = await asyncio.gather(*(services.get("warm-up-proof") for _ in range(50)))
    names = [each["name"] for each in await clients[0].client_list()]
    assert names.count("warm-up-proof") == 1
    await services.aclose()
