"""Read JSON bodies within bounds, and answer refusals as problem documents (RFC 9457), in FastAPI.

FastAPI's own answer to a validation error sends the input back, passwords included.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from input_problem import FieldError, InputProblem, field_errors
from strict_models import parse_json

M = TypeVar("M", bound=BaseModel)
log = logging.getLogger("input")


def max_body_from_env(environ: Mapping[str, str] = os.environ) -> int:
    """Read MAX_BODY_BYTES, 65,536 by default.

    Raises:
        ValueError: It is not a whole number of bytes over 0.
    """
    text = environ.get("MAX_BODY_BYTES") or "65536"
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 13 and int(text)):
        raise ValueError(f"MAX_BODY_BYTES must be a whole number of bytes over 0, got {text!r}")
    return int(text)


def json_body(model: type[M], *, max_bytes: int | None = None) -> Callable[[Request], Awaitable[M]]:
    """Make a dependency that reads the body as `model`: `Depends(json_body(NewUser))`.

    Args:
        model: A subclass of StrictModel.
        max_bytes: Longest body; by default what `install` was given.

    Raises:
        ValueError: `max_bytes` is not a whole number over 0.
    """
    if max_bytes is not None:
        _check_max_bytes(max_bytes)

    async def read(request: Request) -> M:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise InputProblem([FieldError("", "content_type")], 415)
        limit = request.app.state.max_body_bytes if max_bytes is None else max_bytes
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:  # what is announced may be a lie: count what comes
                raise InputProblem([FieldError("", "too_large")], 413)
        return parse_json(bytes(body), model, max_bytes=limit)

    return read


def install(
    app: FastAPI,
    *,
    max_bytes: int = 65_536,
    new_id: Callable[[], object] = uuid.uuid4,
) -> None:
    """Answer all refused input of `app` with one kind of document.

    Args:
        app: The application.
        max_bytes: Longest JSON body.
        new_id: Makes the id that answer and log share.

    Raises:
        ValueError: `max_bytes` is not a whole number over 0.
    """
    _check_max_bytes(max_bytes)
    app.state.max_body_bytes = max_bytes

    def answer(request: Request, problem: InputProblem) -> JSONResponse:
        name = f"urn:uuid:{new_id()}"
        # Place and code only. A pointer may hold a key that the client made up: repr() keeps
        # line breaks out of the log.
        log.info("input refused: %s %d %r", name, problem.status, problem.args[0])
        document = {
            "type": "about:blank",
            "title": HTTPStatus(problem.status).phrase,
            "status": problem.status,
            "instance": name,
            "errors": [{"pointer": e.pointer, "code": e.code} for e in problem.errors],
        }
        return JSONResponse(document, problem.status, media_type="application/problem+json")

    @app.exception_handler(InputProblem)
    async def refused(request: Request, error: InputProblem) -> JSONResponse:
        return answer(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(request, InputProblem(field_errors(error.errors(), skip=1)))


def _check_max_bytes(max_bytes: int) -> None:
    if not isinstance(max_bytes, int) or isinstance(max_bytes, bool) or max_bytes < 1:
        raise ValueError(f"max_bytes must be a whole number over 0, got {max_bytes!r}")
