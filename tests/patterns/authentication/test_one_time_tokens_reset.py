"""Proves docs/patterns/authentication/one-time-tokens.md: a forgotten password, on uvicorn and PostgreSQL."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import psycopg
import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from one_time_tokens_async import AsyncOneTimeTokens
from patterns.authentication.one_time_tokens_kit import NOW, SETTINGS, Site, hashed
from reset_routes import Account, ResetSettings, reset_routes, send_reset
from servers.http import Uvicorn

NEW = "a new and long password"
SENT = "If this address has an account, a link is on its way."
BAD_LINK = "This link is not valid, or not any more. Ask for a new one."


@pytest.fixture(scope="module")
def running(module_database_url: str) -> Iterator[tuple[Site, httpx2.Client]]:
    site = Site(module_database_url)
    server = Uvicorn(site.app)
    with httpx2.Client(base_url=server.url) as client:
        yield site, client
    server.stop()


@pytest.fixture
def site(running: tuple[Site, httpx2.Client]) -> Site:
    running[0].reset()
    return running[0]


@pytest.fixture
def client(running: tuple[Site, httpx2.Client]) -> httpx2.Client:
    return running[1]


def link_for(site: Site, client: httpx2.Client, address: str = "ada@example.com") -> str:
    """Ask, let the worker work, and return the token of the mail."""
    assert client.post("/forgot", data={"address": address}).status_code == 202
    site.work()
    _, link = site.mails[-1]
    return parse_qs(urlsplit(link).query)["token"][0]


def password_of(site: Site, name: str) -> str:
    return str(site.one(f"SELECT hash FROM users WHERE id = '{name}'")[0])


def test_a_link_is_mailed_shown_as_a_form_and_sets_a_new_password_once(site: Site, client: httpx2.Client) -> None:
    token = link_for(site, client)
    assert site.mails == [("ada@example.com", f"https://shop.example/reset?token={token}")]
    page = client.get("/reset", params={"token": token})
    assert page.status_code == 200
    assert f'name="token" value="{token}"' in page.text
    assert '<form method="post">' in page.text
    assert client.post("/reset", data={"token": token, "password": NEW}).status_code == 200
    assert password_of(site, "ada") == hashed(NEW)
    again = client.post("/reset", data={"token": token, "password": "and another password"})
    assert (again.status_code, BAD_LINK in again.text) == (400, True)
    assert password_of(site, "ada") == hashed(NEW)
    assert client.get("/reset", params={"token": token}).status_code == 400


def test_mail_scanners_that_fetch_the_link_use_nothing_up(site: Site, client: httpx2.Client) -> None:
    token = link_for(site, client)
    for method in ("HEAD", "GET", "GET", "HEAD", "GET"):
        assert client.request(method, "/reset", params={"token": token}).status_code == 200
    assert client.post("/reset", data={"token": token, "password": NEW}).status_code == 200


def test_naive_consuming_on_get_gives_the_scanner_the_link_and_the_person_an_error(site: Site) -> None:
    app = FastAPI()

    @app.get("/naive")
    async def naive(token: str) -> str:
        async with await psycopg.AsyncConnection.connect(site.url) as db:
            return (await AsyncOneTimeTokens(db, clock=site.clock).consume("magic", token)).subject

    async def issue() -> str:
        async with await psycopg.AsyncConnection.connect(site.url) as db:
            return await AsyncOneTimeTokens(db, clock=site.clock).issue("magic", "ada", ttl=60)

    token = asyncio.run(issue())
    visitor = TestClient(app, raise_server_exceptions=False)
    assert visitor.get("/naive", params={"token": token}).json() == "ada"  # the scanner
    assert visitor.get("/naive", params={"token": token}).status_code == 500  # the person


def test_a_reset_ends_all_sessions_of_the_user_and_of_nobody_else(site: Site, client: httpx2.Client) -> None:
    token = link_for(site, client)
    client.post("/reset", data={"token": token, "password": NEW})
    assert site.one("SELECT user_id FROM sessions") == ("bob",)


def test_any_change_of_the_password_ends_the_links_made_before(site: Site, client: httpx2.Client) -> None:
    token = link_for(site, client)
    site.one(f"UPDATE users SET hash = '{hashed('changed in the settings')}' WHERE id = 'ada' RETURNING id")
    assert client.post("/reset", data={"token": token, "password": NEW}).status_code == 400
    assert password_of(site, "ada") == hashed("changed in the settings")


def test_a_password_change_revokes_the_reset_tokens_in_its_transaction(site: Site, client: httpx2.Client) -> None:
    token = link_for(site, client)

    async def change() -> None:
        async with await psycopg.AsyncConnection.connect(site.url) as db:
            await site.users.set_password(db, "ada", NEW)

    asyncio.run(change())
    assert client.get("/reset", params={"token": token}).status_code == 400
    assert site.one("SELECT count(*) FROM one_time_tokens") == (0,)


def test_a_refused_password_leaves_the_link_as_good_as_before(site: Site, client: httpx2.Client) -> None:
    token = link_for(site, client)
    answer = client.post("/reset", data={"token": token, "password": "short"})
    assert answer.status_code == 422
    assert "at least 15 characters &lt;here&gt;" in answer.text
    assert f'value="{token}"' in answer.text
    assert password_of(site, "ada") == hashed("old password of ada")
    assert client.post("/reset", data={"token": token, "password": NEW}).status_code == 200


def test_the_user_comes_from_the_token_and_never_from_the_form(site: Site, client: httpx2.Client) -> None:
    token = link_for(site, client)
    form = {"token": token, "password": NEW, "subject": "bob", "user": "bob", "address": "bob@example.com"}
    assert client.post("/reset", data=form).status_code == 200  # whoever posts it: Ada's
    assert password_of(site, "ada") == hashed(NEW)
    assert password_of(site, "bob") == hashed("old password of bob")


def test_a_link_expires_after_its_time(site: Site, client: httpx2.Client) -> None:
    token = link_for(site, client)
    site.clock.now = NOW + 1_800
    assert client.get("/reset", params={"token": token}).status_code == 400
    assert client.post("/reset", data={"token": token, "password": NEW}).status_code == 400
    site.clock.now = NOW + 1_799
    assert client.get("/reset", params={"token": token}).status_code == 200


def test_of_parallel_posts_of_one_link_one_changes_the_password(site: Site, client: httpx2.Client) -> None:
    token = link_for(site, client)

    async def main() -> list[int]:
        async with httpx2.AsyncClient(base_url=client.base_url) as many:
            posts = (
                many.post("/reset", data={"token": token, "password": f"a new and long password {n}"})
                for n in range(20)
            )
            return [answer.status_code for answer in await asyncio.gather(*posts)]

    statuses = asyncio.run(main())
    assert sorted(statuses) == [200] + [400] * 19
    assert password_of(site, "ada") == hashed(f"a new and long password {statuses.index(200)}")


def test_a_known_and_an_unknown_address_get_the_same_answer_and_one_gets_a_mail(
    site: Site, client: httpx2.Client
) -> None:
    answers = [client.post("/forgot", data={"address": a}) for a in ("ada@example.com", "eve@example.com")]
    assert {answer.status_code for answer in answers} == {202}
    assert SENT in answers[0].text
    assert answers[0].content == answers[1].content
    known, unknown = (dict(answer.headers) | {"date": ""} for answer in answers)
    assert known == unknown
    site.work()
    assert [address for address, _ in site.mails] == ["ada@example.com"]


def test_the_answer_costs_the_same_for_an_unknown_address(site: Site, client: httpx2.Client) -> None:
    for address in ("ada@example.com", "eve@example.com"):
        assert client.post("/forgot", data={"address": address}).status_code == 202
        assert (site.asked, site.queue) == ([address], [address])  # one question to the limit, one job for the worker
        site.asked.clear()
        site.queue.clear()
    assert site.lent == 0  # and no look at the database, whose time could tell who has an account
    assert site.one("SELECT count(*) FROM one_time_tokens") == (0,)
    assert client.get("/reset", params={"token": "x" * 43}).status_code == 400
    assert site.lent == 1  # a look would have been seen


def test_naive_no_such_user_is_an_oracle_for_accounts(site: Site) -> None:
    app = FastAPI()

    @app.post("/naive")
    async def naive(request: Request) -> str:
        async with await psycopg.AsyncConnection.connect(site.url) as db:
            account = await site.users.find(db, (await request.body()).decode())
        return "sent" if account else "no such user"

    visitor = TestClient(app)
    assert (
        visitor.post("/naive", content="ada@example.com").text != visitor.post("/naive", content="eve@x.example").text
    )


def test_a_hundred_requests_for_one_address_are_one_mail_and_a_hundred_equal_answers(
    site: Site, client: httpx2.Client
) -> None:
    site.limit = 1
    answers = [client.post("/forgot", data={"address": a}) for a in ["ada@example.com", "ADA@example.com "] * 50]
    assert {(answer.status_code, answer.text) for answer in answers} == {(202, answers[0].text)}
    assert set(site.asked) == {"ada@example.com"}  # one count for all ways to write it
    site.work()
    assert len(site.mails) == 1


@pytest.mark.parametrize("address", ["", "ada", "@", "a@", "x" * 250 + "@b.cd", "a@b.cd\nBcc: x@y.zz", "a\x00@b.cd"])
def test_what_cannot_be_an_address_gets_the_same_answer_and_no_work(
    site: Site, client: httpx2.Client, address: str
) -> None:
    answer = client.post("/forgot", data={"address": address})
    assert (answer.status_code, SENT in answer.text) == (202, True)
    assert site.queue == site.asked == []


def test_an_address_of_3_to_254_characters_is_queued_as_it_was_typed(site: Site, client: httpx2.Client) -> None:
    for address in ("a@b", "x" * 249 + "@b.cd"):
        client.post("/forgot", data={"address": f" {address} "})
    assert site.queue == ["a@b", "x" * 249 + "@b.cd"]
    site.queue.clear()
    client.post("/forgot", content=b"&".join([b"address=a%40b"] * 10))
    assert site.queue.pop() == "a@b"
    for body in (b"address=a%40b&address=c%40d", b"address=%ff%40b", b"&".join([b"address=a%40b"] * 11), b"\xff"):
        assert client.post("/forgot", content=body).status_code == 202
    assert site.queue == ["a@b", "\ufffd@b"]


def test_the_mail_goes_to_the_address_on_record_and_not_to_the_one_typed_in(site: Site) -> None:
    sent: list[str] = []

    class Loose:
        """Finds without case, as many a database does: the dotless ı becomes the I of an ADMIN."""

        async def find(self, db: Any, address: str) -> Account | None:
            return Account("1", "admin@example.com", "h") if address.upper() == "ADMIN@EXAMPLE.COM" else None

        lock = find

        async def set_password(self, db: Any, subject: str, password: str) -> None: ...

    @asynccontextmanager
    async def connect() -> AsyncIterator[Any]:
        async with await psycopg.AsyncConnection.connect(site.url) as db:
            yield db

    async def send(address: str, link: str) -> None:
        sent.append(address)

    typed = "adm\u0131n@example.com"  # a mailbox of the attacker's
    assert asyncio.run(send_reset(connect, Loose(), typed, settings=SETTINGS, send=send))
    assert sent == ["admin@example.com"]
    assert not asyncio.run(send_reset(connect, Loose(), "eve@example.com", settings=SETTINGS, send=send))


def test_every_answer_forbids_referrers_caches_and_frames_and_loads_nothing(site: Site, client: httpx2.Client) -> None:
    token = link_for(site, client)
    answers = [
        client.get("/reset", params={"token": token}),
        client.get("/reset", params={"token": "x"}),
        client.get("/reset"),
        client.post("/reset", data={"token": token, "password": "short"}),
        client.post("/reset", data={"token": token, "password": NEW}),
        client.post("/reset"),
        client.post("/forgot", data={"address": "ada@example.com"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 400, 400, 422, 200, 400, 202]
    for answer in answers:
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = "default-src 'none'; form-action 'self'; frame-ancestors 'none'"
        assert answer.headers["content-security-policy"] == policy
        assert not {"src=", "href=", "<script", "<style"} & set(answer.text.split())


def test_a_link_is_built_from_the_configured_address_whatever_the_host_header_says(
    site: Site, client: httpx2.Client
) -> None:
    headers = {"Host": "evil.example", "X-Forwarded-Host": "evil.example"}
    client.post("/forgot", data={"address": "ada@example.com"}, headers=headers)
    site.work()
    assert site.mails[0][1].startswith("https://shop.example/reset?token=")


def test_naive_link_from_the_request_sends_the_victims_token_to_the_attacker() -> None:
    app = FastAPI()

    @app.get("/reset")
    async def reset() -> None: ...

    @app.post("/naive")
    async def naive(request: Request) -> str:
        return str(request.url_for("reset"))

    link = TestClient(app).post("/naive", headers={"Host": "evil.example"}).json()
    assert link == "http://evil.example/reset"


def test_a_database_that_is_down_is_503_and_a_request_for_a_link_does_not_need_it(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def connect() -> AsyncIterator[Any]:
        async with await psycopg.AsyncConnection.connect("postgresql://127.0.0.1:1/x", connect_timeout=2) as db:
            yield db

    async def allow(address: str) -> bool:
        return True

    queued: list[str] = []

    async def enqueue(address: str) -> None:
        queued.append(address)

    app = FastAPI()
    app.include_router(reset_routes(connect, site.users, allow=allow, enqueue=enqueue))
    client = TestClient(app)
    for answer in (
        client.get("/reset", params={"token": "x" * 43}),
        client.post("/reset", data={"token": "x" * 43, "password": NEW}),
    ):
        assert answer.status_code == 503
        assert "This does not work at the moment. Try again later." in answer.text
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert "the database cannot be reached" in caplog.text
    assert client.post("/forgot", data={"address": "a@b"}).status_code == 202
    assert queued == ["a@b"]
    assert app.openapi()["paths"] == {}  # nothing for the API's documentation


def test_an_account_that_is_gone_has_no_valid_link(site: Site, client: httpx2.Client) -> None:
    token = link_for(site, client)
    site.one("DELETE FROM users WHERE id = 'ada' RETURNING id")
    assert client.post("/reset", data={"token": token, "password": NEW}).status_code == 400


def test_a_body_that_is_too_large_is_refused_unread(site: Site, client: httpx2.Client) -> None:
    assert client.post("/forgot", content=b"x" * 4_096).status_code == 202
    assert client.post("/forgot", content=b"x" * 4_097).status_code == 413
    assert client.post("/reset", content=b"x" * 16_384).status_code == 400
    assert client.post("/reset", content=b"x" * 16_385).status_code == 413


# Settings.


def test_settings_come_from_the_environment_and_half_an_hour_is_the_default() -> None:
    settings = ResetSettings.from_env({"PUBLIC_BASE_URL": "https://shop.example/app/"})
    assert settings.ttl == 1_800
    assert settings.link("T") == "https://shop.example/app/reset?token=T"
    for ttl in ("60", "86400"):
        environ = {"PUBLIC_BASE_URL": "http://127.0.0.1:8000", "RESET_TTL_SECONDS": ttl}
        assert ResetSettings.from_env(environ).ttl == float(ttl)
    for url in ("http://localhost:8000", "http://[::1]"):
        assert ResetSettings(url).link("T") == f"{url}/reset?token=T"


def test_settings_and_accounts_cannot_be_changed() -> None:
    for item in (SETTINGS, Account("1", "ada@example.com", "h")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(item, dataclasses.fields(item)[0].name, "x")
        assert not hasattr(item, "__dict__")


@pytest.mark.parametrize("ttl", ["", "59", "86401", "1e3", "-60", "٦٠", "600000", "60.5", "forever"])
def test_a_lifetime_that_is_no_sensible_number_stops_the_start(ttl: str) -> None:
    with pytest.raises(
        ValueError, match=r"^RESET_TTL_SECONDS must be a whole number of seconds from 60 to 86400, got '"
    ):
        ResetSettings.from_env({"PUBLIC_BASE_URL": "https://shop.example", "RESET_TTL_SECONDS": ttl})


@pytest.mark.parametrize(
    "url",
    [
        "",
        "shop.example",
        "//shop.example",
        "http://shop.example",
        "http://localhost.example",
        "https://",
        "https://u:hunter2@shop.example",
        "https://shop.example/?hunter2",
        "https://shop.example/#hunter2",
        "javascript:alert(1)",
        "ws://127.0.0.1",
        "ftp://127.0.0.1",
    ],
)
def test_a_base_address_that_is_missing_or_not_https_stops_the_start(url: str) -> None:
    with pytest.raises(ValueError, match=r"^PUBLIC_BASE_URL must be https:// and a host") as caught:
        ResetSettings(url)
    assert "hunter2" not in str(caught.value)
    kind, message = (ValueError, "must be https://") if url else (RuntimeError, "is not set, or is empty")
    with pytest.raises(kind, match=f"^PUBLIC_BASE_URL {message}"):
        ResetSettings.from_env({"PUBLIC_BASE_URL": url})
    with pytest.raises(RuntimeError, match=r"^PUBLIC_BASE_URL is not set, or is empty$"):
        ResetSettings.from_env({})


@pytest.mark.parametrize("ttl", [0, -1, True, float("nan"), float("inf"), "1800", None])
def test_a_lifetime_in_the_settings_is_a_number_of_seconds(ttl: Any) -> None:
    with pytest.raises(ValueError, match=rf"^ttl must be a number of seconds over 0, got {ttl!r}$"):
        ResetSettings("https://shop.example", ttl)


def test_no_token_or_password_is_in_any_log_or_in_a_page_it_does_not_belong_to(
    site: Site, client: httpx2.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="reset_routes")
    caplog.set_level(logging.DEBUG, logger="psycopg")
    token = link_for(site, client)
    pages = [client.post("/reset", data={"token": token, "password": "CANARY"}).text.replace(token, "", 1)]
    pages.append(client.post("/reset", data={"token": token, "password": "CANARY-password-0123"}).text)
    pages.append(client.get("/reset", params={"token": token}).text)
    pages.append(client.get("/reset", params={"token": "<CANARY>"}).text)
    pages.append(client.post("/forgot", data={"address": "CANARY@example.com"}).text)
    own = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))
    assert "CANARY" not in own + "".join(pages)
    assert token not in own + "".join(pages)
    assert repr(SETTINGS) == "ResetSettings(base_url='https://shop.example', ttl=1800.0)"
