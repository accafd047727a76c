"""Proves docs/patterns/resilience/error-types.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import httpx2
import pytest

from error_mapping import from_exception
from integration_errors import RateLimited


def fetch_orders(client: httpx2.Client) -> object:  # yours
    try:
        return client.get("/orders").raise_for_status().json()
    except Exception as exc:
        raise from_exception(exc, service="shop") from exc


def test_your_client_turns_a_429_into_an_error_that_says_when_and_shows_no_key() -> None:
    def busy(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(429, headers={"Retry-After": "7"}, json={"error": "slow down"})

    transport, address = httpx2.MockTransport(busy), "https://app:pa55@shop.internal"
    with (
        httpx2.Client(transport=transport, base_url=address, params={"api_key": "k3y"}) as client,
        pytest.raises(RateLimited) as raised,
    ):
        fetch_orders(client)
    error = raised.value
    assert str(error) == "shop answered 429 Too Many Requests: slow down"
    assert (error.retryable, error.retry_after) == (True, 7.0)
    assert "for url 'https://***@shop.internal/orders?***'" in str(error.__cause__)


# --8<-- [end:own]
