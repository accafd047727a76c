"""Proves docs/patterns/authentication/oauth2-login.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import httpx2
from cryptography.fernet import Fernet
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.testclient import TestClient

from login_routes import login_router
from oidc_client import OidcClient


def provider_that_says(token_answer: dict[str, str]) -> httpx2.MockTransport:
    """Stand for a provider that knows everybody, and answers the token call with this."""
    here = "https://provider.example"
    metadata = {
        "issuer": here,
        "authorization_endpoint": f"{here}/authorize",
        "token_endpoint": f"{here}/token",
        "jwks_uri": f"{here}/jwks",
    }
    answers = {"/token": token_answer, "/jwks": {"keys": []}}
    return httpx2.MockTransport(lambda request: httpx2.Response(200, json=answers.get(request.url.path, metadata)))


def test_my_callback_refuses_what_this_browser_did_not_begin() -> None:
    http = httpx2.AsyncClient(transport=provider_that_says({"id_token": "e30.e30.e30"}))
    secret = SecretStr("of this test")
    oidc = OidcClient("https://provider.example", "id", secret, "https://shop.example/callback", http=http)
    started: list[object] = []

    async def start_session(request: object, response: object, identity: object) -> None:
        started.append(identity)

    app = FastAPI()  # yours
    app.include_router(login_router(oidc, start_session, cookie_key=Fernet.generate_key().decode()))
    with TestClient(app, base_url="https://shop.example", follow_redirects=False) as browser:
        sent = parse_qs(urlsplit(browser.get("/login?next=//evil").headers["location"]).query)
        assert (sent["redirect_uri"], sent["code_challenge_method"]) == (["https://shop.example/callback"], ["S256"])
        for query in ({}, {"code": "c"}, {"code": "c", "state": "of somebody else"}):
            assert browser.get("/callback", params=query).status_code == 400
        # Our own attempt, and a token that nobody signed.
        assert browser.get("/callback", params={"code": "c", "state": sent["state"][0]}).status_code == 400
    assert not started


# --8<-- [end:own]
