"""Proves docs/patterns/authentication/jwt.md: protected routes, under a real uvicorn."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import Depends, FastAPI

from harness.tls import NOBODY
from jwt_fastapi import require_token
from jwt_keys import KeyRing, SigningKey
from jwt_tokens import Claims, Issuer, Verifier
from servers.http import Uvicorn

ISSUER, AUDIENCE = "https://auth.example", "https://api.example"
RING = KeyRing("k", [SigningKey.generate("k")])
issuer = Issuer(RING, ISSUER, AUDIENCE)
verifier = Verifier(RING, ISSUER, AUDIENCE)
app = FastAPI()


@app.get("/me")
async def me(claims: Annotated[Claims, Depends(require_token(verifier))]) -> str:
    return claims.subject


@app.get("/orders")
async def orders(claims: Annotated[Claims, Depends(require_token(verifier, "read", "orders"))]) -> str:
    return claims.subject


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    server = Uvicorn(app)
    with httpx2.Client(base_url=server.url, verify=NOBODY) as running:
        yield running
    server.stop()


def bearer(token: str, scheme: str = "Bearer") -> dict[str, str]:
    return {"Authorization": f"{scheme} {token}"}


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
def test_a_token_opens_the_route_and_says_who_is_there(client: httpx2.Client, scheme: str) -> None:
    answer = client.get("/me", headers=bearer(issuer.issue("ada"), scheme))
    assert (answer.status_code, answer.json()) == (200, "ada")


@pytest.mark.parametrize("scheme", ["Basic", "Token", "Bearers", "DPoP"])
def test_a_good_token_under_another_scheme_opens_nothing(client: httpx2.Client, scheme: str) -> None:
    assert client.get("/me", headers=bearer(issuer.issue("ada"), scheme)).status_code == 401


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": ""}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer"}]
)
def test_a_request_without_a_token_is_a_401_that_names_the_scheme(
    client: httpx2.Client, headers: dict[str, str]
) -> None:
    answer = client.get("/me", headers=headers)
    bad = ' error="invalid_token"' if headers.get("Authorization") == "Bearer" else ""
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, f"Bearer{bad}")


def test_a_bad_token_is_a_401_that_does_not_tell_why_and_the_log_does(
    client: httpx2.Client, caplog: pytest.LogCaptureFixture
) -> None:
    old = Issuer(RING, ISSUER, AUDIENCE, clock=lambda: time.time() - 10_000).issue("ada")
    foreign = Issuer(RING, ISSUER, "https://other.example").issue("ada")
    stranger = Issuer(KeyRing("k", [SigningKey.generate("k")]), ISSUER, AUDIENCE).issue("ada")
    answers = [client.get("/me", headers=bearer(token)) for token in (old, foreign, stranger, "a.b.c", "x" * 9_000)]
    assert {(a.status_code, a.headers["www-authenticate"], a.text) for a in answers} == {
        (401, 'Bearer error="invalid_token"', '{"detail":"Invalid token"}')
    }
    assert [record.getMessage() for record in caplog.records if record.name == "tokens"] == [
        "token refused: the token has expired",
        "token refused: the token is for another audience",
        "token refused: the token was refused: InvalidSignatureError",
        "token refused: the token was refused: Error",  # of binascii
        "token refused: the token is no text, or too long",
    ]
    assert not any(token in caplog.text for token in (old, foreign, stranger))


@pytest.mark.parametrize(("scopes", "status"), [((), 403), (("read",), 403), (("read", "orders", "more"), 200)])
def test_a_token_that_lacks_a_scope_is_a_403_that_names_what_is_needed(
    client: httpx2.Client, scopes: Any, status: int
) -> None:
    answer = client.get("/orders", headers=bearer(issuer.issue("ada", scopes=scopes)))
    assert answer.status_code == status
    if status == 403:
        assert answer.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="read orders"'
        assert answer.json() == {"detail": "Insufficient scope"}


def test_a_header_that_is_sent_twice_is_refused(client: httpx2.Client, caplog: pytest.LogCaptureFixture) -> None:
    good = f"Bearer {issuer.issue('ada')}"
    for other in (good, "Bearer a.b.c", "Basic YTpi"):
        answer = client.get("/me", headers=[("Authorization", good), ("Authorization", other)])
        assert answer.status_code == 401
    assert "the header Authorization was sent twice" in caplog.text


def test_a_token_in_the_address_is_not_looked_at(client: httpx2.Client) -> None:
    assert client.get("/me", params={"access_token": issuer.issue("ada")}).status_code == 401


def test_a_token_with_bytes_that_are_no_text_is_a_401(client: httpx2.Client) -> None:
    assert client.get("/me", headers={b"Authorization": b"Bearer \xff.\xe9.x"}).status_code == 401
