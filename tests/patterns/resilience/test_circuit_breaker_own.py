"""Proves docs/patterns/resilience/circuit-breaker.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import pytest

from circuit_breaker import CircuitBreaker, CircuitOpen


def test_your_call_fails_fast_during_an_outage_and_works_again_after_it() -> None:
    now, down, reached = 0.0, True, 0
    breaker = CircuitBreaker("prices", min_calls=3, open_for=30, clock=lambda: now)

    @breaker
    def fetch_price() -> int:  # yours, with its client replaced by something that breaks
        nonlocal reached
        reached += 1
        if down:
            raise ConnectionError("refused")
        return 42

    for _ in range(3):
        with pytest.raises(ConnectionError):
            fetch_price()
    with pytest.raises(CircuitOpen) as refusal:
        fetch_price()
    assert (reached, refusal.value.retry_after) == (3, 30)

    now, down = 30, False
    assert fetch_price() == 42
    assert breaker.state == "closed"


# --8<-- [end:own]
