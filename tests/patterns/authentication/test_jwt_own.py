"""Proves docs/patterns/authentication/jwt.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import time

from fastapi import Depends, FastAPI
from starlette.testclient import TestClient

from jwt_fastapi import require_token
from jwt_keys import KeyRing, SigningKey
from jwt_tokens import Issuer, Verifier

# Yours: the application, and what its verifier was made with.
RING = KeyRing("mine", [SigningKey.generate("mine")])
ISSUER, AUDIENCE = "https://auth.example", "https://api.example"
app = FastAPI()
guard = require_token(Verifier(RING, ISSUER, AUDIENCE), "read", "orders")


@app.get("/orders", dependencies=[Depends(guard)])
def orders() -> list[int]:
    return [4711]


def test_my_route_opens_only_to_a_token_of_ours() -> None:
    def token(ring: KeyRing = RING, audience: str = AUDIENCE, age: float = 0, scope: str = "read orders") -> str:
        made = Issuer(ring, ISSUER, audience, clock=lambda: time.time() - age)
        return made.issue("ada", scopes=scope.split())

    strangers = KeyRing("k", [SigningKey.generate("k")])
    expected = {
        token(): 200,
        token(scope="read"): 403,
        token(age=3_600): 401,
        token(audience="https://other.example"): 401,
        token(strangers): 401,
        "": 401,
    }
    with TestClient(app) as client:
        for sent, status in expected.items():
            assert client.get("/orders", headers={"Authorization": f"Bearer {sent}"}).status_code == status


# --8<-- [end:own]
