"""How long hypothesis looks: quickly by default, four times as long in `make check`."""

from __future__ import annotations

import os

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"


def examples(count: int) -> int:
    """Return how many examples to try where `count` are worth it: all of them in `make check`, else a quarter."""
    return count if LONG else min(count, max(10, count // 4))
