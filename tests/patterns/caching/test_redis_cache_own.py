"""Proves docs/patterns/caching/redis-cache.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

from redis_cache_sync import RedisCache, connect


def test_a_price_is_looked_up_once_and_again_after_it_changed(valkey_url: str) -> None:
    prices = {"apple": 100}
    lookups: list[str] = []
    with connect(valkey_url, timeout=5) as client:
        cache = RedisCache(client, namespace="test-shop")

        @cache.cached(ttl=60)
        def price_of(sku: str) -> int:
            lookups.append(sku)
            return prices[sku]

        assert [price_of("apple"), price_of(sku="apple")] == [100, 100]
        assert lookups == ["apple"]

        prices["apple"] = 120
        assert price_of.invalidate("apple")
        assert price_of("apple") == 120


# --8<-- [end:own]
