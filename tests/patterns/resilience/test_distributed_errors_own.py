"""Proves docs/patterns/resilience/distributed-errors.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import time

import pytest

from distributed_errors import ErrorEnvelope, RemoteError
from retry_scope import RetryScope, should_retry


@pytest.mark.parametrize(("exhausted", "tries"), [(False, 3), (True, 1)])
def test_your_call_is_repeated_only_if_nobody_below_has_repeated_it(exhausted: bool, tries: int) -> None:
    calls = 0

    def stock() -> None:  # yours, with its failing neighbor
        nonlocal calls
        calls += 1
        raise RemoteError(ErrorEnvelope("unreachable", "db", 503, retryable=True, exhausted=exhausted))

    scope = RetryScope("shop", deadline=time.monotonic() + 10, attempts=3)
    with pytest.raises(RemoteError):  # noqa: PT012
        while True:  # yours, too
            try:
                stock()
                break
            except RemoteError as error:
                if not should_retry(error, scope):
                    raise
    assert calls == tries


# --8<-- [end:own]
