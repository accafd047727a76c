"""Proves docs/patterns/rate-limiting/distributed-rate-limit.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

from redis_limiter_core import Limit
from redis_limiter_sync import RedisLimiter, connect


def test_your_third_login_within_a_minute_is_refused(valkey_url: str) -> None:
    with connect(valkey_url, timeout=5) as client:
        limiter = RedisLimiter(client, prefix="test-login")
        limits = [Limit(rate=2, per=60)]
        answers = [limiter.hit("ann@example.com", limits) for _ in range(3)]
        assert [answer.allowed for answer in answers] == [True, True, False]
        assert 0 < answers[2].retry_after <= 30
        assert limiter.hit("bob@example.com", limits).allowed


# --8<-- [end:own]
