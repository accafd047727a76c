"""One GraphQL call without its input and output: what is sent, and what is sent again.

What the async and the sync client share. Needs httpx2, and `graphql_result.py` beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import httpx2

from graphql_result import (
    GRAPHQL_JSON,
    Answer,
    GraphQLPaginationLoop,
    GraphQLResult,
    GraphQLTransportError,
    Partial,
    parse,
)

_LATER = {408, 429, 502, 503, 504}
_PASSING = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError, TimeoutError)
# Raised before a byte of the request is sent: to repeat it cannot have a second effect.
_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_NOT_FOUND = {"PersistedQueryNotFound", "PERSISTED_QUERY_NOT_FOUND"}
_NOT_SUPPORTED = {"PersistedQueryNotSupported", "PERSISTED_QUERY_NOT_SUPPORTED"}


class HttpReply(NamedTuple):
    """An HTTP answer, read to its end."""

    status: int
    headers: httpx2.Headers
    body: bytes


Outcome = HttpReply | Exception


def settings_from_env(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Read GRAPHQL_URL and GRAPHQL_TOKEN; `RuntimeError` names one that is missing or empty."""
    for name in ("GRAPHQL_URL", "GRAPHQL_TOKEN"):
        if not environ.get(name):
            raise RuntimeError(f"{name} is not set, or is empty")
    return {"url": environ["GRAPHQL_URL"], "token": environ["GRAPHQL_TOKEN"]}


class GraphQLEndpoint:
    """What all calls of a client have in common. `persisted` ends when the server knows it not."""

    def __init__(
        self,
        url: str,
        token: str | None,
        persisted: bool,
        attempts: int,
        total: float,
        rng: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        if not re.fullmatch(r"(?i)https?://[^@#\s]+", url):
            raise ValueError("url must be http(s)://host[:port][/path]; credentials go into token")
        if token is not None and not re.fullmatch("[!-~]+", token):
            raise ValueError("the token is empty, or has a space, a line end or non-ASCII")
        if not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1:
            raise ValueError(f"attempts must be a whole number of at least 1, got {attempts!r}")
        if not _is_number(total) or total <= 0:
            raise ValueError(f"total must be a number of seconds over 0, got {total!r}")
        self.url = httpx2.URL(url)  # parsed once
        self.persisted = persisted
        self.attempts = attempts
        self.total = total
        self.rng = rng
        self.clock = clock
        self.headers = {
            "Accept": f"{GRAPHQL_JSON}, application/json;q=0.9",
            "Content-Type": "application/json",
        }
        if token:
            self.headers["Authorization"] = f"Bearer {token}"
        self.place = f"{self.url.scheme}://{self.url.netloc.decode('ascii')}"


class GraphQLCall:
    """One call: its request, its deadline, and the verdict on each outcome."""

    def __init__(
        self,
        endpoint: GraphQLEndpoint,
        document: str,
        variables: Mapping[str, Any] | None,
        operation_name: str | None,
        partial: Partial,
    ) -> None:
        self._endpoint = endpoint
        self._document = document
        self._partial: Partial = partial
        self._payload: dict[str, Any] = {}
        if variables:
            self._payload["variables"] = dict(variables)
        if operation_name:
            self._payload["operationName"] = operation_name
        # Without a parser: a mutation cannot be written without this word. A query that has it
        # in a name or a comment is not repeated, which is the harmless way to be wrong.
        self._query = not re.search(r"\bmutation\b", document, re.ASCII)
        self._failures = 0
        self._miss = False
        self._by_hash = False
        self._deadline = endpoint.clock() + endpoint.total

    def left(self) -> float:
        """Return the seconds until the deadline."""
        return self._deadline - self._endpoint.clock()

    def phases_left(self, phases: Mapping[str, float | None]) -> dict[str, float]:
        """Return the timeouts of an attempt, none of which is longer than what is left now."""
        left = max(self.left(), 0.001)
        return {k: left if v is None else min(v, left) for k, v in phases.items()}

    def body(self) -> bytes:
        """Return what to send: the document, its hash, or after a miss both."""
        payload = dict(self._payload)
        if self._endpoint.persisted:
            digest = hashlib.sha256(self._document.encode()).hexdigest()
            payload["extensions"] = {"persistedQuery": {"version": 1, "sha256Hash": digest}}
        self._by_hash = self._endpoint.persisted and not self._miss
        if not self._by_hash:
            payload["query"] = self._document
        return json.dumps(payload, allow_nan=False, separators=(",", ":")).encode()

    def settle(self, outcome: Outcome) -> GraphQLResult | float:
        """Return the result, or the seconds to wait before the next request; else raise."""
        wait = self._pause_to_repeat(outcome)
        if wait is not None:
            return wait
        if isinstance(outcome, Exception):
            # What breaks the protocol is quoted in the text of the cause: it may be a secret.
            clean = isinstance(outcome, httpx2.TimeoutException | httpx2.NetworkError)
            raise self.error(outcome) from (outcome if clean else None)
        try:
            answer = parse(outcome.status, outcome.headers.get("Content-Type", ""), outcome.body)
        except ValueError as why:
            raise self.error(outcome, f", {why}") from None
        if self._by_hash and self._is_miss(answer):
            return 0.0
        return answer.result(
            self._endpoint.place,
            self._partial,
            status=outcome.status,
            retryable=self._may_repeat(outcome),
            retry_after=_retry_after(outcome),
        )

    def error(self, outcome: Outcome, why: str = "") -> GraphQLTransportError:
        """Return the typed error of an outcome that is no GraphQL answer."""
        place, again = self._endpoint.place, self._may_repeat(outcome)
        if isinstance(outcome, HttpReply):
            return GraphQLTransportError(
                f"{place}: status {outcome.status}{why}",
                status=outcome.status,
                retryable=again,
                retry_after=_retry_after(outcome),
                excerpt=outcome.body[:200],
            )
        what = type(outcome).__name__
        if isinstance(outcome, TimeoutError) or self.left() <= 0:
            what = f"no answer within the total of {self._endpoint.total:g} s"
        return GraphQLTransportError(f"{place}: {what}", retryable=again)

    def _pause_to_repeat(self, outcome: Outcome) -> float | None:
        """Return the seconds before a repetition; None if there will be none."""
        if not self._may_repeat(outcome):
            return None
        self._failures += 1
        if self._failures >= self._endpoint.attempts:
            return None
        jitter = self._endpoint.rng() * min(5.0, 0.2 * 2.0 ** min(self._failures - 1, 9))
        wait = jitter + (_retry_after(outcome) or 0.0)
        return wait if wait < self.left() else None

    def _may_repeat(self, outcome: Outcome) -> bool:
        if isinstance(outcome, HttpReply):
            return self._query and outcome.status in _LATER
        return isinstance(outcome, _PASSING) and (self._query or isinstance(outcome, _UNSENT))

    def _is_miss(self, answer: Answer) -> bool:
        words = {word for item in answer.errors for word in (item.message, item.code)}
        if words & _NOT_SUPPORTED:
            self._endpoint.persisted = False
        self._miss = bool(words & (_NOT_FOUND | _NOT_SUPPORTED))  # nothing was executed
        return self._miss


class ConnectionPages:
    """The pages of a Relay connection: which variables the next one wants, and when to stop."""

    def __init__(
        self, variables: Mapping[str, Any] | None, connection: Sequence[str], cursor: str
    ) -> None:
        self.more = True
        self.variables = dict(variables or {})
        self._connection = connection
        self._cursor = cursor
        self._used = {None, self.variables.get(cursor)}  # None would be the first page again

    def nodes(self, result: GraphQLResult) -> Iterator[Any]:
        """Yield the nodes of a page, and set what the next one needs.

        Raises:
            GraphQLPaginationLoop: After the nodes; the next page would be an earlier one.
            KeyError: The document does not ask for the connection or its pageInfo.

        """
        page: Any = result.data
        for name in self._connection:
            page = page[name] if page is not None else None
        if page is None:  # null, without an error: there is nothing to list
            self.more = False
            return
        info = page["pageInfo"]
        self.more = info["hasNextPage"]
        if "nodes" in page:
            yield from page["nodes"]
        else:
            yield from (edge["node"] for edge in page["edges"])
        if self.more:
            if info["endCursor"] in self._used:
                raise GraphQLPaginationLoop("the cursor of the next page was used before")
            self._used.add(info["endCursor"])
            self.variables[self._cursor] = info["endCursor"]


def _retry_after(outcome: Outcome) -> float | None:
    """Return the seconds that a Retry-After asks for; a date, which few APIs send, is ignored."""
    value = outcome.headers.get("Retry-After", "") if isinstance(outcome, HttpReply) else ""
    return float(value) if re.fullmatch("[0-9]{1,9}", value) else None


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
