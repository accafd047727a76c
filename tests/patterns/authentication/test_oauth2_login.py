"""Proves docs/patterns/authentication/oauth2-login.md: a sign-in that nobody else can begin, finish or replay."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import hashlib
import logging
import re
import secrets
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx2
import pytest
from authlib.integrations.base_client.errors import (
    MismatchingStateError,
    OAuthError,
)
from authlib.integrations.starlette_client import OAuth
from cryptography.fernet import Fernet
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response

from harness.tls import NOBODY
from id_token import Identity, LoginForged
from login_routes import FAILED, LATER, login_router
from oidc_client import (
    GOOGLE,
    LoginRejected,
    OidcClient,
    Pending,
    ProviderUnavailable,
    challenge,
    safe_path,
)
from servers.oidc import LEFT_OUT, OidcProvider

CLIENT_ID, CANARY = "our client", "cañary+secret/%" + "k" * 24
REDIRECT = "https://shop.example/callback"


@pytest.fixture(scope="module")
def _provider() -> Iterator[OidcProvider]:
    running = OidcProvider(redirect_uri=REDIRECT, client_id=CLIENT_ID, client_secret=CANARY)
    yield running
    running.stop()


@pytest.fixture
def provider(_provider: OidcProvider) -> OidcProvider:
    _provider.reset()
    return _provider


class Shop:
    """An application with the two routes, a session store, and the browsers of its visitors."""

    def __init__(self, provider: OidcProvider, http: httpx2.AsyncClient, **options: Any) -> None:
        self.provider, self.start, self.later = provider, time.time(), 0.0
        self.oidc = OidcClient(
            provider.issuer,
            CLIENT_ID,
            SecretStr(CANARY),
            options.pop("redirect_uri", REDIRECT),
            http=http,
            clock=self.clock,
            **options,
        )
        self.sessions: dict[str, Identity] = {}
        self.broken_store = False
        self.app = FastAPI()
        router = login_router(
            self.oidc, self.start_session, cookie_key=Fernet.generate_key().decode(), clock=self.clock
        )
        self.app.include_router(router)

        @self.app.get("/whoami")
        async def whoami(request: Request) -> str | None:
            found = self.sessions.get(request.cookies.get("__Host-session", ""))
            return found.subject if found else None

    def clock(self) -> float:
        return self.start + self.later  # it stands still: a busy machine changes no outcome

    async def start_session(self, request: Request, response: Response, identity: Identity) -> None:
        if self.broken_store:
            raise ConnectionError("the session store is down")
        self.sessions.pop(request.cookies.get("__Host-session", ""), None)
        sid = secrets.token_urlsafe(32)
        self.sessions[sid] = identity
        response.set_cookie("__Host-session", sid, path="/", secure=True, httponly=True, samesite="lax")

    def browser(self) -> httpx2.AsyncClient:
        transport = httpx2.ASGITransport(self.app)
        return httpx2.AsyncClient(transport=transport, base_url="https://shop.example")

    async def begin(self, browser: httpx2.AsyncClient, next_path: str | None = None) -> str:
        """Press the button; return the provider's address that the browser is sent to."""
        answer = await browser.get("/login", params={"next": next_path} if next_path else {})
        assert answer.status_code == 303
        return answer.headers["location"]

    async def consent(self, url: str, login: str = "ada") -> str:
        """Sign in at the provider; return the callback's address."""
        async with httpx2.AsyncClient(verify=NOBODY) as plain:
            answer = await plain.get(f"{url}&login={login}")
        assert answer.status_code == 303, answer.text
        return answer.headers["location"]

    async def sign_in(self, browser: httpx2.AsyncClient, next_path: str | None = None) -> httpx2.Response:
        return await browser.get(await self.consent(await self.begin(browser, next_path)))


@contextlib.asynccontextmanager
async def open_shop(provider: OidcProvider, **options: Any) -> AsyncIterator[Shop]:
    async with httpx2.AsyncClient(verify=NOBODY) as http:
        yield Shop(provider, http, **options)


def query_of(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


def changed(url: str, **changes: str | None) -> str:
    query = {k: v for k, v in (query_of(url) | changes).items() if v is not None}
    return f"{url.partition('?')[0]}?{urlencode(query)}"


def nothing_is_stored(shop: Shop, answer: httpx2.Response) -> bool:
    return not shop.sessions and "__Host-session" not in answer.headers.get("set-cookie", "")


# The way that works.


async def test_a_sign_in_ends_with_a_session_at_the_page_it_began_from(provider: OidcProvider) -> None:
    async with open_shop(provider) as shop, shop.browser() as browser:
        url = await shop.begin(browser, "/basket?step=2&x=ä b")
        sent = query_of(url)
        assert url.startswith(f"{provider.issuer}/authorize?")
        assert {k: v for k, v in sent.items() if k not in ("state", "nonce", "code_challenge")} == {
            "response_type": "code",
            "client_id": CLIENT_ID,
            "redirect_uri": REDIRECT,
            "scope": "openid email profile",
            "code_challenge_method": "S256",
        }
        answer = await browser.get(await shop.consent(url))
        assert (answer.status_code, answer.headers["location"]) == (303, "/basket?step=2&x=%C3%A4%20b")
        assert challenge(provider.last_form["code_verifier"]) == sent["code_challenge"]
        assert provider.last_claims["nonce"] == sent["nonce"]
        assert (await browser.get("/whoami")).json() == "ada"
        (signed_in,) = shop.sessions.values()
        assert signed_in == Identity(provider.issuer, "ada", "ada@example.com", True, "Ada")
        assert provider.hits == {
            "/.well-known/openid-configuration": 1,
            "/authorize": 1,
            "/token": 1,
            "/jwks": 1,
        }


def test_the_known_answer_of_rfc_7636_is_made() -> None:
    assert challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


async def test_state_nonce_and_verifier_are_256_bits_each_and_never_the_same(provider: OidcProvider) -> None:
    async with open_shop(provider) as shop:
        made = [await shop.oidc.begin() for _ in range(50)]
    values = [value for p in made for value in (p.state, p.nonce, p.verifier)]
    assert len(set(values)) == 150
    assert all(re.fullmatch(r"[\w-]{43}", value, re.ASCII) for value in values)
    assert made[0].next_path == "/"


async def test_the_attempts_cookie_is_sealed_and_for_this_host_alone_and_lasts_600_seconds(
    provider: OidcProvider,
) -> None:
    async with open_shop(provider) as shop, shop.browser() as browser:
        answer = await browser.get("/login?next=/secret-place")
        cookie = answer.headers["set-cookie"]
        assert re.match(r"__Host-login-[0-9a-f]{16}=gAAAA[\w=-]+; ", cookie)
        attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert attributes == {"httponly", "max-age=600", "path=/", "samesite=lax", "secure"}
        assert answer.headers["cache-control"] == "no-store"
        sent = query_of(answer.headers["location"])
        assert sent["state"] not in cookie
        assert sent["nonce"] not in cookie


async def test_the_longest_path_that_is_kept_still_fits_a_cookie(provider: OidcProvider) -> None:
    async with open_shop(provider) as shop, shop.browser() as browser:
        longest = "/" + "ä" * 511
        answer = await browser.get("/login", params={"next": longest})
        assert len(answer.headers["set-cookie"]) < 4_096  # a browser drops a larger one
        done = await browser.get(await shop.consent(answer.headers["location"]))
        assert done.headers["location"] == "/" + "%C3%A4" * 511


async def test_two_tabs_both_succeed_and_each_goes_where_it_began(provider: OidcProvider) -> None:
    async with open_shop(provider) as shop, shop.browser() as browser:
        first, second = await shop.begin(browser, "/one"), await shop.begin(browser, "/two")
        answers = [await browser.get(await shop.consent(url)) for url in (first, second)]
        assert [answer.headers["location"] for answer in answers] == ["/one", "/two"]


def test_naive_single_state_cookie_lets_the_second_tab_break_the_first() -> None:
    jar: dict[str, str] = {}
    first, second = "state of tab one", "state of tab two"
    jar["state"] = first
    jar["state"] = second  # the second tab
    assert jar.get("state") != first  # the first comes back: mismatching_state


async def test_a_browser_holds_at_most_four_attempts_and_the_oldest_goes(provider: OidcProvider) -> None:
    async with open_shop(provider) as shop, shop.browser() as browser:
        urls = [await shop.begin(browser, f"/{number}") for number in range(6)]
        assert len([name for name in browser.cookies if name.startswith("__Host-login-")]) == 4
        answers = [await browser.get(await shop.consent(url)) for url in urls]
        assert [answer.status_code for answer in answers] == [400, 400, 303, 303, 303, 303]


async def test_the_secret_is_sent_in_the_form_to_a_provider_that_wants_it_there(provider: OidcProvider) -> None:
    provider.auth_method = "client_secret_post"
    async with open_shop(provider) as shop, shop.browser() as browser:
        assert (await shop.sign_in(browser)).status_code == 303
    provider.auth_method, provider.metadata = "client_secret_basic", {"token_endpoint_auth_methods_supported": None}
    async with open_shop(provider) as shop, shop.browser() as browser:  # silence means Basic
        assert (await shop.sign_in(browser)).status_code == 303


async def test_a_provider_that_does_not_name_itself_in_its_answers_is_believed(provider: OidcProvider) -> None:
    provider.supports_iss = False
    async with open_shop(provider) as shop, shop.browser() as browser:
        assert (await shop.sign_in(browser)).status_code == 303


# State: whose attempt is it?


@pytest.mark.parametrize("change", [{"state": None}, {"state": ""}, {"state": "x" * 43}, {"state": "é"}])
async def test_an_answer_without_this_browsers_state_is_refused_before_anything_else(
    provider: OidcProvider, change: dict[str, str | None], caplog: pytest.LogCaptureFixture
) -> None:
    async with open_shop(provider) as shop, shop.browser() as browser:
        genuine = await shop.consent(await shop.begin(browser))
        for address in (changed(genuine, **change), changed(genuine, **change, error="access_denied")):
            answer = await browser.get(address)
            assert (answer.status_code, answer.text) == (400, FAILED)
            assert nothing_is_stored(shop, answer)
        assert provider.hits["/token"] == 0
        assert "LoginRejected" not in caplog.text  # the error was not looked at


async def test_an_answer_is_refused_in_a_browser_that_kept_nothing(provider: OidcProvider) -> None:
    async with open_shop(provider) as shop, shop.browser() as browser:
        address = await shop.consent(await shop.begin(browser))
        browser.cookies.clear()
        for attempt in (address, "/callback", changed(address, state=None), changed(address, error="access_denied")):
            answer = await browser.get(attempt)
            assert (answer.status_code, answer.text) == (400, FAILED)
            assert nothing_is_stored(shop, answer)


def test_naive_comparison_of_two_missing_states_signs_in_anybody() -> None:
    def naive(params: dict[str, str], cookies: dict[str, str]) -> bool:
        return params.get("state") == cookies.get("state")

    assert naive({"code": "the attacker's"}, {})  # None == None


async def test_finish_refuses_a_pending_attempt_whose_state_is_empty_or_another(provider: OidcProvider) -> None:
    async with open_shop(provider) as shop:
        pending = await shop.oidc.begin()
        for kept, sent in ((None, pending.state), (dataclasses.replace(pending, state=""), "")):
            with pytest.raises(LoginForged, match=r"^the answer has no state, or this browser began nothing$"):
                await shop.oidc.finish({"state": sent, "code": "c"}, kept)
        with pytest.raises(LoginForged, match=r"^the answer has no state, or this browser began nothing$"):
            await shop.oidc.finish({"code": "c"}, pending)
        with pytest.raises(LoginForged, match=r"^the state belongs to another attempt$"):
            await shop.oidc.finish({"state": pending.state[:-1] + "é", "code": "c"}, pending)


async def test_naive_state_in_a_shared_dictionary_signs_the_victim_in_as_the_attacker(
    provider: OidcProvider,
) -> None:
    async with open_shop(provider) as shop, shop.browser() as attacker, shop.browser() as victim:
        known: dict[str, Pending] = {}  # what the naive application keeps, for everybody
        pending = await shop.oidc.begin()
        known[pending.state] = pending
        link = await shop.consent(pending.url, login="mallory")  # the attacker stops here, and sends the link
        # The victim follows it.
        fooled = await shop.oidc.finish(query_of(link), known.get(query_of(link)["state"]))
        assert fooled.subject == "mallory"
        # With the attempt in the attacker's own browser, the victim's has nothing to finish.
        link = await shop.consent(await shop.begin(attacker), login="mallory")
        await shop.begin(victim)
        answer = await victim.get(link)
        assert answer.status_code == 400
        assert nothing_is_stored(shop, answer)


async def test_an_attempt_ends_after_600_seconds_also_for_a_browser_that_keeps_its_cookie(
    provider: OidcProvider,
) -> None:
    async with open_shop(provider) as shop, shop.browser() as browser:
        pending = await shop.oidc.begin()
        for later, fine in ((600.0, False), (-61.0, False), (599.0, True)):
            address = await shop.consent(pending.url)
            shop.later = later
            if fine:  # the ID token, made just now by the provider's clock, has expired by ours
                with pytest.raises(LoginForged, match="expired"):
                    await shop.oidc.finish(query_of(address), pending)
            else:
                with pytest.raises(LoginForged, match=r"^the attempt is too old$"):
                    await shop.oidc.finish(query_of(address), pending)
            shop.later = 0
        address = await shop.consent(await shop.begin(browser))
        kept = dict(browser.cookies)
        shop.later = 601
        assert (
            await browser.get(address, headers={"cookie": "; ".join(map("=".join, kept.items()))})
        ).status_code == 400
        assert provider.hits["/token"] == 1


async def test_a_cookie_that_was_changed_or_belongs_to_another_attempt_is_no_attempt(provider: OidcProvider) -> None:
    async with open_shop(provider) as shop, shop.browser() as browser:
        one = await shop.consent(await shop.begin(browser))
        two = await shop.consent(await shop.begin(browser))
        (first, value), (second, other) = list(browser.cookies.items())
        browser.cookies.clear()
        for name, text in ((first, other), (first, value[:-2] + "AA"), (first, "é"), (first, "")):
            sent = f"{name}={text}".encode()
            answer = await browser.get(one, headers={b"cookie": sent})
            assert answer.status_code == 400
        assert (await browser.get(two, headers={"cookie": f"{second}={other}"})).status_code == 303


# Which issuer answers (RFC 9207).


@pytest.mark.parametrize("iss", [None, "https://evil.example", ""])
async def test_an_answer_of_another_issuer_or_of_none_is_refused(provider: OidcProvider, iss: str | None) -> None:
    provider.answer = {"iss": iss}
    async with open_shop(provider) as shop, shop.browser() as browser:
        answer = await shop.sign_in(browser)
        assert answer.status_code == 400
        assert nothing_is_stored(shop, answer)
        assert provider.hits["/token"] == 0


async def test_a_wrong_issuer_is_refused_also_when_the_provider_need_not_name_itself(provider: OidcProvider) -> None:
    provider.supports_iss, provider.answer = False, {"iss": "https://evil.example"}
    async with open_shop(provider) as shop, shop.browser() as browser:
        assert (await shop.sign_in(browser)).status_code == 400


# The person, or the provider, says no.


@pytest.mark.parametrize(
    ("sent", "code"),
    [("access_denied", "access_denied"), ("<script>", "unknown"), ("x" * 41, "unknown"), ("", "unknown")],
)
async def test_a_person_who_says_no_is_told_so_and_no_token_is_asked_for(
    provider: OidcProvider, sent: str, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    provider.answer = {"error": sent, "code": None}
    async with open_shop(provider) as shop, shop.browser() as browser:
        url = await shop.begin(browser)
        address = f"{await shop.consent(url)}&error=" if not sent else await shop.consent(url)
        answer = await browser.get(address)
        if sent:
            assert f"sign-in refused: LoginRejected: {code}" in caplog.text
        assert (answer.status_code, answer.text) == (400, FAILED)
        assert provider.hits["/token"] == 0
        assert "<script>" not in caplog.text


async def test_an_answer_with_neither_code_nor_error_is_refused(provider: OidcProvider) -> None:
    provider.answer = {"code": None}
    async with open_shop(provider) as shop, shop.browser() as browser:
        assert (await shop.sign_in(browser)).status_code == 400
        assert provider.hits["/token"] == 0


async def test_a_parameter_that_comes_twice_is_refused(provider: OidcProvider) -> None:
    async with open_shop(provider) as shop, shop.browser() as browser:
        address = await shop.consent(await shop.begin(browser))
        assert (await browser.get(f"{address}&code=another")).status_code == 400
        assert provider.hits["/token"] == 0


# The token endpoint.


async def test_a_replayed_callback_is_refused_and_so_is_a_replayed_code(provider: OidcProvider) -> None:
    async with open_shop(provider) as shop, shop.browser() as browser:
        address = await shop.consent(await shop.begin(browser))
        kept = "; ".join(map("=".join, browser.cookies.items()))
        assert (await browser.get(address)).status_code == 303
        assert (await browser.get(address)).status_code == 400  # the attempt was forgotten
        assert provider.hits["/token"] == 1
        browser.cookies.clear()
        assert (await browser.get(address, headers={"cookie": kept})).status_code == 400  # and the code is used up
        assert provider.hits["/token"] == 2
        assert len(shop.sessions) == 1


async def test_a_stolen_code_is_worth_nothing_without_its_verifier(provider: OidcProvider) -> None:
    async with open_shop(provider) as shop, shop.browser() as victim, shop.browser() as thief:
        stolen = query_of(await shop.consent(await shop.begin(victim)))["code"]
        own = await shop.consent(await shop.begin(thief), login="mallory")
        assert (await thief.get(changed(own, code=stolen))).status_code == 400
        assert not shop.sessions


@pytest.mark.parametrize(
    ("status", "body", "answered"),
    [
        (400, '{"error": "invalid_grant"}', 400),
        (200, '{"error": "invalid_grant"}', 400),
        (200, '{"access_token": "a", "token_type": "Bearer"}', 400),
        (200, '{"id_token": ""}', 400),
        (200, '{"id_token": 5}', 400),
        (200, '{"id_token": "a.b.c"}', 400),
        (200, '{"error": "server_error", "id_token": "a.b.c"}', 503),
        (200, '{"error": null, "id_token": "a.b.c"}', 503),
        (401, '{"error": "invalid_client"}', 503),
        (500, '{"id_token": "a.b.c"}', 503),
        (200, "<html>maintenance</html>", 503),
        (200, "[1]", 503),
        (200, "[" * 60_000, 503),
        (302, "{}", 503),
    ],
)
async def test_a_token_endpoint_that_answers_anything_else_stores_nothing(
    provider: OidcProvider, status: int, body: str, answered: int
) -> None:
    provider.canned["/token"] = (status, body)
    async with open_shop(provider) as shop, shop.browser() as browser:
        answer = await shop.sign_in(browser)
        assert (answer.status_code, answer.text) == (answered, FAILED if answered == 400 else LATER)
        assert nothing_is_stored(shop, answer)


async def authlib_callback(provider: OidcProvider, **changes: str | None) -> Any:
    """Sign in with Authlib's client for Starlette; return its token."""
    client = OAuth().register(
        "any",
        client_id=provider.client_id,
        client_secret=provider.client_secret,
        server_metadata_url=f"{provider.issuer}/.well-known/openid-configuration",
        client_kwargs={"scope": "openid email", "code_challenge_method": "S256", "verify": NOBODY},
    )
    scope: dict[str, Any] = {"type": "http", "method": "GET", "headers": [], "session": {}}
    begun = await client.authorize_redirect(Request(scope), REDIRECT)
    async with httpx2.AsyncClient(verify=NOBODY) as plain:
        answer = await plain.get(begun.headers["location"])
    query = urlsplit(changed(answer.headers["location"], **changes)).query
    return await client.authorize_access_token(Request(scope | {"query_string": query.encode()}))


async def test_naive_use_of_userinfo_crashes_when_openid_was_not_granted(
    provider: OidcProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "client_secret", "plain")  # Authlib does not form-encode it for Basic
    monkeypatch.setattr(provider, "client_id", "plain")
    assert (await authlib_callback(provider))["userinfo"]["email"] == "ada@example.com"
    provider.grants_openid = False
    token = await authlib_callback(provider)
    with pytest.raises(KeyError, match="userinfo"):
        token["userinfo"]["email"]
    with pytest.raises(TypeError, match="'NoneType' object is not subscriptable"):
        token.get("userinfo")["email"]


async def test_authlib_reads_the_error_before_the_state_and_ignores_the_answers_issuer(
    provider: OidcProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "client_secret", "plain")
    monkeypatch.setattr(provider, "client_id", "plain")
    with pytest.raises(OAuthError, match=r"^text of a stranger: $"):
        await authlib_callback(provider, state="of nobody", error="text of a stranger")
    with pytest.raises(MismatchingStateError, match=r"^mismatching_state"):
        await authlib_callback(provider, state="of nobody")
    token = await authlib_callback(provider, iss="https://evil.example")
    assert token["userinfo"]["sub"] == "ada"


async def test_a_sign_in_without_the_scope_openid_is_a_refusal_and_no_crash(
    provider: OidcProvider,
) -> None:
    provider.grants_openid = False
    async with open_shop(provider) as shop, shop.browser() as browser:
        pending = await shop.oidc.begin()
        address = await shop.consent(pending.url)
        with pytest.raises(LoginRejected, match=r"^no_id_token$"):
            await shop.oidc.finish(query_of(address), pending)
        assert (await shop.sign_in(browser)).status_code == 400


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/token", "/jwks"])
async def test_a_provider_that_fails_or_hangs_is_a_503_and_the_next_attempt_may_succeed(
    provider: OidcProvider, path: str
) -> None:
    async with open_shop(provider) as shop, shop.browser() as browser:
        if not path.startswith("/.well"):
            await shop.oidc.discover()  # in its own time: the short timeout is for what hangs
        for timeout in (0.05, 10):
            shop.oidc._timeout = timeout
            if timeout < 1:
                provider.hanging.add(path)
            else:
                provider.canned[path] = (500, "{}")
            if path.startswith("/.well"):
                answer = await browser.get("/login")
                assert "set-cookie" not in answer.headers
            else:
                answer = await shop.sign_in(browser)
            assert (answer.status_code, answer.text) == (503, LATER)
            assert answer.headers["cache-control"] == "no-store"
            assert nothing_is_stored(shop, answer)
            provider.hanging.clear()
            provider.canned.clear()
    async with open_shop(provider) as shop, shop.browser() as browser:
        assert (await shop.sign_in(browser)).status_code == 303


async def test_a_provider_that_cannot_be_reached_is_unavailable() -> None:
    async with httpx2.AsyncClient(verify=NOBODY) as http:
        client = OidcClient("http://127.0.0.1:1", "id", SecretStr("secret"), REDIRECT, http=http)
        with pytest.raises(ProviderUnavailable, match=r"^/.well-known/openid-configuration: ConnectError$"):
            await client.begin()


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://evil.example"},
        {"token_endpoint": "http://evil.example/token"},
        {"authorization_endpoint": None},
        {"jwks_uri": "https://"},
        {"jwks_uri": "file:///etc/passwd"},
    ],
)
async def test_metadata_of_another_issuer_or_without_https_is_not_followed(
    provider: OidcProvider, metadata: dict[str, Any]
) -> None:
    provider.metadata = metadata
    async with open_shop(provider) as shop:
        with pytest.raises(ProviderUnavailable, match="discovery"):
            await shop.oidc.begin()


async def test_a_token_endpoint_that_redirects_does_not_get_the_code_carried_away(provider: OidcProvider) -> None:
    async with httpx2.AsyncClient(follow_redirects=True, verify=NOBODY) as http:
        shop = Shop(provider, http)
        seen: list[httpx2.Request] = []

        async def moved(request: httpx2.Request) -> None:
            seen.append(request)

        http.event_hooks["request"].append(moved)
        pending = await shop.oidc.begin()
        address = await shop.consent(pending.url)
        transport = http._transport

        class Redirects(httpx2.AsyncBaseTransport):
            async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
                if request.url.path == "/token":
                    return httpx2.Response(307, json={}, headers={"location": "http://evil.example/"})
                return await transport.handle_async_request(request)

        http._transport = Redirects()
        with pytest.raises(ProviderUnavailable, match=r"^the token endpoint answered 307 unknown$"):
            await shop.oidc.finish(query_of(address), pending)
        assert {request.url.host for request in seen} == {"127.0.0.1"}
        http._transport = transport


# The ID token, end to end; each claim by itself is proved in the other file.


@pytest.mark.parametrize(
    "fault",
    [
        {"claims": {"nonce": "of another attempt"}},
        {"claims": {"nonce": LEFT_OUT}},
        {"claims": {"aud": "another-client", "azp": LEFT_OUT}},
        {"claims": {"iss": "https://evil.example"}},
        {"claims": {"iat": 1_700_000_000, "exp": 1_700_000_300}},
        {"signer": 3},
        {"signer": "none"},
        {"signer": "hs256"},
        {"signer": "nothing"},
        {"header": {"kid": "of nobody"}},
        {"header": {"kid": ""}},
    ],
    ids=[f"fault {number}" for number in range(11)],
)
async def test_a_token_that_is_not_signed_for_us_now_is_refused_and_nothing_is_stored(
    provider: OidcProvider, fault: dict[str, Any]
) -> None:
    for name, value in fault.items():
        setattr(provider, name, value)
    async with open_shop(provider) as shop, shop.browser() as browser:
        answer = await shop.sign_in(browser)
        assert (answer.status_code, answer.text) == (400, FAILED)
        assert nothing_is_stored(shop, answer)
        provider.reset()
        assert (await shop.sign_in(browser)).status_code == 303


async def test_keys_that_were_rotated_between_two_sign_ins_are_fetched_again(provider: OidcProvider) -> None:
    async with open_shop(provider) as shop, shop.browser() as browser:
        assert (await shop.sign_in(browser)).status_code == 303
        assert (await shop.sign_in(browser)).status_code == 303
        assert provider.hits["/jwks"] == 1
        provider.key, shop.later = 2, 30
        assert (await shop.sign_in(browser)).status_code == 303
        assert provider.hits["/jwks"] == 2


async def test_an_unknown_key_asks_for_the_keys_once_in_30_seconds_at_most(provider: OidcProvider) -> None:
    async with open_shop(provider) as shop, shop.browser() as browser:
        assert (await shop.sign_in(browser)).status_code == 303
        provider.header = {"kid": "of nobody"}
        for later, fetched in ((0.0, 1), (29.0, 1), (30.0, 2), (31.0, 2), (59.0, 2), (60.0, 3)):
            shop.later = later
            assert (await shop.sign_in(browser)).status_code == 400
            assert provider.hits["/jwks"] == fetched, later


async def test_a_hundred_sign_ins_at_once_fetch_the_keys_once(provider: OidcProvider) -> None:
    async with open_shop(provider) as shop:
        metadata = await shop.oidc.discover()
        await asyncio.gather(*(shop.oidc._find_key(metadata, "key-1") for _ in range(100)))
        assert provider.hits["/jwks"] == 1


async def test_a_key_that_the_provider_withdrew_is_believed_for_an_hour_at_most(provider: OidcProvider) -> None:
    async with open_shop(provider) as shop:
        metadata = await shop.oidc.discover()
        assert await shop.oidc._find_key(metadata, "key-1")
        provider.key = 2
        shop.later = 3_599.9
        assert await shop.oidc._find_key(metadata, "key-1")
        shop.later = 3_600
        with pytest.raises(LoginForged, match=r"^the ID token names a key that the provider does not publish$"):
            await shop.oidc._find_key(metadata, "key-1")
        await shop.oidc.discover()
        assert provider.hits["/.well-known/openid-configuration"] == 2
        shop.later = -7_200  # a clock that is set back does not keep it longer
        await shop.oidc.discover()
        assert provider.hits["/.well-known/openid-configuration"] == 3


@pytest.mark.parametrize("body", ['{"keys": null}', '{"keys": {}}', "{}", "[]"])
async def test_keys_that_are_no_list_are_the_providers_fault(provider: OidcProvider, body: str) -> None:
    provider.canned["/jwks"] = (200, body)
    async with open_shop(provider) as shop, shop.browser() as browser:
        assert (await shop.sign_in(browser)).status_code == 503


# Where it leads, and what it leaves behind.

EVIL = ["//evil", "/\\evil", "\\\\evil", "https:evil", "https://evil", "evil", "", "/\tx", "/\n/evil", "/\x00", "/\x7f"]


@pytest.mark.parametrize("next_path", [*EVIL, "/\u2028x", "/\ud800", "javascript:alert(1)", " /x", "/" + "x" * 1_024])
def test_a_next_that_is_no_path_of_ours_becomes_the_start_page(next_path: str) -> None:
    assert safe_path(next_path) == "/"
    assert safe_path(None) == "/"


@pytest.mark.parametrize("next_path", ["/", "/basket", "/a?b=//c#d", "/ä b", "/" + "x" * 1_023, "/?next=https://x"])
def test_a_next_that_is_a_path_of_ours_is_kept(next_path: str) -> None:
    assert safe_path(next_path) == next_path


async def test_no_next_leads_away_from_the_site(provider: OidcProvider) -> None:
    async with open_shop(provider) as shop, shop.browser() as browser:
        for evil in ("//evil", "/\\evil", "https:evil", "/\t/evil"):
            assert (await shop.sign_in(browser, evil)).headers["location"] == "/"


def test_naive_check_of_the_first_slash_sends_the_browser_to_another_host() -> None:
    def naive(next_path: str) -> str:
        return next_path if next_path.startswith("/") else "/"

    assert urlsplit("https://shop.example/").netloc == "shop.example"
    for evil in ("//evil.example", "/\\evil.example"):  # a browser reads both as https://evil.example
        assert naive(evil) == evil
        assert safe_path(evil) == "/"


async def test_the_attempts_cookie_is_deleted_whatever_the_outcome(provider: OidcProvider) -> None:
    outcomes: list[tuple[dict[str, Any], int]] = [
        ({}, 303),
        ({"answer": {"error": "access_denied", "code": None}}, 400),
        ({"signer": 3}, 400),
        ({"canned": {"/token": (500, "{}")}}, 503),
    ]
    async with open_shop(provider) as shop, shop.browser() as browser:
        for faults, status in outcomes:
            for name, value in faults.items():
                setattr(provider, name, value)
            answer = await shop.sign_in(browser)
            assert answer.status_code == status
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["referrer-policy"] == "no-referrer"
            (deleted,) = [c for c in answer.headers.get_list("set-cookie") if c.startswith("__Host-login-")]
            attributes = {part.strip().lower() for part in deleted.split(";")[1:]}
            assert attributes >= {"max-age=0", "path=/", "secure", "httponly", "samesite=lax"}
            assert not [name for name in browser.cookies if name.startswith("__Host-login-")]
            provider.reset()
        shop.broken_store = True
        answer = await shop.sign_in(browser)
        assert (answer.status_code, answer.text) == (500, LATER)
        assert not [name for name in browser.cookies if name.startswith("__Host-login-")]


async def test_a_session_id_that_was_planted_before_the_sign_in_is_worth_nothing_after_it(
    provider: OidcProvider,
) -> None:
    async with open_shop(provider) as shop, shop.browser() as victim, shop.browser() as attacker:
        planted = {"cookie": "__Host-session=planted-by-the-attacker"}
        url = await shop.begin(victim)
        victim.cookies.set("__Host-session", "planted-by-the-attacker", domain="shop.example", path="/")
        answer = await victim.get(await shop.consent(url))
        assert "__Host-session=" in str(answer.headers.get_list("set-cookie"))
        assert (await attacker.get("/whoami", headers=planted)).json() is None
        assert len(shop.sessions) == 1


async def test_naive_redirect_uri_of_the_request_follows_the_host_header(provider: OidcProvider) -> None:
    app = FastAPI()

    @app.get("/login")
    async def naive(request: Request) -> str:
        return str(request.url_for("callback"))

    @app.get("/callback")
    async def callback() -> None: ...

    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://shop.example") as browser:
        seen = (await browser.get("/login", headers={"host": "evil.example"})).json()
    assert seen == "http://evil.example/callback"  # and http, behind a proxy that ends TLS
    async with open_shop(provider) as shop, shop.browser() as browser:
        answer = await browser.get("/login", headers={"host": "evil.example"})
        assert query_of(answer.headers["location"])["redirect_uri"] == REDIRECT


async def test_a_redirect_uri_that_differs_by_one_character_is_refused_by_the_provider(provider: OidcProvider) -> None:
    async with open_shop(provider, redirect_uri=REDIRECT + "/") as shop:
        async with httpx2.AsyncClient(verify=NOBODY) as plain:
            answer = await plain.get((await shop.oidc.begin()).url)
        assert (answer.status_code, answer.json()) == (400, {"error": "redirect_uri_mismatch"})


# Configuration, and secrets.


@pytest.mark.parametrize("name", ["GOOGLE_CLIENT_ID", "GOOGLE_CLIENT_SECRET", "OAUTH_REDIRECT_URI"])
@pytest.mark.parametrize("value", [None, "", "  "])
async def test_a_missing_setting_stops_the_start_and_is_named(name: str, value: str | None) -> None:
    environ = {"GOOGLE_CLIENT_ID": "id", "GOOGLE_CLIENT_SECRET": CANARY, "OAUTH_REDIRECT_URI": REDIRECT}
    environ = {k: v for k, v in (environ | {name: value or ""}).items() if k != name or value is not None}
    async with httpx2.AsyncClient(verify=NOBODY) as http:
        with pytest.raises(RuntimeError, match=rf"^{name} is not set, or is empty$"):
            OidcClient.google_from_env(http, environ)


async def test_the_settings_for_google_are_read_and_both_of_its_names_accepted() -> None:
    environ = {"GOOGLE_CLIENT_ID": " id ", "GOOGLE_CLIENT_SECRET": f"{CANARY}\n", "OAUTH_REDIRECT_URI": REDIRECT}
    async with httpx2.AsyncClient(verify=NOBODY) as http:
        client = OidcClient.google_from_env(http, environ)
        assert client.issuer == GOOGLE == "https://accounts.google.com"
        assert client._accepted == {"https://accounts.google.com", "accounts.google.com"}
        assert (client._id, client._secret.get_secret_value()) == ("id", CANARY)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"client_id": " "}, "client_id and client_secret must not be empty"),
        ({"client_secret": SecretStr("")}, "client_id and client_secret must not be empty"),
        ({"issuer": "http://accounts.google.com"}, "issuer and redirect_uri must begin with https://"),
        ({"redirect_uri": "http://shop.example/callback"}, "issuer and redirect_uri must begin with https://"),
        ({"redirect_uri": "wss://shop.example/callback"}, "issuer and redirect_uri must begin with https://"),
        ({"redirect_uri": "/callback"}, "issuer and redirect_uri must begin with https://"),
        ({"redirect_uri": "https:///callback"}, "issuer and redirect_uri must begin with https://"),
        ({"timeout": 0}, "timeout must be a number of seconds over 0, got 0"),
        ({"timeout": True}, "timeout must be a number of seconds over 0, got True"),
        ({"timeout": float("nan")}, "timeout must be a number of seconds over 0, got nan"),
        ({"timeout": float("inf")}, "timeout must be a number of seconds over 0, got inf"),
    ],
)
async def test_a_setting_that_cannot_be_meant_stops_the_start(given: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "issuer": GOOGLE,
        "client_id": "id",
        "client_secret": SecretStr(CANARY),
        "redirect_uri": REDIRECT,
    }
    async with httpx2.AsyncClient(verify=NOBODY) as http:
        OidcClient(**(good | {"redirect_uri": "http://localhost:8000/callback"}), http=http)
        OidcClient(**(good | {"redirect_uri": "http://[::1]:8000/callback"}), http=http)
        with pytest.raises(ValueError, match=f"^{message}$"):
            OidcClient(**(good | given), http=http)


@pytest.mark.parametrize("key", [None, "", "short", CANARY, "é" * 44])
async def test_a_cookie_key_that_is_missing_or_none_stops_the_start_and_is_not_shown(
    provider: OidcProvider, key: str | None
) -> None:
    async with open_shop(provider) as shop:
        with pytest.raises(ValueError if key else RuntimeError) as caught:
            login_router(shop.oidc, shop.start_session, cookie_key=key)
        problem = "is not a Fernet key" if key else "is not set, or is empty"
        assert str(caught.value) == f"OAUTH_COOKIE_KEY {problem}"
        assert CANARY not in "".join(traceback.format_exception(caught.value))


async def test_no_secret_and_no_code_is_shown_whatever_happens(
    provider: OidcProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    faults: list[dict[str, Any]] = [
        {},
        {"answer": {"error": "access_denied", "code": None}},
        {"answer": {"iss": "https://evil.example"}},
        {"signer": 3},
        {"claims": {"nonce": "x"}},
        {"grants_openid": False},
        {"canned": {"/token": (200, "no JSON")}},
        {"canned": {"/token": (401, '{"error": "invalid_client"}')}},
        {"canned": {"/jwks": (500, "{}")}},
        {"hanging": {"/token"}},
    ]
    shown: list[str] = []
    hidden: list[str] = [CANARY, CANARY.encode().hex()]
    async with open_shop(provider) as shop, shop.browser() as browser:
        for fault in faults:
            shop.oidc._timeout = 0.05 if "hanging" in fault else 10
            for name, value in copy.deepcopy(fault).items():
                setattr(provider, name, value)
            pending = await shop.oidc.begin()
            address = await shop.consent(pending.url)
            hidden += [pending.state, pending.nonce, pending.verifier, query_of(address).get("code", CANARY)]
            shown.append(f"{pending!r} {pending!s} {shop.oidc!r}")
            try:
                shown.append(repr(await shop.oidc.finish(query_of(address), pending)))
            except (LoginForged, LoginRejected, ProviderUnavailable) as error:
                chain: BaseException | None = error
                shown.append("".join(traceback.format_exception(error)))
                while chain:
                    shown.append(f"{chain!r} {chain.__cause__!r}")
                    chain = chain.__context__
            answer = await shop.sign_in(browser)
            shown.append(answer.text + str(answer.headers.multi_items()))
            hidden.append(provider.last_form.get("code_verifier", CANARY))
            provider.reset()
        shop.broken_store = True
        shown.append((await shop.sign_in(browser)).text)
    # What httpx2 logs at INFO are the addresses that the test's own browser visited, as a browser's history does.
    ours = [record for record in caplog.records if not record.name.startswith(("httpx2", "httpcore2", "asyncio"))]
    shown += [record.getMessage() + str(record.exc_text or "") for record in ours]
    assert len(ours) == len(faults) - 1
    everything = "\n".join(shown)
    assert [value for value in hidden if value in everything] == []
    assert hashlib.sha256(CANARY.encode()).hexdigest() not in everything
    assert "the session store is down" in caplog.text


# SameSite is the browser's business: this is its rule for the way back from the provider.


def comes_back(set_cookie: str) -> bool:
    """Tell whether a browser sends the cookie when another site leads it here (RFC 6265bis, "Retrieval Model")."""
    return "samesite=strict" not in set_cookie.lower()


async def test_naive_strict_cookie_does_not_come_back_from_the_provider_and_ours_does(provider: OidcProvider) -> None:
    naive = Response()
    naive.set_cookie("state", "x", secure=True, httponly=True, samesite="strict")
    assert not comes_back(naive.headers["set-cookie"])
    async with open_shop(provider) as shop, shop.browser() as browser:
        assert comes_back((await browser.get("/login")).headers["set-cookie"])


# The test a reader copies, for their own application.
