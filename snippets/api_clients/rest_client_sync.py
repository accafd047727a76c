"""A client for somebody's JSON API: a deadline, safe retries, typed errors (sync).

Needs httpx2, and `rest_client_core.py` and `rest_policy.py` beside it. Threads share one client
and its connections.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, TypeVar, Unpack, cast

import httpx2

from rest_client_core import (
    CallOptions,
    Response,
    RestCall,
    RestSettings,
    phase_timeouts,
    settings_from_env,
)
from rest_policy import Outcome, RetryPolicy

T = TypeVar("T")


class RestClient:
    """Calls one API and no other host. Times are in seconds.

    Redirects are not followed. `ValueError` for a setting that cannot be meant.

    Args:
        base_url: Where the API begins, as https://api.example.com/v1.
        auth: What httpx2 takes: `bearer(token)`, a pair of name and password, a function that
            sets a header of the request.
        timeout: For each phase of an attempt: a free connection, connecting, a write, a read.
        total: For a whole call, with all its attempts and sleeps.
        retry: What is repeated, and when.
        transport: For other limits, certificates or proxies, and for tests.
        clock: Returns seconds that never go back.
        sleep: Sleeps between attempts.
        now: Returns the time of day, seconds since 1970.

    """

    def __init__(
        self,
        base_url: str,
        *,
        auth: Any = None,
        timeout: float | httpx2.Timeout = 5.0,
        total: float = 30.0,
        retry: RetryPolicy | None = None,
        transport: httpx2.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = RestSettings(base_url, total, retry or RetryPolicy(), clock, now)
        self._sleep = sleep
        accept = {"Accept": "application/json"}
        self._http = httpx2.Client(
            auth=auth, timeout=phase_timeouts(timeout), headers=accept, transport=transport
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **options: Any) -> RestClient:
        """Read API_BASE_URL, API_TOKEN, API_TOTAL_TIMEOUT_S; an error names a bad one."""
        return cls(**settings_from_env(environ) | options)

    def request(self, method: str, path: str, **options: Unpack[CallOptions]) -> Response:
        """Send until there is an answer, a final failure, or no time left.

        Args:
            method: Any HTTP method.
            path: Below the base_url, or a full URL of the same origin. Pass what users type
                through `quoted()`.
            **options: params, json, headers; idempotency_key, which makes a POST repeatable;
                total, for this call.

        Raises:
            ApiError: One of its subclasses, by what happened.
            ValueError: The path has a segment "." or "..".

        """
        return self._send_call(method, self._settings.address(path), options)

    def get(self, path: str, **options: Unpack[CallOptions]) -> Response:
        """Read; repeated after a failure that may pass."""
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Unpack[CallOptions]) -> Response:
        """Create or act; repeated if it was not sent, or with an idempotency_key."""
        return self.request("POST", path, **options)

    def put(self, path: str, **options: Unpack[CallOptions]) -> Response:
        """Replace; repeated after a failure that may pass."""
        return self.request("PUT", path, **options)

    def patch(self, path: str, **options: Unpack[CallOptions]) -> Response:
        """Change; repeated as `post` is."""
        return self.request("PATCH", path, **options)

    def delete(self, path: str, **options: Unpack[CallOptions]) -> Response:
        """Delete; repeated after a failure that may pass, so a 404 may follow a lost success."""
        return self.request("DELETE", path, **options)

    def paginate(
        self,
        path: str,
        *,
        next_url: Callable[[Response], str | None],
        items: Callable[[Response], Iterable[T]],
        **options: Unpack[CallOptions],
    ) -> Iterator[T]:
        """Yield the items of all pages; a page is requested when the one before is used up.

        `next_url` returns a page's link to the next, None on the last. `params` go to the first
        page only: links bring their own. `total` bounds each page.

        Raises:
            CrossOriginRefused: The link leads to another origin; nothing is sent there.
            PaginationLoop: The link leads to a page that was visited.

        """
        url, visited = self._settings.address(path), set[httpx2.URL]()
        while True:
            page = self._send_call("GET", url, options)
            yield from items(page)
            link = next_url(page)
            if not link:
                return
            url = self._settings.next_page(page, link, visited)
            options["params"] = None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> RestClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _send_call(self, method: str, url: httpx2.URL, options: CallOptions) -> Response:
        call = RestCall(self._settings, self._http, method, url, options)
        call.request.extensions["timeout"] = _TimeLeft(self._http.timeout.as_dict(), call)
        while True:
            outcome = self._send_once(call)
            wait = call.delay(outcome)
            if wait is None:
                return call.result(outcome)
            self._sleep(wait)

    def _send_once(self, call: RestCall) -> Outcome:
        try:
            with contextlib.closing(self._http.send(call.request, stream=True)) as response:
                response.stream = _UntilDeadline(response.stream, call)
                response.read()
                return response
        except httpx2.RequestError as error:
            return error


class _TimeLeft(Mapping[str, float]):
    """The timeouts of a call. httpx2 reads each as its phase begins, and gets what is left."""

    def __init__(self, timeouts: Mapping[str, float | None], call: RestCall) -> None:
        self._timeouts = timeouts
        self._call = call

    def __getitem__(self, phase: str) -> float:
        limit, left = self._timeouts[phase], max(self._call.left(), 0.001)
        return left if limit is None else min(limit, left)

    def __iter__(self) -> Iterator[str]:
        return iter(self._timeouts)

    def __len__(self) -> int:
        return len(self._timeouts)


class _UntilDeadline(httpx2.SyncByteStream):
    """The body of an answer. What arrives after the deadline is a timeout, as in async."""

    def __init__(self, stream: object, call: RestCall) -> None:
        self._stream = cast("httpx2.SyncByteStream", stream)
        self._call = call

    def __iter__(self) -> Iterator[bytes]:
        pieces = iter(self._stream)
        while self._call.left() > 0:
            piece = next(pieces, None)
            if piece is None:
                return
            yield piece
        raise httpx2.ReadTimeout("the total is over")

    def close(self) -> None:
        self._stream.close()
