"""Proves docs/patterns/webhooks/webhook-sender.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import secrets
import time

import httpx2

from webhook_sender import Attempt, Due, Endpoint, Message, Outcome, WebhookSender
from webhook_signature import sign, verify


class FakeGuard(httpx2.AsyncClient):  # in your application: the client of the SSRF guard
    guards_addresses = True


class NoLog:
    async def claim(self, limit: int, *, now: float, lease: float) -> list[Due]:
        return []

    async def record(self, due: Due, attempt: Attempt, *, now: float) -> bool:
        return False


async def test_my_events_verify_at_the_other_end_and_a_failure_is_tried_again() -> None:
    key = secrets.token_bytes(32)
    answers = [503, 204]

    async def receiver(request: httpx2.Request) -> httpx2.Response:
        body = await request.aread()
        assert verify(body, request.headers, [key], now=time.time()).id == "msg_1"
        return httpx2.Response(answers.pop(0))

    async with FakeGuard(transport=httpx2.MockTransport(receiver), trust_env=False) as http:
        sender = WebhookSender(http, NoLog(), sign)
        endpoint = Endpoint("ep_1", "https://customer.example/hooks", (key,))
        message = Message("msg_1", "invoice.paid", b'{"type": "invoice.paid"}')
        first = await sender.attempt(endpoint, message, 1)
        assert first.outcome is Outcome.WAITING
        assert first.retry_at is not None
        assert (await sender.attempt(endpoint, message, 2)).outcome is Outcome.DELIVERED


# --8<-- [end:own]
