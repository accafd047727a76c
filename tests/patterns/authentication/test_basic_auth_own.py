"""Proves docs/patterns/authentication/basic-auth.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

from argon2 import PasswordHasher
from fastapi import Depends, FastAPI
from starlette.testclient import TestClient

from basic_client import basic_header
from basic_server import BasicAuth


def test_my_endpoint_wants_a_password() -> None:
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)  # small, for the test
    stored = {"ada": hasher.hash("pässwörd")}

    async def lookup(name: str) -> str | None:
        return stored.get(name)

    app = FastAPI()
    auth = BasicAuth("internal", lookup, hasher=hasher)

    @app.get("/metrics", dependencies=[Depends(auth)])
    def metrics() -> str:
        return "up 1"

    client = TestClient(app)

    def status(user: str, password: str) -> int:
        headers = {"Authorization": basic_header(user, password)}
        return client.get("/metrics", headers=headers).status_code

    assert status("ada", "pässwörd") == 200
    assert status("ada", "wrong") == status("eve", "pässwörd") == 401
    assert client.get("/metrics").headers["www-authenticate"].startswith("Basic realm=")


# --8<-- [end:own]
