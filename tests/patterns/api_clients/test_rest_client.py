"""Proves docs/patterns/api-clients/rest-client.md: what is sent again, after how long, and what a call returns."""

from __future__ import annotations

import asyncio
import dataclasses
import email.utils
import inspect
import pickle
import time
from typing import Any

import httpx2
import pytest
import tenacity
from hypothesis import given, settings
from hypothesis import strategies as st

import rest_policy as policy
from harness.clock import Clock
from harness.color import Blocking, Color
from harness.depth import examples
from harness.scripted import Answer, Script, hang_up, refused_port, reset
from patterns.api_clients import rest_client_kit as kit
from patterns.api_clients.rest_client_kit import MakeRaw, client_of, failure, steady
from rest_client_async import AsyncRestClient
from rest_client_sync import RestClient
from rest_policy import ApiError, RetryPolicy

# Fixtures.
client = kit.client

BUSY = [408, 429, 502, 503, 504]


# --- What is repeated -----------------------------------------------------------------------------


def test_a_get_is_repeated_until_it_succeeds(client: Blocking, scripted: Script, clock: Clock) -> None:
    scripted.answer(503, 503, Answer(200, {"id": 7}))
    response = client.get("users/7")
    assert (response.status, response.data, len(scripted.seen)) == (200, {"id": 7}, 3)
    assert clock.pauses == [0.5 * 0.2, 0.5 * 0.4]
    assert scripted.targets == ["/v1/users/7"] * 3


def test_after_the_last_attempt_the_last_answer_is_raised(client: Blocking, scripted: Script, clock: Clock) -> None:
    scripted.answer(503, 502, 504, Answer(503, headers={"retry-after": "7"}))
    error = failure(lambda: client.get("x"), policy.ServerError)
    assert (error.status, error.retry_after, error.retryable, len(scripted.seen)) == (503, 7.0, True, 4)
    assert str(error) == f"GET {scripted.url}: 503 (attempt 4)"


def test_one_attempt_is_one_request(color: Color, scripted: Script, clock: Clock) -> None:
    scripted.answer(503)
    client = client_of(color, f"{scripted.url}/v1", clock=clock, retry=RetryPolicy(attempts=1))
    assert failure(lambda: client.get("x"), policy.ServerError).status == 503
    assert (len(scripted.seen), clock.pauses) == (1, [])


@pytest.mark.parametrize("status", BUSY)
def test_an_idempotent_method_is_repeated_when_the_server_says_later(
    client: Blocking, scripted: Script, status: int
) -> None:
    methods = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "get"]
    for method in methods:
        scripted.answer(status, 204)
        assert client.request(method, "x").status == 204
    assert [seen.method for seen in scripted.seen] == [method.upper() for method in methods for _ in range(2)]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 500, 501])
def test_an_answer_that_will_not_change_is_not_repeated(client: Blocking, scripted: Script, status: int) -> None:
    scripted.answer(status)
    error = failure(lambda: client.get("x"))
    assert type(error) is (policy.ClientError if status < 500 else policy.ServerError)
    assert (error.status, error.retryable, len(scripted.seen)) == (status, False, 1)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_post_that_was_answered_is_sent_once(client: Blocking, scripted: Script, method: str) -> None:
    for number, status in enumerate(BUSY, 1):
        scripted.answer(status)
        error = failure(lambda: client.request(method, "charges", json={"amount": 5}))
        assert (error.status, error.retryable, len(scripted.seen)) == (status, False, number)


def test_a_post_with_an_idempotency_key_is_repeated_with_the_same_key(client: Blocking, scripted: Script) -> None:
    scripted.answer(503, 429, Answer(201, {"id": 1}))
    headers = {"X-Trace": "t1"}
    response = client.post("charges", json={"amount": 5}, idempotency_key="k-1", headers=headers)
    assert (response.status, len(scripted.seen)) == (201, 3)
    for seen in scripted.seen:
        assert seen.headers["idempotency-key"] == "k-1"
        assert (seen.headers["x-trace"], seen.body) == ("t1", b'{"amount":5}')
    assert headers == {"X-Trace": "t1"}


def test_an_empty_idempotency_key_is_none(client: Blocking, scripted: Script) -> None:
    scripted.answer(503)
    failure(lambda: client.post("charges", idempotency_key=""), policy.ServerError)
    assert ["idempotency-key" in seen.headers for seen in scripted.seen] == [False]


def test_a_post_that_was_never_sent_is_repeated(color: Color, clock: Clock) -> None:
    client = client_of(color, f"http://127.0.0.1:{refused_port()}", clock=clock, retry=steady())
    error = failure(lambda: client.post("charges", json={}), policy.ApiConnectionError)
    assert (len(clock.pauses), error.retryable, error.status) == (3, True, None)
    assert str(error).endswith(": ConnectError (attempt 4)")
    assert isinstance(error.__cause__, httpx2.ConnectError)


def test_a_post_whose_answer_was_lost_is_sent_once_and_a_get_again(color: Color, raw: MakeRaw, clock: Clock) -> None:
    for play in (hang_up, reset()):
        lost = raw(play, Answer(200).raw())
        client = client_of(color, lost.url, clock=clock, retry=steady())
        error = failure(lambda client=client: client.post("charges"), policy.ApiConnectionError)  # type: ignore[misc]
        assert (error.retryable, len(lost.heads)) == (False, 1)
        assert client.get("charges").status == 200
        lost = raw(play, Answer(200).raw())
        assert client_of(color, lost.url, clock=clock, retry=steady()).get("x").status == 200
        assert len(lost.heads) == 2


def test_a_post_that_got_no_connection_from_the_pool_is_repeated(color: Color) -> None:
    held = steady().repeatable("POST", httpx2.PoolTimeout(""), None)
    assert held is steady().repeatable("POST", httpx2.ConnectTimeout(""), None) is True
    for sent in (httpx2.ReadTimeout(""), httpx2.WriteError(""), httpx2.RemoteProtocolError(""), TimeoutError()):
        assert steady().repeatable("POST", sent, None) is False
        assert steady().repeatable("POST", sent, "key") is steady().repeatable("GET", sent, None) is True
    for hopeless in (httpx2.LocalProtocolError(""), httpx2.UnsupportedProtocol(""), httpx2.DecodingError("")):
        assert steady().repeatable("GET", hopeless, "key") is False


def test_the_methods_have_their_names_and_options(client: Blocking, scripted: Script) -> None:
    for name in ("get", "post", "put", "patch", "delete"):
        response = getattr(client, name)("/x/", params={"q": "ä b", "n": 1}, json={"a": None}, total=5)
        assert (response.data, scripted.seen[-1].method, scripted.seen[-1].body) == ({}, name.upper(), b'{"a":null}')
        assert scripted.seen[-1].target == "/v1/x/?q=%C3%A4+b&n=1"
        assert scripted.seen[-1].headers["accept"] == "application/json"


def test_a_retry_without_a_predicate_repeats_404s_and_posts_and_waits_twice(scripted: Script) -> None:
    slept: list[float] = []

    @tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(1), sleep=slept.append)
    def naive(method: str) -> None:
        response = httpx2.request(method, scripted.url)
        if "Retry-After" in response.headers:
            slept.append(int(response.headers["Retry-After"]))
        response.raise_for_status()

    for method, status in (("GET", 404), ("POST", 503)):
        scripted.answer(status)
        with pytest.raises(tenacity.RetryError):
            naive(method)
    assert [seen.method for seen in scripted.seen] == ["GET"] * 3 + ["POST"] * 3
    slept.clear()
    scripted.answer(Answer(503, headers={"retry-after": "5"}), 200)
    naive("GET")
    assert slept == [5, 1]


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        *(("attempts", value, "a whole number of at least 1") for value in (0, -1, 1.0, True)),
        *(
            (name, value, "a number of seconds from 0")
            for name in ("base", "cap", "retry_after_cap")
            for value in (-0.1, float("inf"), float("nan"), True)
        ),
    ],
)
def test_a_policy_with_a_number_that_cannot_be_meant_is_refused(name: str, value: Any, what: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be {what}, got {value!r}$"):
        RetryPolicy(**{name: value})
    assert RetryPolicy(attempts=1, base=0, cap=0, retry_after_cap=0).attempts == 1


# --- How long it waits ----------------------------------------------------------------------------


def delay(value: str, now: float = 0.0, **options: Any) -> float | None:
    response = httpx2.Response(503, headers=[(b"retry-after", value.encode())])
    return steady(**options).delay(1, "GET", response, None, now)


NOW = 1_800_000_000.0
ORDINARY = 0.5 * 0.2


def test_retry_after_in_seconds_is_slept_and_never_less(client: Blocking, scripted: Script, clock: Clock) -> None:
    scripted.answer(Answer(429, headers={"retry-after": "2"}), Answer(503, headers={"retry-after": "3"}), 200)
    client.get("x")
    assert clock.pauses == [2 + ORDINARY, 3 + ORDINARY]
    for rng, most in ((0.0, 2.0), (0.999, 2.2)):
        answer = httpx2.Response(429, headers={"retry-after": "2"})
        wait = RetryPolicy(rng=lambda rng=rng: rng).delay(1, "GET", answer, None, NOW)  # type: ignore[misc]
        assert wait is not None
        assert 2.0 <= wait <= most


def test_retry_after_as_a_date_is_slept_until_then(client: Blocking, scripted: Script, clock: Clock) -> None:
    scripted.answer(
        lambda seen: Answer(
            503, headers={"retry-after": email.utils.formatdate(kit.time_of_day(clock) + 30, usegmt=True)}
        ),
        Answer(),
    )
    client.get("x", total=60)
    assert 29 <= clock.pauses[0] <= 31
    assert len(clock.pauses) == 1


@pytest.mark.parametrize(
    "date", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
)
@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_all_three_forms_of_a_date_are_understood_as_utc(date: str, zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert delay(date, now=784_111_777 - 30) == pytest.approx(30 + ORDINARY)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("value", ["0", "00", "Sun, 06 Nov 1994 08:49:37 GMT"])
def test_a_moment_that_has_passed_means_the_ordinary_delay(value: str) -> None:
    assert delay(value, now=784_111_777) == ORDINARY
    passed = httpx2.Response(503, headers={"retry-after": value})
    assert steady().delay(3, "GET", passed, None, 784_111_777) == 0.5 * 0.8
    assert policy.retry_after(passed, 784_111_777) is None


@pytest.mark.parametrize(
    "value",
    [
        *("abc", "-5", "1.5", "1e3", "+5", "1_0", "٣", "۵", "", "5s", "2, 3", "1" * 10, "9" * 5000),
        *("Sun, 99 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 +9999999999"),
        "6 Nov 9999999999999999999999 08:49:37 GMT",
    ],
)
def test_a_retry_after_that_makes_no_sense_is_ignored(value: str) -> None:
    assert delay(value, now=784_111_777 - 30) == ORDINARY


def test_int_crashes_on_a_date_and_takes_what_is_no_number_of_seconds() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        int("Sun, 06 Nov 1994 08:49:37 GMT")
    assert [int("٣"), int("+5"), int("1_0"), int("-5")] == [3, 5, 10, -5]


@pytest.mark.parametrize("asked", ["61", "999999999"])
def test_a_wait_above_the_cap_is_raised_at_once(client: Blocking, scripted: Script, clock: Clock, asked: str) -> None:
    scripted.answer(Answer(429, headers={"retry-after": asked}))
    error = failure(lambda: client.get("x", total=1e12), policy.RateLimited)
    assert (error.retry_after, error.retryable) == (float(asked), True)
    assert (clock.pauses, len(scripted.seen)) == ([], 1)


def test_a_wait_equal_to_the_cap_is_slept() -> None:
    assert delay("60") == 60 + ORDINARY
    assert delay("60", retry_after_cap=59.0) is None


def test_a_wait_that_ends_after_the_total_is_raised_at_once(color: Color, scripted: Script, clock: Clock) -> None:
    scripted.answer(Answer(503, headers={"retry-after": "2"}))
    client = client_of(color, f"{scripted.url}/v1", clock=clock, retry=steady(base=0.25), total=2.125)
    assert failure(lambda: client.get("x"), policy.ServerError).retry_after == 2.0  # it would end with the total
    assert (clock.pauses, len(scripted.seen)) == ([], 1)
    failure(lambda: client.get("x", total=2.25), policy.ServerError)
    assert (clock.pauses, len(scripted.seen)) == ([2.125], 3)  # the second wait would not fit
    failure(lambda: client.get("x", total=None), policy.ServerError)
    assert len(scripted.seen) == 4


@settings(max_examples=examples(60), deadline=None)
@given(
    attempt=st.integers(1, 5000),
    draw=st.floats(0, 1, exclude_max=True),
    base=st.floats(0.001, 5),
    cap=st.floats(0.001, 100),
)
def test_a_random_delay_is_between_nothing_and_its_bound(attempt: int, draw: float, base: float, cap: float) -> None:
    retry = RetryPolicy(attempts=10_000, base=base, cap=cap, rng=lambda: draw)
    wait = retry.delay(attempt, "GET", httpx2.ReadTimeout(""), None, NOW)
    bound = min(cap, base * 2.0 ** (attempt - 1)) if attempt < 900 else cap
    assert wait == draw * bound


def test_the_default_policy_is_what_the_page_says() -> None:
    retry = RetryPolicy()
    assert (retry.attempts, retry.base, retry.cap, retry.retry_after_cap) == (4, 0.2, 10.0, 60.0)
    assert retry.statuses == set(BUSY)
    assert retry.methods == {"GET", "HEAD", "OPTIONS", "PUT", "DELETE"}
    assert 0 <= retry.rng() < 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        retry.attempts = 99  # type: ignore[misc]
    for made in (AsyncRestClient, RestClient):
        defaults = inspect.signature(made).parameters
        assert (defaults["total"].default, defaults["timeout"].default) == (30.0, 5.0)
        assert defaults["clock"].default is time.monotonic
        assert defaults["now"].default is time.time
    assert inspect.signature(RestClient).parameters["sleep"].default is time.sleep
    assert inspect.signature(AsyncRestClient).parameters["sleep"].default is asyncio.sleep


# --- What a call returns --------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [Answer(204, b""), Answer(200, b""), Answer(304, b"")], ids=["204", "200", "304"])
def test_an_empty_body_gives_none(client: Blocking, scripted: Script, answer: Answer) -> None:
    scripted.answer(answer)
    response = client.get("x", headers={"If-None-Match": '"a"'})
    assert (response.status, response.data) == (answer.status, None)
    assert response.headers["content-type"] == "application/json"


def test_html_under_status_200_is_a_decode_error_with_its_first_bytes(client: Blocking, scripted: Script) -> None:
    html = b"<html>Log in" + b"." * 500
    scripted.answer(Answer(200, html, {"content-type": "text/html", "x-request-id": "r-1"}))
    error = failure(lambda: client.get("x"), policy.DecodeError)
    assert (error.status, error.excerpt, error.request_id, error.retryable) == (200, html[:200], "r-1", False)
    assert "which is no JSON" in str(error)
    assert len(scripted.seen) == 1


@pytest.mark.parametrize(
    "body", [b'{"id": 7', b"{", b"\xff\xfe\xfa", '{"name": "Zoë"}'.encode("latin-1"), b"[" * 200_000, b" "]
)
def test_json_that_is_truncated_or_in_a_wrong_charset_is_a_decode_error(
    client: Blocking, scripted: Script, body: bytes
) -> None:
    scripted.answer(Answer(200, body, {"content-type": "application/json; charset=iso-8859-1"}))
    assert failure(lambda: client.get("x"), policy.DecodeError).excerpt == body[:200]


def test_a_charset_that_the_header_has_wrong_changes_nothing(client: Blocking, scripted: Script) -> None:
    scripted.answer(Answer(200, '{"name": "Zoë"}'.encode(), {"content-type": "application/json; charset=utf-16"}))
    assert client.get("x").data == {"name": "Zoë"}


def test_a_broken_compression_is_a_decode_error(client: Blocking, scripted: Script) -> None:
    scripted.answer(Answer(200, b"no gzip", {"content-encoding": "gzip"}))
    error = failure(lambda: client.get("x"), policy.DecodeError)
    assert (error.retryable, error.__cause__, len(scripted.seen)) == (False, None, 1)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"code": "no_such_user"}, "no_such_user"),
        ({"error": "invalid_grant"}, "invalid_grant"),
        ({"error": {"code": "card_declined", "message": "..."}}, "card_declined"),
        ({"error": {"message": "..."}}, None),
        ({"code": 42}, None),
        ({"code": "two words"}, None),
        ({"code": "x" * 100}, "x" * 100),
        ({"code": "x" * 101}, None),
        (["code"], None),
        (b"<html>", None),
        (b"[" * 200_000, None),
    ],
)
def test_the_code_of_the_api_is_taken_from_its_json(client: Blocking, scripted: Script, body: Any, code: Any) -> None:
    scripted.answer(Answer(402, body, {"x-request-id": "req 1"}))
    error = failure(lambda: client.get("x"), policy.ClientError)
    assert (error.code, error.request_id) == (code, None)


def test_without_looking_at_the_status_an_error_is_taken_for_data(scripted: Script, client: Blocking) -> None:
    scripted.answer(Answer(500, {"error": "internal"}))
    assert httpx2.get(scripted.url).json() == {"error": "internal"}
    assert failure(lambda: client.get("x"), policy.ServerError).code == "internal"


def test_every_error_is_an_api_error_and_survives_a_queue() -> None:
    kinds = [kind for kind in vars(policy).values() if isinstance(kind, type) and issubclass(kind, ApiError)]
    assert len(kinds) == 9
    for kind in kinds:
        facts: dict[str, Any] = {"status": 503, "code": "c", "retryable": True, "retry_after": 2.0}
        error = pickle.loads(pickle.dumps(kind("text", request_id="r", excerpt=b"e", **facts)))
        assert (type(error), str(error), error.request_id, error.excerpt) == (kind, "text", "r", b"e")
        assert {name: getattr(error, name) for name in facts} == facts
    bare = ApiError("text")
    assert (bare.status, bare.code, bare.retryable, bare.retry_after, bare.request_id) == (
        None,
        None,
        False,
        None,
        None,
    )
    assert bare.excerpt == b""
