"""One call of a REST client, without its input and output: address, deadline, verdict, result.

What the async and the sync client share. Needs httpx2, and `rest_policy.py` beside it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict
from urllib.parse import quote

import httpx2

import rest_policy as policy
from rest_policy import ApiError, Outcome, RetryPolicy

_DOT_SEGMENT = re.compile(r"(?i)(^|[/\\]|%2f|%5c)(\.|%2e){1,2}($|[/\\]|%2f|%5c)")
_KINDS: dict[int, tuple[type[ApiError], str]] = {
    2: (policy.DecodeError, ", which is no JSON"),
    3: (ApiError, ", redirects are not followed"),
    4: (policy.ClientError, ""),
    5: (policy.ServerError, ""),
}


class CallOptions(TypedDict, total=False):
    """What every call takes besides its path; `total` is in seconds, for this call alone."""

    params: Mapping[str, Any] | None
    json: Any
    headers: Mapping[str, str] | None
    idempotency_key: str | None
    total: float | None


@dataclass(frozen=True)
class Response:
    """A successful answer. `data` is the parsed JSON; None when the body is empty."""

    status: int
    headers: httpx2.Headers
    data: Any
    url: httpx2.URL

    @property
    def next_link(self) -> str | None:
        """Target of `Link: <...>; rel="next"` (RFC 8288)."""
        return httpx2.Response(200, headers=self.headers).links.get("next", {}).get("url")


def bearer(token: str) -> Callable[[httpx2.Request], httpx2.Request]:
    """Return an `auth` that sends a bearer token; `ValueError` if it does not fit a header."""
    if not re.fullmatch("[!-~]+", token):  # found while sending, the error would quote it
        raise ValueError("the token is empty, or has a space, a line end or a non-ASCII character")

    def authenticate(request: httpx2.Request) -> httpx2.Request:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return authenticate


def quoted(*segments: object) -> str:
    """Return a path in which each segment remains one, whatever it has; `ValueError` if empty."""
    texts = [str(segment) for segment in segments]
    if "" in texts:  # DELETE users/ is not what DELETE users/{name} meant
        raise ValueError("a segment of the path is empty")
    return "/".join(quote(text, safe="") for text in texts)


def settings_from_env(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Read API_BASE_URL, API_TOKEN and API_TOTAL_TIMEOUT_S.

    Raises:
        RuntimeError: One of the first two is not set, or is empty.
        ValueError: A variable is malformed; the message names it.

    """
    for name in ("API_BASE_URL", "API_TOKEN"):
        if not environ.get(name):
            raise RuntimeError(f"{name} is not set, or is empty")
    seconds = environ.get("API_TOTAL_TIMEOUT_S", "30")
    try:
        total = seconds_over_0("total", float(seconds))
    except ValueError:
        message = f"API_TOTAL_TIMEOUT_S must be a number of seconds over 0, got {seconds!r}"
        raise ValueError(message) from None
    auth = bearer(environ["API_TOKEN"])
    return {"base_url": environ["API_BASE_URL"], "auth": auth, "total": total}


class RestSettings:
    """What all calls of a client have in common."""

    def __init__(
        self,
        base_url: str,
        total: float,
        retry: RetryPolicy,
        clock: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        message = "base_url must be http(s)://host[:port][/path]; credentials go into auth"
        if not re.fullmatch(r"(?i)https?://[^@?#\s]+", base_url):
            raise ValueError(message)
        try:
            self._base = httpx2.URL(base_url.rstrip("/") + "/")
        except httpx2.InvalidURL:
            raise ValueError(message) from None
        self.total = seconds_over_0("total", total)
        self.retry = retry
        self.clock = clock
        self.now = now
        self.origin = f"{self._base.scheme}://{self._base.netloc.decode('ascii')}"

    def address(self, path: str) -> httpx2.URL:
        """Return the URL of a path below base_url, or a full URL that has its origin.

        Raises `ValueError` for a path with a dot segment, and `CrossOriginRefused`.
        """
        if _DOT_SEGMENT.search(path.partition("?")[0]):
            raise ValueError('the path has a segment "." or ".."')
        if re.match(r"(?i)https?://", path):
            return self.own_url(self._base, path)
        return httpx2.URL(f"{self._base}{path.lstrip('/')}")

    def own_url(self, page: httpx2.URL, link: str) -> httpx2.URL:
        """Return the URL of a link on a page; raise `CrossOriginRefused`."""
        try:
            url = page.join(link)
            if url.origin == self._base.origin:
                return url
            place = f"{url.scheme}://{url.netloc.decode('ascii')}"
        except (httpx2.InvalidURL, ValueError):
            place = "a link that is no address"
        raise policy.CrossOriginRefused(f"{place} is refused: this client calls {self.origin}")

    def next_page(self, page: Response, link: str, visited: set[httpx2.URL]) -> httpx2.URL:
        """Return the URL of the page after; raise `CrossOriginRefused` or `PaginationLoop`."""
        visited.add(page.url)
        url = self.own_url(page.url, link)
        if url in visited:
            number = len(visited)
            raise policy.PaginationLoop(f"{self.origin}: page {number} leads to an earlier one")
        return url


class RestCall:
    """One call: its request, its deadline, and the verdict on each outcome."""

    def __init__(
        self,
        settings: RestSettings,
        http: httpx2.AsyncClient | httpx2.Client,
        method: str,
        url: httpx2.URL,
        options: CallOptions,
    ) -> None:
        self._settings = settings
        self._method = method.upper()
        self._attempts = 0
        self._key = options.get("idempotency_key")
        headers = dict(options.get("headers") or {})
        if self._key:  # the same for all attempts
            headers["Idempotency-Key"] = self._key
        total = options.get("total")
        self.total = settings.total if total is None else seconds_over_0("total", total)
        self._deadline = settings.clock() + self.total
        body, params = options.get("json"), options.get("params")
        self.request = http.build_request(
            self._method, url, params=params, json=body, headers=headers
        )

    def left(self) -> float:
        """Return the seconds until the deadline."""
        return self._deadline - self._settings.clock()

    def delay(self, outcome: Outcome) -> float | None:
        """Return the seconds to sleep before the next attempt; None: this outcome is final."""
        self._attempts += 1
        retry, now = self._settings.retry, self._settings.now()
        wait = retry.delay(self._attempts, self._method, outcome, self._key, now)
        return wait if wait is not None and wait < self.left() else None

    def result(self, outcome: Outcome) -> Response:
        """Return the answer, or raise the typed error of the outcome."""
        if isinstance(outcome, Exception):
            # What breaks the protocol is quoted in the text of the cause: it may be a secret.
            clean = isinstance(outcome, httpx2.TimeoutException | httpx2.NetworkError)
            raise self.error(outcome) from (outcome if clean else None)
        if not (outcome.is_success or outcome.status_code == 304):
            if outcome.has_redirect_location:
                self._settings.own_url(outcome.url, outcome.headers["Location"])
            raise self.error(outcome)
        try:
            data = json.loads(outcome.content) if outcome.content else None
        except (ValueError, RecursionError):
            raise self.error(outcome) from None
        return Response(outcome.status_code, outcome.headers, data, outcome.url)

    def error(self, outcome: Outcome) -> ApiError:
        """Return the typed error of an outcome."""
        settings = self._settings
        kind: type[ApiError] = policy.ApiConnectionError
        place = f"{self._method} {settings.origin}:"
        retryable = settings.retry.repeatable(self._method, outcome, self._key)
        if isinstance(outcome, httpx2.Response):
            status, body = outcome.status_code, outcome.content
            kind, why = _KINDS.get(status // 100, (ApiError, ""))
            return (policy.RateLimited if status == 429 else kind)(
                f"{place} {status}{why} (attempt {self._attempts})",
                status=status,
                code=_code_of(body),
                retryable=retryable,
                retry_after=policy.retry_after(outcome, settings.now()),
                request_id=_loggable(outcome.headers.get("X-Request-ID")),
                excerpt=body[:200],
            )
        what = f"{type(outcome).__name__} (attempt {self._attempts})"
        if isinstance(outcome, policy.TIMEOUTS):
            kind = policy.ApiTimeout
            if isinstance(outcome, TimeoutError) or self.left() <= 0:
                what = f"no answer within the total of {self.total:g} s"
        elif isinstance(outcome, httpx2.DecodingError):
            kind = policy.DecodeError
        return kind(f"{place} {what}", retryable=retryable)


def seconds_over_0(name: str, seconds: float) -> float:
    """Return the seconds as they are; `ValueError` if they bound nothing."""
    if not _is_number(seconds) or seconds <= 0:
        raise ValueError(f"{name} must be a number of seconds over 0, got {seconds!r}")
    return seconds


def phase_timeouts(timeout: float | httpx2.Timeout) -> httpx2.Timeout:
    """Return the timeouts of the phases; `ValueError` for a number that bounds nothing."""
    if isinstance(timeout, httpx2.Timeout):
        return timeout
    return httpx2.Timeout(seconds_over_0("timeout", timeout))


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _code_of(body: bytes) -> str | None:
    """Return the code in {"code": ...}, {"error": ...} or {"error": {"code": ...}}."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    for key in ("error", "code"):
        found = found.get(key, found) if isinstance(found, dict) else found
    return _loggable(found)


def _loggable(text: object) -> str | None:
    """Return what fits into a line of a log, else None."""
    return text if isinstance(text, str) and re.fullmatch("[!-~]{1,100}", text) else None
