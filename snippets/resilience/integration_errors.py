"""One hierarchy for the failures of every integration: branch on the type, answer safely."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from error_redaction import one_line, redact

PHRASES = {status.value: status.phrase for status in HTTPStatus}


class IntegrationError(Exception):
    """A call to another system failed. Pickled or copied, it keeps all its attributes.

    Args:
        message: What happened. It is cut to one line of 500 characters and loses its secrets.
        code: A stable word to branch on; each class has its own.
        status: The HTTP status of the answer; None if there was none.
        retryable: Whether the same call may succeed later; each class has its own. A POST
            needs an idempotency key all the same.
        retry_after: Seconds to wait before that, if the answer named them.
        service: Who failed.
        context: Facts for the log, of which a copy without secrets is kept.

    """

    code: str = "integration_failed"
    retryable: bool = False
    answer: int = 502  # what `to_problem` says when there is no status

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        retryable: bool | None = None,
        retry_after: float | None = None,
        service: str | None = None,
        context: Mapping[str, object] | None = None,
    ) -> None:
        self.message = one_line(message)
        super().__init__(self.message)
        self.code = self.code if code is None else code
        self.status = status
        self.retryable = self.retryable if retryable is None else retryable
        self.retry_after = retry_after
        self.service = service
        self.context: dict[str, Any] = redact(context or {})

    def __reduce__(self) -> tuple[Any, ...]:
        # Python's own would call __init__ with the message alone.
        return _make_again, (type(self), self.args), self.__dict__


class AuthenticationError(IntegrationError):
    """The other system does not accept our credentials (401)."""

    code, answer = "authentication_failed", 401


class PermissionDenied(IntegrationError):
    """Our credentials do not allow this (403)."""

    code, answer = "permission_denied", 403


class NotFound(IntegrationError):
    """It does not exist, or no longer (404, 410)."""

    code, answer = "not_found", 404


class Conflict(IntegrationError):
    """It is not in the state that the request expects (409, 412)."""

    code, answer = "conflict", 409


class ValidationFailed(IntegrationError):
    """The request is wrong (400, 422); `fields` says what is wrong with which, where known."""

    code, answer = "validation_failed", 422

    def __init__(
        self, message: str, fields: Mapping[str, object] | None = None, **details: Any
    ) -> None:
        super().__init__(message, **details)
        self.fields: dict[str, Any] = redact(fields or {})


class RateLimited(IntegrationError):
    """Too many requests (429)."""

    code, answer, retryable = "rate_limited", 429, True


class ServiceUnavailable(IntegrationError):
    """It is down, or there is no way to it (502, 503; refused, reset)."""

    code, answer, retryable = "service_unavailable", 503, True


class UpstreamTimeout(IntegrationError):
    """It took too long (408, 504, a timeout of ours). What was asked for may have been done."""

    code, answer, retryable = "upstream_timeout", 504, True


class BadResponse(IntegrationError):
    """It answered with something that is no answer (a redirect, a broken body)."""

    code = "bad_response"


def _make_again(kind: type[IntegrationError], args: tuple[Any, ...]) -> IntegrationError:
    return kind.__new__(kind, *args)


def to_problem(error: IntegrationError, *, instance: str | None = None) -> dict[str, Any]:
    """Return an RFC 9457 document. Of a 5xx it says no more than that; of a 4xx the message too.

    Send it with its `status`, as `application/problem+json`.
    """
    status = error.status
    if status is None or not 400 <= status < 600:
        status = error.answer
    problem = {"title": PHRASES.get(status, "Unknown"), "status": status, "code": error.code}
    if instance is not None:
        problem["instance"] = one_line(instance)
    if status < 500:
        problem["detail"] = error.message
        if fields := getattr(error, "fields", None):
            problem["errors"] = [{"field": name, "detail": fields[name]} for name in fields]
    return problem
