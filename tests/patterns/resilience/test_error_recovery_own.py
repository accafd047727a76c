"""Proves docs/patterns/resilience/error-recovery.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

from error_recovery import Recovery
from integration_errors import RateLimited
from recovery_strategies import FallbackValue, WaitRateLimit


async def test_your_call_waits_out_a_short_limit_and_shows_the_last_price_for_a_long_one() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    recovery = Recovery([WaitRateLimit(max_wait=5), FallbackValue(lambda: 41)], sleep=sleep)
    answers: list[Exception | int] = [RateLimited("slow down", status=429, retry_after=2), 42]

    async def fetch_price() -> int:  # yours, with its client replaced by a script
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await recovery.run(fetch_price) == (42, False, ("WaitRateLimit",))
    assert slept == [2.0]

    answers = [RateLimited("slow down", status=429, retry_after=3600)]
    assert await recovery.run(fetch_price) == (41, True, ("FallbackValue",))
    assert slept == [2.0]


# --8<-- [end:own]
