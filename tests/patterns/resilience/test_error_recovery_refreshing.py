"""Proves docs/patterns/resilience/error-recovery.md: one refresh for all, against a token server that rotates."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from error_recovery import Failure, Recovered, Recovery, RecoveryFailed
from integration_errors import AuthenticationError, IntegrationError, NotFound
from patterns.resilience.error_recovery_kit import (
    DOWN,
    Client,
    First,
    Provider,
    Script,
    Way,
    limited,
    refused,
    version_of,
)
from recovery_strategies import FallbackValue, RefreshToken, WaitRateLimit
from servers.http import Uvicorn


@pytest.fixture(params=[True, False], ids=["async", "sync"])
def way(request: pytest.FixtureRequest) -> Way:
    return Way(request.param)


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
async def client(provider: Provider) -> AsyncIterator[Client]:
    running = Uvicorn(provider, lifespan="off")
    client = Client(running.url)
    yield client
    client.http.close()
    await client.ahttp.aclose()
    await asyncio.to_thread(running.stop)


async def test_an_expired_token_costs_one_refresh_and_the_call_runs_twice(
    way: Way, provider: Provider, client: Client
) -> None:
    recovery = way.recovery(client.strategy(way))
    assert await client.run(way, recovery) == Recovered("data 2", degraded=False, steps=("RefreshToken",))
    assert (provider.refreshes, provider.calls) == (1, 2)
    assert await client.run(way, recovery) == Recovered("data 2", degraded=False, steps=())
    provider.expire()
    provider.expire()
    client.token = "refresh-4"
    assert (await client.run(way, recovery)).value == "data 5"
    assert (provider.refreshes, provider.calls) == (2, 5)


async def test_a_401_for_ever_costs_one_refresh_and_two_calls_and_fails_with_the_401(
    way: Way, provider: Provider, client: Client
) -> None:
    provider.demands = [401] * 10
    client.access = provider.access
    recovery = way.recovery(client.strategy(way))
    with pytest.raises(RecoveryFailed, match=r"^AuthenticationError, after RefreshToken$") as raised:
        await client.run(way, recovery)
    assert isinstance(raised.value.__cause__, AuthenticationError)
    assert (provider.refreshes, provider.calls) == (1, 2)


async def test_fifty_callers_who_fail_together_share_one_refresh(way: Way, provider: Provider, client: Client) -> None:
    provider.together = 50
    recovery = way.recovery(client.strategy(way))
    if way.asynchronous:
        results = await asyncio.gather(*(recovery.run(client.aget) for _ in range(50)))
    else:
        with ThreadPoolExecutor(50) as pool:
            results = list(pool.map(lambda _: recovery.run_sync(client.get), range(50)))
    assert {result.value for result in results} == {"data 2"}
    assert (provider.refreshes, provider.calls, provider.revoked) == (1, 100, False)


async def test_a_refresh_for_each_caller_revokes_the_family_and_logs_everybody_out(provider: Provider) -> None:
    token, everybody = "refresh-1", asyncio.Barrier(50)

    async def naive() -> str | None:
        nonlocal token
        await everybody.wait()  # all of them got a 401
        mine = token
        await asyncio.sleep(0)  # on the way to the token server
        new = provider.refresh(mine)
        token = new or token
        return new

    renewed = await asyncio.gather(*(naive() for _ in range(50)))
    assert (provider.refreshes, sum(new is not None for new in renewed)) == (50, 1)
    assert provider.revoked


async def test_a_rate_limit_and_an_outage_of_a_real_api(way: Way, provider: Provider, client: Client) -> None:
    client.access = provider.access
    recovery = way.recovery(WaitRateLimit(max_wait=2), FallbackValue(lambda: "yesterday's"))
    provider.demands = [429, 429]
    assert await client.run(way, recovery) == ("data 1", False, ("WaitRateLimit", "WaitRateLimit"))
    assert way.clock.slept == [2.0, 2.0]
    provider.demands = [429, 503]
    assert await client.run(way, recovery) == ("yesterday's", True, ("WaitRateLimit", "FallbackValue"))
    provider.demands = [404]
    with pytest.raises(NotFound):
        await client.run(way, recovery)


# -- refreshing


async def test_a_401_with_an_older_token_needs_no_refresh_and_one_with_the_newest_does(way: Way) -> None:
    fresh = iter(["new", "newer"])
    recovery = way.recovery(RefreshToken(way.function(lambda: next(fresh)), version_of))
    assert (await way.run(recovery, Script(refused("old"), "value"))).value == "value"
    late = Script(refused("old"), "value")
    assert (await way.run(recovery, late)).value == "value"
    assert list(fresh) == ["newer"]  # that was not used
    fresh = iter(["newest"])
    assert (await way.run(recovery, Script(refused("new"), "value"))).value == "value"
    assert list(fresh) == []


async def test_a_refresh_that_brings_the_same_token_ends_after_one_repeat(way: Way) -> None:
    refresh, script = Script("old"), Script(refused("old"))
    failed = await way.failed(way.recovery(RefreshToken(way.function(refresh), version_of)), script)
    assert (refresh.calls, script.calls) == (1, 2)
    assert isinstance(failed.__cause__, AuthenticationError)


@pytest.mark.parametrize("status", [400, 402, 403, 500])
async def test_a_failure_other_than_a_401_is_not_refreshed(way: Way, status: int) -> None:
    refresh = Script("new")
    with pytest.raises(IntegrationError):
        await way.run(
            way.recovery(RefreshToken(way.function(refresh), version_of)), Script(IntegrationError("x", status=status))
        )
    assert refresh.calls == 0


async def test_a_refresh_that_fails_fails_for_all_who_wait_and_the_next_call_may_try_again(way: Way) -> None:
    broken = ConnectionError("the token server is down")
    begun, calls, arrived = threading.Event(), 0, 0

    def joined() -> bool:
        nonlocal arrived
        arrived += 1
        if arrived == 10:
            begun.set()
        return True

    class Counting(RefreshToken):
        def handles(self, err: Failure) -> bool:
            return super().handles(err) and joined()

    def refresh() -> str:
        nonlocal calls
        calls += 1
        if calls > 1:
            return "new"
        begun.wait(5)
        if not way.asynchronous:
            time.sleep(0.05)  # from being counted to waiting is a moment
        raise broken

    async def arefresh() -> str:
        await asyncio.to_thread(begun.wait, 5)
        return refresh()

    recovery = way.recovery(Counting(arefresh if way.asynchronous else refresh, version_of))

    def one() -> RecoveryFailed:
        with pytest.raises(RecoveryFailed) as raised:
            recovery.run_sync(Script(refused()))
        return raised.value

    if way.asynchronous:
        failures: list[Any] = await asyncio.gather(
            *(recovery.run(way.function(Script(refused()))) for _ in range(10)), return_exceptions=True
        )
    else:
        with ThreadPoolExecutor(10) as pool:
            failures = [running.result(10) for running in [pool.submit(one) for _ in range(10)]]
    assert calls == 1
    assert {type(failure) for failure in failures} == {RecoveryFailed}
    assert {id(failure.__context__) for failure in failures} == {id(broken)}
    assert len({id(failure.__cause__) for failure in failures}) == 10
    assert broken.__context__ is None
    assert str(failures[0]) == "Counting raised ConnectionError"
    assert (await way.run(recovery, Script(refused(), "value"))).value == "value"
    assert calls == 2


async def test_cancelling_the_caller_who_began_the_refresh_does_not_end_it_for_the_others() -> None:
    shared = asyncio.create_task(asyncio.Event().wait())

    async def naive() -> object:
        return await shared

    callers = [asyncio.create_task(naive()) for _ in range(3)]
    await asyncio.sleep(0)
    callers[0].cancel()
    await asyncio.wait(callers)
    assert all(caller.cancelled() for caller in callers)  # one went, and took the others with it

    go, refreshes = asyncio.Event(), 0

    async def refresh() -> str:
        nonlocal refreshes
        refreshes += 1
        await go.wait()
        return "new"

    recovery = Recovery([RefreshToken(refresh, version_of)])

    def call() -> Callable[[], Awaitable[object]]:
        return Way(True).function(Script(refused(), "value"))

    tasks = [asyncio.create_task(recovery.run(call())) for _ in range(50)]
    while refreshes == 0:
        await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    assert tasks[0].cancelled()
    go.set()
    others = await asyncio.gather(*tasks[1:])
    assert {result.value for result in others} == {"value"}
    assert refreshes == 1


async def test_a_refresh_whose_callers_have_all_been_cancelled_goes_on_and_leaves_no_trace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    go, done = asyncio.Event(), asyncio.Event()

    async def refresh() -> str:
        await go.wait()
        done.set()
        raise ConnectionError("nobody is there to see it")

    recovery = Recovery([RefreshToken(refresh, version_of)])
    task = asyncio.create_task(recovery.run(Way(True).function(Script(refused()))))
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    go.set()
    await done.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()
    assert caplog.records == []  # no "exception was never retrieved"


@pytest.mark.parametrize("phase", ["call", "refresh", "wait", "fallback"])
async def test_a_cancellation_ends_the_run_in_each_phase(phase: str) -> None:
    reached = asyncio.Event()

    async def hang(*_: object) -> Any:
        reached.set()
        await asyncio.Event().wait()

    strategies: dict[str, Any] = {
        "call": First(on=True),
        "refresh": RefreshToken(hang, version_of),
        "wait": WaitRateLimit(5),
        "fallback": FallbackValue(hang),
    }
    errors = {"refresh": refused(), "wait": limited(1), "fallback": DOWN}
    recovery = Recovery([strategies[phase]], sleep=hang)
    call = hang if phase == "call" else Way(True).function(Script(errors.get(phase)))
    task = asyncio.create_task(recovery.run(call))
    await reached.wait()
    task.cancel()
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()
    for left in asyncio.all_tasks() - {asyncio.current_task()}:
        left.cancel()  # the refresh, which goes on for others


async def test_a_refresh_that_hangs_has_failed_after_its_timeout_and_the_next_may_begin() -> None:
    refreshes = 0

    async def refresh() -> str:
        nonlocal refreshes
        refreshes += 1
        if refreshes == 1:
            await asyncio.Event().wait()
        return "new"

    recovery = Recovery([RefreshToken(refresh, version_of, timeout=0.02)])
    failed = await Way(True).failed(recovery, Script(refused()))
    assert isinstance(failed.__context__, TimeoutError)
    assert (await recovery.run(Way(True).function(Script(refused(), "value")))).value == "value"


async def test_the_deadline_ends_the_wait_for_a_refresh_that_hangs_and_not_the_refresh() -> None:
    go = asyncio.Event()

    async def refresh() -> str:
        await go.wait()
        return "new"

    strategy = RefreshToken(refresh, version_of)
    failed = await Way(True).failed(Recovery([strategy], deadline=0.02), Script(refused()))
    assert str(failed) == "RefreshToken raised TimeoutError"
    assert isinstance(failed.__cause__, AuthenticationError)
    go.set()
    patient = Recovery([strategy])
    assert (await patient.run(Way(True).function(Script(refused(), "value")))).value == "value"


def test_who_waits_for_a_hung_refresh_in_another_thread_gives_up_after_the_timeout() -> None:
    begun, go = threading.Event(), threading.Event()

    def refresh() -> str:
        begun.set()
        go.wait(10)
        return "new"

    recovery = Recovery([RefreshToken(refresh, version_of, timeout=0.02)])
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(recovery.run_sync, Script(refused(), "value"))
        begun.wait(5)
        with pytest.raises(RecoveryFailed) as raised:
            recovery.run_sync(Script(refused()))
        assert isinstance(raised.value.__context__, TimeoutError)
        go.set()
        assert leader.result(10).value == "value"


async def test_a_refresh_that_gets_a_401_is_not_refreshed_and_does_not_wait_for_itself(way: Way) -> None:
    under_way = asyncio.Lock()

    async def naive() -> None:
        async with under_way:  # one refresh at a time
            await naive()  # it got a 401, and asks for a refresh

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(naive(), 0.02)

    refreshes = 0
    recovery: Recovery

    def refresh() -> object:
        nonlocal refreshes
        refreshes += 1
        return recovery.run_sync(Script(refused("refresh"))).value

    async def arefresh() -> object:
        nonlocal refreshes
        refreshes += 1
        return (await recovery.run(way.function(Script(refused("refresh"))))).value

    recovery = way.recovery(RefreshToken(arefresh if way.asynchronous else refresh, version_of))
    async with asyncio.timeout(5):
        failed = await way.failed(recovery, Script(refused()))
    assert isinstance(failed.__context__, AuthenticationError)
    assert version_of(failed.__context__) == "refresh"
    assert refreshes == 1
    refresh_again = await way.failed(recovery, Script(refused()))
    assert (refreshes, version_of(refresh_again.__context__)) == (2, "refresh")  # type: ignore[arg-type]


def test_a_refresh_that_is_interrupted_in_one_thread_frees_the_others() -> None:
    refresh = Script(KeyboardInterrupt(), "new")
    recovery = Recovery([RefreshToken(refresh, version_of)])
    with pytest.raises(KeyboardInterrupt):
        recovery.run_sync(Script(refused()))
    assert recovery.run_sync(Script(refused(), "value")).value == "value"


async def test_a_refresh_task_that_is_cancelled_fails_for_those_who_wait() -> None:
    async def refresh() -> str:
        raise asyncio.CancelledError

    failed = await Way(True).failed(Recovery([RefreshToken(refresh, version_of)]), Script(refused()))
    assert isinstance(failed.__context__, RuntimeError)
    assert str(failed.__context__) == "the refresh was interrupted"


def test_a_coroutine_function_as_refresh_of_a_thread_fails_and_leaves_nothing_locked() -> None:
    async def refresh() -> str:
        return "new"

    assert inspect.iscoroutinefunction(refresh)
    recovery = Recovery([RefreshToken(refresh, version_of)])
    for _ in range(2):
        with pytest.raises(RecoveryFailed) as raised:
            recovery.run_sync(Script(refused()))
        assert str(raised.value.__context__) == "no running event loop"


def test_a_refresh_may_take_ten_seconds_unless_told_otherwise() -> None:
    assert inspect.signature(RefreshToken).parameters["timeout"].default == 10.0


def test_threads_that_come_late_find_the_new_token() -> None:
    refresh = Script("new")
    recovery = Recovery([RefreshToken(refresh, version_of)])

    def late() -> Iterator[object]:
        for _ in range(20):
            yield recovery.run_sync(Script(refused("old"), "value")).value

    with ThreadPoolExecutor(8) as pool:
        values = {value for values in pool.map(lambda _: list(late()), range(8)) for value in values}
    assert (values, refresh.calls) == ({"value"}, 1)
