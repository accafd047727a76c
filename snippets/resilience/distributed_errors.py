"""Carry a failure from service to service with its cause, and without what is nobody's business."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

SIZE, HOPS = 4096, 10  # the most bytes of an envelope; the most services in a chain

CODES = {
    400: "validation_failed",
    401: "authentication_failed",
    403: "permission_denied",
    404: "not_found",
    409: "conflict",
    422: "validation_failed",
    429: "rate_limited",
    503: "service_unavailable",
    504: "upstream_timeout",
    508: "loop_detected",
}
_OTHERS = {"request_rejected", "upstream_failed", "bad_response", "unreachable", "internal"}
KNOWN = _OTHERS | set(CODES.values())
_RETRYABLE = {408, 425, 429, 502, 503, 504}
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_NAME = re.compile("[A-Za-z0-9_-]{1,64}")  # no dot: the name of a host is none of a service
_WORD = re.compile("[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True)
class ErrorEnvelope:
    """What one service tells another of a failure. It has no room for a message or a trace.

    `service` failed first. `hops` are the services it came through, that one first, each named by
    its neighbor. `exhausted`: a layer below owned the retries, and made `attempts` tries in all.
    A code that the reader does not know is "unknown", and `original` has it. `unknown` are fields
    of a newer version.
    """

    code: str
    service: str
    status: int
    retryable: bool = False
    exhausted: bool = False
    attempts: int = 1
    hops: tuple[str, ...] = ()
    trace_id: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    unknown: Mapping[str, Any] = field(default_factory=dict)
    original: str | None = None


# What RFC 9457 has besides is text for people: it is not passed on.
_FIELDS = {"type", "title", "detail", "instance", *ErrorEnvelope.__dataclass_fields__}


class RemoteError(Exception):
    """A failure in another service, or on the way to it.

    Has the attributes by which handlers and retries decide: `code`, `service`, `status`,
    `retryable`, `retry_after` (seconds or None), `exhausted`, `attempts`. The rest is in
    `envelope`.
    """

    def __init__(self, envelope: ErrorEnvelope, retry_after: float | None = None) -> None:
        super().__init__(envelope, retry_after)  # both are its args, so that it can be pickled
        self.envelope = envelope
        self.retry_after = retry_after
        self.code = envelope.code
        self.service = envelope.service
        self.status = envelope.status
        self.retryable = envelope.retryable
        self.exhausted = envelope.exhausted
        self.attempts = envelope.attempts

    def __str__(self) -> str:
        route = ", ".join(self.envelope.hops) or self.service
        return f"{self.status} {self.code} after {self.attempts} attempt(s), from {route}"


def service_name_from_env(environ: Mapping[str, str] = os.environ) -> str:
    """Read SERVICE_NAME.

    Raises:
        RuntimeError: It is not set, or is empty.
        ValueError: It is no name.

    """
    name = environ.get("SERVICE_NAME")
    if not name:
        raise RuntimeError("SERVICE_NAME is not set, or is empty")
    if not _NAME.fullmatch(name):
        raise ValueError(f"SERVICE_NAME must be 1 to 64 letters, digits, '_' or '-', got {name!r}")
    return name


def to_wire(
    err: BaseException, *, service: str, trace_id: str | None = None, allow: Collection[str] = ()
) -> tuple[int, dict[str, str], bytes]:
    """Return the status, the headers and the body with which `service` answers for an error.

    An exception without `code` and `retryable` is a bug: a bare 500. Of the details (the `context`
    of an error of your own) only the fields in `allow` are sent. A neighbor's 401 or 403 is about
    our credentials: it becomes a 502, with its code.
    """
    envelope = _envelope_of(err, service)
    if envelope.hops and envelope.status in (401, 403):
        envelope = replace(envelope, status=502)
    body = {
        "title": _PHRASES.get(envelope.status, "Error"),
        "status": envelope.status,
        "code": envelope.original or envelope.code,  # the next one may know it
        "service": envelope.service,
        "retryable": envelope.retryable,
        "exhausted": envelope.exhausted,
        "attempts": envelope.attempts,
        "hops": envelope.hops,
        "trace_id": envelope.trace_id or trace_id,
    }
    details = {name: value for name, value in envelope.details.items() if name in allow}
    # What we do not understand goes one hop further: the next one may be newer than we are.
    unknown = envelope.unknown if len(envelope.hops) == 1 else {}
    data = json.dumps(body | _plain_fields(unknown) | {"details": _plain_fields(details)}).encode()
    headers = {"content-type": "application/problem+json"}
    if (seconds := getattr(err, "retry_after", None)) is not None:
        headers["retry-after"] = str(math.ceil(seconds))
    return envelope.status, headers, data if len(data) <= SIZE else json.dumps(body).encode()


def from_wire(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    service: str,
    known: Collection[str] = (),
) -> RemoteError:
    """Return the error that the neighbor `service` answered. Raises nothing, whatever it is.

    What is no envelope (a proxy's page, another API's JSON) is judged by its status alone.
    `known` are codes of your own, besides `KNOWN`.
    """
    by_class = {4: "request_rejected", 5: "upstream_failed"}.get(status // 100, "bad_response")
    data = _read_envelope(body) or {
        "code": CODES.get(status, by_class),
        "service": service,
        "retryable": status in _RETRYABLE,
        "exhausted": False,
    }
    code, trace_id, details = data["code"], data.get("trace_id"), data.get("details")
    hops = data["hops"] if isinstance(data.get("hops"), list) else []
    envelope = ErrorEnvelope(
        code=code if code in KNOWN or code in known else "unknown",
        service=data["service"],
        status=status if 400 <= status <= 599 else 502,
        retryable=data["retryable"],
        exhausted=data["exhausted"],
        attempts=_sound_attempts(data.get("attempts")),
        hops=(*(hop for hop in hops if _matches(_NAME, hop)), service)[:HOPS],
        trace_id=trace_id if _matches(_WORD, trace_id) else None,
        details=_plain_fields(details if isinstance(details, dict) else {}),
        unknown=_plain_fields({name: data[name] for name in data if name not in _FIELDS}),
        original=None if code in KNOWN or code in known else code,
    )
    wait = next((headers[name] for name in headers if name.lower() == "retry-after"), "")
    return RemoteError(envelope, float(wait) if re.fullmatch("[0-9]{1,9}", wait) else None)


def unanswered(cause: Exception, *, service: str) -> RemoteError:
    """Return the error of a call that got no answer: refused, reset, cut short, timed out."""
    error = RemoteError(ErrorEnvelope("unreachable", service, 503, retryable=True, hops=(service,)))
    error.__cause__ = cause
    return error


def _envelope_of(err: BaseException, service: str) -> ErrorEnvelope:
    code, status, context = (getattr(err, name, None) for name in ("code", "status", "context"))
    if isinstance(err, RemoteError):
        envelope = err.envelope
    elif hasattr(err, "retryable") and _matches(_WORD, code):
        status = status or getattr(err, "answer", None)
        envelope = ErrorEnvelope(
            code=str(code),
            service=service,
            status=status if isinstance(status, int) and 400 <= status <= 599 else 502,
            retryable=bool(err.retryable),
            details=context if isinstance(context, Mapping) else {},
        )
    else:
        envelope = ErrorEnvelope("internal", service, 500)
    exhausted = getattr(err, "exhausted", False) is True  # `should_retry` marks any error
    attempts = _sound_attempts(getattr(err, "attempts", 1))
    if (exhausted, attempts) == (envelope.exhausted, envelope.attempts):
        return envelope
    return replace(envelope, exhausted=exhausted, attempts=attempts)


def _read_envelope(body: bytes) -> dict[str, Any] | None:
    """Return the fields of an envelope, None for anything else."""
    try:
        data = json.loads(body) if len(body) <= SIZE else None
    except (ValueError, RecursionError):
        return None
    sound = (
        isinstance(data, dict)
        and _matches(_WORD, data.get("code"))
        and _matches(_NAME, data.get("service"))
        and isinstance(data.get("retryable"), bool)
        and isinstance(data.get("exhausted"), bool)
    )
    return data if sound else None


def _matches(kind: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and kind.fullmatch(value) is not None


def _sound_attempts(value: object) -> int:
    return value if type(value) is int and 1 <= value <= 999 else 1


def _plain_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with a plain name and a plain value, texts cut to 200 characters."""
    return {
        name: value[:200] if isinstance(value, str) else value
        for name, value in fields.items()
        if _matches(_NAME, name)
        and (value is None or isinstance(value, (str, int, float)))
        and (not isinstance(value, float) or math.isfinite(value))
    }
