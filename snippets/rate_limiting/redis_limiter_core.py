"""What the sync and the async limiter share: the script for Redis or Valkey, limits, decisions.

The script is the generic cell rate algorithm (GCRA).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis import RedisError

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
# What a client raises when its server fails. AttributeError: asyncio in Python 3.12 and 3.13.0
# does where a connection has been reset; a client for threads raises it for a mistake alone.
SERVER_ERRORS = (RedisError, OSError)
ASYNC_SERVER_ERRORS = (*SERVER_ERRORS, AttributeError)
ON_ERROR = ("open", "closed", "local")


@dataclass(frozen=True)
class Limit:
    """At most `burst` at once, and `rate` per `per` seconds in the long run.

    Raises `ValueError` for one that is not above 0 and finite.
    """

    rate: float
    per: float = 1.0
    burst: int = 0  # 0: as many as `rate`

    def __post_init__(self) -> None:
        if not (_is_number(self.rate) and self.rate > 0):
            raise ValueError(f"rate must be a number over 0, got {self.rate!r}")
        checked_seconds("per", self.per)
        checked_count("burst", self.burst, least=0)
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


def script_arguments(
    prefix: str, key: str, limits: Sequence[Limit], cost: int
) -> tuple[list[str], list[str | int]]:
    """Return KEYS and ARGV. A key is hashed: it may be a secret, and of any length.

    Raises `ValueError` where there is no limit, or one that this cost could never pass.
    """
    if not limits:
        raise ValueError("there is no limit to hold to")
    for limit in limits:
        if cost > limit.burst:
            raise ValueError(f"cost {cost} can never pass a burst of {limit.burst}")
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    keys, numbers = [], list[str | int]([cost])
    for limit in limits:  # the braces keep the keys of one call on one node of a cluster
        keys.append(f"{prefix}:{{{digest}}}:{limit.rate:g}/{limit.per:g}/{limit.burst}")
        numbers += [repr(limit.interval * 1e6), limit.burst]
    return keys, numbers


def decision_of(limits: Sequence[Limit], reply: Any) -> Decision:
    """Return the decision that a reply of the script is."""
    refused, results = reply
    found = list(zip(limits, results, strict=True))
    limit, (left, wait, reset) = max(found, key=lambda each: (each[1][1], -each[1][0]))
    return Decision(not refused, limit, left, wait / 1e6 if refused else 0.0, reset / 1e6)


def read_settings(environ: Mapping[str, str]) -> tuple[str, str]:
    """Return REDIS_URL and RATE_LIMIT_ON_ERROR ("open" when it is not set).

    Raises `RuntimeError` when the first is missing, `ValueError` for a second that is unknown.
    """
    url = environ.get("REDIS_URL")
    if not url:
        raise RuntimeError("REDIS_URL is not set, or is empty")
    on_error = environ.get("RATE_LIMIT_ON_ERROR") or "open"
    return url, checked_choice("RATE_LIMIT_ON_ERROR", on_error)


def checked_choice(name: str, value: str) -> str:
    """Return what to do without Redis; raise `ValueError` for what is none of `ON_ERROR`."""
    if value not in ON_ERROR:
        raise ValueError(f"{name} must be open, closed or local, got {value!r}")
    return value


def checked_seconds(name: str, value: float) -> float:
    """Return a time above 0; raise `ValueError` that names the argument for anything else."""
    if not (_is_number(value) and value > 0):
        raise ValueError(f"{name} must be a number of seconds over 0, got {value!r}")
    return value


def checked_count(name: str, value: int, *, least: int = 1) -> int:
    """Return a whole number from `least`; raise `ValueError` for anything else."""
    if not (isinstance(value, int) and not isinstance(value, bool) and value >= least):
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return value


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
