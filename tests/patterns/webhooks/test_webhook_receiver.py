"""Proves docs/patterns/webhooks/webhook-receiver.md: bound, verify, parse, store, answer, in this order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import hmac
import inspect
import json
import logging
import math
import re
import socket
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harness import fake_loop
from servers.http import Uvicorn
from webhook_receiver import LIMIT, Delivery, Refused, WebhookReceiver, limit_from_env, read_limited

KEY = b"k" * 32
BODY = b'{"type": "invoice.paid", "note": "canary-body"}'


@dataclasses.dataclass(frozen=True)
class Event:
    id: str
    timestamp: int


class Forged(Exception):  # noqa: N818
    pass


def signed(body: bytes, msg_id: str = "msg_1") -> dict[str, str]:
    return {"x-id": msg_id, "x-signature": hmac.new(KEY, body, hashlib.sha256).hexdigest()}


def check(body: bytes, headers: Mapping[str, str]) -> Event:
    """As strict as a real one: it believes the bytes, and nothing else."""
    expected = hmac.new(KEY, body, hashlib.sha256).hexdigest().encode()
    if not hmac.compare_digest(expected, headers.get("x-signature", "").encode()):
        raise Forged("canary-secret")
    return Event(headers["x-id"], 1_800_000_000)


class Store:
    """Keeps deliveries by (source, id), or fails as it is told."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], Delivery] = {}
        self.error: Exception | None = None
        self.seconds = 0.0

    async def __call__(self, delivery: Delivery) -> bool:
        await asyncio.sleep(self.seconds)
        if self.error:
            raise self.error
        return self.kept.setdefault((delivery.source, delivery.id), delivery) is delivery


@pytest.fixture
def store() -> Store:
    return Store()


def receiver_of(store: Callable[[Delivery], Awaitable[Any]], **options: Any) -> WebhookReceiver:
    return WebhookReceiver("shop", options.pop("verify", check), store, **{"refused": Forged, **options})


def app_of(store: Callable[[Delivery], Awaitable[Any]], **options: Any) -> Starlette:
    return Starlette(routes=[receiver_of(store, **options).route("/webhooks")])


async def exchange(
    app: ASGIApp,
    chunks: Iterable[bytes | float | None] = (BODY,),
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    method: str = "POST",
) -> tuple[int, dict[str, str], bytes]:
    """Send a request as an ASGI server does. A number among the chunks is a pause, None the end of the client."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    raw = [(name.encode(), value.encode()) for name, value in pairs]
    scope: Scope = {"type": "http", "method": method, "path": "/webhooks", "headers": raw, "query_string": b""}
    left = iter(chunks)
    sent: list[Message] = []

    async def receive() -> Message:
        chunk = next(left, b"")
        while isinstance(chunk, int | float):
            await asyncio.sleep(chunk)
            chunk = next(left, b"")
        if chunk is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": chunk != b""}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], head, b"".join(m.get("body", b"") for m in sent[1:])


async def status(*args: Any, **options: Any) -> int:
    return (await exchange(*args, **options))[0]


# The order.


async def test_a_believed_delivery_is_stored_as_it_came_and_answered_200_with_nothing(store: Store) -> None:
    answer = await exchange(app_of(store), [BODY[:7], BODY[7:]], signed(BODY))
    assert answer == (200, {"content-length": "0"}, b"")
    kept = store.kept["shop", "msg_1"]
    assert kept == Delivery("shop", "msg_1", 1_800_000_000, "invoice.paid", BODY)
    assert "canary" not in repr(kept)
    with pytest.raises(dataclasses.FrozenInstanceError):
        kept.id = "other"  # type: ignore[misc]


@pytest.mark.parametrize("body", [BODY, b"{", b"\xff\xfe", b"[" * 100_000])
async def test_what_is_not_believed_is_401_and_neither_parsed_nor_stored(
    store: Store, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[object] = []
    monkeypatch.setattr("webhook_receiver.json.loads", parsed.append)
    for headers in ({}, signed(body + b" "), {"x-signature": "é"}):
        code, head, text = await exchange(app_of(store), [body], headers)
        assert (code, text) == (401, b"")
        assert head.get("retry-after") is None
    assert (parsed, store.kept) == ([], {})


async def test_an_encoded_or_too_long_body_is_refused_before_a_byte_of_it_is_read(store: Store) -> None:
    asked: list[int] = []

    def never() -> Iterator[bytes]:
        asked.append(1)
        yield BODY

    app = app_of(store)
    for name, value, code in (
        ("content-encoding", "gzip", 415),
        ("content-encoding", "identity, br", 415),
        ("content-length", str(LIMIT + 1), 413),
        ("content-length", "9" * 5_000, 413),
    ):
        got, head, text = await exchange(app, never(), {name: value})
        assert (got, text, head["connection"]) == (code, b"", "close")
    assert (asked, store.kept) == ([], {})
    assert await status(app, headers={"content-encoding": " Identity"} | signed(BODY)) == 200


async def test_a_length_that_is_repeated_or_no_number_is_refused(store: Store) -> None:
    for lengths in (("47", "47"), ("-1",), ("+47",), ("٤٧",), ("0x2f",), ("",), ("47, 47",)):
        headers = [*signed(BODY).items(), *(("content-length", text) for text in lengths)]
        code, head, _ = await exchange(app_of(store), headers=headers)
        assert (code, head["connection"]) == (400, "close")
    assert store.kept == {}


# Size and time.


async def test_exactly_the_limit_passes_and_one_byte_more_does_not(store: Store) -> None:
    app = app_of(store)
    fits = b'{"type":"' + b"x" * (LIMIT - 11) + b'"}'
    assert len(fits) == 262_144
    for headers in ({}, {"content-length": str(LIMIT)}):
        chunks = [fits[:100_000], fits[100_000:]]
        assert await status(app, chunks, signed(fits) | headers) == 200
        assert await status(app, [*chunks, b" "], signed(fits + b" ")) == 413
    small = app_of(store, limit=10)
    assert await status(small, [b'{"a": 123}'], signed(b'{"a": 123}')) == 200
    assert await status(small, [b'{"a": 1234}'], signed(b'{"a": 1234}')) == 413


async def test_a_body_of_100_mb_costs_no_more_memory_than_the_limit(store: Store) -> None:
    block, handed_out = bytes(65_536), 0

    def flood() -> Iterator[bytes]:
        nonlocal handed_out
        for _ in range(1_600):
            handed_out += 1
            yield block

    tracemalloc.start()
    try:
        assert await status(app_of(store), flood()) == 413
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert handed_out == 5  # and the sixth was not asked for
    assert peak < LIMIT + 1_000_000


def test_a_body_that_drips_is_cut_with_408_when_its_time_is_over() -> None:
    async def main() -> None:
        def drip() -> Iterator[bytes | float]:
            for byte in BODY:
                yield 1.0
                yield bytes([byte])

        loop, store = asyncio.get_running_loop(), Store()
        code, head, text = await exchange(app_of(store), drip(), signed(BODY))
        assert (code, head["connection"], text, loop.time()) == (408, "close", b"", 10.0)
        began = loop.time()
        assert await status(app_of(store, timeout=2), [1.9, BODY], signed(BODY)) == 200
        assert await status(app_of(store, timeout=2), [2.1, BODY], signed(BODY)) == 408
        assert loop.time() - began == pytest.approx(3.9)

    fake_loop.run(main())


async def test_a_client_that_goes_in_the_middle_stores_nothing(store: Store) -> None:
    assert await status(app_of(store), [BODY[:9], None], signed(BODY[:9])) == 400
    assert store.kept == {}


async def test_the_reader_alone_returns_the_bytes_or_raises_the_status() -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": BODY, "more_body": False}

    scope: Scope = {"type": "http", "method": "POST", "headers": []}
    assert inspect.signature(read_limited).parameters["timeout"].default == 10
    assert await read_limited(Request(scope, receive)) == BODY
    with pytest.raises(Refused) as caught:
        await read_limited(Request(scope, receive), limit=10)
    assert (caught.value.status, caught.value.reason) == (413, "more than 10 bytes sent")
    assert str(caught.value) == caught.value.reason


# What is in the body.


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 200_000,
        b'{"a":' * 50_000,
        b"[1]",
        b'"text"',
        b"null",
        b'{"amount": NaN}',
        b'{"amount": -Infinity}',
        b'{"type": "a", "type": "b"}',
        b'{"deep": {"x": 1, "x": 2}}',
        b"\xef\xbb\xbf{}",
        '{"type": "a"}'.encode("utf-16"),
        b'{"n": ' + b"9" * 5_000 + b"}",
    ],
    ids=range(15),
)
async def test_signed_and_yet_no_json_object_is_400_and_one_line_without_the_body(
    store: Store, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    code, head, text = await exchange(app_of(store), [body], signed(body))
    assert (code, text, head["connection"]) == (400, b"", "close")
    assert store.kept == {}
    assert len(caplog.records) == 1
    line = caplog.records[0].getMessage()
    assert line.startswith("webhook from shop: 400, signed, but not ")
    assert len(line) < 90


async def test_a_type_that_nobody_knows_or_that_is_missing_is_stored(store: Store) -> None:
    for number, (body, kind) in enumerate(
        [(b'{"type": "never.seen"}', "never.seen"), (b"{}", ""), (b'{"type": 7}', "")]
    ):
        assert await status(app_of(store), [body], signed(body, str(number))) == 200
        assert store.kept["shop", str(number)].type == kind
    body = b'{"event": {"name": "push"}}'
    app = app_of(store, type_of=lambda payload: payload["event"]["name"])
    assert await status(app, [body], signed(body, "named")) == 200
    assert store.kept["shop", "named"].type == "push"


# Storing.


async def test_a_store_that_fails_is_503_with_retry_after_and_the_next_attempt_is_stored(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.error = ConnectionError("canary-dsn")
    code, head, text = await exchange(app_of(store), headers=signed(BODY))
    assert (code, head["retry-after"], text) == (503, "30", b"")
    assert "connection" not in head
    assert "webhook from shop: 503, msg_1 not stored (ConnectionError)" in caplog.text
    assert (await exchange(app_of(store, retry_after=7), headers=signed(BODY)))[1]["retry-after"] == "7"
    store.error = None
    assert await status(app_of(store), headers=signed(BODY)) == 200
    assert list(store.kept) == [("shop", "msg_1")]


async def test_a_duplicate_is_200_too(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert [await status(app_of(store), headers=signed(BODY)) for _ in range(2)] == [200, 200]
    assert [r.getMessage() for r in caplog.records if r.name == "webhook_receiver"] == [
        "webhook msg_1 from shop: new",
        "webhook msg_1 from shop: known",
    ]


@pytest.mark.parametrize("answer", [None, 1, "stored"])
async def test_a_store_that_says_neither_new_nor_known_is_not_believed(answer: object) -> None:
    async def forgot_to_return(delivery: Delivery) -> object:
        return answer

    assert await status(app_of(forgot_to_return), headers=signed(BODY)) == 503


def test_a_store_that_hangs_is_503_after_its_own_time() -> None:
    async def main() -> None:
        store = Store()
        store.seconds = 5.1
        assert await status(app_of(store), headers=signed(BODY)) == 503
        assert asyncio.get_running_loop().time() == 5.0
        store.seconds = 0.9
        assert await status(app_of(store, store_timeout=1), headers=signed(BODY)) == 200

    fake_loop.run(main())


def test_two_hundred_deliveries_at_once_take_as_long_as_one() -> None:
    async def main() -> None:
        store = Store()
        store.seconds = 2.0
        app = app_of(store)
        codes = await asyncio.gather(*(status(app, headers=signed(BODY, str(n))) for n in range(200)))
        assert (set(codes), len(store.kept), asyncio.get_running_loop().time()) == ({200}, 200, 2.0)

    fake_loop.run(main())


def test_the_answer_does_not_wait_for_the_work_behind_the_store() -> None:
    async def main() -> None:
        queue: asyncio.Queue[Delivery] = asyncio.Queue()
        done: list[str] = []
        loop = asyncio.get_running_loop()

        async def keep(delivery: Delivery) -> bool:
            queue.put_nowait(delivery)
            return True

        async def work() -> None:
            delivery = await queue.get()
            await asyncio.sleep(5)
            done.append(delivery.id)

        worker = asyncio.create_task(work())
        assert await status(app_of(keep), headers=signed(BODY)) == 200
        assert (done, loop.time()) == ([], 0)
        await worker
        assert (done, loop.time()) == (["msg_1"], 5)

    fake_loop.run(main())


async def test_a_fault_of_the_verifier_is_503_because_the_delivery_may_be_genuine(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(body: bytes, headers: Mapping[str, str]) -> Event:
        raise KeyError("canary-secret")

    code, head, text = await exchange(app_of(store, verify=broken), headers=signed(BODY))
    assert (code, head["retry-after"], text) == (503, "30", b"")
    assert "503, could not be verified (KeyError)" in caplog.text
    assert await status(app_of(store, verify=broken, refused=(Forged, KeyError))) == 401


# Nothing leaks.


async def test_no_answer_and_no_log_line_holds_the_body_a_secret_or_an_error_text(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    app, seen = app_of(store), []
    store.error = ConnectionError("canary-dsn")
    requests: list[tuple[list[bytes | None], dict[str, str]]] = [
        ([BODY], signed(BODY)),
        ([BODY], {}),
        ([BODY + b"x"], signed(BODY + b"x")),
        ([BODY], {"content-encoding": "canary-gzip"}),
        ([BODY], {"content-length": "canary-length"}),
        ([BODY], {"content-length": "5"}),
        ([BODY * 10_000], {}),
        ([BODY[:5], None], {}),
    ]
    for chunks, headers in requests:
        seen.append(await exchange(app, chunks, headers))
    assert [code for code, _, _ in seen] == [503, 401, 400, 415, 400, 503, 413, 400]
    assert {text for _, _, text in seen} == {b""}
    assert len(caplog.records) == len(seen)
    formatted = caplog.text + "".join(logging.Formatter().format(record) for record in caplog.records)
    assert "canary" not in str(seen) + formatted
    assert "Traceback" not in formatted


# The setting.


def test_the_limit_is_read_from_the_environment_and_nonsense_stops_the_start() -> None:
    assert limit_from_env({}) == limit_from_env({"WEBHOOK_MAX_BYTES": ""}) == 262_144
    assert limit_from_env({"WEBHOOK_MAX_BYTES": "1"}) == 1
    for text in ("0", "-1", "256k", "²", "1.5"):
        message = f"WEBHOOK_MAX_BYTES must be a whole number of bytes over 0, got {text!r}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            limit_from_env({"WEBHOOK_MAX_BYTES": text})


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, True, "1"])
def test_a_number_of_the_receiver_that_is_none_stops_the_start(wrong: Any) -> None:
    anything: Any = None
    given: dict[str, Any]
    for option in ("timeout", "store_timeout"):
        given = {option: wrong}
        with pytest.raises(ValueError, match=rf"^{option} must be a number of seconds over 0, got {wrong!r}$"):
            WebhookReceiver("shop", anything, anything, refused=Forged, **given)
    for option in ("limit", "retry_after"):
        given = {option: wrong}
        with pytest.raises(ValueError, match=rf"^{option} must be a whole number over 0, got {wrong!r}$"):
            WebhookReceiver("shop", anything, anything, refused=Forged, **given)


@pytest.mark.parametrize("wrong", [0, -1, True, math.nan, math.inf, "10", None])
async def test_a_limit_of_a_body_that_is_no_number_is_refused_unread(wrong: Any) -> None:
    async def receive() -> Message:
        raise AssertionError("read")

    request = Request({"type": "http", "headers": []}, receive)
    with pytest.raises(ValueError, match=rf"^limit must be a whole number over 0, got {wrong!r}$"):
        await read_limited(request, wrong)
    with pytest.raises(ValueError, match=rf"^timeout must be a number of seconds over 0, got {wrong!r}$"):
        await read_limited(request, timeout=wrong)


# On a real server.


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Uvicorn, Store]]:
    store = Store()
    server = Uvicorn(app_of(store, timeout=0.5))
    try:
        yield server, store
    finally:
        server.stop()


def talk(port: int, *parts: bytes) -> bytes:
    """Send bytes over a real connection, and return all that comes back until it is closed."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        with contextlib.suppress(OSError):  # it may be closed while we still send
            for part in parts:
                connection.sendall(part)
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(65_536):
                answer += data
    return answer


HEAD = b"POST /webhooks HTTP/1.1\r\nHost: test\r\n"


def test_on_a_real_connection_the_bounds_hold_and_the_connection_is_closed(served: tuple[Uvicorn, Store]) -> None:
    server, store = served
    before = len(store.kept)
    for request, code in [
        (HEAD + b"Content-Length: 262145\r\n\r\n", b"413"),
        (HEAD + b"Content-Length: 100\r\n\r\n{", b"408"),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", b"400"),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", b"415"),
    ]:
        answer = talk(server.port, request)
        assert answer.startswith(b"HTTP/1.1 " + code)
        assert b"connection: close" in answer.lower()
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    talk(server.port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 80)  # its 413 may be lost in the reset
    assert len(store.kept) == before


def test_a_real_connection_cut_in_the_middle_leaves_no_traceback(
    served: tuple[Uvicorn, Store], caplog: pytest.LogCaptureFixture
) -> None:
    server, store = served
    before = len(store.kept)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
    assert talk(server.port, HEAD + b"Content-Length: 300000\r\n\r\n").startswith(b"HTTP/1.1 413")
    for _ in range(50):
        if "the client has gone" in caplog.text:
            break
        time.sleep(0.01)
    assert "webhook from shop: 400, the client has gone" in caplog.text
    assert "Traceback" not in caplog.text
    assert len(store.kept) == before


def test_a_real_client_gets_200_with_and_without_a_length_and_405_for_other_methods(
    served: tuple[Uvicorn, Store],
) -> None:
    server, store = served

    def chunked() -> Iterator[bytes]:
        yield BODY[:10]
        yield BODY[10:]

    with httpx2.Client(trust_env=False) as client:
        url = f"{server.url}/webhooks"
        assert client.post(url, content=BODY, headers=signed(BODY, "whole")).status_code == 200
        assert client.post(url, content=chunked(), headers=signed(BODY, "chunked")).status_code == 200
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            answer = client.request(method, url)
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert {("shop", "whole"), ("shop", "chunked")} <= set(store.kept)


# What people write first.


async def test_naive_look_at_content_length_lets_five_megabytes_through_in_chunks() -> None:
    async def naive(request: Request) -> Response:
        if int(request.headers.get("content-length", 0)) > LIMIT:
            return Response(status_code=413)
        return JSONResponse(len(await request.body()))

    app = Starlette(routes=[Route("/webhooks", naive, methods=["POST"])])
    assert await status(app, [], {"content-length": "5000000"}) == 413
    assert (await exchange(app, [bytes(65_536)] * 80))[2] == b"5242880"


async def test_naive_json_before_verification_lets_a_stranger_choose_what_is_parsed() -> None:
    async def naive(request: Request) -> Response:
        payload = await request.json()
        check(json.dumps(payload).encode(), request.headers)
        return Response()

    app = Starlette(routes=[Route("/webhooks", naive, methods=["POST"])])
    with pytest.raises(RecursionError):  # a 500 and a traceback, for one unsigned request
        await exchange(app, [b"[" * 100_000])
    genuine = b'{"amount":1e2}'
    with pytest.raises(Forged):  # and what was parsed and written again is refused, though genuine
        await exchange(app, [genuine], signed(genuine))


async def test_naive_except_exception_blames_the_provider_for_our_outage_and_tells_why(store: Store) -> None:
    async def naive(request: Request) -> Response:
        try:
            await store(Delivery("shop", "1", 0, "", await request.body()))
        except Exception as error:
            return JSONResponse({"error": str(error)}, 400)
        return Response()

    store.error = ConnectionError('connection to "db.internal" failed: password "canary"')
    code, head, text = await exchange(Starlette(routes=[Route("/webhooks", naive, methods=["POST"])]))
    assert (code, "retry-after" in head, b"canary" in text) == (400, False, True)


def test_naive_work_inside_the_request_is_done_twice_because_the_provider_gives_up() -> None:
    async def main() -> None:
        done: list[int] = []

        async def naive(request: Request) -> Response:
            await asyncio.sleep(20)
            done.append(1)
            return Response()

        app = Starlette(routes=[Route("/webhooks", naive, methods=["POST"])])
        for _ in range(2):  # the provider waits 15 s, and sends again; its going away stops nobody
            attempt = asyncio.create_task(exchange(app))
            assert await asyncio.wait({attempt}, timeout=15) == (set(), {attempt})
        await attempt
        assert len(done) == 2

    fake_loop.run(main())


@pytest.mark.parametrize("way", ["create_task", "BackgroundTask"])
def test_naive_work_after_the_answer_is_lost_when_the_process_ends(way: str) -> None:
    done: list[int] = []
    answered: list[int] = []
    tasks: set[asyncio.Task[None]] = set()

    async def work() -> None:
        await asyncio.sleep(5)
        done.append(1)

    async def naive(request: Request) -> Response:
        if way == "BackgroundTask":
            return Response(background=BackgroundTask(work))
        tasks.add(asyncio.create_task(work()))
        return Response()

    async def main() -> None:
        app = Starlette(routes=[Route("/webhooks", naive, methods=["POST"])])

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered.append(message["status"])

        async def receive() -> Message:
            return {"type": "http.request", "body": BODY, "more_body": False}

        scope: Scope = {"type": "http", "method": "POST", "path": "/webhooks", "headers": [], "query_string": b""}
        serving = asyncio.create_task(app(scope, receive, send))
        await asyncio.sleep(1)  # a deploy: the loop ends, and what runs in it
        serving.cancel()

    fake_loop.run(main())
    assert (answered, done) == ([200], [])


class Consuming:
    """A middleware that reads the body, for a log perhaps, and does not put it back."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass

        async def nothing_left() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        await self.app(scope, nothing_left, send)


async def test_naive_middleware_that_reads_the_body_makes_a_forgery_of_each_delivery(store: Store) -> None:
    async def naive(request: Request) -> Response:
        try:
            check(await request.body(), request.headers)
        except Forged:
            return Response(status_code=401)
        return Response()

    headers = signed(BODY) | {"content-length": str(len(BODY))}
    app = Consuming(Starlette(routes=[Route("/webhooks", naive, methods=["POST"])]))
    assert await status(app, headers=headers) == 401


async def test_a_body_that_a_middleware_has_read_is_503_and_named_in_the_log(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    headers = signed(BODY) | {"content-length": str(len(BODY))}
    assert await status(Consuming(app_of(store)), headers=headers) == 503
    assert "not as long as announced: does a middleware read it?" in caplog.text


class Invoice(BaseModel):
    cents: int


async def test_naive_pydantic_parameter_parses_unverified_bytes_and_echoes_them() -> None:
    app = FastAPI()

    @app.post("/webhooks")
    async def naive(invoice: Invoice) -> None: ...

    body = b'{"cents": "canary"}'
    code, _, text = await exchange(app, [body], {"content-type": "application/json"})
    assert code == 422
    assert b"canary" in text


def test_what_is_handed_over_cannot_be_changed() -> None:
    records: tuple[Any, ...] = (Delivery,)
    for record in records:
        assert record.__dataclass_params__.frozen
        assert "__slots__" in vars(record)


def test_the_defaults_are_those_that_the_docstrings_promise() -> None:
    parameters = inspect.signature(WebhookReceiver.__init__).parameters
    names = ("limit", "timeout", "store_timeout", "retry_after")
    assert [parameters[name].default for name in names] == [262_144, 10, 5, 30]
