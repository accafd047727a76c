"""Proves docs/patterns/api-clients/request-context.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

from request_context import bind, current


def test_your_job_keeps_one_id_and_leaves_none_behind() -> None:
    seen: list[str] = []

    def send_invoice() -> None:  # yours
        context = current()
        seen.append(context.correlation_id if context else "none")

    with bind(correlation_id="job-7"):
        send_invoice()
        send_invoice()
    send_invoice()
    assert seen == ["job-7", "job-7", "none"]


# --8<-- [end:own]
