"""Receive webhooks: bound, verify, parse, store, answer, in this order and within a time limit.

What comes out is a `Delivery`. Its bytes are the ones that were verified.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

logger = logging.getLogger(__name__)
LIMIT = 262_144


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event as it arrived: the same shape for a queue, an inbox and handlers.

    (`source`, `id`) names the event, the same each time it is sent. `timestamp` is when this
    attempt was sent, in seconds since 1970. `type` is "" if there is none. The repr has no body.
    """

    source: str
    id: str
    timestamp: int
    type: str
    body: bytes = field(repr=False)


class Verified(Protocol):
    """What `verify` returns: the signed id and time of a delivery."""

    @property
    def id(self) -> str:
        """The same each time the event is sent."""
        ...

    @property
    def timestamp(self) -> int:
        """When this attempt was sent, in seconds since 1970."""
        ...


class Refused(Exception):
    """The request is answered with `status`; `reason` is for the log."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def limit_from_env(environ: Mapping[str, str] = os.environ) -> int:
    """Read WEBHOOK_MAX_BYTES, 262,144 if unset; ValueError unless it is a number above 0."""
    text = environ.get("WEBHOOK_MAX_BYTES") or str(LIMIT)
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"WEBHOOK_MAX_BYTES must be a whole number of bytes over 0, got {text!r}")
    return int(text)


async def read_limited(
    request: Request,
    limit: int = LIMIT,
    timeout: float = 10.0,  # part of the answer: 408
) -> bytes:
    """Return the raw body, if it has at most `limit` bytes and is here within `timeout` seconds.

    Raises:
        Refused: 400 for a length that is no length or a client that has gone, 408 for a slow one,
            413 for too many bytes, 415 for a compressed body, 503 for one that was read before.
        ValueError: `limit` or `timeout` is not above 0.
    """
    _check_counts(limit=limit)
    _check_seconds(timeout=timeout)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":  # a kilobyte of gzip may be a megabyte of text
        raise Refused(415, "the body is encoded")
    lengths = request.headers.getlist("content-length")
    if len(lengths) > 1 or not all(text.isascii() and text.isdigit() for text in lengths):
        raise Refused(400, "Content-Length is repeated or not a number")
    announced = int(lengths[0][:20]) if lengths else None
    if announced is not None and announced > limit:
        raise Refused(413, f"more than {limit} bytes announced")
    body = bytearray()
    try:
        async with asyncio.timeout(timeout):  # for the whole body: a drip is not progress
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise Refused(413, f"more than {limit} bytes sent")
                body += chunk
    except TimeoutError:
        raise Refused(408, f"no complete body within {timeout} s") from None
    except ClientDisconnect:
        raise Refused(400, "the client has gone") from None
    if announced is not None and len(body) != announced:
        # Our fault, so the provider has to send it again.
        raise Refused(503, "the body is not as long as announced: does a middleware read it?")
    return bytes(body)


class WebhookReceiver:
    """The endpoint of one provider.

    Args:
        source: Names the provider: ids of two of them may be equal.
        verify: Checks (body, headers), and returns the signed id and time. Quick, without I/O.
        store: Keeps the delivery durably. Returns True, or False if it was known. What it raises is
            answered 503.
        refused: What `verify` raises for a delivery that cannot be believed: answered 401. Anything
            else that it raises is our fault, and answered 503.
        type_of: Finds the event's type in the payload.
        limit: The largest body, in bytes.
        timeout: How long the body may take to arrive, in seconds.
        store_timeout: How long `store` may take, in seconds.
        retry_after: What a 503 asks the provider to wait, in seconds.

    Raises:
        ValueError: A number is not above 0.
    """

    def __init__(
        self,
        source: str,
        verify: Callable[[bytes, Mapping[str, str]], Verified],
        store: Callable[[Delivery], Awaitable[bool]],
        *,
        refused: type[Exception] | tuple[type[Exception], ...],
        type_of: Callable[[dict[str, Any]], object] = lambda payload: payload.get("type"),
        limit: int = LIMIT,
        timeout: float = 10.0,
        store_timeout: float = 5.0,
        retry_after: int = 30,
    ) -> None:
        _check_counts(limit=limit, retry_after=retry_after)
        _check_seconds(timeout=timeout, store_timeout=store_timeout)
        self._source = source
        self._verify = verify
        self._store = store
        self._refused = refused
        self._type_of = type_of
        self._limit = limit
        self._timeout = timeout
        self._store_timeout = store_timeout
        self._retry_after = str(retry_after)

    def route(self, path: str) -> Route:
        """Return the route to mount: `FastAPI(routes=[receiver.route("/webhooks")])`."""
        return Route(path, self.receive, methods=["POST"])

    async def receive(self, request: Request) -> Response:
        """Answer 200 once the delivery is stored, and nothing but a status otherwise."""
        try:
            body = await read_limited(request, self._limit, self._timeout)
            await self._store_delivery(self._verified_delivery(body, request.headers))
        except Refused as no:
            logger.warning("webhook from %s: %d, %s", self._source, no.status, no.reason)
            headers = {"retry-after": self._retry_after} if no.status == 503 else {}
            if no.status in (400, 408, 413, 415):  # the rest of the body is not waited for
                headers["connection"] = "close"
            return Response(status_code=no.status, headers=headers)
        return Response()

    def _verified_delivery(self, body: bytes, headers: Mapping[str, str]) -> Delivery:
        try:
            event = self._verify(body, headers)
        except self._refused as error:
            raise Refused(401, f"not believed ({type(error).__name__})") from None
        except Exception as error:
            raise Refused(503, f"could not be verified ({type(error).__name__})") from error
        try:
            payload = json.loads(
                body.decode(), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant
            )
        except (ValueError, RecursionError):
            raise Refused(400, "signed, but not JSON in UTF-8 with each key once") from None
        if not isinstance(payload, dict):
            raise Refused(400, "signed, but not a JSON object")
        kind = self._type_of(payload)
        kind = kind if isinstance(kind, str) else ""
        return Delivery(self._source, event.id, event.timestamp, kind, body)

    async def _store_delivery(self, delivery: Delivery) -> None:
        try:
            async with asyncio.timeout(self._store_timeout):
                new = await self._store(delivery)
            if not isinstance(new, bool):
                raise TypeError
        except Exception as error:
            # Its text may hold the payload; `store` can log more, it knows what it does.
            raise Refused(503, f"{delivery.id} not stored ({type(error).__name__})") from error
        logger.info("webhook %s from %s: %s", delivery.id, self._source, "new" if new else "known")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # readers of the stored bytes would disagree which one counts
        raise ValueError
    return found


def _refuse_constant(text: str) -> float:
    raise ValueError(text)  # NaN and Infinity are not JSON


def _check_seconds(**given: float) -> None:
    for name, seconds in given.items():
        if not (_is_number(seconds) and seconds > 0):
            raise ValueError(f"{name} must be a number of seconds over 0, got {seconds!r}")


def _check_counts(**given: int) -> None:
    for name, count in given.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} must be a whole number over 0, got {count!r}")


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
