"""Proves docs/patterns/authentication/api-key.md: the client sends its key to one origin and shows it to nobody."""

from __future__ import annotations

import asyncio
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
import requests
from pydantic import SecretStr

from api_key_client import ApiKeyTransport, UnusableApiKey, open_async_client, open_client
from harness.color import Color
from servers.http import Uvicorn

KEY = "acme_live_ab12cd34_CANARYcanary0123456789"


class Host:
    """An ASGI application that notes the headers it receives, and redirects `/away` to a foreign host."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []
        self.foreign = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append({name.decode(): value.decode() for name, value in scope["headers"]})
        headers = [(b"content-length", b"0")]
        if scope["path"].startswith("/away"):
            headers.append((b"location", self.foreign.encode()))
        elif scope["path"] == "/home":
            headers.append((b"location", b"/end"))
        status = 307 if len(headers) > 1 else 200
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Host, str, Host]]:
    own, foreign = Host(), Host()
    first, second = Uvicorn(own, lifespan="off"), Uvicorn(foreign, lifespan="off")
    own.foreign = f"{second.url}/stolen"
    yield own, first.url, foreign
    first.stop()
    second.stop()


@pytest.fixture
def hosts(servers: tuple[Host, str, Host]) -> tuple[Host, str, Host]:
    servers[0].seen.clear()
    servers[2].seen.clear()
    return servers


Get = Callable[..., httpx2.Response]


@pytest.fixture
def get(color: Color) -> Get:
    """Open a client of this color, and GET a path."""
    open_one: Any = color.pick(open_async_client, open_client)

    def ask(base_url: str, path: str, **options: Any) -> httpx2.Response:
        with color.blocking(open_one(KEY, base_url, **options)) as client:
            answer: httpx2.Response = client.get(path)
            return answer

    return ask


def test_the_key_is_sent_as_a_bearer_token_or_alone_in_a_header_of_your_choice(
    get: Get, hosts: tuple[Host, str, Host]
) -> None:
    own, url, _ = hosts
    assert get(f"{url}/v1", "/items").status_code == 200
    assert own.seen[-1]["authorization"] == f"Bearer {KEY}"
    get(url, "/", header="X-API-Key", scheme="")
    assert own.seen[-1]["x-api-key"] == KEY
    assert "authorization" not in own.seen[-1]
    get(url, "/home", header="X-API-Key", scheme="", follow_redirects=True)
    assert [seen.get("x-api-key") for seen in own.seen[-2:]] == [KEY, KEY]  # on its own host it goes along


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_a_redirect_to_another_host_never_carries_the_key(get: Get, header: str, hosts: tuple[Host, str, Host]) -> None:
    own, url, foreign = hosts
    assert get(url, "/away", header=header).status_code == 307  # and it is not followed
    assert foreign.seen == []
    answer = get(url, "/away", header=header, follow_redirects=True)
    assert str(answer.url) == own.foreign
    assert [header.lower() in seen for seen in own.seen] == [True, True]
    assert len(foreign.seen) == 1
    assert KEY not in str(foreign.seen)


def test_naive_custom_header_follows_a_redirect_to_another_host(hosts: tuple[Host, str, Host]) -> None:
    _, url, foreign = hosts
    with httpx2.Client(headers={"X-API-Key": KEY, "Authorization": f"Bearer {KEY}"}) as client:
        client.get(f"{url}/away", follow_redirects=True)
    requests.get(f"{url}/away", headers={"X-API-Key": KEY, "Authorization": f"Bearer {KEY}"}, timeout=5)
    assert len(foreign.seen) == 2
    for seen in foreign.seen:
        assert seen["x-api-key"] == KEY  # the stranger has it
        assert "authorization" not in seen  # the one header that both libraries take away


def test_an_absolute_address_elsewhere_gets_no_key(get: Get, hosts: tuple[Host, str, Host]) -> None:
    own, url, foreign = hosts
    get(url, own.foreign)
    assert KEY not in str(foreign.seen)
    port = url.rpartition(":")[2]
    get(url, f"http://localhost:{port}/")  # the same machine under another name is another origin
    assert KEY not in str(own.seen)


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://api.example.com/x", True),
        ("https://API.example.com:443/x", True),
        ("http://api.example.com/x", False),
        ("http://api.example.com:443/x", False),
        ("https://api.example.com:444/x", False),
        ("https://api.example.com.evil.example/x", False),
        ("https://example.com/x", False),
        ("https://api.example.com./x", False),
        ("https://evil.example/api.example.com", False),
    ],
)
def test_scheme_host_and_port_must_all_be_those_of_the_base_address(url: str, sent: bool) -> None:
    got: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        got.append(request)
        return httpx2.Response(200)

    with open_client(KEY, "https://api.example.com/v1", transport=httpx2.MockTransport(answer)) as client:
        client.post(url, content=b"body")
    assert got[0].headers.get("authorization") == (f"Bearer {KEY}" if sent else None)
    assert (got[0].method, got[0].read()) == ("POST", b"body")
    with open_client(KEY, "http://127.0.0.1", transport=httpx2.MockTransport(answer)) as client:
        client.get("http://127.0.0.1:80/")
        client.get("http://127.0.0.1:443/")
    assert [KEY in str(request.headers.raw) for request in got[1:]] == [True, False]


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com",
        "http://localhost.example.com",
        "http://10.0.0.1",
        "ftp://127.0.0.1",
        "ws://127.0.0.1",
        "//api.example.com",
        "api.example.com",
        "https://",
        "https://user:hunter2@api.example.com",
        "https://user@api.example.com",
    ],
)
def test_plain_http_is_refused_except_on_loopback_and_so_is_what_is_no_address(url: str) -> None:
    for make in (open_client, open_async_client):
        with pytest.raises(ValueError, match=r"^SERVICE_BASE_URL must be https:// and a host") as caught:
            make(KEY, url)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost", "https://10.0.0.1/v2"])
def test_loopback_over_http_and_any_host_over_https_are_accepted(url: str) -> None:
    with open_client(KEY, url) as client:
        assert str(client.base_url).startswith(url)


def test_a_base_address_that_is_missing_or_broken_stops_the_start() -> None:
    for missing in (None, ""):
        with pytest.raises(RuntimeError, match=r"^SERVICE_BASE_URL is not set, or is empty$"):
            open_client(KEY, missing)
    with pytest.raises(ValueError, match=r"^SERVICE_BASE_URL is not an address$") as caught:
        open_client(KEY, "https://user:hunter2@api.example.com\n")
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("make", [open_client, open_async_client])
@pytest.mark.parametrize(
    "key", [None, "", " ", "hunter two", "hunter2\n", "\thunter2", "k\x00y", "k\x7fy", "kéy", "k\u200by"]
)
def test_a_key_that_cannot_be_sent_stops_the_start_without_being_printed(make: Any, key: str | None) -> None:
    for value in (key, SecretStr(key or "")):
        kind, message = (UnusableApiKey, "holds a blank") if key else (RuntimeError, "is not set, or is empty")
        with pytest.raises(kind, match=rf"^SERVICE_API_KEY {message}") as caught:
            make(value, "https://api.example.com")
        assert len((key or "").strip()) < 4 or str(key) not in str(caught.value)


def test_a_pydantic_secret_is_read_when_it_is_sent(hosts: tuple[Host, str, Host]) -> None:
    own, url, _ = hosts
    with open_client(SecretStr(KEY), url) as client:
        client.get("/")
    assert own.seen[-1]["authorization"] == f"Bearer {KEY}"


def test_naive_bearer_none_is_sent_and_fails_far_away(
    monkeypatch: pytest.MonkeyPatch, hosts: tuple[Host, str, Host]
) -> None:
    own, url, _ = hosts
    monkeypatch.delenv("SERVICE_API_KEY", raising=False)
    with httpx2.Client(headers={"Authorization": f"Bearer {os.getenv('SERVICE_API_KEY')}"}) as client:
        client.get(url)
    assert own.seen[-1]["authorization"] == "Bearer None"
    with pytest.raises(RuntimeError, match=r"^SERVICE_API_KEY is not set, or is empty$"):
        open_client(os.getenv("SERVICE_API_KEY"), url)


def test_a_transport_of_the_other_kind_is_named() -> None:
    wrong = ApiKeyTransport(KEY, base_url="https://a.example", inner=httpx2.AsyncHTTPTransport())
    with httpx2.Client(transport=wrong) as client, pytest.raises(TypeError, match="use open_client"):
        client.get("https://a.example")

    async def main() -> None:
        wrong = ApiKeyTransport(KEY, base_url="https://a.example", inner=httpx2.HTTPTransport())
        async with httpx2.AsyncClient(transport=wrong) as client:
            with pytest.raises(TypeError, match="use open_async_client"):
                await client.get("https://a.example")

    asyncio.run(main())


def test_closing_the_client_closes_what_it_sends_with() -> None:
    closed: list[str] = []

    class Inner(httpx2.BaseTransport):
        def close(self) -> None:
            closed.append("sync")

    class AsyncInner(httpx2.AsyncBaseTransport):
        async def aclose(self) -> None:
            closed.append("async")

    open_client(KEY, "https://a.example", transport=Inner()).close()
    asyncio.run(open_async_client(KEY, "https://a.example", transport=AsyncInner()).aclose())
    assert closed == ["sync", "async"]


@pytest.mark.parametrize("make", [open_client, open_async_client])
def test_the_client_has_a_timeout_and_follows_no_redirect_unless_told(make: Any) -> None:
    assert make(KEY, "https://a.example").timeout == httpx2.Timeout(10.0)
    assert make(KEY, "https://a.example", timeout=2.5).timeout == httpx2.Timeout(2.5)
    assert not make(KEY, "https://a.example").follow_redirects
    for value in [0, -1, True, float("nan"), float("inf"), "1", None]:
        with pytest.raises(ValueError, match=rf"^timeout must be a number of seconds over 0, got {value!r}$"):
            make(KEY, "https://a.example", timeout=value)


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_the_key_is_in_no_log_response_or_exception(
    get: Get, header: str, hosts: tuple[Host, str, Host], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _, url, _ = hosts
    answer = get(url, "/away", header=header, follow_redirects=True)
    seen = [repr(answer), str(answer.headers), repr(answer.request), str(answer.request.headers.raw)]
    for hop in answer.history:
        seen += [repr(hop), str(hop.request.headers.raw)]
    with pytest.raises(httpx2.HTTPStatusError) as status:
        get(url, "/away", header=header).raise_for_status()
    seen += [*traceback.format_exception(status.value), str(status.value.request.headers.raw)]
    with pytest.raises(httpx2.ConnectError) as lost:
        get("http://127.0.0.1:1", "/", header=header)
    seen += [*traceback.format_exception(lost.value), str(lost.value.request.headers.raw)]
    transport = ApiKeyTransport(KEY, base_url=url, header=header, inner=httpx2.HTTPTransport())
    assert repr(transport) == f"ApiKeyTransport({url})"
    output = "\n".join([*seen, repr(transport), str(transport), caplog.text])
    assert "307" in output
    assert "CANARY" not in output
