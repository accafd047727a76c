"""Proves docs/patterns/security/security-headers.md: CORS for the named origins and for nobody else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.middleware.cors import CORSMiddleware
from starlette.testclient import TestClient

from cors_middleware import Cors, origins_from_env, wrap
from harness.depth import examples
from patterns.security.security_headers_app import Headers, ask, build, values
from security_headers import PolicyError
from servers.http import Uvicorn

OURS = "https://app.example"
EVIL = "https://evil.example"
VARY_ASKED = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    asgi: Any = wrap(
        build(tmp_path_factory.mktemp("static")),
        origins=[OURS, "http://localhost:3000"],
        credentials=True,
        methods=["GET", "PUT"],
        headers=["Content-Type", "X-Token"],
        expose=["X-Total", "ETag"],
        max_age=60,
    )
    server = Uvicorn(asgi, log_level="critical", server_header=False)
    yield server.port
    server.stop()


def cors_of(headers: Headers) -> Headers:
    return sorted(pair for pair in headers if pair[0].startswith("access-control-"))


MARKS = [
    ("access-control-allow-credentials", "true"),
    ("access-control-allow-origin", OURS),
    ("access-control-expose-headers", "ETag, X-Total"),
]


@pytest.mark.parametrize(
    ("path", "status"),
    [("/json", 200), ("/status/401", 401), ("/status/403", 403), ("/boom", 500), ("/nowhere", 404), ("/own", 200)],
)
def test_an_allowed_origin_may_read_every_answer_errors_included(port: int, path: str, status: int) -> None:
    got, headers, _ = ask(port, path, f"Origin: {OURS}")
    assert got == status
    assert cors_of(headers) == MARKS
    assert values(headers, "vary")[-1] == "Origin"


@pytest.mark.parametrize(
    "origin",
    [
        EVIL,
        "null",
        "https://app.example.evil",
        "https://app.example:444",
        "https://app.example:443",
        "https://app.example/",
        "http://app.example",
        "https://APP.example",
        "https://evil-app.example",
        "https://app.example https://evil.example",
        "*",
        "",
        "file://",
    ],
)
def test_another_origin_gets_no_cors_header_at_all(port: int, origin: str) -> None:
    for path in ("/json", "/own", "/boom"):  # also where the route itself sets a star
        _, headers, _ = ask(port, path, f"Origin: {origin}")
        assert cors_of(headers) == []
        assert values(headers, "vary")[-1] == "Origin"
    _, headers, _ = ask(port, "/json", f"Origin: {OURS}", f"Origin: {origin}")
    assert cors_of(headers) == []


def test_vary_is_sent_without_an_origin_too_and_beside_the_routes_own(port: int) -> None:
    assert values(ask(port, "/json")[1], "vary") == ["Origin"]
    assert values(ask(port, "/own")[1], "vary") == ["Accept", "Origin"]


def preflight(port: int, *more: str, origin: str = OURS, method: str = "PUT") -> tuple[int, Headers]:
    lines = [f"Origin: {origin}", f"Access-Control-Request-Method: {method}", *more]
    status, headers, body = ask(port, "/json", *lines, method="OPTIONS")
    assert body == b""
    return status, headers


@pytest.mark.parametrize(
    "more", [[], ["Access-Control-Request-Headers: x-token, CONTENT-TYPE"], ["Access-Control-Request-Headers: "]]
)
def test_an_allowed_preflight_is_204_with_methods_headers_and_age(port: int, more: list[str]) -> None:
    status, headers = preflight(port, *more)
    assert status == 204
    assert cors_of(headers) == [
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-headers", "Content-Type, X-Token"),
        ("access-control-allow-methods", "GET, PUT"),
        ("access-control-allow-origin", OURS),
        ("access-control-max-age", "60"),
    ]
    assert values(headers, "vary") == [VARY_ASKED]
    assert values(headers, "x-content-type-options") == ["nosniff"]


@pytest.mark.parametrize(
    ("more", "origin", "method"),
    [
        ([], EVIL, "PUT"),
        ([], "null", "PUT"),
        ([], OURS, "DELETE"),
        ([], OURS, "put"),
        (["Access-Control-Request-Headers: x-token, x-evil"], OURS, "PUT"),
        (["Access-Control-Request-Headers: x-token", "Access-Control-Request-Headers: x-evil"], OURS, "PUT"),
        (["Access-Control-Request-Method: DELETE"], OURS, "PUT"),
        ([f"Origin: {OURS}"], EVIL, "PUT"),
    ],
)
def test_a_refused_preflight_is_403_without_cors_headers(port: int, more: list[str], origin: str, method: str) -> None:
    status, headers = preflight(port, *more, origin=origin, method=method)
    assert (status, cors_of(headers)) == (403, [])
    assert values(headers, "vary") == [VARY_ASKED]


def test_other_options_requests_reach_the_application(port: int) -> None:
    for lines in ([f"Origin: {OURS}"], [], ["Access-Control-Request-Method: PUT"]):
        status, _, body = ask(port, "/json", *lines, method="OPTIONS")
        assert (status, body) == (200, b'{"from":"the application"}')
    status, _, _ = ask(port, "/json", f"Origin: {OURS}", "Access-Control-Request-Method: GET")
    assert status == 200  # not an OPTIONS request


def test_credentials_are_allowed_only_where_you_say_so() -> None:
    for made in (Cors(FastAPI(), origins=[OURS]), wrap(FastAPI(), origins=[OURS])):
        client: Any = TestClient(made)
        asked = {"Origin": OURS, "Access-Control-Request-Method": "GET"}
        answers = [client.get("/", headers={"Origin": OURS}), client.options("/", headers=asked)]
        assert [a.headers["access-control-allow-origin"] for a in answers] == [OURS, OURS]
        assert not any("access-control-allow-credentials" in a.headers for a in answers)
        assert answers[1].headers["access-control-max-age"] == "600"


def test_a_star_is_for_public_answers_without_credentials() -> None:
    client = TestClient(wrap(FastAPI(), origins=["*"]))
    answer = client.get("/", headers={"Origin": EVIL})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers
    assert "access-control-expose-headers" not in answer.headers
    assert "access-control-allow-origin" not in client.get("/").headers
    asked = {"Origin": EVIL, "Access-Control-Request-Method": "POST"}
    allowed = client.options("/", headers=asked)
    assert (allowed.status_code, allowed.headers["access-control-max-age"]) == (204, "600")
    assert allowed.headers["access-control-allow-methods"] == "GET, HEAD, POST"
    assert "access-control-allow-headers" not in allowed.headers


@pytest.mark.parametrize(
    "wrong",
    [
        {"origins": ["*"], "credentials": True},
        {"origins": ["*", OURS]},
        {"origins": ["null"]},
        {"origins": ["https://app.example/"]},
        {"origins": ["https://app.example/path"]},
        {"origins": ["https://app.example:443"]},
        {"origins": ["http://app.example:80"]},
        {"origins": ["https://*.example"]},
        {"origins": ["https://App.example"]},
        {"origins": ["app.example"]},
        {"origins": ["https://app.example\r\nX: 1"]},
        {"origins": [""]},
        {"origins": OURS},
        {"origins": [OURS], "methods": ["GET\r\nX: 1"]},
        {"origins": [OURS], "headers": ["X Token"]},
        {"origins": [OURS], "headers": ["*\n"]},
        {"origins": [OURS], "expose": [""]},
        {"origins": [OURS], "max_age": -1},
        {"origins": [OURS], "max_age": True},
        {"origins": [OURS], "max_age": float("nan")},
    ],
)
def test_a_configuration_that_is_open_or_malformed_stops_the_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(PolicyError):
        Cors(FastAPI(), **wrong)


def test_origins_are_read_from_the_environment_and_none_is_the_default() -> None:
    assert origins_from_env() == origins_from_env({}) == origins_from_env({"ALLOWED_ORIGINS": " "}) == frozenset()
    assert origins_from_env({"ALLOWED_ORIGINS": f"{OURS}  http://localhost:3000"}) == {OURS, "http://localhost:3000"}
    for good in (OURS, "http://localhost:3000", "http://[::1]:8000", "http://app.example:443", "https://a.example:80"):
        Cors(FastAPI(), origins=origins_from_env({"ALLOWED_ORIGINS": good}), max_age=0)
    client = TestClient(wrap(FastAPI()))
    assert "access-control-allow-origin" not in client.get("/", headers={"Origin": OURS}).headers


origins = st.sampled_from([OURS, EVIL]).flatmap(
    lambda o: st.tuples(st.just(o), st.integers(0, len(o)), st.text("abc./:*", max_size=2)).map(
        lambda t: t[0][: t[1]] + t[2] + t[0][t[1] :]
    )
)


@given(origins)
@settings(max_examples=examples(80), deadline=None, database=None)
def test_only_the_exact_origin_is_allowed_whatever_is_near_it(origin: str) -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: Any) -> None:
        sent.extend(message["headers"])

    scope = {"type": "http", "method": "GET", "headers": [(b"origin", origin.encode())]}
    with pytest.raises(StopIteration):
        Cors(app, origins=[OURS])(scope, send, send).send(None)  # type: ignore[arg-type]
    assert dict(sent).get(b"access-control-allow-origin") == (OURS.encode() if origin == OURS else None)


def test_naive_star_with_credentials_reflects_every_origin() -> None:
    app = FastAPI()
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_credentials=True, allow_methods=["*"])
    client = TestClient(app)
    asked = {"Origin": EVIL, "Access-Control-Request-Method": "PUT"}
    for answer in (client.get("/", headers={"Origin": EVIL, "Cookie": "a=b"}), client.options("/", headers=asked)):
        assert answer.headers["access-control-allow-origin"] == EVIL
        assert answer.headers["access-control-allow-credentials"] == "true"


def test_naive_pattern_for_subdomains_admits_a_strangers_domain() -> None:
    naive = re.compile(r"https://.*.example.com")
    assert naive.fullmatch("https://evil-example.com")
    assert naive.fullmatch("https://evil.com/.example.com") or naive.fullmatch("https://evilXexampleXcom")
    with pytest.raises(PolicyError):
        Cors(FastAPI(), origins=["https://.*.example.com"])


def test_naive_cors_inside_the_error_handler_hides_the_500_from_the_browser() -> None:
    def failing() -> FastAPI:
        app = FastAPI()

        @app.get("/boom")
        async def boom() -> None:
            raise RuntimeError("unhandled")

        return app

    inside = failing()
    inside.add_middleware(CORSMiddleware, allow_origins=[OURS])
    outside: Any = wrap(failing(), origins=[OURS])
    found = []
    for app in (inside, outside):
        answer = TestClient(app, raise_server_exceptions=False).get("/boom", headers={"Origin": OURS})
        assert answer.status_code == 500
        found.append(answer.headers.get("access-control-allow-origin"))
    assert found == [None, OURS]
