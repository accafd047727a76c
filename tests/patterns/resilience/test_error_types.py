"""Proves docs/patterns/resilience/error-types.md: what each answer and exception becomes, and what callers are told."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import email.utils
import json
import multiprocessing
import pickle
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import redis
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

import integration_errors
from error_mapping import from_exception, from_response
from harness.depth import examples
from integration_errors import (
    AuthenticationError,
    BadResponse,
    Conflict,
    IntegrationError,
    NotFound,
    PermissionDenied,
    RateLimited,
    ServiceUnavailable,
    UpstreamTimeout,
    ValidationFailed,
    to_problem,
)
from servers.http import Uvicorn

NOW = 1_445_412_480.0  # Wed, 21 Oct 2015 07:28:00 GMT
HIDDEN = "s3cr3t-value"


def answered(status: int, body: bytes | str = b"", **headers: str) -> IntegrationError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return from_response(status, named, body, service="crm", clock=lambda: NOW)


# -- what a status means

Made = type[IntegrationError]
TABLE: dict[Made, tuple[bool, str, list[int]]] = {
    ValidationFailed: (False, "validation_failed", [400, 422]),
    AuthenticationError: (False, "authentication_failed", [401]),
    PermissionDenied: (False, "permission_denied", [403]),
    NotFound: (False, "not_found", [404, 410]),
    Conflict: (False, "conflict", [409, 412]),
    RateLimited: (True, "rate_limited", [429]),
    UpstreamTimeout: (True, "upstream_timeout", [408, 504]),
    ServiceUnavailable: (True, "service_unavailable", [425, 502, 503, 506, 507, 520, 598, 599]),
    BadResponse: (False, "bad_response", [100, 200, 204, 301, 302, 304, 399, 600, 999]),
}
OTHERS = {"request_rejected": [402, 405, 413, 418, 424, 426, 451, 499], "upstream_failed": [500, 501, 505]}


@pytest.mark.parametrize(
    ("made", "retryable", "code", "status"),
    [(made, again, code, status) for made, (again, code, all_of) in TABLE.items() for status in all_of]
    + [(IntegrationError, False, code, status) for code, all_of in OTHERS.items() for status in all_of],
    ids=str,
)
def test_every_status_has_its_type_its_code_and_a_word_on_retrying(
    made: type[IntegrationError], retryable: bool, code: str, status: int
) -> None:
    error = answered(status)
    assert type(error) is made
    assert (error.status, error.code, error.retryable, error.service) == (status, code, retryable, "crm")
    assert (error.retry_after, error.context) == (None, {})


@pytest.mark.parametrize("status", [0, 99, 1000, -503, 10**5000, -(10**5000)], ids=lambda s: f"{s % 10**9}")
def test_a_number_that_is_no_http_status_is_a_bad_response_without_one(status: int) -> None:
    error = answered(status, "hello")
    assert type(error) is BadResponse
    assert (error.status, str(error)) == (None, "crm answered 0 Unknown: hello")
    assert to_problem(error)["status"] == 502


# -- Retry-After


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        ("0", 0.0),
        (" 5 ", 5.0),
        ("999999999", 999_999_999.0),
        ("Wed, 21 Oct 2015 07:29:30 GMT", 90.0),
        ("Wednesday, 21-Oct-15 07:29:30 GMT", 90.0),
        ("Wed Oct 21 07:29:30 2015", 90.0),  # the form without a zone is UTC
        ("Wed, 21 Oct 2015 07:27:59 GMT", 0.0),
    ],
)
def test_both_forms_of_retry_after_become_seconds(header: str, seconds: float) -> None:
    assert answered(429, retry_after=header).retry_after == seconds
    assert from_response(503, {"RETRY-AFTER": header}, b"", service="x", clock=lambda: NOW).retry_after == seconds


@pytest.mark.parametrize(
    "header",
    [
        *("", "soon", "-5", "1.5", "1e3", "٣", "²", "1000000000", "9" * 5000, "12, 13", "\x00"),
        *("Wed, 99 Oct 2015 07:28:00 GMT", "Fri, 31 Dec 10000 23:59:59 GMT"),
        "Wed, 21 Oct 99999999999999999999 07:28:00 GMT",
    ],
)
def test_a_malformed_retry_after_is_none_where_int_raises_within_the_error_handler(header: str) -> None:
    assert answered(429, retry_after=header).retry_after is None


def test_a_naive_int_of_a_retry_after_date_hides_the_real_failure() -> None:
    header = email.utils.formatdate(NOW + 30, usegmt=True)

    def naive(headers: Mapping[str, str]) -> Exception:
        return RuntimeError(f"rate limited, wait {int(headers['retry-after'])} s")

    with pytest.raises(ValueError, match="invalid literal for int"):
        raise naive({"retry-after": header})
    assert answered(429, retry_after=header).retry_after == 30.0


def test_the_default_clock_is_the_wall_clock() -> None:
    header = email.utils.formatdate(time.time() + 3600, usegmt=True)
    error = from_response(429, {"retry-after": header}, b"", service="crm")
    assert error.retry_after == pytest.approx(3600, abs=60)


# -- what a body says

PROBLEM = {"type": "https://example.com/stock", "title": "Out of stock", "detail": "3 left, 5 asked for", "code": 17}
BODIES: list[tuple[str, object, str, str]] = [
    ("problem", PROBLEM, "3 left, 5 asked for", "17"),
    ("title", {"title": "Out of stock", "status": 409}, "Out of stock", ""),
    ("error", {"error": "x"}, "x", "x"),
    ("oauth", {"error": "invalid_grant", "error_description": "It has expired."}, "It has expired.", "invalid_grant"),
    ("object", {"error": {"code": "declined", "message": "No funds."}}, "No funds.", "declined"),
    ("errors", {"errors": [{"message": "one"}, {"message": "two"}]}, "one; two", ""),
    ("texts", {"errors": ["one", "two", 3, None]}, "one; two", ""),
    ("both", {"errors": [{"message": "one"}], "message": "all in all"}, "all in all", ""),
    ("fastapi", {"detail": [{"loc": ["body", "age"], "msg": "too young"}]}, "too young", ""),
    ("null", {"error": None}, "", ""),
    ("list", ["one", "two"], "one; two", ""),
    ("string", "only a string", "only a string", ""),
    ("number", 5, "", ""),
    ("long code", {"error": {"code": "c" * 101, "message": "x"}}, "x", "c" * 100),
    ("odd", {"error": {"code": {"a": 1}, "message": ["x"]}}, "x", "{'a': 1}"),
]
TEXTS: list[tuple[str, bytes, str]] = [
    ("empty", b"", ""),
    ("plain", b"upstream connect error", "upstream connect error"),
    ("html", b"\n<html><title>502 Bad Gateway</title></html>", ""),
    ("cut json", b'{"error": "x"', ""),
    ("cut list", b' [{"error": "x"', ""),
    ("deep", b"[" * 60_000 + b"]" * 60_000, ""),
    ("invalid utf-8", b"caf\xe9 \xff", "caf\ufffd \ufffd"),
    ("nul", b"a\x00b", "a b"),
    ("half a pair", b'"a\\ud800 b"', "a? b"),
    ("long number", b'{"error": "x", "n": ' + b"1" * 5000 + b"}", ""),
]


@pytest.mark.parametrize(
    ("body", "said", "code"), [(json.dumps(b), said, c) for _, b, said, c in BODIES], ids=[b[0] for b in BODIES]
)
def test_the_sentence_and_the_code_of_every_shape_of_json_are_found(body: str, said: str, code: str) -> None:
    for form in (body, body.encode()):
        error = answered(418, form)
        assert str(error) == "crm answered 418 I'm a Teapot" + (f": {said}" if said else "")
        assert error.context == ({"upstream_code": code} if code else {})


@pytest.mark.parametrize(("body", "said"), [t[1:] for t in TEXTS], ids=[t[0] for t in TEXTS])
def test_a_body_that_is_no_json_gives_its_text_and_markup_or_broken_json_gives_none(body: bytes, said: str) -> None:
    assert str(answered(418, body)) == "crm answered 418 I'm a Teapot" + (f": {said}" if said else "")


@pytest.mark.parametrize("char", [b"x", b"[", b"\xff", b"<", b'"', b"\\", b"?", b"9"])
def test_five_megabytes_make_a_message_of_500_characters_at_most_and_soon(char: bytes) -> None:
    begin = time.thread_time()
    error = answered(500, char * 5_000_000)
    assert len(str(error)) <= 500
    assert time.thread_time() - begin < 2.0


def test_a_message_of_500_characters_is_whole_and_one_of_501_is_cut() -> None:
    assert str(IntegrationError("x" * 500)) == "x" * 500
    assert str(IntegrationError("x" * 501)) == "x" * 499 + "…"


def test_json_is_read_up_to_64_kib() -> None:
    def body(size: int) -> str:
        return '{"error": "said", "pad": "' + "x" * (size - 28) + '"}'

    assert len(body(65_536)) == 65_536
    assert str(answered(500, body(65_536))).endswith(": said")
    assert str(answered(500, body(65_537))).endswith("Server Error")


@given(st.integers(), st.binary(max_size=200) | st.text(max_size=200), st.text(max_size=30))
@settings(max_examples=examples(150), deadline=None)
def test_no_answer_makes_it_raise(status: int, body: bytes | str, retry_after: str) -> None:
    error = answered(status, body, retry_after=retry_after)
    assert str(error).isprintable()
    assert json.dumps(to_problem(error), ensure_ascii=False).encode()


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["error", "errors", "detail", "code", "field", "loc"]), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
@settings(max_examples=examples(150), deadline=None)
def test_no_shape_of_json_makes_it_raise(body: object) -> None:
    error = answered(422, json.dumps(body))
    assert len(json.dumps([to_problem(error), error.context], ensure_ascii=False).encode()) > 50


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (
            {"errors": {"email": ["is taken", "is odd"], "age": "is low"}},
            {"email": "is taken; is odd", "age": "is low"},
        ),
        ({"errors": [{"field": "email", "message": "is taken"}]}, {"email": "is taken"}),
        ({"errors": [{"pointer": "#/age", "detail": "is low"}, "also", 7]}, {"#/age": "is low"}),
        ({"detail": [{"loc": ["body", 0, "age"], "msg": "is low"}]}, {"body.0.age": "is low"}),
        ({"errors": [{"message": "all of it"}]}, {"": "all of it"}),
        ({"errors": {"password": "'hunter2' is short"}}, {"password": "***"}),
        ({"errors": "no"}, {}),
        ({"error": "no"}, {}),
        (["no"], {}),
    ],
    ids=str,
)
def test_a_validation_error_names_the_fields_that_the_body_names(body: object, fields: dict[str, str]) -> None:
    error = answered(422, json.dumps(body))
    assert isinstance(error, ValidationFailed)
    assert error.fields == fields
    expected = [{"field": name, "detail": said} for name, said in fields.items()]
    assert to_problem(error).get("errors", []) == expected


def test_at_most_fifty_fields_are_named() -> None:
    for errors_of_body in ({f"f{n}": "wrong" for n in range(60)}, [{"field": f"f{n}"} for n in range(60)]):
        error = answered(400, json.dumps({"errors": errors_of_body}))
        assert isinstance(error, ValidationFailed)
        assert list(error.fields) == [f"f{n}" for n in range(50)]


def test_of_a_list_of_errors_five_are_told() -> None:
    assert str(answered(500, json.dumps([str(n) for n in range(9)]))).endswith(": 0; 1; 2; 3; 4")


# -- a real server


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Answer /<status>/<number of the body> with it."""
    bodies = [json.dumps(body).encode() for _, body, _, _ in BODIES] + [text for _, text, _ in TEXTS]

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        _, status, number = scope["path"].split("/")
        body = bodies[int(number)] if status not in {"204", "304"} else b""
        headers = [
            (b"connection", b"close"),
            (b"retry-after", b"3"),
            (b"set-cookie", HIDDEN.encode()),
            (b"content-length", b"%d" % len(body)),
        ]
        await send({"type": "http.response.start", "status": int(status), "headers": headers})
        await send({"type": "http.response.body", "body": body})

    running = Uvicorn(app, lifespan="off")
    yield running.url
    running.stop()


def test_answers_of_a_real_server_arrive_as_the_table_says(server: str) -> None:
    expected = {status: made for made, (_, _, all_of) in TABLE.items() for status in all_of if 200 <= status < 600}
    with httpx2.Client(base_url=server) as client:
        for number, (status, made) in enumerate(expected.items()):
            answer = client.get(f"/{status}/{number % len(BODIES)}")
            error = from_response(answer.status_code, answer.headers, answer.content, service="crm")
            assert (type(error), error.status, error.retry_after) == (made, status, 3.0)
        for number in range(len(BODIES) + len(TEXTS)):
            error = caught(client.get(f"/500/{number}").raise_for_status)
            said = [*(said for _, _, said, _ in BODIES), *(said for _, _, said in TEXTS)][number]
            assert str(error) == "crm answered 500 Internal Server Error" + (f": {said}" if said else "")


def caught(call: Callable[[], object]) -> IntegrationError:
    """Call as a reader would, and return the error that comes of it."""
    with pytest.raises(Exception, match=r".*") as raised:
        call()
    error = from_exception(raised.value, service="crm")
    assert error.__cause__ is raised.value
    return error


# -- what clients raise


def test_a_refused_connection_is_unavailable_where_a_naive_default_says_500() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(httpx2.ConnectError) as raised:
            httpx2.get(url)
        error = caught(lambda: httpx2.get(url))

    def naive(exc: Exception) -> tuple[int, bool]:
        status = getattr(getattr(exc, "response", None), "status_code", 500)
        return status, status >= 500  # and so retries whatever has no status, a 500 as well

    assert naive(raised.value) == (500, True)
    assert naive(TypeError("a bug")) == (500, True)
    assert type(error) is ServiceUnavailable
    assert (error.status, error.retryable, answered(500).retryable) == (None, True, False)
    assert str(error).startswith("crm: ConnectError: ")


def test_an_answer_that_does_not_come_is_a_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        error = caught(lambda: httpx2.get(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.02))
    assert type(error) is UpstreamTimeout
    assert (error.status, error.retryable, error.service) == (None, True, "crm")


REQUEST = httpx2.Request("GET", "https://crm.internal/")


@pytest.mark.parametrize(
    ("exc", "made"),
    [
        (TimeoutError(), UpstreamTimeout),
        (concurrent.futures.TimeoutError(), UpstreamTimeout),
        (httpx2.PoolTimeout("no connection is free"), UpstreamTimeout),
        (redis.TimeoutError("slow"), UpstreamTimeout),
        (type("Timeout", (OSError,), {})("as in requests"), UpstreamTimeout),
        (ConnectionResetError("reset"), ServiceUnavailable),
        (BrokenPipeError(), ServiceUnavailable),
        (redis.ConnectionError("gone"), ServiceUnavailable),
        (httpx2.ReadError("reset"), ServiceUnavailable),
        (httpx2.ProxyError("no"), ServiceUnavailable),
        (httpx2.RemoteProtocolError("hung up"), ServiceUnavailable),
        (ssl.SSLError("handshake"), ServiceUnavailable),
        (socket.gaierror("no such name"), ServiceUnavailable),
        (httpx2.DecodingError("not gzip"), BadResponse),
        (json.JSONDecodeError("Expecting value", "<html>", 0), BadResponse),
        (httpx2.TooManyRedirects("20"), BadResponse),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_client_raises_is_found_by_the_name_of_its_class_or_a_base(exc: Exception, made: type) -> None:
    error = from_exception(exc, service="crm")
    assert type(error) is made
    assert error.__cause__ is exc
    assert (error.status, error.service) == (None, "crm")
    assert str(error).startswith(f"crm: {type(exc).__name__}:")


@pytest.mark.parametrize(
    "exc",
    [
        TypeError("a bug"),
        KeyError("id"),
        FileNotFoundError("settings.toml"),
        httpx2.InvalidURL("a bug"),
        httpx2.LocalProtocolError("a bug"),
        asyncio.CancelledError(),
        concurrent.futures.CancelledError(),
        KeyboardInterrupt(),
        SystemExit(),
        NotFound("it is one already"),
        UpstreamTimeout("it is one already"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_bug_a_cancellation_and_an_error_of_ours_go_on_as_they_are(exc: BaseException) -> None:
    with pytest.raises(type(exc)) as raised:
        from_exception(exc, service="crm")
    assert raised.value is exc
    assert exc.__cause__ is None


async def test_a_mapping_of_every_exception_swallows_a_cancellation_and_this_one_does_not() -> None:
    async def naive() -> str:
        try:
            await asyncio.sleep(60)
        except BaseException as exc:
            return f"mapped {type(exc).__name__}"
        return "slept"

    async def ours() -> None:
        try:
            await asyncio.sleep(60)
        except BaseException as exc:
            raise from_exception(exc) from exc

    tasks = [asyncio.create_task(naive()), asyncio.create_task(ours())]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert tasks[0].result() == "mapped CancelledError"
    assert tasks[1].cancelled()

    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    future.cancel()
    with pytest.raises(Exception, match=r".*") as raised:  # this one is, as asyncio's was once
        future.result()
    with pytest.raises(concurrent.futures.CancelledError):
        from_exception(raised.value)


def test_an_answer_whose_body_was_not_read_is_an_error_without_a_sentence() -> None:
    def stream() -> Iterator[bytes]:
        yield b"never read"

    response = httpx2.Response(503, content=stream(), request=REQUEST, headers={"Retry-After": "9"})
    error = caught(response.raise_for_status)
    assert (str(error), error.retry_after) == ("crm answered 503 Service Unavailable", 9.0)


def test_an_exception_with_a_response_of_another_kind_is_read_by_its_class() -> None:
    exc = ConnectionError("reset")
    exc.response = {"status_code": 503}  # type: ignore[attr-defined]  # as botocore's
    assert type(from_exception(exc)) is ServiceUnavailable
    other = RuntimeError("no client's")
    other.response = SimpleNamespace(status_code="503")  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError):
        from_exception(other)


def test_without_a_service_the_error_says_upstream() -> None:
    error = from_exception(TimeoutError("read"))
    assert (str(error), error.service) == ("upstream: TimeoutError: read", "upstream")


# -- attributes


def test_every_type_is_an_integration_error_with_a_default_that_can_be_overridden() -> None:
    everyone: list[Made] = [*TABLE, IntegrationError]
    for made in everyone:
        plain, given_all = made("x"), made("x", code="mine", status=499, retryable=not made.retryable, service="crm")
        assert isinstance(plain, IntegrationError)
        assert (plain.message, plain.args) == ("x", ("x",))
        assert (plain.code, plain.retryable, plain.context) == (made.code, made.retryable, {})
        assert (plain.status, plain.retry_after, plain.service) == (None, None, None)
        assert (given_all.code, given_all.status, given_all.service) == ("mine", 499, "crm")
        assert given_all.retryable is not made.retryable
    assert len({made.code for made in everyone}) == 10


def full() -> ValidationFailed:
    error = ValidationFailed(
        "all of it",
        fields={"age": "is low"},
        code="odd",
        status=422,
        retryable=True,
        retry_after=2.5,
        service="crm",
        context={"order": 7, "tags": ["a", None, 1.5, True]},
    )
    error.add_note("attempt 5 of 5")
    return error


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_error_keeps_every_attribute(protocol: int) -> None:
    error = full()
    twin = pickle.loads(pickle.dumps(error, protocol))
    assert type(twin) is ValidationFailed
    assert (twin.__dict__, twin.args, str(twin)) == (error.__dict__, error.args, str(error))
    assert twin.__notes__ == ["attempt 5 of 5"]


def test_a_copied_error_keeps_every_attribute_and_a_deep_copy_shares_none() -> None:
    error = full()
    for twin in (copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is ValidationFailed
        assert (twin.__dict__, twin.args) == (error.__dict__, error.args)
    assert copy.deepcopy(error).context is not error.context
    assert copy.copy(error) is not error


def test_the_cause_stays_with_the_original_and_its_text_goes_with_the_copy() -> None:
    error = from_exception(httpx2.ConnectError("refused"), service="crm")
    twin = pickle.loads(pickle.dumps(error))
    assert twin.__cause__ is None
    assert str(twin) == "crm: ConnectError: refused"


def test_a_process_pool_hands_it_over_whole_where_the_client_s_error_kills_the_pool() -> None:
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        handed = pool.submit(from_exception, full()).exception(30)  # raised there
        assert isinstance(handed, ValidationFailed)
        assert (handed.fields, handed.context) == (full().fields, full().context)
        assert (handed.code, handed.status, handed.retry_after) == ("odd", 422, 2.5)
        naive = pool.submit(httpx2.Response.raise_for_status, httpx2.Response(503, request=REQUEST))
        assert isinstance(naive.exception(30), BrokenProcessPool)

    class NaiveError(Exception):
        def __init__(self, service: str, status: int) -> None:
            super().__init__(f"{service} answered {status}")

    reduced: Any = NaiveError("crm", 503).__reduce__()
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        reduced[0](*reduced[1])  # what unpickling does


def test_a_context_that_changes_after_the_raise_does_not_change_the_error() -> None:
    rows: list[object] = [1]
    shared = {"rows": rows}
    error = IntegrationError("x", context=shared)

    class NaiveError(Exception):
        def __init__(self, context: dict[str, list[object]]) -> None:
            self.context = context

    naive = NaiveError(shared)
    rows.append(2)
    shared.clear()
    assert naive.context == {}
    assert error.context == {"rows": [1]}


# -- problem documents


@pytest.mark.parametrize("status", [500, 502, 503, 504, 599])
def test_a_problem_of_a_5xx_says_code_title_status_and_instance_and_nothing_else(status: int) -> None:
    error = answered(status, "stack trace of db-7.internal", retry_after="5")
    error.__cause__ = RuntimeError("db-7.internal")
    problem = to_problem(error, instance="/orders/7")
    title = integration_errors.PHRASES.get(status, "Unknown")
    assert problem == {"title": title, "status": status, "code": error.code, "instance": "/orders/7"}
    assert "instance" not in to_problem(error)


@pytest.mark.parametrize(
    ("made", "status"),
    [
        *((ValidationFailed, 422), (AuthenticationError, 401), (PermissionDenied, 403), (NotFound, 404)),
        *((Conflict, 409), (RateLimited, 429), (ServiceUnavailable, 503), (UpstreamTimeout, 504)),
        *((BadResponse, 502), (IntegrationError, 502)),
    ],
)
def test_an_error_without_a_status_answers_the_one_of_its_type(made: type[IntegrationError], status: int) -> None:
    problem = to_problem(made("x"))
    assert (problem["status"], problem["title"], problem["code"]) == (
        status,
        integration_errors.PHRASES[status],
        made.code,
    )
    assert ("detail" in problem) is (status < 500)


@pytest.mark.parametrize(
    ("status", "answers"), [(302, 502), (399, 502), (400, 400), (499, 499), (599, 599), (600, 502)]
)
def test_a_status_that_is_no_error_is_answered_as_a_bad_gateway(status: int, answers: int) -> None:
    problem = to_problem(answered(status, "said"))
    assert problem["status"] == answers
    assert ("detail" in problem) is (status in {400, 499})


def test_a_problem_of_a_4xx_says_the_message_and_the_fields_too() -> None:
    error = answered(422, json.dumps({"title": "Invalid", "errors": [{"pointer": "#/age", "detail": "is low"}]}))
    assert to_problem(error) == {
        "title": integration_errors.PHRASES[422],
        "status": 422,
        "code": "validation_failed",
        "detail": "crm answered 422 " + integration_errors.PHRASES[422] + ": is low",
        "errors": [{"field": "#/age", "detail": "is low"}],
    }


def test_a_401_of_your_credentials_would_log_your_caller_out_where_it_is_passed_on() -> None:
    app = FastAPI()

    @app.get("/{way}")
    def read(way: str) -> None:
        raise answered(401, '{"error": "the key of shop-prod was revoked"}')

    @app.exception_handler(IntegrationError)
    def answer(request: Request, error: IntegrationError) -> JSONResponse:
        ours = isinstance(error, AuthenticationError | PermissionDenied) and request.url.path == "/ours"
        problem = to_problem(BadResponse("our credentials") if ours else error)
        return JSONResponse(problem, problem["status"])

    client = TestClient(app)
    naive, right = client.get("/naive"), client.get("/ours")
    assert naive.status_code == 401
    assert "shop-prod" in naive.text
    assert (right.status_code, right.json()) == (502, {"title": "Bad Gateway", "status": 502, "code": "bad_response"})
