"""Proves docs/patterns/caching/memory-cache.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

from memoize_sync import memoize


def test_your_function_is_called_once_in_its_ttl_and_again_after_it() -> None:
    now, calls = 0.0, list[str]()

    @memoize(100, ttl=60, clock=lambda: now)
    def fetch_rate(currency: str) -> float:  # yours, with its client replaced
        calls.append(currency)
        return 1.1

    assert [fetch_rate("EUR"), fetch_rate("EUR")] == [1.1, 1.1]
    assert calls == ["EUR"]
    now = 60
    fetch_rate("EUR")
    assert calls == ["EUR", "EUR"]


# --8<-- [end:own]
