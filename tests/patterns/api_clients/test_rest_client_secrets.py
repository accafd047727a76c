"""Proves docs/patterns/api-clients/rest-client.md: a request goes to no other host, and no secret into an error."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rest_policy as policy
from harness.clock import Clock
from harness.color import Blocking, Color
from harness.depth import examples
from harness.scripted import Answer, Script, Seen, hang_up, silence
from patterns.api_clients import rest_client_kit as kit
from patterns.api_clients.rest_client_kit import TOKEN, MakeRaw, client_of, failure, steady
from rest_client_async import AsyncRestClient
from rest_client_core import Response, RestSettings, bearer, quoted
from rest_client_sync import RestClient
from rest_policy import ApiError, RetryPolicy

# Fixtures.
client = kit.client


# --- Where a request goes, and what it carries ----------------------------------------------------


def test_credentials_and_keys_go_to_no_other_origin(color: Color, scripted: Script, clock: Clock, raw: MakeRaw) -> None:
    other = raw(Answer(200).raw())
    client = client_of(color, f"{scripted.url}/v1", clock=clock, auth=bearer(TOKEN))
    for status in (301, 302, 303, 307, 308):
        scripted.answer(Answer(status, headers={"location": f"{other.url}/x?secret=1"}))
        error = failure(lambda: client.get("x"), policy.CrossOriginRefused)
        assert str(error).startswith(f"http://127.0.0.1:{other.port} is refused")
    failure(lambda: client.get(f"{other.url}/x"), policy.CrossOriginRefused)
    assert other.heads == []
    assert {seen.headers["authorization"] for seen in scripted.seen} == {f"Bearer {TOKEN}"}


def test_httpx_sends_its_headers_to_any_address_and_an_api_key_after_a_redirect(scripted: Script, raw: MakeRaw) -> None:
    other = raw(Answer(200).raw())
    scripted.answer(Answer(302, headers={"location": other.url}))
    headers = {"Authorization": f"Bearer {TOKEN}", "X-API-Key": TOKEN}
    with httpx2.Client(base_url=scripted.url, headers=headers, follow_redirects=True) as naive:
        naive.get(other.url)
        assert f"authorization: bearer {TOKEN}" in other.heads[0].lower()
        naive.get("x")
        assert "authorization:" not in other.heads[1].lower()
        assert f"x-api-key: {TOKEN}" in other.heads[1].lower()


def test_a_redirect_to_the_same_origin_is_an_error_that_says_so(client: Blocking, scripted: Script) -> None:
    scripted.answer(Answer(307, headers={"location": "/v1/users/"}))
    error = failure(lambda: client.get("users"))
    assert (type(error), error.status, len(scripted.seen)) == (ApiError, 307, 1)
    assert "redirects are not followed" in str(error)
    scripted.answer(Answer(302, headers={"location": "http://["}))
    assert failure(lambda: client.get("users"), policy.CrossOriginRefused)


ADDRESSES = RestSettings("https://api.example.com/v1/", 1, RetryPolicy(), time.monotonic, time.time)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("users/7", "/v1/users/7"),
        ("/users/7", "/v1/users/7"),
        ("users?to=/../x", "/v1/users?to=/../x"),
        ("", "/v1/"),
        ("a..b/.well-known", "/v1/a..b/.well-known"),
        ("//evil.test/x", "/v1/evil.test/x"),
        ("users:7", "/v1/users:7"),
        ("https://API.example.com:443/v2/x?page=2", "/v2/x?page=2"),
    ],
)
def test_a_path_is_below_the_base_url_whatever_it_looks_like(path: str, target: str) -> None:
    url = ADDRESSES.address(path)
    assert (url.host, url.raw_path.decode()) == ("api.example.com", target)


@pytest.mark.parametrize(
    "path",
    [
        *("http://api.example.com/v1", "https://api.example.com:8443/v1", "https://evil.test/v1", "HTTPS://evil.test"),
        *("https://api.example.com.evil.test/", "https://api.example.com@evil.test/"),
        "https://api.example.com\\@evil.test",
    ],
)
def test_an_address_with_another_scheme_host_or_port_is_refused(path: str) -> None:
    with pytest.raises(policy.CrossOriginRefused, match=r"this client calls https://api\.example\.com$"):
        ADDRESSES.address(path)


@pytest.mark.parametrize(
    "path", ["users/../../admin", "..", "users/%2e%2E/x", "a\\..\\b", "x/.", "a%2F..%2fb", "a%5C..%5cb", "../x?y=1"]
)
def test_a_path_that_climbs_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="segment"):
        ADDRESSES.address(path)


def test_httpx_lets_a_path_climb_out_of_the_base_url(scripted: Script) -> None:
    with httpx2.Client(base_url=f"{scripted.url}/v1") as naive:
        naive.get(f"users/{'../../admin'}")
    assert scripted.targets == ["/admin"]


@settings(max_examples=examples(80), deadline=None)
@given(
    st.lists(st.text(min_size=1, max_size=8) | st.sampled_from(["a/b", "..", "?x", "#", "%2e", ";", "é"]), min_size=1)
)
def test_what_is_quoted_stays_one_segment_or_is_refused(segments: list[str]) -> None:
    try:
        url = ADDRESSES.address(quoted(*segments))
    except (ValueError, UnicodeEncodeError):  # a dot segment; half of a surrogate pair
        text = "/".join(segments)
        assert "." in text or any("\ud800" <= character <= "\udfff" for character in text)
        return
    assert [unquote(part) for part in url.raw_path.decode().split("/")[2:]] == segments
    assert url.raw_path.startswith(b"/v1/")


def test_an_empty_segment_is_refused_because_it_means_the_whole_collection() -> None:
    assert quoted("users", 7, "a/b ?#%") == "users/7/a%2Fb%20%3F%23%25"
    with pytest.raises(ValueError, match="empty"):
        quoted("users", "")


@pytest.mark.parametrize(
    "base_url",
    [
        "ftp://h",
        "h/v1",
        "",
        "https://",
        "https://user:pa55@h",
        "https://h?x=1",
        "https://h#x",
        "https://h:port",
        "h://",
    ],
)
def test_a_base_url_that_cannot_be_meant_is_refused_without_showing_it(color: Color, base_url: str) -> None:
    with pytest.raises(ValueError, match="credentials go into auth") as caught:
        client_of(color, base_url)
    assert "pa55" not in "".join(traceback.format_exception(caught.value))


# --- Pages ----------------------------------------------------------------------------------------


def by_field(page: Response) -> str | None:
    link: str | None = page.data["next"]
    return link


def items(page: Response) -> list[int]:
    found: list[int] = page.data["items"]
    return found


def page(next_link: str | None, *numbers: int) -> Answer:
    return Answer(200, {"items": list(numbers), "next": next_link})


def test_a_page_is_requested_only_when_the_one_before_is_used_up(client: Blocking, scripted: Script) -> None:
    scripted.answer(
        page("?page=2", 1, 2), page(f"{scripted.url}/v1/other?page=3"), page("/v1/things?page=4"), page(None, 3)
    )
    pages = client.paginate("things", next_url=by_field, items=items, params={"size": 2}, headers={"x-a": "b"})
    assert scripted.seen == []
    assert [next(pages), next(pages), len(scripted.seen)] == [1, 2, 1]
    assert list(pages) == [3]
    # The link brings its own query; an empty page with a link is not the end.
    assert scripted.targets == ["/v1/things?size=2", "/v1/things?page=2", "/v1/other?page=3", "/v1/things?page=4"]
    assert {seen.headers["x-a"] for seen in scripted.seen} == {"b"}


def test_a_link_header_names_the_next_page(client: Blocking, scripted: Script) -> None:
    link = '</v1/things?page=2>; rel="next", </v1/things?page=9>; rel="last"'
    scripted.answer(
        Answer(200, {"items": [1]}, {"link": link}), Answer(200, {"items": [2]}, {"link": '</>; rel="last"'})
    )
    assert list(client.paginate("things", next_url=lambda page: page.next_link, items=items)) == [1, 2]
    assert Response(200, httpx2.Headers(), None, httpx2.URL("http://h")).next_link is None


@pytest.mark.parametrize(
    "link", ["//evil.test/x", "https://127.0.0.1:{port}/x", "http://127.0.0.1:{other}/x", "mailto:a"]
)
def test_a_link_to_another_origin_is_refused_and_nothing_is_sent_there(
    color: Color, scripted: Script, clock: Clock, raw: MakeRaw, link: str
) -> None:
    other = raw(Answer(200).raw())
    port = scripted.url.rpartition(":")[2].partition("/")[0]
    scripted.answer(page(link.format(port=port, other=other.port), 1))
    client = client_of(color, f"{scripted.url}/v1", clock=clock, auth=bearer(TOKEN))
    pages = client.paginate("things", next_url=by_field, items=items)
    assert next(pages) == 1
    failure(lambda: next(pages), policy.CrossOriginRefused)
    assert (len(scripted.seen), other.connections) == (1, 0)


@pytest.mark.parametrize("links", [["?page=1"], ["?page=2", "?page=1"], ["?page=2", "?page=3", "?page=2"]])
def test_a_link_to_a_page_that_was_visited_is_an_error(client: Blocking, scripted: Script, links: list[str]) -> None:
    scripted.answer(*(page(link) for link in links))
    error = failure(lambda: list(client.paginate("t?page=1", next_url=by_field, items=items)), policy.PaginationLoop)
    assert len(scripted.seen) == len(links)
    assert f"page {len(links)} leads to an earlier one" in str(error)


def test_each_page_has_the_total_for_itself_and_its_own_attempts(color: Color, scripted: Script, clock: Clock) -> None:
    slow = Answer(503, headers={"retry-after": "2"})
    scripted.answer(slow, page("?page=2", 1), slow, page(None, 2))
    client = client_of(color, f"{scripted.url}/v1", clock=clock, retry=steady(attempts=2), total=3)
    assert list(client.paginate("t", next_url=by_field, items=items)) == [1, 2]
    scripted.answer(slow)
    failure(lambda: list(client.paginate("t", next_url=by_field, items=items, total=1.5)), policy.ServerError)
    assert len(scripted.seen) == 5


# --- Secrets --------------------------------------------------------------------------------------


def test_no_secret_is_in_the_text_of_any_error(color: Color, scripted: Script, clock: Clock, raw: MakeRaw) -> None:
    leak = TOKEN.encode()

    def echo(status: int, **headers: str) -> Callable[[Seen], Answer]:
        echoed = {"x-request-id": TOKEN, "location": f"http://evil.test/{TOKEN}", "retry-after": TOKEN} | headers
        return lambda seen: Answer(status, {"code": seen.headers["authorization"].split()[1]}, echoed)

    broken = [
        raw(b"HTTP/1.1 2OO " + leak + b"\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\n" + leak + b"\r\n\r\n"),
        raw(hang_up),
    ]
    broken += [raw(Answer(200, leak).raw()), raw(Answer(200, leak).raw(length=500), hang_up), raw(silence)]
    texts: list[str] = []
    for url in [scripted.url] * 4 + [each.url for each in broken]:
        scripted.answer([echo(401), echo(503), echo(302), echo(429)][len(texts) % 4])
        client = client_of(
            color, f"{url}/{TOKEN}", clock=clock, auth=bearer(TOKEN), timeout=0.05, retry=steady(attempts=2), total=1e6
        )
        with pytest.raises(ApiError) as caught:
            client.get(f"hooks/{TOKEN}", params={"key": TOKEN}, headers={"X-API-Key": TOKEN}, idempotency_key=TOKEN)
        shown = traceback.TracebackException.from_exception(caught.value)
        texts.append("".join(str(part) for part in (*chain(shown), repr(caught.value), repr(client.inner))))
    assert len(texts) == 10
    assert not [text for text in texts if TOKEN in text]


def chain(shown: traceback.TracebackException | None) -> list[str]:
    """The messages that a traceback prints, without the lines of source between them."""
    if shown is None:
        return []
    cause = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)
    return [*shown.format_exception_only(), *chain(cause)]


def test_the_naive_texts_quote_the_query_and_the_token(scripted: Script) -> None:
    scripted.answer(403)
    with pytest.raises(httpx2.HTTPStatusError, match=TOKEN):
        httpx2.get(scripted.url, params={"key": TOKEN}).raise_for_status()
    with pytest.raises(httpx2.LocalProtocolError, match=TOKEN):  # read from a file, with its line end
        httpx2.get(scripted.url, headers={"Authorization": f"Bearer {TOKEN}\n"})


def test_a_header_that_cannot_be_sent_is_not_quoted(client: Blocking, scripted: Script) -> None:
    error = failure(lambda: client.get("x", headers={"X-API-Key": f"{TOKEN}\n"}), policy.ApiConnectionError)
    assert "LocalProtocolError (attempt 1)" in str(error)
    assert TOKEN not in "".join(traceback.format_exception(error)).replace("TOKEN", "")
    assert scripted.seen == []


@pytest.mark.parametrize("token", ["", f"{TOKEN}\n", f"{TOKEN} x", f"{TOKEN}é", f"{TOKEN}\x00"])
def test_a_token_that_does_not_fit_a_header_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(ValueError, match="the token is empty, or has") as caught:
        bearer(token)
    assert TOKEN not in str(caught.value)


def test_the_log_of_httpx_has_the_query_so_keys_go_into_headers(
    client: Blocking, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        client.get("x", params={"key": TOKEN})
        assert TOKEN in caplog.text
        caplog.clear()
        client.get("x", headers={"X-API-Key": TOKEN})
    assert TOKEN not in caplog.text


# --- Settings -------------------------------------------------------------------------------------

ENVIRON = {"API_BASE_URL": "http://api.test/v1", "API_TOKEN": TOKEN}


@pytest.mark.parametrize("made", [AsyncRestClient, RestClient])
def test_settings_come_from_the_environment(made: Any, scripted: Script) -> None:
    for extra, total in (({}, 30.0), ({"API_TOTAL_TIMEOUT_S": "2.5"}, 2.5)):
        client = made.from_env(ENVIRON | extra)
        assert client._settings.total == total
    assert made.from_env(ENVIRON, total=7)._settings.total == 7
    if made is RestClient:
        with made.from_env(ENVIRON | {"API_BASE_URL": scripted.url}) as client:
            client.get("x")
        assert scripted.seen[0].headers["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("made", [AsyncRestClient, RestClient])
def test_a_missing_or_bad_setting_is_named_at_the_start(made: Any) -> None:
    for name in ENVIRON:
        for environ in (ENVIRON | {name: ""}, {other: ENVIRON[other] for other in ENVIRON if other != name}):
            with pytest.raises(RuntimeError, match=f"^{name} is not set, or is empty$"):
                made.from_env(environ)
    for bad in ("soon", "", "0", "-1", "inf", "nan"):
        with pytest.raises(ValueError, match=f"^API_TOTAL_TIMEOUT_S must be a number of seconds over 0, got '{bad}'$"):
            made.from_env(ENVIRON | {"API_TOTAL_TIMEOUT_S": bad})


def test_a_proxy_of_the_environment_is_used_unless_the_transport_says_otherwise(
    color: Color, scripted: Script, raw: MakeRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = raw(Answer(200, {"from": "proxy"}).raw())
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert client_of(color, "http://api.test/v1", transport=None).get("x").data == {"from": "proxy"}
    transport = kit.transport_of(color, trust_env=False)
    assert client_of(color, f"{scripted.url}/v1", transport=transport).get("x").data == {}
    assert len(proxy.heads) == len(scripted.seen) == 1
