"""Proves docs/patterns/api-clients/rest-client.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import httpx2
import pytest

from rest_client_async import AsyncRestClient
from rest_policy import RateLimited


async def order(api: AsyncRestClient, sku: str, key: str) -> int:  # your code
    response = await api.post("orders", json={"sku": sku}, idempotency_key=key)
    return int(response.data["id"])


async def test_an_order_is_repeated_with_one_key_and_gives_up_when_told_to_wait_long() -> None:
    answers = [
        httpx2.Response(503),
        httpx2.Response(201, json={"id": 7}),
        httpx2.Response(429, headers={"Retry-After": "3600"}),
    ]
    keys, slept = [], []

    def api_of_theirs(request: httpx2.Request) -> httpx2.Response:
        keys.append(request.headers["Idempotency-Key"])
        return answers.pop(0)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    transport = httpx2.MockTransport(api_of_theirs)
    async with AsyncRestClient("https://shop.test/v1", transport=transport, sleep=sleep) as api:
        assert await order(api, "apple", "order-1") == 7
        with pytest.raises(RateLimited) as refused:
            await order(api, "pear", "order-2")

    assert keys == ["order-1", "order-1", "order-2"]
    assert len(slept) == 1
    assert refused.value.retry_after == 3600


# --8<-- [end:own]
