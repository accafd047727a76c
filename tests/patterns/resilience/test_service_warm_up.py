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

import psycopg
import psycopg_pool
import redis.asyncio as redis

import warmup_async
from harness.fake_loop import on_fake_time
from warmup_async import ServicesClosed, keys_to_warm

# isort: split
# --8<-- [start:own]
import pytest

from warmup_async import AsyncServices


async def test_your_client_is_made_once_and_closed_once() -> None:
    log: list[str] = []

    async def connect(name: str) -> str:  # yours, with its client replaced
        log.append(f"connect {name}")
        await asyncio.sleep(0)
        return f"client of {name}"

    async def disconnect(client: str) -> None:
        log.append(f"close {client}")

    services = AsyncServices(connect, close=disconnect)
    clients = await asyncio.gather(*(services.get("db") for _ in range(20)))
    assert set(clients) == {"client of db"}
    await services.aclose()
    assert log == ["connect db", "close client of db"]


# --8<-- [end:own]


class Service:
    """A service that remembers what was done to it."""

    def __init__(self, key: Any) -> None:
        self.key, self.warmed, self.closed = key, 0, 0


class Factory:
    """Makes services, slowly if told, and remembers them."""

    def __init__(self, takes: float = 0.0, fails: Callable[[Any], BaseException | None] = lambda key: None) -> None:
        self.takes, self.fails, self.made, self.calls, self.closed = (
            takes,
            fails,
            list[Service](),
            list[Any](),
            list[Any](),
        )

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
async def test_fifty_who_ask_at_once_get_the_same_service_that_was_made_and_warmed_once() -> None:
    factory = Factory(takes=0.2)
    services = factory.services()
    found = await asyncio.gather(*(services.get("db") for _ in range(50)))
    assert set(map(id, found)) == {id(factory.made[0])}
    assert factory.calls == ["db"]
    assert (found[0].warmed, found[0].closed) == (1, 0)
    assert await services.get("db") is found[0]
    assert services.peek("db") is found[0]
    assert factory.calls == ["db"]


@on_fake_time
async def test_five_slow_keys_warm_together_in_the_time_of_one() -> None:
    factory = Factory(takes=0.2)
    services = factory.services()
    begun = now()
    assert await services.warm("abcde", timeout=1) == dict.fromkeys("abcde")
    assert now() - begun == pytest.approx(0.2)
    assert [service.warmed for service in factory.made] == [1] * 5


@on_fake_time
async def test_a_hit_does_not_wait_for_another_key_that_is_being_made() -> None:
    factory = Factory()
    services = factory.services()
    await services.get("ready")
    factory.takes = 10
    slow = asyncio.create_task(services.get("slow"))
    await asyncio.sleep(0)
    with contextlib.suppress(StopIteration):  # returned without ever waiting
        services.get("ready").send(None)
    else_ = services.get("ready")
    with pytest.raises(StopIteration):
        else_.send(None)
    assert services.peek("slow") is None
    await slow
    assert now() == pytest.approx(10)


@on_fake_time
async def test_a_service_without_prewarm_and_close_is_kept_and_dropped() -> None:
    factory = Factory()
    services = AsyncServices(factory.create)
    service = await services.get("db")
    await services.aclose()
    assert (service.warmed, service.closed) == (0, 0)


# --- failures


@on_fake_time
async def test_a_failure_reaches_every_waiter_with_a_chain_of_its_own_and_is_not_kept() -> None:
    errors = iter([ConnectionError("refused")])
    factory = Factory(0.1, lambda key: next(errors, None))
    services = factory.services()
    failures = await asyncio.gather(*(services.get("db") for _ in range(5)), return_exceptions=True)
    assert [repr(failure) for failure in failures] == ["ConnectionError('refused')"] * 5
    assert len(set(map(id, failures))) == 5
    assert len({id(failure.__cause__) for failure in failures if isinstance(failure, Exception)}) == 1
    assert isinstance(await services.get("db"), Service)
    assert factory.calls == ["db", "db"]


@on_fake_time
async def test_an_error_that_cannot_be_copied_is_raised_itself() -> None:
    class OddError(Exception):
        def __init__(self, host: str, *, port: int) -> None:
            super().__init__(f"{host}:{port}")

    error = OddError("db", port=1)
    services = Factory(fails=lambda key: error).services()
    failures = await asyncio.gather(*(services.get("db") for _ in range(2)), return_exceptions=True)
    assert failures == [error, error]
    assert error.__cause__ is None


@on_fake_time
async def test_a_failure_is_repeated_without_a_call_for_failure_ttl() -> None:
    clock = 100.0
    factory = Factory(fails=lambda key: ConnectionError(f"{key} refused"))
    services = factory.services(failure_ttl=1.0, clock=lambda: clock)
    for later in (0.0, 0.999):
        clock += later
        with pytest.raises(ConnectionError, match="db refused"):
            await services.get("db")
    assert factory.calls == ["db"]
    clock = 101.0
    with pytest.raises(ConnectionError):
        await services.get("db")
    assert factory.calls == ["db", "db"]
    for key in range(100):
        clock += 1
        with pytest.raises(ConnectionError):
            await services.get(key)
    assert len(services._failed) == 1  # what is over is not kept

    await services.discard(99)
    with pytest.raises(ConnectionError):
        await services.get(99)
    assert factory.calls.count(99) == 2


@pytest.mark.parametrize("wrong", [-1, float("nan")])
def test_a_failure_ttl_below_zero_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=f"failure_ttl must be 0 or more, not {wrong}"):
        AsyncServices(Factory().create, failure_ttl=wrong)


@on_fake_time
async def test_a_prewarm_that_fails_closes_the_half_built_service_once() -> None:
    factory = Factory()

    async def fail(service: Service) -> None:
        raise ConnectionError("cold")

    services = factory.services(prewarm=fail)
    with pytest.raises(ConnectionError, match="cold"):
        await services.get("db")
    assert services.peek("db") is None
    await services.aclose()
    assert [service.closed for service in factory.made] == [1]


@on_fake_time
async def test_when_closing_the_half_built_fails_too_the_first_failure_is_told() -> None:
    async def fail(service: Service) -> None:
        raise ConnectionError("cold")

    async def fail_to_close(service: Service) -> None:
        raise OSError("stuck")

    with pytest.raises(ConnectionError, match="cold"):
        await Factory().services(prewarm=fail, close=fail_to_close).get("db")


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


# --- closing


@on_fake_time
async def test_services_close_in_reverse_order_each_once_and_past_one_that_fails() -> None:
    factory = Factory()

    async def close(service: Service) -> None:
        await factory.close(service)
        if service.key in "ac":
            raise OSError(f"{service.key} is stuck")

    services = factory.services(close=close)
    for key in "abc":
        await services.get(key)
    with pytest.raises(ExceptionGroup, match="services that did not close") as failure:
        await services.aclose()
    assert factory.closed == ["c", "b", "a"]
    assert [str(error) for error in failure.value.exceptions] == ["c is stuck", "a is stuck"]
    await services.aclose()
    assert factory.closed == ["c", "b", "a"]
    with pytest.raises(ServicesClosed, match="the services are closed"):
        await services.get("a")


@on_fake_time
async def test_a_creation_under_way_is_awaited_and_closed() -> None:
    factory = Factory(takes=1)
    services = factory.services()
    waiter = asyncio.create_task(services.get("db"))
    await asyncio.sleep(0.5)
    await services.aclose()
    assert now() == pytest.approx(1)
    assert (await waiter).closed == 1
    assert await services.warm(["db"], timeout=1) != {"db": None}


@on_fake_time
async def test_a_discarded_service_is_closed_and_made_anew() -> None:
    factory = Factory(takes=1)
    services = factory.services()
    await services.discard("unknown")
    first = await services.get("db")
    await services.discard("db")
    assert first.closed == 1
    second = await services.get("db")
    assert second is not first

    being_made = asyncio.create_task(services.get("other"))
    await asyncio.sleep(0.5)
    await services.discard("other")
    assert (await being_made).closed == 1
    assert services.peek("other") is None
    assert services.peek("db") is second


# --- warming


@on_fake_time
async def test_warm_reports_every_key_and_one_that_fails_or_hangs_does_not_stop_the_others() -> None:
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


def test_the_keys_to_warm_stand_in_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WARM_ON_START", raising=False)
    assert keys_to_warm() == []
    monkeypatch.setenv("WARM_ON_START", " db, search ,,")
    monkeypatch.setenv("OTHER", "a")
    assert keys_to_warm() == ["db", "search"]
    assert keys_to_warm("OTHER") == ["a"]


# --- odd factories


@on_fake_time
async def test_a_factory_may_ask_for_other_keys_and_asking_for_its_own_is_an_error() -> None:
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
    assert services._failed == {}


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


def test_forgetting_closes_nothing_and_begins_anew() -> None:
    factory = Factory()
    services = factory.services()
    asyncio.run(services.get("db"))
    warmup_async._after_fork()
    asyncio.run(services.get("db"))  # on another loop, too
    assert [service.closed for service in factory.made] == [0, 0]


# --- gotchas


@on_fake_time
async def test_one_lock_for_all_makes_five_services_one_after_the_other_and_a_hit_wait() -> None:
    class Naive:
        def __init__(self, create: Callable[[Any], Awaitable[Any]]) -> None:
            self.create, self.lock, self.known = create, asyncio.Lock(), dict[Any, Any]()

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
async def test_a_cached_task_fails_for_ever_and_dies_with_its_first_waiter_and_here_neither() -> None:
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


async def test_a_crowd_opens_one_pool_of_postgresql_with_the_connections_it_was_warmed_to(database_url: str) -> None:
    async def create(name: str) -> psycopg_pool.AsyncConnectionPool[Any]:
        return psycopg_pool.AsyncConnectionPool(
            database_url, min_size=2, max_size=2, open=False, kwargs={"application_name": name}
        )

    async def prewarm(pool: psycopg_pool.AsyncConnectionPool[Any]) -> None:
        await pool.open(wait=True, timeout=10)

    services = AsyncServices(create, prewarm=prewarm, close=psycopg_pool.AsyncConnectionPool.close)
    counting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as watcher:

        async def connections() -> int:
            row = await (await watcher.execute(counting, ["warm-up-proof"])).fetchone()
            return int(row[0]) if row else -1

        await asyncio.gather(*(services.get("warm-up-proof") for _ in range(50)))
        assert await connections() == 2
        await services.aclose()
        for _ in range(100):  # the server takes a moment to notice
            if await connections() == 0:
                break
            await asyncio.sleep(0.02)
        assert await connections() == 0


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
