"""Proves docs/patterns/authentication/sessions.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

from fastapi import FastAPI
from starlette.testclient import TestClient

from session_http import COOKIE


def test_my_logout_ends_the_session_and_not_only_the_cookie(app: FastAPI) -> None:
    # `app` is a fixture that makes your application, with REDIS_URL set to a Redis for tests.
    with TestClient(app, base_url="https://shop.example") as browser:
        assert browser.get("/me").status_code == 401
        browser.cookies.set(COOKIE, "p" * 43, domain="shop.example")  # planted by somebody
        browser.post("/login/ada")
        stolen = browser.cookies[COOKIE]
        assert stolen != "p" * 43
        assert browser.get("/me").status_code == 200
        evil = {"Sec-Fetch-Site": "cross-site"}
        assert browser.post("/logout-everywhere", headers=evil).status_code == 403
        assert browser.post("/logout-everywhere").status_code == 200
        browser.cookies.clear()
        assert browser.get("/me", headers={"cookie": f"{COOKIE}={stolen}"}).status_code == 401


# --8<-- [end:own]
