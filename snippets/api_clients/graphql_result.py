"""What a GraphQL answer means: data, data with errors, errors alone, or no GraphQL at all.

Nothing here sends or waits. Needs nothing but Python.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Partial = Literal["raise", "return"]

GRAPHQL_JSON = "application/graphql-response+json"


@dataclass(frozen=True)
class GraphQLErrorItem:
    """One entry of `errors`. The server's words are not in its `repr`: they may quote variables.

    Args:
        message: What the server says; its first 1,000 characters.
        path: Where in `data` it happened, as ("user", "email"); None if nothing was executed.
        code: `extensions.code`, as "NOT_FOUND", where the server gives one.
        extensions: Whatever else the server tells.

    """

    message: str = field(repr=False)
    path: tuple[str | int, ...] | None = None
    code: str | None = None
    extensions: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class GraphQLResult:
    """Data that the server gave. `errors` is empty, unless you asked for `partial="return"`."""

    data: dict[str, Any]
    errors: tuple[GraphQLErrorItem, ...] = ()
    extensions: Mapping[str, Any] = field(default_factory=dict)


class GraphQLClientError(Exception):
    """A call failed. The text is safe to log: no variable, document or word of the server is in it.

    Attributes:
        status: HTTP status of the answer; None when there was none.
        data: What the server gave in spite of the errors, or None.
        errors: The entries of `errors`. Their messages are the server's words: log with care.
        extensions: Of the answer.
        retryable: The failure may pass, and to repeat the call cannot have a second effect.
        retry_after: Seconds that the server asked to wait.
        excerpt: The first 200 bytes of an answer that is no GraphQL.

    """

    def __init__(
        self,
        text: str,
        *,
        status: int | None = None,
        data: dict[str, Any] | None = None,
        errors: Sequence[GraphQLErrorItem] = (),
        extensions: Mapping[str, Any] | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
        excerpt: bytes = b"",
    ) -> None:
        super().__init__(text)
        self.status = status
        self.data = data
        self.errors = tuple(errors)
        self.extensions = extensions or {}
        self.retryable = retryable
        self.retry_after = retry_after
        self.excerpt = excerpt


class GraphQLRequestError(GraphQLClientError):
    """Nothing was executed: the server refused the document, its variables or the caller."""


class GraphQLPartialError(GraphQLClientError):
    """It was executed and a part failed; a mutation may have had its effect. See `.data`."""


class GraphQLTransportError(GraphQLClientError):
    """No GraphQL answer: no connection, no answer in time, or something else than GraphQL."""


class GraphQLPaginationLoop(GraphQLClientError):
    """The server says that there is a next page, and its cursor is one that was used."""


@dataclass(frozen=True)
class Answer:
    """A well-formed GraphQL response: it has data, or errors, or both."""

    data: dict[str, Any] | None
    errors: tuple[GraphQLErrorItem, ...]
    extensions: Mapping[str, Any]

    def result(self, place: str, partial: Partial, **facts: Any) -> GraphQLResult:
        """Return the data, or raise what the errors mean; `facts` are attributes of the error."""
        if self.data is not None and (not self.errors or partial == "return"):
            return GraphQLResult(self.data, self.errors, self.extensions)
        # An error with a path came out of a resolver. One without came before the first.
        executed = self.data is not None or any(item.path for item in self.errors)
        codes = {item.code for item in self.errors if item.code}
        known = sorted(code for code in codes if re.fullmatch("[A-Z][A-Z_]{0,39}", code))[:3]
        count = f"{len(self.errors)} error{'s' if len(self.errors) > 1 else ''}"
        raise (GraphQLPartialError if executed else GraphQLRequestError)(
            f"{place}: {', '.join([count, *known])}",
            data=self.data,
            errors=self.errors,
            extensions=self.extensions,
            **facts,
        )


def parse(status: int, content_type: str, body: bytes) -> Answer:
    """Read an answer as GraphQL over HTTP says; `ValueError`, which quotes nothing, if it is none.

    Every 2xx is a success, 294 (partial success) too. With another status only the newer media
    type vouches for a GraphQL server; `application/json` may come from a gateway before it.
    """
    if not 200 <= status <= 299 and content_type.partition(";")[0].strip().lower() != GRAPHQL_JSON:
        raise ValueError("no GraphQL answer")
    try:
        found = json.loads(body, object_pairs_hook=_unique, parse_constant=_no_json)
    except (ValueError, RecursionError):  # duplicate keys, NaN and bytes that are no UTF-8 as well
        raise ValueError("not JSON, or ambiguous") from None
    answer = found if isinstance(found, dict) else {}
    data, errors = answer.get("data"), answer.get("errors")
    errors = [] if errors is None else errors
    well_formed = isinstance(data, dict | None) and isinstance(errors, list)
    if not well_formed or not all(isinstance(item, dict) for item in errors):
        raise ValueError("malformed data or errors")
    if data is None and not errors:
        raise ValueError("neither data nor errors")
    return Answer(data, tuple(map(_item, errors)), _object(answer.get("extensions")))


def _item(found: dict[str, Any]) -> GraphQLErrorItem:
    path, extensions = found.get("path"), _object(found.get("extensions"))
    code, message = extensions.get("code"), found.get("message")
    return GraphQLErrorItem(
        message[:1000] if isinstance(message, str) else "",
        tuple(path) if isinstance(path, list) else None,
        code if isinstance(code, str) else None,
        extensions,
    )


def _object(found: object) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # readers of JSON disagree on which of the two counts
        raise ValueError("a key stands twice")
    return found


def _no_json(constant: str) -> None:
    raise ValueError("NaN and Infinity are not JSON")
