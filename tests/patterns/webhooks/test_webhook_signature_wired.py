"""Proves docs/patterns/webhooks/webhook-signature.md: the module wired into a FastAPI application."""
# ruff: noqa: E402, F811 -- the section a reader copies, at the end, brings its own imports

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from fastapi import FastAPI, Request, Response
from starlette.testclient import TestClient

from webhook_signature import BadSignature, SecretError, load_secrets, sign, verify

KEY, OLD_KEY, FOREIGN_KEY = (bytes([n]) * 32 for n in (1, 2, 3))
ID, BODY = "msg_1", b'{"type": "invoice.paid"}'


def whsec(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.secrets = load_secrets(os.environ.get("WEBHOOK_SECRETS"))
    app.state.received = {}
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/webhooks", max_body_size=262_144)
async def receive(request: Request) -> Response:
    body = await request.body()
    try:
        event = verify(body, request.headers, request.app.state.secrets, now=time.time())
    except BadSignature as refused:
        logging.getLogger("webhooks").warning("webhook refused: %s", refused.reason)
        return Response(status_code=401)
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return Response(status_code=400)
    request.app.state.received.setdefault(event.id, payload)
    return Response(status_code=204)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv("WEBHOOK_SECRETS", f"{whsec(KEY)} {whsec(OLD_KEY)}")
    with TestClient(app) as running:
        yield running


def test_an_application_without_its_secrets_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEBHOOK_SECRETS", raising=False)
    with pytest.raises(SecretError, match="WEBHOOK_SECRETS"), TestClient(app):
        pass


def test_the_route_answers_204_once_stored_and_401_or_400_without_a_word_of_why(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    now = int(time.time())
    good = sign(BODY, [OLD_KEY], msg_id=ID, timestamp=now)
    for _ in range(2):  # the provider sends it again: the same id, so it is stored once
        assert client.post("/webhooks", content=BODY, headers=good).status_code == 204
    assert app.state.received == {ID: {"type": "invoice.paid"}}
    for body, headers in [
        (BODY, {}),
        (BODY + b" ", good),
        (BODY, sign(BODY, [FOREIGN_KEY], msg_id="forged", timestamp=now)),
        (BODY, sign(BODY, [KEY], msg_id="old", timestamp=now - 400)),
    ]:
        answer = client.post("/webhooks", content=body, headers=headers)
        assert (answer.status_code, answer.content) == (401, b"")
    for nonsense in (b"{", b"\xff", b"[" * 200_000):
        headers = sign(nonsense, [KEY], msg_id="nonsense", timestamp=now)
        assert client.post("/webhooks", content=nonsense, headers=headers).status_code == 400
    assert list(app.state.received) == [ID]
    assert "webhook refused: no signature matches" in caplog.text


def test_the_route_bounds_the_body_with_and_without_a_content_length(client: TestClient) -> None:
    def chunks(size: int) -> Iterator[bytes]:
        yield b"x" * size

    assert client.post("/webhooks", content=b"x" * 262_145).status_code == 413
    assert client.post("/webhooks", content=chunks(262_145)).status_code == 413
    for content in (b"x" * 262_144, chunks(262_144)):
        assert client.post("/webhooks", content=content).status_code == 401  # read, and not believed


# The test a reader copies, for their own endpoint.


# --8<-- [start:own]
import base64
import secrets
import time

import pytest
from starlette.testclient import TestClient

from webhook_signature import sign


def test_my_endpoint_believes_only_what_is_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    key = secrets.token_bytes(32)
    monkeypatch.setenv("WEBHOOK_SECRETS", "whsec_" + base64.b64encode(key).decode())
    body, now = b'{"type": "invoice.paid"}', int(time.time())
    genuine = sign(body, [key], msg_id="msg_1", timestamp=now)
    stale = sign(body, [key], msg_id="msg_2", timestamp=now - 3600)
    forged = sign(body, [secrets.token_bytes(32)], msg_id="msg_3", timestamp=now)

    with TestClient(app) as client:  # "with" runs the start-up, which loads the secrets
        assert client.post("/webhooks", content=body, headers=genuine).status_code == 204
        assert client.post("/webhooks", content=body + b" ", headers=genuine).status_code == 401
        for headers in (stale, forged, {}):
            assert client.post("/webhooks", content=body, headers=headers).status_code == 401


# --8<-- [end:own]
