"""Proves docs/patterns/webhooks/webhook-signature.md: the module wired into a FastAPI application."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from fastapi import FastAPI, Request, Response
from starlette.testclient import TestClient

from webhook_signature import BadSignature, secrets_from_env, sign, verify

KEY, OLD_KEY, FOREIGN_KEY = (bytes([n]) * 32 for n in (1, 2, 3))
ID, BODY = "msg_1", b'{"type": "invoice.paid"}'


def whsec(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.secrets = secrets_from_env()
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
    with pytest.raises(RuntimeError, match="WEBHOOK_SECRETS is not set, or is empty"), TestClient(app):
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
