"""Proves docs/patterns/security/security-headers.md: headers on every response, a nonce for each page."""

from __future__ import annotations

import asyncio
import base64
import contextvars
import dataclasses
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.testclient import TestClient

from cors_middleware import wrap
from patterns.security.security_headers_app import ask, build, parse, values
from security_headers import CSP, Policy, PolicyError, SecurityHeaders, csp_nonce
from servers.http import Uvicorn

ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "strict-origin-when-cross-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
PLAIN = "default-src 'self'; script-src 'strict-dynamic'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    folder: Path = tmp_path_factory.mktemp("static")
    (folder / "a.css").write_text("p {}")
    return build(folder)


@pytest.fixture(scope="module")
def port(app: FastAPI) -> Iterator[int]:
    policy = Policy(overrides={"/docs": {"content-security-policy": "default-src 'self' https://cdn.example"}})
    asgi: Any = wrap(app, policy)
    server = Uvicorn(
        asgi, log_level="critical", server_header=False, proxy_headers=True, forwarded_allow_ips="127.0.0.1"
    )
    yield server.port
    server.stop()


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/json", "GET", 200),
        ("/json", "HEAD", 405),
        ("/status/204", "GET", 204),
        ("/status/304", "GET", 304),
        ("/status/401", "GET", 401),
        ("/status/403", "GET", 403),
        ("/nowhere", "GET", 404),
        ("/json", "POST", 405),
        ("/json?number=x", "GET", 422),
        ("/boom", "GET", 500),
        ("/redirect", "GET", 307),
        ("/static/a.css", "GET", 200),
        ("/static/none.css", "GET", 404),
        ("/json", "OPTIONS", 200),
        ("/cut", "GET", 200),
    ],
)
def test_every_response_has_every_header_once(port: int, path: str, method: str, status: int) -> None:
    got, headers, _ = ask(port, path, method=method)
    assert got == status
    for name, value in ALWAYS.items():
        assert values(headers, name) == [value]
    assert values(headers, "content-security-policy") == [PLAIN]
    for absent in ("server", "x-powered-by", "x-xss-protection", "strict-transport-security", "reporting-endpoints"):
        assert values(headers, absent) == []


def test_naive_add_middleware_sits_inside_the_error_handler_and_misses_the_500() -> None:
    app = FastAPI()
    app.add_middleware(SecurityHeaders)

    @app.get("/boom")
    async def boom() -> None:
        raise RuntimeError("unhandled")

    inside = TestClient(app, raise_server_exceptions=False)
    outside = TestClient(SecurityHeaders(app), raise_server_exceptions=False)
    assert "content-security-policy" in inside.get("/nowhere").headers
    assert inside.get("/boom").status_code == outside.get("/boom").status_code == 500
    assert "content-security-policy" not in inside.get("/boom").headers
    assert "content-security-policy" in outside.get("/boom").headers


def test_a_page_that_asks_gets_a_nonce_that_is_in_its_header_and_in_no_cache(port: int) -> None:
    _, headers, body = ask(port, "/page")
    nonce = re.fullmatch(rb'<script nonce="([A-Za-z0-9+/]{22}==)">True</script>', body)
    assert nonce
    assert len(base64.b64decode(nonce[1])) == 16
    script = f"script-src 'nonce-{nonce[1].decode()}' 'strict-dynamic'"
    rest = "object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
    assert values(headers, "content-security-policy") == [f"default-src 'self'; {script}; {rest}"]
    assert values(headers, "cache-control") == ["no-store"]  # though the route said public
    assert (values(headers, "age"), values(headers, "x-other")) == (["1"], ["2"])
    assert values(ask(port, "/own")[1], "cache-control") == ["public"]


Pair = tuple[bytes, bytes]


def run(app: Any, **scope: Any) -> list[Pair]:
    """Call an ASGI application without a server, and return the response's headers."""
    found: list[Pair] = []

    async def send(message: Any) -> None:
        found.extend(message.get("headers", []))

    async def receive() -> Any:
        raise AssertionError("nobody reads the body")

    call = app({"type": "http", "method": "GET", "path": "/", "scheme": "http", "headers": []} | scope, receive, send)
    with pytest.raises(StopIteration):
        call.send(None)
    return found


def test_a_thousand_responses_have_a_thousand_nonces() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        given.append(csp_nonce(scope))
        await send({"type": "http.response.start", "status": 200})

    given: list[str] = []
    wrapped = SecurityHeaders(app)
    for _ in range(1_000):
        headers = dict(run(wrapped))
        assert f"'nonce-{given[-1]}'".encode() in headers[b"content-security-policy"]
    assert len(set(given)) == 1_000


def test_ten_thousand_responses_of_any_kind_have_the_headers() -> None:
    rng = random.Random(5)
    inner: list[Pair] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if rng.random() < 0.3:
            csp_nonce(scope)
        await send({"type": "http.response.start", "status": rng.randrange(200, 600), "headers": inner})

    wrapped = wrap(app, Policy(), origins=["https://a.example"])
    names = [b"Content-Type", b"SERVER", b"x-frame-options", b"Vary", b"referrer-policy", b"Content-Security-Policy"]
    for _ in range(10_000):
        inner = [(rng.choice(names), b"x") for _ in range(rng.randrange(3))]
        path = "/" + "".join(rng.choice("ab/.%") for _ in range(rng.randrange(5)))
        found = [name.lower() for name, _ in run(wrapped, path=path)]
        assert set(found) >= {b"content-security-policy", *(name.encode() for name in ALWAYS)}
        assert b"server" not in found


def test_naive_nonce_of_the_start_is_a_password_in_clear() -> None:
    with pytest.raises(PolicyError, match="a fixed one protects nothing"):
        Policy(csp="script-src 'nonce-r4nd0m'")
    with pytest.raises(PolicyError, match="a fixed one protects nothing"):
        Policy(csp="script-src {nonce}")
    assert Policy(overrides={"/x": {"A-Note": "{nonce}", "X-Note": "'nonce-1'"}})  # of a CSP only
    with pytest.raises(dataclasses.FrozenInstanceError):
        Policy().csp = ""  # type: ignore[misc]
    with pytest.raises(PolicyError, match="a fixed one protects nothing"):
        Policy(overrides={"/x": {"Content-Security-Policy": "script-src 'nonce-r4nd0m'"}})


@pytest.mark.parametrize("csp", ["script-src 'nonce-{nonce}'", "script-src 'self' 'nonce-{nonce}'; img-src *"])
def test_a_page_without_a_nonce_has_no_placeholder_in_its_header(csp: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    value = dict(run(SecurityHeaders(app, Policy(csp=csp))))[b"content-security-policy"]
    assert value == (csp.replace(" 'nonce-{nonce}'", "") + "; frame-ancestors 'none'").encode()


def test_a_nonce_is_asked_for_before_the_response_begins_and_inside_the_middleware(port: int) -> None:
    assert b"asked after the response began" in ask(port, "/late")[2]
    with pytest.raises(PolicyError, match="no SecurityHeaders around this"):
        csp_nonce({"type": "http"})
    state: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        before = csp_nonce(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        state["same"] = csp_nonce(scope) == before

    run(SecurityHeaders(app))
    assert state == {"same": True}


def test_hsts_is_sent_over_https_only_as_a_trusted_proxy_tells_it(port: int) -> None:
    _, headers, _ = ask(port, "/json", "X-Forwarded-Proto: https")
    assert values(headers, "strict-transport-security") == ["max-age=63072000; includeSubDomains"]
    assert values(ask(port, "/json")[1], "strict-transport-security") == []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    off = SecurityHeaders(app, Policy(hsts_max_age=0))
    assert b"strict-transport-security" not in dict(run(off, scheme="https"))
    short = SecurityHeaders(app, Policy.from_env({"HSTS_MAX_AGE": "60"}))
    assert dict(run(short, scheme="https"))[b"strict-transport-security"] == b"max-age=60; includeSubDomains"


def test_a_header_that_the_route_set_is_kept_and_never_doubled(port: int) -> None:
    _, headers, _ = ask(port, "/own")
    assert values(headers, "content-security-policy") == ["default-src 'none'"]
    assert values(headers, "referrer-policy") == ["no-referrer"]
    assert values(headers, "x-content-type-options") == ["nosniff"]
    for absent in ("server", "x-powered-by", "x-xss-protection"):
        assert values(headers, absent) == []
    assert values(ask(port, "/xss-zero")[1], "x-xss-protection") == ["0"]
    for value in (b"", b"1", b"00", b"-1"):

        async def app(scope: Any, receive: Any, send: Any, value: bytes = value) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x-xss-protection", value)]})

        assert b"x-xss-protection" not in dict(run(SecurityHeaders(app)))


def test_an_override_holds_for_its_prefix_and_the_longest_wins() -> None:
    policy = Policy(
        overrides={
            "/docs": {"content-security-policy": "default-src 'self' https://cdn.example"},
            "/docs/deep/": {"Content-Security-Policy": None, "X-Extra": "1"},
        }
    )
    assert policy.headers("/docs")["content-security-policy"] == "default-src 'self' https://cdn.example"
    assert policy.headers("/docs/x") == policy.headers("/docs") == policy.headers("/docs/")
    assert policy.headers("/docs2") == policy.headers("/") == Policy().headers("/docs")
    assert policy.headers("/docs/deep") == policy.headers("/docs/deep/x") == ALWAYS | {"x-extra": "1"}
    assert Policy(overrides={"/": {"referrer-policy": "no-referrer"}}).headers("/a")["referrer-policy"] == "no-referrer"


def test_naive_strict_policy_breaks_the_docs_page_and_an_override_mends_it(port: int) -> None:
    _, headers, body = ask(port, "/docs")
    assert b"https://cdn.jsdelivr.net" in body  # scripts that the strict policy would not load
    assert values(headers, "content-security-policy") == ["default-src 'self' https://cdn.example"]
    assert values(headers, "x-content-type-options") == ["nosniff"]
    assert "cdn" not in PLAIN


def test_reports_go_where_the_policy_says() -> None:
    headers = Policy(report_to="https://reports.example/csp", frame_ancestors="'self'").headers("/")
    assert headers["content-security-policy"] == f"{CSP}; frame-ancestors 'self'; report-to csp"
    assert headers["reporting-endpoints"] == 'csp="https://reports.example/csp"'


@pytest.mark.parametrize(
    "wrong",
    [
        {"csp": "default-src 'self'\r\nX-Evil: 1"},
        {"csp": "default-src é"},
        {"frame_ancestors": "'none'\n"},
        {"frame_ancestors": "'none'; script-src *"},
        {"report_to": "https://a.example/\r\nX: 1"},
        {"report_to": 'https://a.example/", evil="https://b.example'},
        {"report_to": "http://a.example/"},
        {"hsts_max_age": -1},
        {"hsts_max_age": True},
        {"hsts_max_age": 1.5},
        {"hsts_max_age": float("nan")},
        {"overrides": {"/x": {"X-Ok": "a\r\nb"}}},
        {"overrides": {"/x": {"X-Ok": "a\x00b"}}},
        {"overrides": {"/x": {"X Bad": "a"}}},
        {"overrides": {"/x": {"X-Bad\r\n": "a"}}},
    ],
)
def test_a_value_that_cannot_be_sent_stops_the_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy(**wrong)
    if "cannot be sent" in str(caught.value):
        assert f"a header for '{'/x' if 'overrides' in wrong else '/'}'" in str(caught.value)
    assert "evil" not in str(caught.value).lower()


@pytest.mark.parametrize("text", ["-1", "1e3", "x", "1 2", "¹", "9" * 11])
def test_a_wrong_age_in_the_environment_stops_the_start_and_is_named(text: str) -> None:
    with pytest.raises(PolicyError, match=rf"^HSTS_MAX_AGE must be a whole number of seconds, got {text!r}$"):
        Policy.from_env({"HSTS_MAX_AGE": text})
    assert Policy.from_env({}) == Policy.from_env({"HSTS_MAX_AGE": ""}) == Policy()
    assert Policy.from_env({"HSTS_MAX_AGE": "0"}, report_to="https://a.example") == Policy(
        hsts_max_age=0, report_to="https://a.example"
    )


def test_a_header_with_a_line_break_from_a_route_is_dropped_and_logged(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    for attack in ("a%0d%0aSet-Cookie:%20x=1", "a%0aX-Evil:%201", "a%00b"):
        status, headers, _ = ask(port, f"/inject?name={attack}")
        assert status == 200
        assert values(headers, "x-other") == ["kept"]
        assert not [pair for pair in headers if pair[0] in ("x-name", "set-cookie", "x-evil")]
        assert values(headers, "content-security-policy") == [PLAIN]
    assert "a header with a line break was dropped: b'x-name'" in caplog.text
    assert values(ask(port, "/inject?name=fine")[1], "x-name") == ["fine"]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a\r\nx-b", b"1")]})

    assert [name for name, _ in run(SecurityHeaders(app)) if b"x-a" in name] == []


def test_a_stream_is_not_held_back(port: int, app: FastAPI) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"GET /stream HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        raw = b""
        while b"first" not in raw:
            raw += connection.recv(65_536)
        assert b"last" not in raw  # it is not even made yet
        app.state.loop.call_soon_threadsafe(app.state.go_on.set)
        while chunk := connection.recv(65_536):
            raw += chunk
    assert b"last" in raw
    assert values(parse(raw)[1], "content-security-policy") == [PLAIN]


def test_an_error_after_the_first_chunk_ends_the_connection_and_sends_no_second_head(port: int) -> None:
    status, headers, body = ask(port, "/cut")
    assert status == 200
    assert b"first" in body
    assert b"HTTP/1.1" not in body
    assert not body.endswith(b"0\r\n\r\n")  # so that the client sees that it is not whole
    assert values(headers, "x-content-type-options") == ["nosniff"]


seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="unset")


def test_naive_base_http_middleware_loses_what_a_route_puts_into_a_context_variable() -> None:
    after: dict[str, str] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.set("by the route")
        await PlainTextResponse("ok")(scope, receive, send)

    async def plain(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    def outer(name: str, inner: Any) -> Any:
        async def call(scope: Any, receive: Any, send: Any) -> None:
            seen.set("unset")
            await inner(scope, receive, send)
            after[name] = seen.get()

        return call

    for name, made in (("base", BaseHTTPMiddleware(app, plain)), ("ours", SecurityHeaders(app))):
        assert TestClient(outer(name, made)).get("/").text == "ok"
    assert after == {"base": "unset", "ours": "by the route"}


def test_websocket_and_lifespan_pass_untouched(app: FastAPI) -> None:
    with TestClient(wrap(app)) as client, client.websocket_connect("/ws") as socket_:
        assert socket_.receive_text() == "hello"
    seen_scopes: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen_scopes.append((scope, receive, send))

    for kind in ("websocket", "lifespan"):
        given = ({"type": kind}, object(), object())
        asyncio.run(wrap(inner)(*given))  # type: ignore[arg-type]
        assert all(a is b for a, b in zip(seen_scopes[-1], given, strict=True))


app_of_mine: Any = wrap(FastAPI())
