"""When to repeat an HTTP call, and the errors it ends in; for the async and the sync REST client.

Nothing here sends or sleeps. Needs httpx2.
"""

from __future__ import annotations

import email.utils
import random
import re
from collections.abc import Callable, Set
from dataclasses import dataclass
from datetime import UTC

import httpx2

Outcome = httpx2.Response | Exception

TIMEOUTS = (httpx2.TimeoutException, TimeoutError)
_PASSING = (*TIMEOUTS, httpx2.NetworkError, httpx2.RemoteProtocolError)
# Raised before a byte of the request is sent: to repeat it cannot have a second effect.
_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


class ApiError(Exception):
    """A call failed. The text is safe to log: it has origins, never a path, query, header or body.

    Attributes:
        status: HTTP status of the answer; None when there was none.
        code: The API's own code for the error, from its JSON, as "card_declined".
        retryable: The failure may pass, and to repeat the call cannot have a second effect.
        retry_after: Seconds that the server asked to wait.
        request_id: The server's id of the request (X-Request-ID), for its support.
        excerpt: The first 200 bytes of the answer. They are the server's words: log with care.

    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
        request_id: str | None = None,
        excerpt: bytes = b"",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retryable = retryable
        self.retry_after = retry_after
        self.request_id = request_id
        self.excerpt = excerpt


class RateLimited(ApiError):
    """429: too many calls."""


class ClientError(ApiError):
    """Another 4xx: unless it is a 408, the same call will fail again."""


class ServerError(ApiError):
    """5xx: the server failed."""


class DecodeError(ApiError):
    """The call succeeded, but its body is no JSON."""


class ApiTimeout(ApiError):
    """No answer in time: the time of one phase was up, or the total."""


class ApiConnectionError(ApiError):
    """No connection, or it broke before the whole answer was there."""


class CrossOriginRefused(ApiError):
    """An address, a redirect or a link to the next page leads to another scheme, host or port."""


class PaginationLoop(ApiError):
    """The link to the next page leads to a page that was visited."""


@dataclass(frozen=True)
class RetryPolicy:
    """Which calls to repeat, and when. Times are in seconds.

    Args:
        attempts: How often to send, the first time included.
        base: Bound of the random delay after the first attempt; it doubles with each.
        cap: Bound of every random delay.
        retry_after_cap: A server that asks for more is not waited for.
        statuses: Answers that say "later".
        methods: Methods to repeat even if the first one may have had its effect (idempotent by
            RFC 9110). Any other needs an idempotency key.
        rng: Returns a number from 0 to below 1.

    Raises:
        ValueError: A number is out of its range.

    """

    attempts: int = 4
    base: float = 0.2
    cap: float = 10.0
    retry_after_cap: float = 60.0
    statuses: Set[int] = frozenset({408, 429, 502, 503, 504})
    methods: Set[str] = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
    rng: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        count = self.attempts
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"attempts must be a whole number of at least 1, got {count!r}")
        for name in ("base", "cap", "retry_after_cap"):
            value = getattr(self, name)
            if not _is_number(value) or value < 0:
                raise ValueError(f"{name} must be a number of seconds from 0, got {value!r}")

    def delay(
        self, attempt: int, method: str, outcome: Outcome, idempotency_key: str | None, now: float
    ) -> float | None:
        """Return the seconds to wait after attempt number `attempt`, or None to give up.

        `now` is the time of day (seconds since 1970), which an HTTP-date is measured against.
        """
        if attempt >= self.attempts or not self.repeatable(method, outcome, idempotency_key):
            return None
        asked = retry_after(outcome, now)
        if asked is None:  # full jitter: callers who failed together must not return together
            return self.rng() * min(self.cap, self.base * 2.0 ** min(attempt - 1, 60))
        # Never earlier than asked, and spread: others were told the same moment.
        return asked + self.rng() * self.base if asked <= self.retry_after_cap else None

    def repeatable(self, method: str, outcome: Outcome, idempotency_key: str | None) -> bool:
        """Tell whether the failure may pass and a repetition cannot have a second effect."""
        if isinstance(outcome, httpx2.Response):
            if outcome.status_code not in self.statuses:
                return False
        elif not isinstance(outcome, _PASSING):
            return False
        return method in self.methods or bool(idempotency_key) or isinstance(outcome, _UNSENT)


def retry_after(outcome: Outcome, now: float) -> float | None:
    """Return the seconds that Retry-After (RFC 9110) asks for; None for none, and for nonsense."""
    value = outcome.headers.get("Retry-After", "") if isinstance(outcome, httpx2.Response) else ""
    if re.fullmatch("[0-9]{1,9}", value):  # int() alone takes "+5", "1_0", digits of any script
        seconds = float(value)
    else:
        try:
            moment = email.utils.parsedate_to_datetime(value)
            # The asctime form names no zone; it is UTC like the others.
            seconds = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return seconds if seconds > 0 else None


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
