"""Makes one of the error types of every HTTP answer and of every exception of a client."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from error_redaction import one_line, scrub
from integration_errors import (
    PHRASES,
    AuthenticationError,
    BadResponse,
    Conflict,
    IntegrationError,
    NotFound,
    PermissionDenied,
    RateLimited,
    ServiceUnavailable,
    UpstreamTimeout,
    ValidationFailed,
)

# What clients raise, by the name of the class or of a base of it, so that none must be installed:
# the standard library, httpx2, requests, redis.
_BY_NAME: dict[str, type[IntegrationError]] = {
    **dict.fromkeys(("TimeoutError", "TimeoutException", "Timeout"), UpstreamTimeout),
    **dict.fromkeys(("ConnectionError", "NetworkError", "ProxyError"), ServiceUnavailable),
    **dict.fromkeys(("RemoteProtocolError", "SSLError", "gaierror"), ServiceUnavailable),
    **dict.fromkeys(("DecodingError", "JSONDecodeError", "TooManyRedirects"), BadResponse),
}


def from_response(
    status: int,
    headers: Mapping[str, str],
    body: bytes | str,
    *,
    service: str,
    clock: Callable[[], float] = time.time,
) -> IntegrationError:
    """Return the error that an HTTP answer is. Raises nothing, whatever the answer looks like.

    The answer's own error code, if it has one, is in `context["upstream_code"]`.
    """
    status = status if 100 <= status <= 999 else 0  # an int of 5,000 digits cannot be printed
    said, code, fields = _read_body(body)
    message = f"{service} answered {status} {PHRASES.get(status, 'Unknown')}"
    details: dict[str, Any] = {
        "status": status or None,
        "service": service,
        "retry_after": _retry_after(headers, clock),
        "context": {"upstream_code": code} if code else {},
    }
    made = _class_of(status)
    if made is IntegrationError:
        details["code"] = "upstream_failed" if status >= 500 else "request_rejected"
    if made is ValidationFailed:
        details["fields"] = fields
    return made(f"{message}: {said}" if said else message, **details)


def from_exception(exc: BaseException, *, service: str = "upstream") -> IntegrationError:
    """Return the error that a client's exception is, with `exc` as its `__cause__`.

    If it carries a response (httpx2, httpx, requests), that is read. What a logged traceback
    would print of `exc` and its own causes loses its secrets, in place.

    Raises:
        BaseException: `exc` itself, if it is no client's failure: an `IntegrationError` already,
            a bug, a cancellation.

    """
    response: Any = getattr(exc, "response", None)
    names = [cls.__name__ for cls in type(exc).__mro__]
    made = next((_BY_NAME[name] for name in names if name in _BY_NAME), None)
    if isinstance(status := getattr(response, "status_code", None), int):
        try:
            body = response.content
        except RuntimeError:  # a stream that nobody read
            body = b""
        error = from_response(status, response.headers, body, service=service)
    elif made is not None and not isinstance(exc, IntegrationError):
        error = made(f"{service}: {names[0]}: {one_line(exc)}", service=service)
    else:
        raise exc
    scrub(exc)
    error.__cause__ = exc
    return error


def _class_of(status: int) -> type[IntegrationError]:
    match status:
        case 400 | 422:
            return ValidationFailed
        case 401:
            return AuthenticationError
        case 403:
            return PermissionDenied
        case 404 | 410:
            return NotFound
        case 408 | 504:
            return UpstreamTimeout
        case 409 | 412:
            return Conflict
        case 429:
            return RateLimited
        case 500 | 501 | 505:  # a bug, or what it cannot do: the next try meets the same
            return IntegrationError
        case 425:  # too early: the same request will do, a moment later
            return ServiceUnavailable
    return {4: IntegrationError, 5: ServiceUnavailable}.get(status // 100, BadResponse)


def _retry_after(headers: Mapping[str, str], clock: Callable[[], float]) -> float | None:
    """Return the seconds of a Retry-After (RFC 9110, 10.2.3); None if there is none to read."""
    value = next((headers[name] for name in headers if name.lower() == "retry-after"), "").strip()
    if value.isascii() and value.isdigit():
        return float(value) if len(value) < 10 else None
    try:
        date = parsedate_to_datetime(value)
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - clock())
    except (ValueError, OverflowError):
        return None


def _read_body(body: bytes | str) -> tuple[str, str, dict[str, str]]:
    """Return what a body says, its error code and its fields, each empty if it has none."""
    start = body[:65_536]  # enough for an error; JSON that is cut here is not read
    text = start if isinstance(start, str) else start.decode("utf-8", "replace")
    try:
        data = json.loads(text)
        error = data.get("error", data) if isinstance(data, dict) else None
        code = error.get("code") if isinstance(error, dict) else error
        errors = (data.get("errors") or data.get("detail")) if isinstance(data, dict) else None
        return _find_sentence(data), "" if code is None else str(code)[:100], _field_errors(errors)
    except (ValueError, RecursionError):
        return "" if text.lstrip()[:1] in ("<", "{", "[") else text, "", {}  # a page, a piece


def _find_sentence(data: object) -> str:
    """Find the sentence for humans in the shapes that APIs give an error."""
    if isinstance(data, list):
        return "; ".join(filter(None, map(_find_sentence, data[:5])))
    if isinstance(data, dict):
        keys = ("detail", "message", "error_description", "error", "errors", "title", "msg")
        return next(filter(None, (_find_sentence(data.get(key)) for key in keys)), "")
    return data if isinstance(data, str) else ""


def _field_errors(errors: object) -> dict[str, str]:
    if isinstance(errors, dict):
        pairs = list(errors.items())[:50]
        return {one_line(name): one_line(_find_sentence(wrong)) for name, wrong in pairs}
    fields = {}
    for one in errors[:50] if isinstance(errors, list) else ():
        if isinstance(one, dict):
            name = one.get("field") or one.get("pointer") or one.get("loc") or ""
            path = ".".join(map(str, name)) if isinstance(name, list) else name
            fields[one_line(path)] = one_line(_find_sentence(one))
    return fields
