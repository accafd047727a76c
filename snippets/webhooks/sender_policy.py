"""When a webhook is sent again, and to what kind of address: the rules of the sender."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from email.utils import parsedate_to_datetime

import httpx2

# Seconds after the 1st, 2nd, ... failure: 10 attempts in some three days.
SCHEDULE = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
LONGEST = 86_400.0  # for which a Retry-After is believed

Uniform = Callable[[float, float], float]

# No white space, no backslash, no fragment, and no "@" before the path: browsers, proxies and
# libraries read those differently.
_FORM = re.compile(r"(?i:https)://[A-Za-z0-9.:\[\]_-]+([/?]((?![\\#])[!-~])*)?")


class EndpointUrlRefused(ValueError):
    """The address cannot be one of a customer's endpoint. The message does not repeat it."""


def check_url(url: str) -> None:
    """Check what an address looks like, when it is saved. Where it leads is the guard's to check.

    Raises:
        EndpointUrlRefused: It is not https, or has another form than `https://host[:port]/path`.
    """
    if not (len(url) <= 2_048 and _FORM.fullmatch(url)):
        raise EndpointUrlRefused(
            "the URL must be https://host/path in visible ASCII without a user"
        )
    try:
        parts = httpx2.URL(url)  # the one that will be connected to: parsers disagree
    except httpx2.InvalidURL:
        raise EndpointUrlRefused("the URL cannot be parsed") from None
    if not parts.host:
        raise EndpointUrlRefused("the URL has no host")
    if parts.port not in (None, 443) and not 1_024 <= parts.port <= 65_535:
        raise EndpointUrlRefused("the port must be 443, or 1024 to 65535")


def next_delay(
    n: int, retry_after: float | None, uniform: Uniform = random.uniform
) -> float | None:
    """Return how many seconds to wait after the `n`-th attempt failed; None if it was the last.

    The schedule, give or take a tenth, or `retry_after` if that is later, but not above a day.
    """
    if n > len(SCHEDULE):
        return None
    delay = SCHEDULE[n - 1] * uniform(0.9, 1.1)
    return delay if retry_after is None else max(delay, min(retry_after, LONGEST))


def seconds_of(retry_after: str | None, now: float) -> float | None:
    """Read a Retry-After header (RFC 9110): seconds, or a date. None for anything else."""
    text = (retry_after or "").strip()
    if re.fullmatch(r"[0-9]{1,10}", text):
        return float(text)
    try:
        return parsedate_to_datetime(text).timestamp() - now
    except (ValueError, OverflowError):
        return None
