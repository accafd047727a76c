"""Proves docs/patterns/webhooks/webhook-signature.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import base64
import secrets
import time

import pytest
from fastapi import FastAPI, Request, Response
from starlette.testclient import TestClient

from webhook_signature import BadSignature, secrets_from_env, sign, verify

app = FastAPI()  # import yours instead


@app.post("/webhooks")
async def receive(request: Request) -> Response:
    try:
        verify(await request.body(), request.headers, secrets_from_env(), now=time.time())
    except BadSignature:
        return Response(status_code=401)
    return Response(status_code=204)


def test_my_endpoint_believes_only_what_is_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    key = secrets.token_bytes(32)
    monkeypatch.setenv("WEBHOOK_SECRETS", "whsec_" + base64.b64encode(key).decode())
    body, now = b'{"type": "invoice.paid"}', int(time.time())
    genuine = sign(body, [key], msg_id="msg_1", timestamp=now)
    stale = sign(body, [key], msg_id="msg_2", timestamp=now - 3600)
    forged = sign(body, [secrets.token_bytes(32)], msg_id="msg_3", timestamp=now)

    with TestClient(app) as client:
        assert client.post("/webhooks", content=body, headers=genuine).status_code == 204
        assert client.post("/webhooks", content=body + b" ", headers=genuine).status_code == 401
        for headers in (stale, forged, {}):
            assert client.post("/webhooks", content=body, headers=headers).status_code == 401


# --8<-- [end:own]
