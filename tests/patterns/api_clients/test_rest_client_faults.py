"""Proves docs/patterns/api-clients/rest-client.md: the deadline holds, connections outlive faults and cancelling."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import httpx2
import pytest

import rest_client_sync
import rest_policy as policy
from patterns.api_clients import rest_client_kit as kit
from patterns.api_clients.rest_client_kit import (
    Answer,
    Blocking,
    Clock,
    Color,
    MakeRaw,
    Script,
    drip,
    elapsed,
    failure,
    reset,
    silence,
    steady,
)
from rest_call import Response
from rest_client import AsyncRestClient
from rest_client_sync import RestClient
from rest_policy import ApiError

# Fixtures.
color, server, raw, clock, client, _served = kit.color, kit.server, kit.raw, kit.clock, kit.client, kit._served


# --- How long a call takes ------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\n"
NO_BODY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


def test_a_body_that_drips_ends_at_the_total(color: Color, raw: MakeRaw) -> None:
    dripping = raw(drip(b" " * 40, gap=0.04, before=HEAD))
    client = color.client(dripping.url, timeout=0.5, total=0.15)
    errors: list[ApiError] = []
    assert 0.15 <= elapsed(lambda: errors.append(failure(lambda: client.get("x"), policy.ApiTimeout))) < 0.65
    assert len(dripping.heads) == 1
    assert str(errors[0]) == f"GET {dripping.url.removesuffix('/v1')}: no answer within the total of 0.15 s"
    assert errors[0].retryable


def test_a_timeout_lets_a_body_drip_for_as_long_as_it_likes(raw: MakeRaw) -> None:
    with httpx2.Client(timeout=0.1) as naive:
        assert elapsed(lambda: naive.get(raw(drip(b" " * 40, gap=0.01, before=HEAD)).url)) >= 0.4


def test_a_body_that_stalls_ends_at_the_total_in_async_and_up_to_one_timeout_later_in_sync(
    color: Color, raw: MakeRaw
) -> None:
    async def stall(writer: asyncio.StreamWriter) -> None:
        await drip(b" ", gap=0.08, before=HEAD)(writer)
        await silence(writer)

    client = color.client(raw(stall).url, timeout=0.1, total=0.12)
    took = elapsed(lambda: failure(lambda: client.get("x"), policy.ApiTimeout))
    assert (0.12 <= took < 0.62) if color.name == "async" else (0.18 <= took < 0.68)


def test_headers_that_drip_end_at_the_total_in_async_and_with_the_last_header_in_sync(
    color: Color, raw: MakeRaw
) -> None:
    gap = 0.05 if color.name == "async" else 0.01
    client = color.client(raw(drip(NO_BODY, gap=gap)).url, timeout=0.5, total=0.05)
    took = elapsed(lambda: failure(lambda: client.get("x"), policy.ApiTimeout))
    assert (0.05 <= took < 0.65) if color.name == "async" else took >= 0.38


def test_looking_up_a_name_is_bounded_in_async_only(color: Color, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def slow(*args: object, **kwargs: object) -> None:
        over.wait(0.2 if color.name == "sync" else 10)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    client = color.client("http://api.test", total=0.05)
    took = elapsed(lambda: failure(lambda: client.get("x")))
    over.set()
    assert (0.05 <= took < 0.65) if color.name == "async" else took >= 0.2


def test_a_silent_server_ends_an_attempt_at_the_timeout_and_the_call_at_the_total(color: Color, raw: MakeRaw) -> None:
    silent = raw(silence)
    once = color.client(silent.url, timeout=0.05, retry=steady(attempts=2, base=0.001))
    error = failure(lambda: once.get("x"), policy.ApiTimeout)
    assert str(error).endswith(": ReadTimeout (attempt 2)")
    assert isinstance(error.__cause__, httpx2.ReadTimeout)
    assert len(silent.heads) == 2
    error = failure(lambda: once.get("x", total=0.9), policy.ApiTimeout)
    assert "ReadTimeout" in str(error)  # the total is not over yet
    short = color.client(silent.url, timeout=httpx2.Timeout(None), total=0.1)
    errors: list[ApiError] = []
    assert 0.1 <= elapsed(lambda: errors.append(failure(lambda: short.post("x"), policy.ApiTimeout))) < 0.6
    assert str(errors[0]).endswith(": no answer within the total of 0.1 s")
    assert not errors[0].retryable


def test_the_total_covers_all_attempts_and_sleeps_together(color: Color, raw: MakeRaw) -> None:
    silent = raw(silence)
    client = color.client(silent.url, timeout=0.1, total=0.25, retry=steady(attempts=50, base=0.02, cap=0.02))
    assert 0.15 <= elapsed(lambda: failure(lambda: client.get("x"), policy.ApiTimeout)) < 0.75
    assert 2 <= len(silent.heads) <= 3


def test_each_phase_of_a_sync_call_is_given_what_those_before_have_left(
    server: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, float]] = []
    time_left = rest_client_sync._TimeLeft.__getitem__

    def spy(self: Any, phase: str) -> float:
        asked.append((phase, time_left(self, phase)))
        return asked[-1][1]

    monkeypatch.setattr(rest_client_sync._TimeLeft, "__getitem__", spy)
    ticks = itertools.count(1)  # a clock on which every look takes a second
    with RestClient(server.url, total=100, timeout=httpx2.Timeout(None), clock=lambda: float(next(ticks))) as client:
        client.get("x")
    phases, lefts = zip(*asked, strict=True)
    assert phases == ("pool", "connect", "write", "write", "read", "read")  # headers and body are sent, and received
    assert list(lefts) == sorted(set(lefts), reverse=True)


def test_a_transport_of_your_own_sees_the_time_that_is_left(clock: Clock) -> None:
    seen: list[dict[str, float]] = []

    def transport(request: httpx2.Request) -> httpx2.Response:
        timeouts = request.extensions["timeout"]
        assert len(timeouts) == 4
        for passing in (0, 3, 20):
            clock.time += passing
            seen.append(dict(timeouts))
        return httpx2.Response(200, content=iter([b"{}"]))

    phases = httpx2.Timeout(connect=1, read=None, write=9, pool=2)
    mock = httpx2.MockTransport(transport)
    with RestClient("http://api.test", transport=mock, timeout=phases, total=10, clock=clock) as client:
        failure(lambda: client.get("x"), policy.ApiTimeout)
    assert seen == [
        {"connect": 1, "read": 10, "write": 9, "pool": 2},
        {"connect": 1, "read": 7, "write": 7, "pool": 2},
        {"connect": 0.001, "read": 0.001, "write": 0.001, "pool": 0.001},  # 0 would mean not to wait at all
    ]


@pytest.mark.parametrize(("passing", "late"), [(9.75, False), (10, True), (10.25, True)])
def test_an_answer_at_the_very_end_of_the_total_is_late_in_sync(clock: Clock, passing: float, late: bool) -> None:
    def transport(request: httpx2.Request) -> httpx2.Response:
        clock.time += passing
        return httpx2.Response(200, content=iter([b"{}"]))

    with RestClient("http://api.test", transport=httpx2.MockTransport(transport), total=10, clock=clock) as client:
        if late:
            assert "the total of 10 s" in str(failure(lambda: client.get("x"), policy.ApiTimeout))
        else:
            assert client.get("x").data == {}


@pytest.mark.parametrize("total", [0, -1, float("inf"), float("nan")])
def test_a_total_that_bounds_nothing_is_refused(color: Color, total: float) -> None:
    with pytest.raises(ValueError, match="total must be above 0 s and finite"):
        color.client("http://api.test", total=total)
    with pytest.raises(ValueError, match="total must be above 0 s and finite"):
        color.client("http://api.test").get("x", total=total)


async def test_a_cancelled_call_ends_in_its_sleep_and_sends_nothing_more(server: Script) -> None:
    server.answer(503)
    sleeping = asyncio.Event()

    async def sleep(seconds: float) -> None:
        sleeping.set()
        await asyncio.sleep(20)

    async with AsyncRestClient(server.url, sleep=sleep) as client:
        call = asyncio.ensure_future(client.get("x"))
        await sleeping.wait()
        begin = time.monotonic()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert time.monotonic() - begin < 0.5
        await asyncio.sleep(0.02)
    assert len(server.seen) == 1


# --- Connections ----------------------------------------------------------------------------------


def test_all_attempts_use_one_connection(client: Blocking, server: Script) -> None:
    server.answer(Answer(503, b"x" * 50_000), Answer(429, b"no json"), Answer(200, {"ok": True}))
    assert client.get("x").data == {"ok": True}
    failure_after = Answer(404, b"y" * 50_000)
    server.answer(failure_after, Answer(200, b"<html>"), 200)
    failure(lambda: client.get("x"), policy.ClientError)
    failure(lambda: client.get("x"), policy.DecodeError)
    client.get("x")
    assert (len(server.seen), len(server.connections)) == (6, 1)


def test_a_client_for_each_call_opens_a_connection_and_a_tls_context_each_time(
    server: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts: list[float] = []
    create = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda *a, **k: contexts.append(1) or create(*a, **k))  # type: ignore[func-returns-value]
    for _ in range(3):
        httpx2.get(server.url)
    assert (len(server.connections), len(contexts)) == (3, 3)
    server.reset()
    contexts.clear()
    with RestClient(server.url) as client:
        for _ in range(3):
            client.get("x")
    assert (len(server.connections), len(contexts)) == (1, 1)


async def cancelled_while_getting_a_connection(library: Any, url: str) -> tuple[list[str], list[object]]:
    """Cancel a task in the moment in which it is given a new connection; then call three times."""
    limits = library.Limits(max_connections=1)
    async with library.AsyncClient(limits=limits, timeout=0.05) as http:
        loop = asyncio.get_running_loop()

        async def trace(event: str, info: object) -> None:
            if event == "http11.response_closed.complete":
                loop.call_soon(waiting.cancel)

        first = asyncio.ensure_future(http.get(url, timeout=5, extensions={"trace": trace}))
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(http.get(url, timeout=5))
        await asyncio.gather(first, waiting, return_exceptions=True)
        assert waiting.cancelled()
        stuck = [str(connection) for connection in http._transport._pool.connections]
        return stuck, await asyncio.gather(*(http.get(url) for _ in range(3)), return_exceptions=True)


async def test_one_cancelled_task_wedges_the_pool_of_httpx_for_good_and_not_that_of_httpx2(raw: MakeRaw) -> None:
    url = raw(Answer(headers={"connection": "close"}).raw()).url
    stuck, answers = await cancelled_while_getting_a_connection(httpx, url)
    assert stuck == ["<AsyncHTTPConnection [CONNECTING]>"]
    assert [type(answer) for answer in answers] == [httpx.PoolTimeout] * 3
    stuck, answers = await cancelled_while_getting_a_connection(httpx2, url)
    assert stuck == []
    assert [type(answer) for answer in answers] == [httpx2.Response] * 3


async def test_of_fifty_callers_half_are_cancelled_and_the_others_are_served(server: Script) -> None:
    server.answer(Answer(200, {"ok": True}, after=0.02))
    few = httpx2.AsyncHTTPTransport(limits=httpx2.Limits(max_connections=10))
    async with AsyncRestClient(server.url, transport=few) as client:
        calls = [asyncio.ensure_future(client.get("x")) for _ in range(50)]
        for number, call in enumerate(calls[::2]):
            asyncio.get_running_loop().call_later(number * 0.002, call.cancel)
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(answer, Response) and answer.data == {"ok": True} for answer in done[1::2])
        assert {type(answer) for answer in done[::2]} <= {asyncio.CancelledError, Response}
        assert any(isinstance(answer, asyncio.CancelledError) for answer in done)
        assert (await client.get("x")).data == {"ok": True}


def test_threads_share_one_client_and_each_gets_its_own_answer(server: Script) -> None:
    server.answer(lambda seen: Answer(200, seen.target))
    with RestClient(server.url) as client, ThreadPoolExecutor(20) as threads:
        answers = threads.map(lambda number: client.get(f"x/{number}").data, range(100))
        assert list(answers) == [f"/v1/x/{number}" for number in range(100)]
    assert len(server.connections) <= 20


def test_a_client_that_is_closed_sends_nothing(color: Color, server: Script) -> None:
    client = color.client(server.url)
    (client.aclose if color.name == "async" else client.close)()
    with pytest.raises(RuntimeError, match="closed"):
        client.get("x")
    assert server.seen == []


# --- Faults ---------------------------------------------------------------------------------------


def test_an_answer_that_breaks_off_is_repeated_and_then_a_connection_error(
    color: Color, raw: MakeRaw, clock: Clock
) -> None:
    half = Answer(200, b'{"id": ').raw(length=100)

    async def cut(writer: asyncio.StreamWriter) -> None:
        writer.write(half)
        writer.close()

    for play, cause in ((reset(half), httpx2.ReadError), (cut, None)):
        broken = raw(play, play, Answer(200, {"id": 7}).raw())
        assert color.client(broken.url, clock=clock).get("x").data == {"id": 7}
        client = color.client(raw(play).url, clock=clock, retry=steady(attempts=2))
        error = failure(lambda client=client: client.get("x"), policy.ApiConnectionError)  # type: ignore[misc]
        assert (type(error.__cause__) if error.__cause__ else None) is cause
        assert error.retryable


def test_a_header_without_an_end_is_a_connection_error(color: Color, raw: MakeRaw, clock: Clock) -> None:
    endless = raw(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000)
    client = color.client(endless.url, clock=clock, retry=steady(attempts=2))
    error = failure(lambda: client.get("x"), policy.ApiConnectionError)
    assert "RemoteProtocolError (attempt 2)" in str(error)
    assert error.__cause__ is None


def test_a_storm_of_429_ends_after_the_attempts_with_the_wait_to_pass_on(
    client: Blocking, server: Script, clock: Clock
) -> None:
    server.answer(Answer(429, headers={"retry-after": "1"}))
    for _ in range(5):
        assert failure(lambda: client.get("x"), policy.RateLimited).retry_after == 1.0
    assert (len(server.seen), len(clock.sleeps)) == (20, 15)
