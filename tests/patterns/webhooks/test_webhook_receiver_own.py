"""Proves docs/patterns/webhooks/webhook-receiver.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import secrets
import time
from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.testclient import TestClient

from webhook_receiver import Delivery, WebhookReceiver
from webhook_signature import BadSignature, Verified, sign, verify

KEYS = [secrets.token_bytes(32)]
kept: list[Delivery] = []


def believe(body: bytes, headers: Mapping[str, str]) -> Verified:
    return verify(body, headers, KEYS, now=time.time())


async def keep(delivery: Delivery) -> bool:
    if b"outage" in delivery.body:
        raise ConnectionError
    kept.append(delivery)
    return True


my_app = Starlette(routes=[WebhookReceiver("shop", believe, keep, refused=BadSignature).route("/webhooks")])


def test_my_endpoint_answers_only_what_it_has_stored() -> None:
    with TestClient(my_app) as client:

        def post(body: bytes, key: bytes) -> int:
            headers = sign(body, [key], msg_id="msg_1", timestamp=int(time.time()))
            return client.post("/webhooks", content=body, headers=headers).status_code

        assert post(b'{"type": "invoice.paid"}', secrets.token_bytes(32)) == 401
        assert post(b'{"type": "outage"}', KEYS[0]) == 503
        assert kept == []
        assert post(b'{"type": "invoice.paid"}', KEYS[0]) == 200
        assert [delivery.type for delivery in kept] == ["invoice.paid"]


# --8<-- [end:own]
