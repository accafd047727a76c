"""Proves docs/patterns/authentication/sessions.md: the cookie, the two dependencies, and two worker processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from starlette.testclient import TestClient

from harness.tls import NOBODY
from patterns.authentication.sessions_app import create_app
from servers.http import UvicornProcess
from session_http import COOKIE, clear_cookie, csrf_guard, current_session, set_cookie, token_of
from sessions_async import AsyncSessionStore, connect
from sessions_core import Session

NOW = 1_800_000_000.0
TOKEN = "t" * 43
SESSION = Session(TOKEN, "ada", {}, NOW, NOW + 600.9)


def attributes(header: str) -> set[str]:
    return {part.strip().lower() for part in header.split(";")[1:]}


# The cookie.


@pytest.mark.parametrize(("now", "left"), [(NOW, 600), (NOW + 600, 0), (NOW + 601, 0), (NOW + 10_000, 0)])
def test_the_cookie_is_for_this_host_alone_and_ends_with_the_session(now: float, left: int) -> None:
    response = Response()
    set_cookie(response, SESSION, clock=lambda: now)
    header = response.headers["set-cookie"]
    assert header.startswith(f"__Host-session={TOKEN}; ")
    assert attributes(header) == {"secure", "httponly", "samesite=lax", "path=/", f"max-age={left}"}


def test_naive_delete_cookie_lacks_secure_so_browsers_keep_the_cookie() -> None:
    naive, ours = Response(), Response()
    naive.delete_cookie(COOKIE)
    assert "secure" not in attributes(naive.headers["set-cookie"])  # __Host- without it is ignored
    clear_cookie(ours)
    got = attributes(ours.headers["set-cookie"])
    assert {"secure", "httponly", "samesite=lax", "path=/", "max-age=0"} <= got
    assert not any(attribute.startswith("domain") for attribute in got)


def test_naive_cookie_on_an_injected_response_is_lost_when_the_route_returns_its_own() -> None:
    app = FastAPI()

    @app.get("/own")
    async def own(response: Response) -> Response:
        set_cookie(response, SESSION)
        return Response("hello")

    @app.get("/raises")
    async def raises(response: Response) -> None:
        set_cookie(response, SESSION)
        raise HTTPException(402)

    @app.get("/right")
    async def right() -> Response:
        response = Response("hello")
        set_cookie(response, SESSION)
        return response

    with TestClient(app) as client:
        assert "set-cookie" not in client.get("/own").headers
        assert "set-cookie" not in client.get("/raises").headers
        assert "set-cookie" in client.get("/right").headers


def request_with(*headers: tuple[str, str], method: str = "GET", scheme: str = "https") -> Request:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return Request({"type": "http", "method": method, "scheme": scheme, "headers": raw})


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ([], None),
        ([("cookie", f"{COOKIE}=a")], "a"),
        ([("cookie", f"x=1; {COOKIE}=a; y=2")], "a"),
        ([("cookie", f"x=1;{COOKIE}=a=b")], "a=b"),
        ([("cookie", f"x={COOKIE}=a")], None),
        ([("cookie", f"{COOKIE}=a; {COOKIE}=b")], None),
        ([("cookie", f"{COOKIE}=a; {COOKIE}=a")], None),
        ([("cookie", f"{COOKIE}=a"), ("cookie", f"{COOKIE}=b")], None),
        ([("cookie", f"{COOKIE}")], ""),
        ([("cookie", f"{COOKIE.lower()}=a")], None),
        ([("cookie", "\xff\xfe;;;=;")], None),
    ],
)
def test_of_two_cookies_with_the_same_name_none_counts(headers: Any, token: str | None) -> None:
    assert token_of(request_with(*headers)) == token


# Who sent the request.

HERE = ("host", "shop.example")


@pytest.mark.parametrize(
    ("headers", "fine"),
    [
        ([("sec-fetch-site", "same-origin")], True),
        ([("sec-fetch-site", "none")], True),
        ([("sec-fetch-site", "same-site")], False),
        ([("sec-fetch-site", "cross-site")], False),
        ([("sec-fetch-site", "")], False),
        ([("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")], False),
        ([("sec-fetch-site", "cross-site"), ("origin", "https://shop.example")], False),
        ([("sec-fetch-site", "same-origin"), ("origin", "null")], True),
        ([("origin", "https://shop.example")], True),
        ([("origin", "http://shop.example")], False),
        ([("origin", "https://shop.example:8443")], False),
        ([("origin", "https://shop.example.evil.example")], False),
        ([("origin", "https://evil.example")], False),
        ([("origin", "null")], False),
        ([("origin", "")], False),
        ([("origin", "https://shop.example"), ("origin", "https://evil.example")], False),
        ([], True),
    ],
)
async def test_an_unsafe_request_of_another_site_is_refused(headers: Any, fine: bool) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "get", "ANYTHING"):
        request = request_with(HERE, *headers, method=method)
        with contextlib.nullcontext() if fine else pytest.raises(HTTPException) as caught:
            await csrf_guard(request)
        if caught:
            assert (caught.value.status_code, caught.value.detail) == (403, "Cross-site request")


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_a_safe_request_passes_from_anywhere(method: str) -> None:
    for header in (("sec-fetch-site", "cross-site"), ("origin", "null")):
        await csrf_guard(request_with(HERE, header, method=method))
    with pytest.raises(HTTPException):
        await csrf_guard(request_with(("origin", "https://"), method="POST", scheme="http"))


# The routes.


@pytest.fixture
def client(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv("REDIS_URL", f"{valkey_url}?socket_timeout=5")
    with TestClient(create_app(), base_url="https://shop.example") as running:
        yield running


def test_a_login_ends_the_session_that_the_browser_came_with(client: TestClient) -> None:
    assert client.get("/me").status_code == 401
    client.post("/login/mallory")
    planted = client.cookies[COOKIE]
    assert client.post("/login/ada").status_code == 200
    assert client.get("/me").json()["user"] == "ada"
    assert client.cookies[COOKIE] != planted
    client.cookies.clear()
    assert client.get("/me", headers={"cookie": f"{COOKIE}={planted}"}).status_code == 401


def test_what_is_no_session_is_a_401_and_no_error(client: TestClient) -> None:
    client.post("/login/ada")
    good = client.cookies[COOKIE]
    client.cookies.clear()
    for cookie in (f"{COOKIE}={good}; {COOKIE}={good}", f"{COOKIE}={'x' * 10_240}", f"{COOKIE}={'x' * 43}", "", "é"):
        answer = client.get("/me", headers={b"cookie": cookie.encode()})
        assert (answer.status_code, answer.json()) == (401, {"detail": "Not signed in"})
    assert client.get("/me", headers={"cookie": f"{COOKIE}={good}"}).status_code == 200


def test_a_redis_that_is_down_is_a_503_on_protected_routes_and_shows_no_stack(
    caplog: pytest.LogCaptureFixture,
) -> None:
    current = Depends(current_session(AsyncSessionStore(connect("redis://127.0.0.1:1/0"))))
    app = FastAPI()

    @app.get("/me")
    async def me(session: Session = current) -> str:
        return session.user_id

    with TestClient(app) as client:
        answer = client.get("/me", headers={"cookie": f"{COOKIE}={TOKEN}"})
        assert (answer.status_code, answer.json()) == (503, {"detail": "Please try again later"})
        assert answer.headers["retry-after"] == "5"
        assert client.get("/me").status_code == 401  # nothing was sent, so nobody is asked
    assert "sessions are not available: ConnectionError" in caplog.text
    assert TOKEN not in caplog.text
    assert "Traceback" not in caplog.text


def test_another_site_cannot_make_the_browser_log_out(client: TestClient) -> None:
    client.post("/login/ada")
    forged = {"origin": "https://evil.example"}
    assert client.post("/logout-everywhere", headers=forged).status_code == 403
    assert client.get("/me").status_code == 200
    answer = client.post("/logout-everywhere", headers={"origin": "https://shop.example"})
    assert (answer.status_code, COOKIE in answer.headers["set-cookie"]) == (200, True)
    assert client.get("/me").status_code == 401


# Two processes.


@pytest.fixture
def two_workers(valkey_url: str) -> Iterator[str]:
    here = Path(__file__).resolve().parent
    snippets = here.parents[2] / "snippets" / "authentication"
    env = dict(os.environ) | {"REDIS_URL": f"{valkey_url}?socket_timeout=5", "PYTHONPATH": str(snippets)}
    server = UvicornProcess("sessions_app:create_app", workers=2, path=here, env=env)
    yield server.url
    server.stop()


def test_naive_sessions_in_memory_log_people_out_with_two_workers_and_ours_do_not(
    two_workers: str,
) -> None:
    def ask(method: str, path: str, token: str = "") -> httpx2.Response:
        # A connection each: the kernel gives it to either process.
        with httpx2.Client(base_url=two_workers, verify=NOBODY) as client:
            return client.request(method, path, headers={"cookie": f"{COOKIE}={token}"} if token else {})

    answer = ask("POST", "/login/ada")
    token = answer.headers["set-cookie"].split("=", 1)[1].split(";")[0]
    home, seen = int(answer.headers["x-process"]), {}
    for _ in range(200):
        got = ask("GET", "/me", token).json()
        assert got["user"] == "ada"  # known in both
        seen[got["process"]] = got["naive"]
        if len(seen) == 2:
            break
    assert seen.pop(home, "ada") == "ada"
    assert list(seen.values()) == [None]  # the dictionary of the other process knows nobody
    assert ask("POST", "/logout-everywhere", token).status_code == 200
    assert {ask("GET", "/me", token).status_code for _ in range(12)} == {401}
