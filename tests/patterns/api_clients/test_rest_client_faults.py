"""Proves docs/patterns/api-clients/rest-client.md: the deadline holds, connections outlive faults and cancelling."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import httpx
import httpx2
import pytest

import rest_client_sync
import rest_policy as policy
from harness.clock import Clock
from harness.color import Blocking, Color
from harness.scripted import Answer, Script, drip, reset, silence
from harness.tls import NOBODY
from harness.waiting import until
from patterns.api_clients import rest_client_kit as kit
from patterns.api_clients.rest_client_kit import MakeRaw, client_of, elapsed, failure, steady
from rest_client_async import AsyncRestClient
from rest_client_core import Response
from rest_client_sync import RestClient
from rest_policy import ApiError

# Fixtures.
client = kit.client


# --- How long a call takes ------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n"
NO_BODY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
LONG = 600.0  # seconds for a phase: longer than any test may take, so that nothing but the total ends a call


def test_a_body_that_drips_ends_at_the_total(color: Color, raw: MakeRaw) -> None:
    dripping = raw(drip(b" " * 100_000, gap=0.04, before=HEAD))  # for more than an hour
    client = client_of(color, dripping.url, timeout=LONG, total=0.15)
    errors: list[ApiError] = []
    assert elapsed(lambda: errors.append(failure(lambda: client.get("x"), policy.ApiTimeout))) >= 0.15
    assert len(dripping.heads) == 1
    assert str(errors[0]) == f"GET {dripping.url}: no answer within the total of 0.15 s"
    assert errors[0].retryable


def test_a_timeout_lets_a_body_drip_for_as_long_as_it_likes(raw: MakeRaw) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n"
    with httpx2.Client(timeout=1.0) as naive:
        assert elapsed(lambda: naive.get(raw(drip(b" " * 12, gap=0.1, before=head)).url)) >= 1.1


class Noting(httpx2.BaseTransport):
    """Notes when the client, having taken the first piece of a body, asks for the second."""

    def __init__(self) -> None:
        self.asked_again = threading.Event()
        self._inner = httpx2.HTTPTransport(verify=NOBODY)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        answer, asked_again = self._inner.handle_request(request), self.asked_again

        class Stream(httpx2.SyncByteStream):
            def __iter__(self) -> Iterator[bytes]:
                for piece in cast("httpx2.SyncByteStream", answer.stream):
                    yield piece
                    asked_again.set()

            def close(self) -> None:
                answer.close()

        return httpx2.Response(answer.status_code, headers=answer.headers, stream=Stream())

    def close(self) -> None:
        self._inner.close()


def test_a_body_that_stalls_ends_at_the_total_in_async_and_a_timeout_later_in_sync(
    color: Color, raw: MakeRaw, clock: Clock
) -> None:
    noting = Noting()

    async def stall(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b" ")
        await writer.drain()
        if not color.is_async:
            await asyncio.to_thread(noting.asked_again.wait, 20)
            clock.advance(10)  # the total is over while the client waits for the next piece
        await silence(writer)

    if color.is_async:
        client = client_of(color, raw(stall).url, timeout=LONG, total=0.12)
        assert elapsed(lambda: failure(lambda: client.get("x"), policy.ApiTimeout)) >= 0.12
    else:
        client = client_of(color, raw(stall).url, clock=clock, timeout=0.3, total=9.0, transport=noting)
        errors: list[ApiError] = []
        assert elapsed(lambda: errors.append(failure(lambda: client.get("x"), policy.ApiTimeout))) >= 0.3
        assert "the total of 9 s" in str(errors[0])
    noting.close()


def test_headers_that_drip_end_at_the_total_in_async_and_with_the_last_one_in_sync(
    color: Color, raw: MakeRaw, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    reading = threading.Event()
    time_left = rest_client_sync._TimeLeft.__getitem__

    def spy(self: Any, phase: str) -> float:
        left = time_left(self, phase)
        if phase == "read":
            reading.set()  # it has been told how long it may wait for the headers, all of them
        return left

    monkeypatch.setattr(rest_client_sync._TimeLeft, "__getitem__", spy)

    async def slow(writer: asyncio.StreamWriter) -> None:
        writer.write(NO_BODY[:20])
        await writer.drain()
        if not color.is_async:
            await asyncio.to_thread(reading.wait, 20)
        clock.advance(10)
        if color.is_async:
            await silence(writer)
        await asyncio.sleep(0.02)
        sent.append("the last header")
        writer.write(NO_BODY[20:])

    if color.is_async:
        client = client_of(color, raw(slow).url, timeout=LONG, total=0.05)
        assert elapsed(lambda: failure(lambda: client.get("x"), policy.ApiTimeout)) >= 0.05
        assert sent == []
    else:
        client = client_of(color, raw(slow).url, clock=clock, timeout=LONG, total=9.0)
        assert "the total of 9 s" in str(failure(lambda: client.get("x"), policy.ApiTimeout))
        assert sent == ["the last header"]


def test_looking_up_a_name_is_bounded_in_async_only(color: Color, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    looked_up: list[object] = []

    def slow(*args: object, **kwargs: object) -> None:
        over.wait(0.1 if color.name == "sync" else 20)
        looked_up.append(args)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    client = client_of(color, "http://api.test", timeout=LONG, total=0.05)
    took = elapsed(lambda: failure(lambda: client.get("x")))
    assert took >= 0.05
    assert bool(looked_up) is (color.name == "sync")
    over.set()


def test_a_silent_server_ends_an_attempt_at_the_timeout_and_the_call_at_the_total(color: Color, raw: MakeRaw) -> None:
    silent = raw(silence)
    patient = httpx2.Timeout(LONG, read=0.05)  # a busy machine may take its time for the rest
    once = client_of(color, silent.url, timeout=patient, retry=steady(attempts=2, base=0.001))
    error = failure(lambda: once.get("x"), policy.ApiTimeout)
    assert str(error).endswith(": ReadTimeout (attempt 2)")
    assert isinstance(error.__cause__, httpx2.ReadTimeout)
    until(lambda: len(silent.heads) == 2)
    error = failure(lambda: once.get("x", total=20), policy.ApiTimeout)
    assert "ReadTimeout" in str(error)  # the total is not over yet
    short = client_of(color, silent.url, timeout=httpx2.Timeout(None), total=0.1)
    errors: list[ApiError] = []
    assert elapsed(lambda: errors.append(failure(lambda: short.post("x"), policy.ApiTimeout))) >= 0.1
    assert str(errors[0]).endswith(": no answer within the total of 0.1 s")
    assert not errors[0].retryable


def test_the_total_covers_all_attempts_and_sleeps_together(color: Color, raw: MakeRaw) -> None:
    silent = raw(silence)
    retry = steady(attempts=10_000, base=0.02, cap=0.02)  # for hours, were it not for the total
    client = client_of(color, silent.url, timeout=0.1, total=0.5, retry=retry)
    assert elapsed(lambda: failure(lambda: client.get("x"), policy.ApiTimeout)) >= 0.4
    assert 2 <= len(silent.heads) <= 5  # each of them takes at least its timeout and its sleep


def test_each_phase_of_a_sync_call_is_given_what_those_before_have_left(
    scripted: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, float]] = []
    time_left = rest_client_sync._TimeLeft.__getitem__

    def spy(self: Any, phase: str) -> float:
        asked.append((phase, time_left(self, phase)))
        return asked[-1][1]

    monkeypatch.setattr(rest_client_sync._TimeLeft, "__getitem__", spy)
    ticks = itertools.count(1)  # a clock on which every look takes a second
    with RestClient(scripted.url, total=100, timeout=httpx2.Timeout(None), clock=lambda: float(next(ticks))) as client:
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
            clock.advance(passing)
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
        clock.advance(passing)
        return httpx2.Response(200, content=iter([b"{}"]))

    with RestClient("http://api.test", transport=httpx2.MockTransport(transport), total=10, clock=clock) as client:
        if late:
            assert "the total of 10 s" in str(failure(lambda: client.get("x"), policy.ApiTimeout))
        else:
            assert client.get("x").data == {}


@pytest.mark.parametrize("total", [0, -1, float("inf"), float("nan"), True, "1"])
def test_a_total_that_bounds_nothing_is_refused(color: Color, total: Any) -> None:
    with pytest.raises(ValueError, match=f"^total must be a number of seconds over 0, got {total!r}$"):
        client_of(color, "http://api.test", total=total)
    with pytest.raises(ValueError, match=f"^total must be a number of seconds over 0, got {total!r}$"):
        client_of(color, "http://api.test").get("x", total=total)
    with pytest.raises(ValueError, match=f"^timeout must be a number of seconds over 0, got {total!r}$"):
        client_of(color, "http://api.test", timeout=total)


async def test_a_cancelled_call_ends_in_its_sleep_and_sends_nothing_more(scripted: Script) -> None:
    scripted.answer(503)
    sleeping = asyncio.Event()

    async def sleep(seconds: float) -> None:
        sleeping.set()
        await asyncio.sleep(20)
        woken.append(seconds)

    woken: list[float] = []
    async with AsyncRestClient(scripted.url, sleep=sleep) as client:
        call = asyncio.ensure_future(client.get("x"))
        await sleeping.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert woken == []
        await asyncio.sleep(0.02)
    assert len(scripted.seen) == 1


# --- Connections ----------------------------------------------------------------------------------


def test_all_attempts_use_one_connection(client: Blocking, scripted: Script) -> None:
    scripted.answer(Answer(503, b"x" * 50_000), Answer(429, b"no json"), Answer(200, {"ok": True}))
    assert client.get("x").data == {"ok": True}
    failure_after = Answer(404, b"y" * 50_000)
    scripted.answer(failure_after, Answer(200, b"<html>"), 200)
    failure(lambda: client.get("x"), policy.ClientError)
    failure(lambda: client.get("x"), policy.DecodeError)
    client.get("x")
    assert (len(scripted.seen), len(scripted.connections)) == (6, 1)


def test_a_client_for_each_call_opens_a_connection_and_a_tls_context_each_time(
    scripted: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts: list[float] = []
    create = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda *a, **k: contexts.append(1) or create(*a, **k))  # type: ignore[func-returns-value]
    for _ in range(3):
        httpx2.get(scripted.url)
    assert (len(scripted.connections), len(contexts)) == (3, 3)
    scripted.reset()
    contexts.clear()
    with RestClient(scripted.url) as client:
        for _ in range(3):
            client.get("x")
    assert (len(scripted.connections), len(contexts)) == (1, 1)


async def cancelled_while_getting_a_connection(
    library: Any, url: str, patience: float
) -> tuple[list[str], list[object]]:
    """Cancel a task in the moment in which it is given a new connection; then call three times."""
    limits = library.Limits(max_connections=1)
    async with library.AsyncClient(limits=limits, timeout=patience) as http:
        loop = asyncio.get_running_loop()

        async def trace(event: str, info: object) -> None:
            if event == "http11.response_closed.complete":
                loop.call_soon(waiting.cancel)

        first = asyncio.ensure_future(http.get(url, timeout=20, extensions={"trace": trace}))
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(http.get(url, timeout=20))
        await asyncio.gather(first, waiting, return_exceptions=True)
        assert waiting.cancelled()
        stuck = [str(connection) for connection in http._transport._pool.connections]
        return stuck, await asyncio.gather(*(http.get(url) for _ in range(3)), return_exceptions=True)


async def test_one_cancelled_task_wedges_the_pool_of_httpx_for_good_and_not_that_of_httpx2(raw: MakeRaw) -> None:
    url = raw(Answer(headers={"connection": "close"}).raw()).url
    stuck, answers = await cancelled_while_getting_a_connection(httpx, url, 0.05)
    assert stuck == ["<AsyncHTTPConnection [CONNECTING]>"]
    assert [type(answer) for answer in answers] == [httpx.PoolTimeout] * 3
    stuck, answers = await cancelled_while_getting_a_connection(httpx2, url, 20)
    assert stuck == []
    assert [type(answer) for answer in answers] == [httpx2.Response] * 3


async def test_of_fifty_callers_half_are_cancelled_and_the_others_are_served(scripted: Script) -> None:
    scripted.answer(Answer(200, {"ok": True}, after=0.02))
    few = httpx2.AsyncHTTPTransport(limits=httpx2.Limits(max_connections=10))
    async with AsyncRestClient(scripted.url, transport=few) as client:
        calls = [asyncio.ensure_future(client.get("x")) for _ in range(50)]
        for number, call in enumerate(calls[::2]):
            asyncio.get_running_loop().call_later(number * 0.002, call.cancel)
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(answer, Response) and answer.data == {"ok": True} for answer in done[1::2])
        assert {type(answer) for answer in done[::2]} <= {asyncio.CancelledError, Response}
        assert any(isinstance(answer, asyncio.CancelledError) for answer in done)
        assert (await client.get("x")).data == {"ok": True}


def test_threads_share_one_client_and_each_gets_its_own_answer(scripted: Script) -> None:
    scripted.answer(lambda seen: Answer(200, seen.target))
    with RestClient(f"{scripted.url}/v1") as client, ThreadPoolExecutor(20) as threads:
        answers = threads.map(lambda number: client.get(f"x/{number}").data, range(100))
        assert list(answers) == [f"/v1/x/{number}" for number in range(100)]
    assert len(scripted.connections) <= 20


def test_a_client_that_is_closed_sends_nothing(color: Color, scripted: Script) -> None:
    client = client_of(color, f"{scripted.url}/v1")
    (client.aclose if color.name == "async" else client.close)()
    with pytest.raises(RuntimeError, match="closed"):
        client.get("x")
    assert scripted.seen == []


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
        assert client_of(color, broken.url, clock=clock).get("x").data == {"id": 7}
        client = client_of(color, raw(play).url, clock=clock, retry=steady(attempts=2))
        error = failure(lambda client=client: client.get("x"), policy.ApiConnectionError)  # type: ignore[misc]
        assert (type(error.__cause__) if error.__cause__ else None) is cause
        assert error.retryable


def test_a_header_without_an_end_is_a_connection_error(color: Color, raw: MakeRaw, clock: Clock) -> None:
    endless = raw(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000)
    client = client_of(color, endless.url, clock=clock, retry=steady(attempts=2))
    error = failure(lambda: client.get("x"), policy.ApiConnectionError)
    assert "RemoteProtocolError (attempt 2)" in str(error)
    assert error.__cause__ is None


def test_a_storm_of_429_ends_after_the_attempts_with_the_wait_to_pass_on(
    client: Blocking, scripted: Script, clock: Clock
) -> None:
    scripted.answer(Answer(429, headers={"retry-after": "1"}))
    for _ in range(5):
        assert failure(lambda: client.get("x"), policy.RateLimited).retry_after == 1.0
    assert (len(scripted.seen), len(clock.pauses)) == (20, 15)
