"""Proves docs/patterns/rate-limiting/sliding-window.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

from sliding_window import SlidingWindowLog


def test_your_login_refuses_the_fourth_attempt_within_a_minute() -> None:
    now = 0.0
    attempts = SlidingWindowLog(3, 60, clock=lambda: now)

    def log_in(user: str) -> str:  # yours
        if not (decision := attempts.hit(user)):
            return f"wait {decision.retry_after:.0f} s"
        return "wrong password"

    answers = []
    for second in (0, 10, 20, 25, 59):
        now = second
        answers.append(log_in("ann"))
    assert answers == ["wrong password"] * 3 + ["wait 35 s", "wait 1 s"]
    assert log_in("bob") == "wrong password"

    now = 60
    assert log_in("ann") == "wrong password"


# --8<-- [end:own]
