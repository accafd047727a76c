"""Proves docs/patterns/resilience/timeout-bulkhead.md: one deadline for a whole request."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
from typing import Any

import httpx2
import pytest

from call_deadline import HEADER, Deadline, DeadlineExceeded, current_deadline
from harness import fake_loop
from servers.http import Uvicorn


def now() -> float:
    return asyncio.get_running_loop().time()


def after(seconds: float, name: str = "request") -> Deadline:
    """Return a deadline on the clock of the event loop."""
    return Deadline.after(seconds, name=name, clock=asyncio.get_running_loop().time)


# --- the scope


@fake_loop.on_fake_time
async def test_a_deadline_of_one_second_ends_the_third_of_three_calls() -> None:
    done = 0
    with pytest.raises(DeadlineExceeded, match="the deadline 'request' has passed") as failure:  # noqa: PT012
        async with after(1.0).scope():
            for _ in range(3):
                await asyncio.sleep(0.4)
                done += 1
    assert done == 2
    assert now() == pytest.approx(1.0)
    assert failure.value.name == "request"


@fake_loop.on_fake_time
async def test_what_is_done_in_time_is_not_disturbed_and_leaves_no_deadline_behind() -> None:
    deadline = after(1.0)
    async with deadline.scope() as inside:
        assert inside is deadline is current_deadline()
        await asyncio.sleep(0.999)
    assert current_deadline() is None
    await asyncio.sleep(5)


@fake_loop.on_fake_time
async def test_an_expired_deadline_calls_nothing() -> None:
    for deadline in (after(0), after(-1)):
        with pytest.raises(DeadlineExceeded):
            async with deadline.scope():
                pytest.fail("called")
        with pytest.raises(DeadlineExceeded):
            deadline.check()
        assert deadline.remaining() == 0
    assert current_deadline() is None


@fake_loop.on_fake_time
async def test_a_deadline_passes_at_its_instant_and_not_before() -> None:
    deadline = after(1.0)
    await asyncio.sleep(0.5)
    assert deadline.remaining() == pytest.approx(0.5)
    deadline.check()
    await asyncio.sleep(0.5)
    assert deadline.at == now()
    with pytest.raises(DeadlineExceeded):
        deadline.check()


@fake_loop.on_fake_time
async def test_a_child_is_never_later_than_its_parent() -> None:
    parent = after(1.0)
    assert parent.child(5.0, name="slow call") is parent
    child = parent.child(0.2, name="quick call")
    assert child.name == "quick call"
    assert child.remaining() == pytest.approx(0.2)
    await asyncio.sleep(0.9)
    assert parent.child(0.2, name="late call") is parent
    assert parent.child(0.1, name="same instant").at <= parent.at


@pytest.mark.parametrize(("outer", "inner", "named"), [(1.0, 5.0, "outer"), (5.0, 1.0, "inner")])
def test_of_nested_scopes_the_earliest_wins_and_is_named(outer: float, inner: float, named: str) -> None:
    async def main() -> None:
        with pytest.raises(DeadlineExceeded) as failure:  # noqa: PT012
            async with after(outer, "outer").scope(), after(inner, "inner").scope() as effective:
                assert effective is current_deadline()
                assert effective.remaining() == pytest.approx(1.0)
                await asyncio.sleep(10)
        assert failure.value.name == named
        assert now() == pytest.approx(1.0)

    fake_loop.run(main())


@fake_loop.on_fake_time
async def test_the_body_s_timeout_error_and_a_cancel_from_outside_are_not_the_deadline() -> None:
    with pytest.raises(TimeoutError, match="the body's own"):
        async with after(1.0).scope():
            raise TimeoutError("the body's own")
    with pytest.raises(TimeoutError):
        async with after(1.0).scope(), asyncio.timeout(0.1):
            await asyncio.sleep(10)

    async def body() -> None:
        async with after(1.0).scope():
            await asyncio.sleep(10)

    task = asyncio.create_task(body())
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not issubclass(DeadlineExceeded, TimeoutError)
    with pytest.raises(ValueError, match="bug"):
        async with after(1.0).scope():
            raise ValueError("bug")


@fake_loop.on_fake_time
async def test_a_body_that_swallows_its_cancel_is_noticed_where_asyncio_timeout_is_silent() -> None:
    async def stubborn() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(10)
        return "too late"

    async with asyncio.timeout(1.0):
        assert await stubborn() == "too late"  # and nobody is told
    assert await asyncio.wait_for(stubborn(), 1.0) == "too late"
    with pytest.raises(DeadlineExceeded):
        async with after(1.0).scope():
            await stubborn()


@fake_loop.on_fake_time
async def test_timeouts_of_each_call_add_up_and_a_deadline_does_not() -> None:
    async def hop() -> None:
        await asyncio.sleep(60)

    async def with_timeouts() -> None:
        for _ in range(3):  # three hops
            for _ in range(3):  # of three tries
                try:
                    async with asyncio.timeout(1):
                        await hop()
                except TimeoutError:
                    continue

    begun = now()
    await with_timeouts()
    assert now() - begun == pytest.approx(9)
    begun = now()
    with pytest.raises(DeadlineExceeded):
        async with after(2).scope():
            await with_timeouts()
    assert now() - begun == pytest.approx(2)


@fake_loop.on_fake_time
async def test_a_fallback_for_one_slow_call_does_not_take_the_deadline_for_it() -> None:
    async def fallback() -> str:
        await asyncio.sleep(3)  # work of its own
        return "fallback"

    async def naive() -> str:
        ends = now() + 1.0
        try:
            async with asyncio.timeout(min(5.0, ends - now())):
                await asyncio.sleep(60)
        except TimeoutError:  # meant for a slow call; but it is the request whose time is up
            return await fallback()
        return "answer"

    async def ours() -> str:
        async with after(1.0).scope():
            try:
                async with asyncio.timeout(5.0):
                    await asyncio.sleep(60)
            except TimeoutError:
                return await fallback()
            return "answer"

    assert await naive() == "fallback"
    assert now() == pytest.approx(4.0)
    with pytest.raises(DeadlineExceeded):
        await ours()
    assert now() == pytest.approx(5.0)


@fake_loop.on_fake_time
async def test_a_task_and_a_thread_within_the_scope_know_the_deadline() -> None:
    async def child() -> Deadline | None:
        return current_deadline()

    async with after(1.0).scope() as deadline:
        assert await asyncio.create_task(child()) is deadline
        assert contextvars.copy_context().run(current_deadline) is deadline


def test_the_clock_is_monotonic_and_can_be_set() -> None:
    instant = 100.0
    deadline = Deadline.after(5, clock=lambda: instant)
    assert (deadline.at, deadline.name, deadline.remaining()) == (105.0, "request", 5.0)
    instant = 50.0  # one that steps back lengthens it, which is why the default never does
    assert deadline.remaining() == 55.0
    real = Deadline.after(3600)
    assert 3599 < real.remaining() <= 3600
    assert Deadline.after(math.inf).remaining() == math.inf
    assert Deadline.after(-math.inf).remaining() == 0
    wrong: Any
    for wrong in (math.nan, True, "1"):
        with pytest.raises(ValueError, match=rf"^seconds must be a number, got {wrong!r}$"):
            Deadline.after(wrong)


# --- the header


def test_the_header_says_how_much_is_left_in_milliseconds() -> None:
    instant = 100.0
    deadline = Deadline.after(1.5, clock=lambda: instant)
    assert (HEADER, deadline.to_header()) == ("X-Timeout-Ms", "1500")
    instant = 100.0009
    assert deadline.to_header() == "1499"
    instant = 200.0
    assert deadline.to_header() == "0"


@pytest.mark.parametrize(
    ("value", "seconds"), [("1500", 1.5), ("0", 0.0), ("1", 0.001), ("5000", 2.0), ("1000000000000", 2.0), (None, 2.0)]
)
def test_a_header_can_shorten_the_time_and_never_lengthen_it(value: str | None, seconds: float) -> None:
    deadline = Deadline.from_header(value, 2.0, name="inbound", clock=lambda: 0.0)
    assert deadline.name == "inbound"
    assert deadline.at == pytest.approx(seconds)


@pytest.mark.parametrize("value", [None, "5000"])
@pytest.mark.parametrize("limit", [math.nan, True, "2"])
def test_a_limit_that_is_no_number_is_refused_whatever_the_header_says(value: str | None, limit: Any) -> None:
    with pytest.raises(ValueError, match=rf"^max_seconds must be a number, got {limit!r}$"):
        Deadline.from_header(value, limit)


@pytest.mark.parametrize("value", ["", "-5", "1.5", "1e3", "+5", "NaN", "inf", "soon", "٣", "5 ", "9" * 16])
def test_a_header_that_is_no_number_of_milliseconds_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="X-Timeout-Ms must be a whole number of milliseconds"):
        Deadline.from_header(value, 2.0)


async def test_a_real_service_gets_what_is_left_and_stops_with_its_caller() -> None:
    seen: list[int] = []

    async def service(scope: Any, receive: Any, send: Any) -> None:
        header = dict(scope["headers"]).get(HEADER.lower().encode(), b"").decode()
        seen.append(int(header))
        async with Deadline.from_header(header, 10).scope():
            await asyncio.sleep(0.02)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"fine"})

    server = Uvicorn(service, lifespan="off")
    try:
        async with httpx2.AsyncClient(base_url=server.url, trust_env=False) as client:
            await client.get("/", headers={HEADER: "9999"})  # the first connection takes its time
            seen.clear()
            with pytest.raises(DeadlineExceeded):  # noqa: PT012
                async with Deadline.after(0.4).scope() as deadline:
                    while True:
                        await client.get("/", headers={HEADER: deadline.to_header()})
    finally:
        server.stop()
    assert 200 < seen[0] <= 400
    assert seen == sorted(seen, reverse=True)
    assert seen[0] - seen[-1] >= 20 * (len(seen) - 1)
