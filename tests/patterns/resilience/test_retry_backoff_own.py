"""Proves docs/patterns/resilience/retry-backoff.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import pytest

from retry_backoff import RetryPolicy, retrying


def test_your_call_survives_two_blips_and_reports_an_outage() -> None:
    waits: list[float] = []
    policy = RetryPolicy(attempts=3, rng=lambda: 1.0, sleep=waits.append)
    answers: list[Exception | int] = [ConnectionError("reset"), TimeoutError("slow"), 42]

    @retrying(policy)
    def fetch_price() -> int:  # yours, with its client replaced by something that fails
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert fetch_price() == 42
    assert waits == [0.1, 0.2]  # the longest there can be: rng returns 1

    outage = ConnectionError("refused")
    answers += [ConnectionError("refused"), ConnectionError("refused"), outage]
    with pytest.raises(ConnectionError) as failure:
        fetch_price()
    assert failure.value is outage


# --8<-- [end:own]
