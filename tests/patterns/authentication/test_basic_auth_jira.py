"""Proves docs/patterns/authentication/basic-auth.md: the Jira client, against a server as strict as Atlassian's."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from basic_client import (
    AsyncJiraClient,
    CredentialError,
    JiraAuthError,
    JiraClient,
    JiraError,
    JiraForbidden,
    JiraRateLimited,
    basic_header,
)
from basic_server import parse_basic
from harness.color import Color
from servers.http import Uvicorn

EMAIL, CLOUD = "ada@example.com", "11111111-2222-3333-4444-555555555555"
CLASSIC, SCOPED = "ATATT-CANARY-classic", "ATATT-CANARY-scoped"


class Jira:
    """Plays a site and the gateway: classic tokens on the site's paths, scoped ones below /ex/jira/{cloud id}."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.bodies: list[bytes] = []
        self.answer: tuple[int, dict[str, str], bytes] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        path, query = scope["path"], scope["query_string"].decode()
        self.seen.append((path, query, headers))
        self.bodies.append((await receive()).get("body", b""))
        scoped, _, api = path.partition("/rest/api/3")
        more: dict[str, str] = {}
        wanted = {"": CLASSIC, f"/ex/jira/{CLOUD}": SCOPED}.get(scoped)
        if not wanted or parse_basic(headers.get("authorization")) != (EMAIL, wanted):
            status, body = 401, b"Client must be authenticated to access this resource."
        elif self.answer:
            status, more, body = self.answer
        else:
            status, body = 200, json.dumps({"path": api, "emailAddress": EMAIL}).encode()
        raw = [(k.encode(), v.encode()) for k, v in ({"content-length": str(len(body))} | more).items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Jira, str]]:
    app = Jira()
    server = Uvicorn(app, lifespan="off")
    yield app, server.url
    server.stop()


@pytest.fixture
def jira(served: tuple[Jira, str]) -> Jira:
    app = served[0]
    app.seen.clear()
    app.bodies.clear()
    app.answer = None
    return app


@pytest.fixture
def url(served: tuple[Jira, str]) -> str:
    return served[1]


Ask = Callable[..., Any]


@pytest.fixture
def ask(color: Color) -> Ask:
    """Open a client of this color, and call one of its methods."""
    kind: Any = color.pick(AsyncJiraClient, JiraClient)

    def call(url: str, token: Any, method: str, *args: Any, cloud: str | None = None, **params: Any) -> Any:
        with color.blocking(kind(url, EMAIL, token, cloud_id=cloud, gateway=url)) as client:
            return getattr(client, method)(*args, **params)

    return call


clients = pytest.mark.parametrize("make", [JiraClient, AsyncJiraClient])


def test_a_classic_token_is_sent_to_the_site_and_a_scoped_one_to_the_gateway(ask: Ask, jira: Jira, url: str) -> None:
    assert ask(url, CLASSIC, "myself") == {"path": "/myself", "emailAddress": EMAIL}
    assert ask(url, SecretStr(SCOPED), "myself", cloud=CLOUD)["path"] == "/myself"
    assert [seen[0] for seen in jira.seen] == ["/rest/api/3/myself", f"/ex/jira/{CLOUD}/rest/api/3/myself"]
    assert jira.seen[0][2]["accept"] == "application/json"


@clients
def test_with_a_cloud_id_requests_go_to_atlassians_gateway(make: Any) -> None:
    assert repr(make("https://x.atlassian.net/", EMAIL, SCOPED, cloud_id=CLOUD)) == (
        f"{make.__name__}(https://api.atlassian.com/ex/jira/{CLOUD})"
    )
    client = make("https://x.atlassian.net/", EMAIL, CLASSIC)
    assert repr(client) == f"{make.__name__}(https://x.atlassian.net)"
    assert client._site.url_of("/myself") == "https://x.atlassian.net/rest/api/3/myself"
    assert client._http.timeout == httpx2.Timeout(10.0)
    assert make("https://x.atlassian.net", EMAIL, CLASSIC, timeout=2)._http.timeout == httpx2.Timeout(2)


@clients
@pytest.mark.parametrize("value", [0, -1, True, float("nan"), float("inf"), "1", None])
def test_a_timeout_that_is_no_number_of_seconds_stops_the_start(make: Any, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^timeout must be a number of seconds over 0, got {value!r}$"):
        make("https://x.atlassian.net", EMAIL, CLASSIC, timeout=value)


def test_parameters_and_json_are_sent_and_an_empty_answer_is_none(ask: Ask, jira: Jira, url: str) -> None:
    ask(url, CLASSIC, "get", "/search/jql", jql="project = X", maxResults=100)
    assert jira.seen[0][1] == "jql=project+%3D+X&maxResults=100"
    jira.answer = (204, {}, b"")
    assert ask(url, CLASSIC, "post", "/issue/X-1/comment", {"body": "hé"}) is None
    assert json.loads(jira.bodies[1]) == {"body": "hé"}


def test_a_401_names_both_causes_and_is_not_tried_again(ask: Ask, jira: Jira, url: str) -> None:
    causes = r"^401: the token has expired, was revoked, or is of the wrong kind"
    with pytest.raises(JiraAuthError, match=causes + r" \(one with scopes works at api.atlassian.com only: pass"):
        ask(url, SCOPED, "myself")  # a scoped token at the site's address
    assert len(jira.seen) == 1
    with pytest.raises(JiraAuthError, match=causes + r" \(one without scopes works at the site's own") as caught:
        ask(url, CLASSIC, "myself", cloud=CLOUD)
    assert caught.value.status == 401
    assert len(jira.seen) == 2


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "1" * 7}, None),
        ({"retry-after": "999999"}, 999_999.0),
    ],
)
def test_a_429_tells_how_long_to_wait(
    ask: Ask, header: dict[str, str], seconds: float | None, jira: Jira, url: str
) -> None:
    jira.answer = (429, header, b"")
    with pytest.raises(JiraRateLimited, match=r"^429: too many requests$") as caught:
        ask(url, CLASSIC, "myself")
    assert (caught.value.status, caught.value.retry_after) == (429, seconds)
    assert len(jira.seen) == 1


def test_a_403_and_any_other_answer_are_errors_with_their_status(ask: Ask, jira: Jira, url: str) -> None:
    jira.answer = (403, {}, b"")
    with pytest.raises(JiraForbidden, match=r"^403: the account may not do this, or the token lacks the scope$") as no:
        ask(url, CLASSIC, "myself")
    assert no.value.status == 403
    for status, text in ((404, "404 Not Found"), (500, "500 Internal Server Error"), (302, "302 Found")):
        jira.answer = (status, {"location": "/elsewhere"}, b"{}")
        with pytest.raises(JiraError, match=f"^{text}$") as caught:
            ask(url, CLASSIC, "get", "/x")
        assert type(caught.value) is JiraError
        assert caught.value.status == status
    jira.answer = (200, {}, b"<html>Log in</html>")
    with pytest.raises(JiraError, match=r"^200, and no JSON: a login page\?$") as page:
        ask(url, CLASSIC, "myself")
    assert page.value.status == 200
    for error in (JiraAuthError, JiraForbidden, JiraRateLimited):
        assert issubclass(error, JiraError)


def test_a_redirect_to_a_foreign_host_is_not_followed(ask: Ask, jira: Jira, url: str) -> None:
    stranger = Jira()
    other = Uvicorn(stranger, lifespan="off")
    try:
        jira.answer = (307, {"location": f"{other.url}/rest/api/3/myself"}, b"")
        with pytest.raises(JiraError, match=r"^307 "):
            ask(url, CLASSIC, "myself")
    finally:
        other.stop()
    assert stranger.seen == []


@clients
@pytest.mark.parametrize(
    "path",
    [
        "https://evil.example/",
        "//evil.example/x",
        "myself",
        "",
        "/\\evil.example",
        "\\\\evil.example",
        "/../../ex/jira/other",
        "/issue/..",
        "/myself?expand=x",
        "/myself#x",
        "/my self",
        "/x\n",
        "/x\r\nX: 1",
        "/\x00",
        "@evil.example/",
    ],
)
def test_a_path_that_could_lead_elsewhere_is_refused_and_nothing_is_sent(make: Any, path: str) -> None:
    sent: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(request)
        return httpx2.Response(200)

    client = make("https://x.atlassian.net", EMAIL, CLASSIC, transport=httpx2.MockTransport(answer))
    calls: list[Callable[[], Any]] = [lambda: client.get(path), lambda: client.post(path, {})]
    for call in calls:
        with pytest.raises(ValueError, match=r"^path must begin with one slash, without host, query or \.\.$"):
            asyncio.run(call()) if make is AsyncJiraClient else call()
    assert sent == []
    assert client._site.url_of("/issue/X..1/a:b@c") == "https://x.atlassian.net/rest/api/3/issue/X..1/a:b@c"


@clients
@pytest.mark.parametrize(
    "url",
    [
        "http://x.atlassian.net",
        "http://localhost.example.com",
        "x.atlassian.net",
        "https://",
        "ftp://127.0.0.1",
        "ws://127.0.0.1",
        "https://ada:hunter2@x.atlassian.net",
        "https://x.atlassian.net/?a=hunter2",
        "https://x.atlassian.net/#hunter2",
        "https://hunter2\n",
    ],
)
def test_only_https_or_loopback_is_accepted_and_never_an_address_with_a_password(make: Any, url: str) -> None:
    with pytest.raises(
        CredentialError, match=r"^JIRA_BASE_URL (is not an address|must be https:// and a host)"
    ) as caught:
        make(url, EMAIL, CLASSIC)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    with pytest.raises(CredentialError):
        make("https://x.atlassian.net", EMAIL, SCOPED, cloud_id=CLOUD, gateway=url)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1", "https://jira.example.com/jira"]
)
def test_loopback_and_https_are_accepted_with_their_path(url: str) -> None:
    with JiraClient(url + "/", EMAIL, CLASSIC) as client:
        assert client._site.url_of("/myself") == f"{url}/rest/api/3/myself"


@clients
@pytest.mark.parametrize("missing", [None, ""])
def test_a_missing_setting_stops_the_start_and_is_named(make: Any, missing: str | None) -> None:
    good: list[Any] = ["https://x.atlassian.net", EMAIL, CLASSIC]
    for place, name in enumerate(("JIRA_BASE_URL", "JIRA_EMAIL", "JIRA_API_TOKEN")):
        with pytest.raises(RuntimeError, match=rf"^{name} is not set, or is empty$"):
            make(*good[:place], missing, *good[place + 1 :])
    with pytest.raises(CredentialError, match="control character"):
        make(*good[:2], "token\n")  # from a file
    for cloud in ("", "a/b", "..", "x" * 65, "a\n"):
        with pytest.raises(CredentialError, match=r"^JIRA_CLOUD_ID must be letters, digits and hyphens, got '"):
            make(*good, cloud_id=cloud)


def test_naive_password_in_the_address_is_written_to_the_log(
    jira: Jira, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    httpx2.get(url.replace("://", f"://ada%40example.com:{CLASSIC}@") + "/rest/api/3/myself")
    assert "CANARY" in caplog.text
    with pytest.raises(CredentialError):
        JiraClient(url.replace("://", f"://ada:{CLASSIC}@"), EMAIL, CLASSIC)


def test_the_token_is_in_no_log_text_or_traceback(
    ask: Ask, jira: Jira, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []
    answers: list[Any] = [(status, {}, b"<>") for status in (200, 302, 403, 404, 429, 500)]
    for answer in [None, *answers]:
        jira.answer = answer
        try:
            seen.append(repr(ask(url, CLASSIC, "myself")))
        except JiraError as error:
            seen += [repr(error), *traceback.format_exception(error)]
    calls: list[Callable[[], Any]] = [
        lambda: ask(url, SCOPED, "myself"),
        lambda: ask("http://127.0.0.1:1", CLASSIC, "myself"),
        lambda: ask(url, CLASSIC + "\n", "myself"),
        lambda: ask(url, CLASSIC, "get", "//x"),
    ]
    for call in calls:
        with pytest.raises((JiraError, httpx2.ConnectError, ValueError)) as caught:
            call()
        seen += [repr(caught.value), *traceback.format_exception(caught.value)]
        if isinstance(caught.value, httpx2.ConnectError):
            seen += [repr(caught.value.request), repr(caught.value.request.headers)]
    output = "\n".join([*seen, caplog.text, repr(JiraClient(url, EMAIL, CLASSIC))])
    assert "403: the account" in output
    assert "CANARY" not in output
    assert basic_header(EMAIL, CLASSIC)[6:] not in output
