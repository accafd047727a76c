"""Proves docs/patterns/resilience/error-recovery.md: one refresh for all, against a token server that rotates."""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from error_recovery import Failure, Recovered, Recovery, RecoveryFailed
from harness.color import Color
from harness.waiting import at_once
from integration_errors import AuthenticationError, IntegrationError, NotFound
from patterns.resilience.error_recovery_kit import (
    DOWN,
    Client,
    First,
    Provider,
    Script,
    Way,
    awaited,
    limited,
    refused,
    version_of,
)
from recovery_strategies import FallbackValue, RefreshToken, WaitRateLimit
from servers.http import Uvicorn


async def failure_of(recovery: Recovery) -> RecoveryFailed:
    """Run a call that is refused through a recovery, on this loop."""
    with pytest.raises(RecoveryFailed) as raised:
        await recovery.run(awaited(Script(refused())))
    return raised.value


@pytest.fixture
def way(color: Color) -> Way:
    return Way(color)


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def client(color: Color, provider: Provider) -> Iterator[Client]:
    running = Uvicorn(provider, lifespan="off")
    client = Client(running.url)
    yield client
    client.http.close()
    color.run(client.ahttp.aclose())
    running.stop()


def test_an_expired_token_costs_one_refresh_and_the_call_runs_twice(
    way: Way, provider: Provider, client: Client
) -> None:
    recovery = way.recovery(client.strategy(way))
    assert client.run(way, recovery) == Recovered("data 2", degraded=False, steps=("RefreshToken",))
    assert (provider.refreshes, provider.calls) == (1, 2)
    assert client.run(way, recovery) == Recovered("data 2", degraded=False, steps=())
    provider.expire()
    provider.expire()
    client.token = "refresh-4"
    assert client.run(way, recovery).value == "data 5"
    assert (provider.refreshes, provider.calls) == (2, 5)


def test_a_401_forever_costs_one_refresh_and_two_calls_and_fails_with_the_401(
    way: Way, provider: Provider, client: Client
) -> None:
    provider.demands = [401] * 10
    client.access = provider.access
    recovery = way.recovery(client.strategy(way))
    with pytest.raises(RecoveryFailed, match=r"^AuthenticationError, after RefreshToken$") as raised:
        client.run(way, recovery)
    assert isinstance(raised.value.__cause__, AuthenticationError)
    assert (provider.refreshes, provider.calls) == (1, 2)


def test_fifty_callers_who_fail_together_share_one_refresh(way: Way, provider: Provider, client: Client) -> None:
    provider.together = 50
    recovery = way.recovery(client.strategy(way))
    results = at_once(50, lambda: client.run(way, recovery))
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


def test_a_rate_limit_and_an_outage_of_a_real_api(way: Way, provider: Provider, client: Client) -> None:
    client.access = provider.access
    recovery = way.recovery(WaitRateLimit(max_wait=2), FallbackValue(lambda: "yesterday's"))
    provider.demands = [429, 429]
    assert client.run(way, recovery) == ("data 1", False, ("WaitRateLimit", "WaitRateLimit"))
    assert way.clock.pauses == [2.0, 2.0]
    provider.demands = [429, 503]
    assert client.run(way, recovery) == ("yesterday's", True, ("WaitRateLimit", "FallbackValue"))
    provider.demands = [404]
    with pytest.raises(NotFound):
        client.run(way, recovery)


# -- refreshing


def test_a_401_with_an_older_token_needs_no_refresh_and_one_with_the_newest_does(way: Way) -> None:
    fresh = iter(["new", "newer"])
    recovery = way.recovery(RefreshToken(way.color.quick(lambda: next(fresh)), version_of))
    assert way.run(recovery, Script(refused("old"), "value")).value == "value"
    late = Script(refused("old"), "value")
    assert way.run(recovery, late).value == "value"
    assert list(fresh) == ["newer"]  # that was not used
    fresh = iter(["newest"])
    assert way.run(recovery, Script(refused("new"), "value")).value == "value"
    assert list(fresh) == []


def test_a_refresh_that_brings_the_same_token_ends_after_one_repeat(way: Way) -> None:
    refresh, script = Script("old"), Script(refused("old"))
    failed = way.failed(way.recovery(RefreshToken(way.color.quick(refresh), version_of)), script)
    assert (refresh.calls, script.calls) == (1, 2)
    assert isinstance(failed.__cause__, AuthenticationError)


@pytest.mark.parametrize("status", [400, 402, 403, 500])
def test_a_failure_other_than_a_401_is_not_refreshed(way: Way, status: int) -> None:
    refresh = Script("new")
    with pytest.raises(IntegrationError):
        way.run(
            way.recovery(RefreshToken(way.color.quick(refresh), version_of)),
            Script(IntegrationError("x", status=status)),
        )
    assert refresh.calls == 0


def test_a_refresh_that_fails_fails_for_all_who_wait_and_the_next_call_may_try_again(way: Way) -> None:
    broken = ConnectionError("the token server is down")
    all_here, calls, arrivals = threading.Event(), 0, itertools.count(1)

    def joined() -> bool:
        if next(arrivals) == 10:
            all_here.set()
        return True

    class Counting(RefreshToken):
        def handles(self, err: Failure) -> bool:
            return super().handles(err) and joined()

    def refresh() -> str:
        nonlocal calls
        calls += 1
        if calls > 1:
            return "new"
        assert all_here.wait(20)
        time.sleep(0.05)  # from being counted to waiting is a moment
        raise broken

    recovery = way.recovery(Counting(way.color.function(refresh), version_of))
    failures = at_once(10, lambda: way.run(recovery, Script(refused())))
    assert calls == 1
    assert {type(failure) for failure in failures} == {RecoveryFailed}
    assert {id(failure.__context__) for failure in failures} == {id(broken)}
    assert len({id(failure.__cause__) for failure in failures}) == 10
    assert broken.__context__ is None
    assert str(failures[0]) == "Counting raised ConnectionError"
    assert way.run(recovery, Script(refused(), "value")).value == "value"
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
        return awaited(Script(refused(), "value"))

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
    task = asyncio.create_task(recovery.run(awaited(Script(refused()))))
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
    call = hang if phase == "call" else awaited(Script(errors.get(phase)))
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
    failed = await failure_of(recovery)
    assert isinstance(failed.__context__, TimeoutError)
    assert (await recovery.run(awaited(Script(refused(), "value")))).value == "value"


async def test_the_deadline_ends_the_wait_for_a_refresh_that_hangs_and_not_the_refresh() -> None:
    go = asyncio.Event()

    async def refresh() -> str:
        await go.wait()
        return "new"

    strategy = RefreshToken(refresh, version_of)
    failed = await failure_of(Recovery([strategy], deadline=0.02))
    assert str(failed) == "RefreshToken raised TimeoutError"
    assert isinstance(failed.__cause__, AuthenticationError)
    go.set()
    patient = Recovery([strategy])
    assert (await patient.run(awaited(Script(refused(), "value")))).value == "value"


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


def test_a_refresh_that_gets_a_401_is_not_refreshed_and_does_not_wait_for_itself(way: Way) -> None:
    async def naive() -> None:
        async with under_way:  # one refresh at a time
            await naive()  # it got a 401, and asks for a refresh

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(naive(), 0.02)

    under_way = asyncio.Lock()
    asyncio.run(main())

    refreshes = 0
    recovery: Recovery

    def refresh() -> object:
        nonlocal refreshes
        refreshes += 1
        return recovery.run_sync(Script(refused("refresh"))).value

    async def arefresh() -> object:
        nonlocal refreshes
        refreshes += 1
        return (await recovery.run(awaited(Script(refused("refresh"))))).value

    recovery = way.recovery(RefreshToken(arefresh if way.color.is_async else refresh, version_of))
    failed = way.failed(recovery, Script(refused()))
    assert isinstance(failed.__context__, AuthenticationError)
    assert version_of(failed.__context__) == "refresh"
    assert refreshes == 1
    refresh_again = way.failed(recovery, Script(refused()))
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

    failed = await failure_of(Recovery([RefreshToken(refresh, version_of)]))
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
