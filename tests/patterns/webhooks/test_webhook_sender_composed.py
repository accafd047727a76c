"""Proves docs/patterns/webhooks/webhook-sender.md: with the real guard and the real signature, as the page wires it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from patterns.webhooks.webhook_sender_kit import KEY, Customer
from ssrf_guard_async import guarded_client
from ssrf_guard_core import Policy
from webhook_sender import Endpoint, Message, Outcome, WebhookSender
from webhook_signature import sign

MESSAGE = Message("msg_1", "invoice.paid", b'{"type":"invoice.paid"}')


@pytest.fixture(scope="module")
def customer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Customer]:
    server = Customer(Path(tmp_path_factory.mktemp("customer")))
    yield server
    server.stop()


class NoLog:
    async def claim(self, limit: int, *, now: float, lease: float) -> list[object]:
        return []

    async def record(self, due: object, attempt: object, *, now: float) -> bool:
        return False


async def test_the_guarded_client_delivers_to_an_address_that_its_policy_opens(customer: Customer) -> None:
    customer.got.clear()
    opened = Policy(ports=(customer.port,), opened=("127.0.0.1", "::1"))
    async with guarded_client(opened, verify=customer.trust) as http:
        sender = WebhookSender(http, NoLog(), sign, rng=random.uniform)  # type: ignore[arg-type]
        attempt = await sender.attempt(Endpoint("ep_1", f"{customer.url}/200", [KEY]), MESSAGE, 1)
    assert attempt.outcome is Outcome.DELIVERED
    ((_, headers, body),) = customer.got
    assert Webhook(KEY).verify(body, headers) == {"type": "invoice.paid"}


async def test_the_guarded_client_sends_nothing_to_a_private_address_and_says_why(
    customer: Customer,
) -> None:
    customer.got.clear()
    async with guarded_client(Policy(ports=(customer.port,)), verify=customer.trust) as http:
        sender = WebhookSender(http, NoLog(), sign)  # type: ignore[arg-type]
        attempt = await sender.attempt(Endpoint("ep_1", f"{customer.url}/200", [KEY]), MESSAGE, 1)
    assert (attempt.status, attempt.outcome, attempt.excerpt) == (None, Outcome.WAITING, "AddressRefused")
    assert attempt.retry_at is not None
    assert customer.got == []
