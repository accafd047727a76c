"""A client for somebody's JSON API: a hard deadline, safe retries, typed errors (async).

Needs httpx2, and `rest_client_core.py` and `rest_policy.py` beside it. One client belongs to one
event loop; its tasks share it and its connections.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, TypeVar, Unpack

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


class AsyncRestClient:
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
        transport: httpx2.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = RestSettings(base_url, total, retry or RetryPolicy(), clock, now)
        self._sleep = sleep
        accept = {"Accept": "application/json"}
        self._http = httpx2.AsyncClient(
            auth=auth, timeout=phase_timeouts(timeout), headers=accept, transport=transport
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **options: Any) -> AsyncRestClient:
        """Read API_BASE_URL, API_TOKEN, API_TOTAL_TIMEOUT_S; an error names a bad one."""
        return cls(**settings_from_env(environ) | options)

    async def request(self, method: str, path: str, **options: Unpack[CallOptions]) -> Response:
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
        return await self._send_call(method, self._settings.address(path), options)

    async def get(self, path: str, **options: Unpack[CallOptions]) -> Response:
        """Read; repeated after a failure that may pass."""
        return await self.request("GET", path, **options)

    async def post(self, path: str, **options: Unpack[CallOptions]) -> Response:
        """Create or act; repeated if it was not sent, or with an idempotency_key."""
        return await self.request("POST", path, **options)

    async def put(self, path: str, **options: Unpack[CallOptions]) -> Response:
        """Replace; repeated after a failure that may pass."""
        return await self.request("PUT", path, **options)

    async def patch(self, path: str, **options: Unpack[CallOptions]) -> Response:
        """Change; repeated as `post` is."""
        return await self.request("PATCH", path, **options)

    async def delete(self, path: str, **options: Unpack[CallOptions]) -> Response:
        """Delete; repeated after a failure that may pass, so a 404 may follow a lost success."""
        return await self.request("DELETE", path, **options)

    async def paginate(
        self,
        path: str,
        *,
        next_url: Callable[[Response], str | None],
        items: Callable[[Response], Iterable[T]],
        **options: Unpack[CallOptions],
    ) -> AsyncIterator[T]:
        """Yield the items of all pages; a page is requested when the one before is used up.

        `next_url` returns a page's link to the next, None on the last. `params` go to the first
        page only: links bring their own. `total` bounds each page.

        Raises:
            CrossOriginRefused: The link leads to another origin; nothing is sent there.
            PaginationLoop: The link leads to a page that was visited.

        """
        url, visited = self._settings.address(path), set[httpx2.URL]()
        while True:
            page = await self._send_call("GET", url, options)
            for item in items(page):
                yield item
            link = next_url(page)
            if not link:
                return
            url = self._settings.next_page(page, link, visited)
            options["params"] = None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncRestClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _send_call(self, method: str, url: httpx2.URL, options: CallOptions) -> Response:
        call = RestCall(self._settings, self._http, method, url, options)
        try:
            async with asyncio.timeout(call.total):  # whatever is going on then is cancelled
                while True:
                    outcome = await self._send_once(call)
                    wait = call.delay(outcome)
                    if wait is None:
                        return call.result(outcome)
                    await self._sleep(wait)
        except TimeoutError as over:
            raise call.error(over) from None

    async def _send_once(self, call: RestCall) -> Outcome:
        try:
            return await self._http.send(call.request)
        except httpx2.RequestError as error:
            return error
