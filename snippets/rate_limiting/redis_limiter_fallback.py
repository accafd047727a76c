"""What both limiters answer while Redis does not, and when they ask it again."""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from redis_limiter_core import Decision, Limit, checked_choice, checked_count

logger = logging.getLogger(__name__)


class Fallback:
    """Decides without Redis, which is asked again once a second.

    `on_error` and `processes` are those of the limiter; `clock` returns seconds that never go back.
    """

    def __init__(
        self,
        on_error: str,
        processes: int,
        clock: Callable[[], float],
        max_local_keys: int = 10_000,
    ) -> None:
        self._on_error = checked_choice("on_error", on_error)
        self._processes = checked_count("processes", processes)
        self._clock = clock
        self._max_local_keys = max_local_keys
        self._lock = threading.Lock()
        self._local: OrderedDict[tuple[str, Limit], float] = OrderedDict()
        self._down_until = -math.inf

    def may_ask(self) -> bool:
        """Tell whether to ask Redis: always while it answers, once a second while it does not."""
        if self._down_until == -math.inf:
            return True
        with self._lock:
            if self._clock() < self._down_until:
                return False
            self._down_until = self._clock() + 1.0
            return True

    def redis_answered(self) -> None:
        """Note that Redis is there."""
        if self._down_until != -math.inf:
            self._down_until = -math.inf
            self._local.clear()
            logger.warning("the rate limiter has Redis again")

    def decide(
        self, key: str, limits: Sequence[Limit], cost: int, error: Exception | None
    ) -> Decision:
        """Return the decision without Redis; `error` is what asking it has raised, if asked."""
        if error is not None:
            if self._down_until == -math.inf:
                name = type(error).__name__
                logger.warning("the rate limiter is %s without Redis: %s", self._on_error, name)
            self._down_until = self._clock() + 1.0
        tightest = min(limits, key=lambda limit: limit.burst)
        if self._on_error == "local":
            return self._decide_here(key, limits, cost)
        if self._on_error == "open":
            return Decision(True, tightest, tightest.burst, 0.0, 0.0, True)
        return Decision(False, tightest, 0, 1.0, 1.0, True)

    def _decide_here(self, key: str, limits: Sequence[Limit], cost: int) -> Decision:
        """Do as the script does, with this process's share of each limit."""
        now, found = self._clock(), []
        with self._lock:
            for limit in limits:
                interval = limit.interval * self._processes
                burst = max(1, cost, limit.burst // self._processes)
                at = max(now, self._local.get((key, limit), now))
                found.append((at + (max(cost, 1) - burst) * interval - now, at, interval, burst))
            worst = max(range(len(limits)), key=lambda index: found[index][0])
            wait, at, interval, burst = found[worst]
            if cost and wait <= 1e-9:
                for limit, (_, tat, each, _) in zip(limits, found, strict=True):
                    self._local[key, limit] = tat + cost * each
                    self._local.move_to_end((key, limit))
                at += cost * interval
            while len(self._local) > self._max_local_keys:
                self._local.popitem(last=False)
        left = math.floor(burst - (at - now) / interval + 1e-6)
        allowed = wait <= 1e-9
        return Decision(allowed, limits[worst], left, 0.0 if allowed else wait, at - now, True)
