"""The generic cell rate algorithm as a script for Redis or Valkey, and what to do without them."""

from __future__ import annotations

import hashlib
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

# A key holds the instant, in microseconds of the server's clock, at which all of it is available
# again (GCRA's "theoretical arrival time"). A refusal by one limit consumes from none.
LUA = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local cost = tonumber(ARGV[1])
local need = math.max(cost, 1)
local full, result, refused = {}, {}, 0
for i, key in ipairs(KEYS) do
  local interval, burst = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local known = redis.call('GET', key)
  local at = math.min(math.max(now, known and tonumber(known) or now), now + burst * interval)
  local wait = at + (need - burst) * interval - now
  if wait > 0 then refused = 1 end
  full[i] = {at, interval, burst, wait}
end
for i, key in ipairs(KEYS) do
  local at, interval, burst, wait = unpack(full[i])
  if cost < 0 or (cost > 0 and refused == 0) then
    at = math.max(now, at + cost * interval)
    if at > now then
      redis.call('SET', key, string.format('%.0f', at), 'PX', math.ceil((at - now) / 1000))
    else
      redis.call('DEL', key)
    end
  end
  local left = math.floor((burst * interval - (at - now)) / interval + 0.000001)
  result[i] = {left, math.ceil(math.max(wait, 0)), math.ceil(at - now)}
end
return {refused, result}
"""


@dataclass(frozen=True)
class Limit:
    """At most `burst` at once, and `rate` per `per` seconds in the long run.

    Raises `ValueError` for one that is not above 0.
    """

    rate: float
    per: float = 1.0
    burst: int = 0  # 0: as many as `rate`

    def __post_init__(self) -> None:
        if not (0 < self.rate < math.inf and 0 < self.per < math.inf and self.burst >= 0):
            raise ValueError("rate and per must be above 0 and finite, burst at least 1")
        if not self.burst:
            object.__setattr__(self, "burst", max(1, int(self.rate)))

    @property
    def interval(self) -> float:
        """Seconds in which one unit comes back."""
        return self.per / self.rate


@dataclass(frozen=True)
class Decision:
    """The answer of the limit that leaves the least. Times are in seconds.

    `retry_after` is 0 if the hit is allowed; after `reset_after` all of the burst is there again.
    `degraded` says that Redis did not answer, and that this is what `on_error` makes of it.
    """

    allowed: bool
    limit: Limit
    remaining: int
    retry_after: float
    reset_after: float
    degraded: bool = False


class Core:
    """What the sync and the async limiter share: keys, decisions, and the time without Redis."""

    def __init__(
        self,
        prefix: str,
        on_error: str,
        processes: int,
        clock: Callable[[], float],
        max_local_keys: int = 10_000,
    ) -> None:
        if on_error not in {"open", "closed", "local"}:
            raise ValueError(f"on_error must be open, closed or local, not {on_error!r}")
        if processes < 1:
            raise ValueError(f"processes must be at least 1, not {processes}")
        self._prefix, self._on_error, self._processes = prefix, on_error, processes
        self._clock, self._max_local_keys = clock, max_local_keys
        self._lock = threading.Lock()
        self._local: OrderedDict[tuple[str, Limit], float] = OrderedDict()
        self._down_until = -math.inf

    def arguments(
        self, key: str, limits: Sequence[Limit], cost: int
    ) -> tuple[list[str], list[str | int]]:
        """Return KEYS and ARGV. A key is hashed: it may be a secret, and of any length."""
        if not limits:
            raise ValueError("there is no limit to hold to")
        for limit in limits:
            if cost > limit.burst:
                raise ValueError(f"cost {cost} can never pass a burst of {limit.burst}")
        digest = hashlib.sha256(key.encode()).hexdigest()[:32]
        keys, numbers = [], list[str | int]([cost])
        for limit in limits:  # the braces keep the keys of one call on one node of a cluster
            keys.append(f"{self._prefix}:{{{digest}}}:{limit.rate:g}/{limit.per:g}/{limit.burst}")
            numbers += [repr(limit.interval * 1e6), limit.burst]
        return keys, numbers

    def may_ask(self) -> bool:
        """Tell whether to ask Redis: always while it answers, once a second while it does not."""
        if self._down_until == -math.inf:
            return True
        with self._lock:
            if self._clock() < self._down_until:
                return False
            self._down_until = self._clock() + 1.0
            return True

    def answered(self, limits: Sequence[Limit], cost: int, reply: Any) -> Decision:
        """Return the decision that a reply of the script is."""
        if self._down_until != -math.inf:
            self._down_until = -math.inf
            self._local.clear()
            logger.warning("the rate limiter has Redis again")
        refused, results = reply
        found = list(zip(limits, results, strict=True))
        limit, (left, wait, reset) = max(found, key=lambda each: (each[1][1], -each[1][0]))
        return Decision(not refused, limit, left, wait / 1e6 if refused else 0.0, reset / 1e6)

    def unanswered(
        self, key: str, limits: Sequence[Limit], cost: int, error: Exception | None
    ) -> Decision:
        """Return the decision without Redis."""
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
