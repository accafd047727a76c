"""Proves docs/patterns/webhooks/webhook-sender.md: signed, bounded, nowhere else, and when it is sent again."""

from __future__ import annotations

import asyncio
import inspect
import ipaddress
import json
import logging
import math
import random
import socket
import traceback
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from harness.depth import examples
from harness.fake_loop import on_fake_time
from patterns.webhooks.webhook_sender_kit import KEY, METADATA, OLD_KEY, Customer, Guarded
from sender_policy import EndpointUrlRefused, check_url, next_delay, seconds_of
from servers.faults import FaultProxy
from servers.http import Uvicorn
from webhook_sender import Attempt, Due, Endpoint, Message, Outcome, WebhookSender
from webhook_signature import sign

NOW = 1_800_000_000.0
BODY = b'{"type" : "invoice.paid",  "amount": 1e2}'  # spaces and all
MESSAGE = Message("msg_1", "invoice.paid", BODY)


def middle(low: float, high: float) -> float:
    return (low + high) / 2


class MemoryLog:
    def __init__(self, due: Sequence[Due] = ()) -> None:
        self.due = list(due)
        self.recorded: list[tuple[Due, Attempt, float]] = []
        self.claims: list[tuple[int, float, float]] = []
        self.disables = False
        self.error: Exception | None = None

    async def claim(self, limit: int, *, now: float, lease: float) -> Sequence[Due]:
        self.claims.append((limit, now, lease))
        taken, self.due = self.due[:limit], self.due[limit:]
        return taken

    async def record(self, due: Due, attempt: Attempt, *, now: float) -> bool:
        if self.error:
            raise self.error
        self.recorded.append((due, attempt, now))
        return self.disables


@pytest.fixture(scope="module")
def customer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Customer]:
    made = Customer(tmp_path_factory.mktemp("tls"))
    yield made
    made.stop()


def sender_of(http: httpx2.AsyncClient, log: MemoryLog | None = None, **options: Any) -> WebhookSender:
    return WebhookSender(http, log or MemoryLog(), sign, **{"clock": lambda: NOW, "rng": middle, **options})


async def attempt(customer: Customer, path: str, n: int = 1, **options: Any) -> Attempt:
    secrets = options.pop("secrets", (KEY,))
    url = options.pop("url", customer.url)
    async with customer.client() as http:
        sender = sender_of(http, **{"timeout": 5, **options})
        return await sender.attempt(Endpoint("ep_1", f"{url}/{path}", secrets), MESSAGE, n)


# What is sent.


async def test_every_attempt_is_accepted_by_standardwebhooks_with_either_secret(customer: Customer) -> None:
    customer.got.clear()
    times = iter([1_900_000_000.9, 1_900_000_100.0, 1_900_000_300.0, 1_900_000_300.0])
    for n in (1, 2):
        outcome = (await attempt(customer, "204", n, secrets=(KEY, OLD_KEY), clock=lambda: next(times))).outcome
        assert outcome is Outcome.DELIVERED
    seen = [headers for _, headers, _ in customer.got]
    assert [headers["webhook-id"] for headers in seen] == ["msg_1"] * 2
    assert [headers["webhook-timestamp"] for headers in seen] == ["1900000000", "1900000100"]
    assert {len(headers["webhook-signature"].split()) for headers in seen} == {2}
    for _, headers, body in customer.got:
        now = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
        for key in (KEY, OLD_KEY):
            signed = Webhook(key).sign("msg_1", now, body.decode())
            assert signed in headers["webhook-signature"].split()


async def test_an_attempt_made_now_verifies_with_standardwebhooks_as_it_is(customer: Customer) -> None:
    import time

    customer.got.clear()
    await attempt(customer, "204", clock=time.time)
    _, headers, body = customer.got[0]
    Webhook(KEY).verify(body, headers, json_parse=False)  # it raises what it refuses
    assert headers["content-type"] == "application/json"


async def test_the_bytes_that_are_signed_are_the_bytes_that_are_sent(customer: Customer) -> None:
    customer.got.clear()
    await attempt(customer, "204", user_agent="Shop-Webhooks/2")
    _, headers, body = customer.got[0]
    assert body == BODY
    assert (headers["user-agent"], headers["accept-encoding"]) == ("Shop-Webhooks/2", "identity")


# What comes next.


async def test_only_2xx_is_success(customer: Customer) -> None:
    for status in (200, 201, 204, 299):
        got = await attempt(customer, str(status))
        assert (got.status, got.outcome, got.retry_at) == (status, Outcome.DELIVERED, None)
    for status in (300, 304, 307, 400, 404, 500, 503):
        got = await attempt(customer, str(status))
        assert (got.status, got.outcome, got.retry_at) == (status, Outcome.WAITING, NOW + 5)


async def test_410_ends_it_and_the_tenth_failure_is_the_last(customer: Customer) -> None:
    assert (await attempt(customer, "410")).outcome is Outcome.GONE
    waits = []
    for n in range(1, 10):
        got = await attempt(customer, "500", n)
        assert got.retry_at is not None
        waits.append(got.retry_at - NOW)
    minute, hour = 60, 3_600
    assert waits == [5, 5 * minute, 30 * minute, *(h * hour for h in (2, 5, 10, 14, 20, 24))]
    last = await attempt(customer, "500", 10)
    assert (last.outcome, last.retry_at) == (Outcome.EXHAUSTED, None)


def test_the_jitter_is_a_tenth_either_way_and_no_more() -> None:
    assert next_delay(1, None, lambda low, high: low) == 4.5
    assert next_delay(9, None, lambda low, high: high) == pytest.approx(86_400 * 1.1)
    drawn = {next_delay(2, None, random.Random(n).uniform) for n in range(50)}
    assert len(drawn) == 50
    assert all(delay is not None and 270 <= delay <= 330 for delay in drawn)
    assert next_delay(1, None) is not None  # and by default it is really drawn


async def test_retry_after_is_honored_when_later_and_never_beyond_a_day(customer: Customer) -> None:
    date = format_datetime(datetime.fromtimestamp(NOW, UTC) + timedelta(minutes=10), usegmt=True)
    past = format_datetime(datetime.fromtimestamp(NOW, UTC) - timedelta(minutes=10), usegmt=True)
    for status, after, expected in [
        (429, "120", 120),
        (503, "120", 120),
        (503, date, 600),
        (503, past, 5),
        (503, "1", 5),
        (429, "99999999", 86_400),
        (500, "120", 5),
        (404, "120", 5),
        *(
            (503, nonsense, 5)
            for nonsense in ("soon", "-7", "1e3", "nan", "1.5", "12345678901", "٣", "Mon, 99 Foo 2026")
        ),
    ]:
        got = await attempt(customer, f"{status}?after={httpx2.QueryParams({'x': after})}".replace("x=", "", 1))
        assert got.retry_at == NOW + expected, (status, after)
    assert next_delay(10, 120, middle) is None  # the last is the last


@given(st.one_of(st.none(), st.text(max_size=40), st.integers().map(str)))
@settings(max_examples=examples(50), deadline=None, database=None)
def test_whatever_a_retry_after_says_it_is_a_number_or_nothing(text: str | None) -> None:
    seconds = seconds_of(text, NOW)
    assert seconds is None or isinstance(seconds, float)
    delay = next_delay(1, seconds, middle)
    assert delay is not None
    assert 5 <= delay <= 86_400


# Bounds.


async def test_a_receiver_that_hangs_costs_the_timeout_and_is_tried_again(customer: Customer) -> None:
    async with asyncio.timeout(60):  # the server would never answer
        got = await attempt(customer, "hang", timeout=0.05)
    assert (got.status, got.outcome) == (None, Outcome.WAITING)
    assert got.excerpt.endswith("Timeout") or got.excerpt == "TimeoutError"


async def test_a_dripping_answer_is_cut_and_its_status_counts(customer: Customer) -> None:
    async with asyncio.timeout(60):  # the server would drip for a quarter of an hour
        got = await attempt(customer, "drip", timeout=0.4)
    assert (got.status, got.outcome) == (200, Outcome.DELIVERED)
    assert set(got.excerpt) <= {"."}


async def test_of_an_endless_answer_64_kib_are_read_and_one_kept(customer: Customer) -> None:
    customer.sent = 0
    got = await attempt(customer, "flood")
    assert (got.outcome, got.excerpt) == (Outcome.DELIVERED, "\ufffd" * 1_024)
    assert customer.sent < 20_000_000  # what the buffers on the way took
    assert len((await attempt(customer, "500")).excerpt) == 1_024
    assert (await attempt(customer, "500")).excerpt.startswith("thanksthanks")


async def test_a_gzip_bomb_is_not_unpacked(customer: Customer) -> None:
    got = await attempt(customer, "bomb")
    assert got.outcome is Outcome.DELIVERED
    assert len(got.excerpt) <= 1_024


async def test_a_reset_or_a_refused_connection_is_a_failure_like_any_other(
    customer: Customer, fault_proxy: type[FaultProxy]
) -> None:
    proxy = fault_proxy("127.0.0.1", customer.port)
    for fault in ({"refuse": True}, {"cut_after": 100}):
        for name, value in fault.items():
            setattr(proxy, name, value)
        got = await attempt(customer, "204", url=f"https://localhost:{proxy.port}")
        assert (got.status, got.outcome, got.retry_at) == (None, Outcome.WAITING, NOW + 5)
        assert got.excerpt.endswith("Error")
        proxy.heal()


async def test_a_certificate_of_another_name_or_of_nobody_is_a_failure_without_fallback(
    customer: Customer, tmp_path: Path
) -> None:
    other = Customer(tmp_path, "elsewhere.example")
    try:
        for http in (other.client(), customer.client()):  # the wrong name; and an authority that nobody knows
            async with http:
                got = await sender_of(http).attempt(Endpoint("ep_1", f"{other.url}/204", (KEY,)), MESSAGE, 1)
            assert (got.status, got.outcome, got.excerpt) == (None, Outcome.WAITING, "ConnectError")
        assert other.got == []
    finally:
        other.stop()


# Where it goes.


async def test_a_redirect_is_a_failure_and_not_followed(customer: Customer) -> None:
    async with customer.client(follow_redirects=True) as http:  # whatever the client prefers
        got = await sender_of(http).attempt(Endpoint("ep_1", f"{customer.url}/redirect", (KEY,)), MESSAGE, 1)
    assert (got.status, got.outcome) == (301, Outcome.WAITING)


def test_a_client_without_guard_with_proxies_or_with_credentials_is_refused() -> None:
    for client, reason in [
        (httpx2.AsyncClient(trust_env=False), "does not guard addresses"),
        (Guarded(), "obeys HTTPS_PROXY"),
        (Guarded(trust_env=False, auth=("user", "canary")), "its credentials"),
        (Guarded(trust_env=False, headers={"Authorization": "canary"}), "its credentials"),
        (Guarded(trust_env=False, headers={"Cookie": "canary"}), "its credentials"),
    ]:
        with pytest.raises(ValueError, match=reason) as caught:
            sender_of(client)
        assert "canary" not in str(caught.value)
    pretender = Guarded(trust_env=False)
    pretender.guards_addresses = "yes"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="does not guard"):
        sender_of(pretender)
    for timeout in (0, -1, math.nan, math.inf, True, "1"):
        with pytest.raises(ValueError, match=rf"^timeout must be a number of seconds over 0, got {timeout!r}$"):
            sender_of(Guarded(trust_env=False), timeout=timeout)


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example/",
        "ftp://a.example/",
        "//a.example/",
        "a.example",
        "https:a.example",
        "https:///path",
        "https://user@a.example/",
        "https://user:pw@a.example/",
        "https://@a.example/",
        "https://a.example\\@b.example/",
        "https://a.example/#fragment",
        "https://a.example/ path",
        "https://a.example/\r\nHost: b",
        "https://ä.example/",
        "https://a.example:80/",
        "https://a.example:1023/",
        "https://a.example:0/",
        "https://a.example:65536/",
        "https://[::1/",
        "https://:443/",
        "https://a.example/" + "x" * 2_031,
        "",
    ],
)
def test_an_address_of_another_form_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(EndpointUrlRefused) as caught:
        check_url(url)
    assert "example" not in str(caught.value)


def test_addresses_of_the_right_form_pass() -> None:
    for url in (
        "https://a.example",
        "HTTPS://a.example:443/hooks?token=x&to=a@b",
        "https://a.example:1024/",
        "https://a.example:65535/",
        "https://[2001:db8::1]:8443/",
        "https://xn--exmple-cua.com/",
        "https://a.example/" + "x" * 2_030,
    ):
        check_url(url)  # it raises what it refuses
        with pytest.raises(EndpointUrlRefused):
            check_url(url + "\n")


async def test_a_refused_address_is_checked_at_each_attempt_and_nothing_is_sent(customer: Customer) -> None:
    customer.got.clear()
    async with customer.client() as http:
        log = MemoryLog([Due(Endpoint("ep_1", f"http://localhost:{customer.port}/204", (KEY,)), MESSAGE, 3)])
        sender = sender_of(http, log)
        with pytest.raises(EndpointUrlRefused):
            await sender.attempt(log.due[0].endpoint, MESSAGE, 1)
        assert await sender.run_due() == 1
    [(_, got, _)] = log.recorded
    assert (got.status, got.outcome, got.retry_at) == (None, Outcome.REFUSED, None)
    assert got.excerpt.startswith("the URL must be https")
    assert customer.got == []


async def test_cookies_of_one_customer_are_not_kept_for_the_next(customer: Customer) -> None:
    customer.got.clear()
    async with customer.client() as http:
        sender = sender_of(http)
        for _ in range(2):
            await sender.attempt(Endpoint("ep_1", f"{customer.url}/200", (KEY,)), MESSAGE, 1)
        assert not http.cookies
    assert not any("cookie" in headers for _, headers, _ in customer.got)


# Many at once.


@on_fake_time
async def test_of_a_thousand_endpoints_a_hundred_dead_ones_delay_nobody() -> None:
    loop = asyncio.get_running_loop()
    delivered: list[float] = []

    async def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.host.startswith("dead"):
            await asyncio.sleep(3_600)
        delivered.append(loop.time())
        return httpx2.Response(204)

    kinds = ["dead" if n % 10 == 0 else "alive" for n in range(1_000)]
    due = [Due(Endpoint(str(n), f"https://{k}{n}.example/", (KEY,)), MESSAGE, 1) for n, k in enumerate(kinds)]
    async with Guarded(transport=httpx2.MockTransport(answer), trust_env=False) as http:
        log = MemoryLog(due)
        assert await sender_of(http, log).run_due(2_000) == 1_000
    assert (len(delivered), set(delivered), loop.time()) == (900, {0.0}, 15.0)
    ended = [attempt.outcome for _, attempt, _ in log.recorded]
    assert (ended.count(Outcome.DELIVERED), ended.count(Outcome.WAITING)) == (900, 100)
    assert log.claims == [(2_000, NOW, 45.0)]


async def test_run_due_records_tells_once_and_survives_a_log_that_fails(
    customer: Customer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    told: list[str] = []

    async def tell(endpoint: Endpoint) -> None:
        told.append(endpoint.id)

    endpoint = Endpoint("ep_1", f"{customer.url}/410", (KEY,))
    async with customer.client() as http:
        log = MemoryLog([Due(endpoint, MESSAGE, 4), Due(endpoint, replace(MESSAGE, id="msg_2"), 1)])
        sender = sender_of(http, log, disabled=tell)
        log.disables = True
        assert await sender.run_due(1) == 1
        log.disables = False
        assert await sender.run_due() == 1
        assert await sender.run_due() == 0
        assert [claim[0] for claim in log.claims] == [1, 50, 50]
        assert (told, [a.outcome for _, a, _ in log.recorded]) == (["ep_1"], [Outcome.GONE] * 2)
        assert [now for _, _, now in log.recorded] == [NOW, NOW]
        assert "msg_1 to ep_1: attempt 4, gone" in caplog.text
        log.due, log.error = [Due(endpoint, MESSAGE, 1), Due(endpoint, MESSAGE, 2)], ConnectionError("canary")
        assert await sender.run_due() == 2
        log.due, log.error, log.disables = [Due(endpoint, MESSAGE, 1)], None, True
        await sender_of(http, log).run_due()  # nobody wants to be told
        log.due = [Due(replace(endpoint, secrets=()), MESSAGE, 1)]
        await sender.run_due()
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert errors == [
        *["a delivery was not attempted or not recorded: ConnectionError"] * 2,
        "a delivery was not attempted or not recorded: SecretError",
    ]


# Settings and secrets.


def test_timeout_and_user_agent_come_from_the_environment() -> None:
    http, log = Guarded(trust_env=False), MemoryLog()

    async def tell(endpoint: Endpoint) -> None: ...

    made = WebhookSender.from_env(http, log, sign, environ={}, disabled=tell)
    assert (made._timeout, made._headers["user-agent"], made._disabled) == (15, "Webhooks/1.0", tell)
    environ = {"WEBHOOK_SENDER_TIMEOUT": "7.5", "WEBHOOK_USER_AGENT": "Shop/1"}
    made = WebhookSender.from_env(http, log, sign, environ=environ)
    assert (made._timeout, made._headers["user-agent"]) == (7.5, "Shop/1")
    for text in ("soon", "-1", "1e3", "nan", "10000"):
        with pytest.raises(ValueError, match=rf"^WEBHOOK_SENDER_TIMEOUT must be a number of seconds, got {text!r}$"):
            WebhookSender.from_env(http, log, sign, environ={"WEBHOOK_SENDER_TIMEOUT": text})


async def test_no_secret_address_or_payload_is_in_any_repr_log_line_or_error(
    customer: Customer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "webhook_sender")
    key = b"canary-secret-" + b"x" * 18
    endpoint = Endpoint("ep_1", f"{customer.url}/500?token=canary-token", (key,))
    message = Message("msg_1", "paid", b"canary-payload")
    seen = [repr(endpoint), repr(message), repr(Due(endpoint, message, 1))]
    async with customer.client() as http:
        log = MemoryLog([Due(endpoint, message, 1), Due(replace(endpoint, url="http://canary"), message, 1)])
        sender = sender_of(http, log)
        await sender.run_due()
        seen += [repr(log.recorded), repr(sender), *(a.excerpt for _, a, _ in log.recorded)]
        log.due, log.error = [Due(replace(endpoint, url=f"{customer.url}/204"), message, 1)], OSError("canary")
        await sender.run_due()
        with pytest.raises(EndpointUrlRefused) as caught:
            await sender.attempt(replace(endpoint, url="http://canary"), message, 1)
        seen.append("".join(traceback.format_exception(caught.value)).replace('"http://canary"', ""))
        assert key.decode() not in str(customer.got)
    formatted = "".join(logging.Formatter().format(r) for r in caplog.records if r.name == "webhook_sender")
    assert "attempt 1, waiting" in formatted
    assert "canary" not in "".join(seen) + formatted


# What people write first.


async def test_naive_check_of_the_host_name_is_passed_and_then_it_leads_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reached: list[str] = []

    async def internal(request: Request) -> Response:
        reached.append(request.headers["host"])
        return Response()

    server = Uvicorn(Starlette(routes=[Route("/", internal, methods=["POST"])]))
    real, answers = socket.getaddrinfo, iter(["93.184.216.34"])

    def rebinding(host: Any, *args: Any, **options: Any) -> Any:
        if host in ("rebind.example", b"rebind.example"):
            host = next(answers, "127.0.0.1")  # the first answer is public, the next is not
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    try:
        address = socket.getaddrinfo("rebind.example", server.port)[0][4][0]
        assert ipaddress.ip_address(address).is_global  # checked, and found harmless
        async with httpx2.AsyncClient(trust_env=False) as client:
            await client.post(f"http://rebind.example:{server.port}/")
            assert reached == [f"rebind.example:{server.port}"]
            with pytest.raises(ValueError, match="does not guard addresses"):
                sender_of(client)
    finally:
        server.stop()


async def test_naive_client_follows_a_redirect_into_the_network() -> None:
    reached: list[str] = []

    async def hook(request: Request) -> Response:
        return RedirectResponse("/internal", 302)

    async def internal(request: Request) -> Response:
        reached.append("the metadata of the machine")
        return Response()

    server = Uvicorn(Starlette(routes=[Route("/hook", hook, methods=["POST"]), Route("/internal", internal)]))
    try:
        async with httpx2.AsyncClient(trust_env=False, follow_redirects=True) as client:
            assert (await client.post(f"{server.url}/hook")).status_code == 200
    finally:
        server.stop()
    assert reached
    assert METADATA.startswith("http://169.254.")


async def test_naive_signature_of_other_bytes_than_are_sent_is_refused() -> None:
    payload = {"amount": 1, "name": "ä"}
    sent: list[bytes] = []

    async def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(await request.aread())
        return httpx2.Response(204)

    import time

    headers = sign(json.dumps(payload).encode(), [KEY], msg_id="msg_1", timestamp=int(time.time()))
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as client:
        await client.post("https://a.example/", json=payload, headers=headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(KEY).verify(sent[0], headers, json_parse=False)


def test_naive_timestamp_of_the_first_attempt_is_refused_at_the_third() -> None:
    import time

    headers = sign(BODY, [KEY], msg_id="msg_1", timestamp=int(time.time()) - 5 - 300)
    with pytest.raises(WebhookVerificationError, match="too old"):
        Webhook(KEY).verify(BODY, headers, json_parse=False)


async def test_naive_timeout_of_each_read_never_ends_a_drip(customer: Customer) -> None:
    async with customer.client(timeout=httpx2.Timeout(10, read=0.3)) as http:
        with pytest.raises(TimeoutError):  # the test's own patience, not the client's
            async with asyncio.timeout(0.7):
                await http.post(f"{customer.url}/drip")


async def test_naive_client_sends_everything_through_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.append(dict(scope["headers"])[b"host"].decode())
            await Response()(scope, receive, send)

    server = Uvicorn(proxy, lifespan="off")
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    try:
        async with httpx2.AsyncClient() as client:
            await client.post("http://customer.example/")
    finally:
        server.stop()
    assert seen == ["customer.example"]


async def test_naive_reading_of_an_answer_takes_all_of_it() -> None:
    async def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=bytes(5_000_000))

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as client:
        assert len((await client.post("https://a.example/")).content) == 5_000_000


def test_naive_new_id_for_each_retry_is_a_new_event_for_the_receiver() -> None:
    booked: dict[str, int] = {}
    for _ in range(2):
        booked.setdefault(f"msg_{uuid.uuid4().hex}", 100)
    assert sum(booked.values()) == 200


def test_what_is_handed_over_cannot_be_changed() -> None:
    records: tuple[Any, ...] = (Endpoint, Message, Attempt, Due)
    for record in records:
        assert record.__dataclass_params__.frozen
        assert "__slots__" in vars(record)


def test_the_defaults_are_those_that_the_docstrings_promise() -> None:
    parameters = inspect.signature(WebhookSender.__init__).parameters
    assert [parameters[name].default for name in ("timeout", "user_agent")] == [15, "Webhooks/1.0"]
    assert inspect.signature(WebhookSender.run_due).parameters["limit"].default == 50
    assert Endpoint("ep_1", "https://a.example/", ()).enabled is True
