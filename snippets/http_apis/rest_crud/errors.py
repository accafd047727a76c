"""Errors as HTTP answers, `{"detail": ...}` each, none of which repeats what the client sent."""

from __future__ import annotations

import logging

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute

from .models import ExistsError, ItemError, NotFoundError, StaleError, TakenError

_log = logging.getLogger(__name__)

#: What a status means here, for the OpenAPI document.
MEANINGS = {
    400: "not JSON, or malformed precondition",
    404: "no such item",
    409: "a unique value is taken",
    412: "another version than the precondition allows",
    413: "body too large",
    415: "wrong media type",
    428: "If-Match is missing",
    503: "the database does not answer",
}


def answer_errors(app: FastAPI, router: APIRouter) -> None:
    """Have `app` answer domain errors, invalid requests, and wrong methods on `router`'s paths."""

    async def method_not_allowed(request: Request, error: HTTPException) -> Response:
        # Allow must name all methods of the resource (RFC 9110, 15.5.6); Starlette names a route's.
        routes = [route for route in router.routes if isinstance(route, APIRoute)]
        here = [route for route in routes if route.matches(request.scope)[0].value]  # 0: no match
        allow = ", ".join(sorted(method for route in here for method in route.methods or ()))
        headers = {"Allow": allow} if allow else error.headers
        return JSONResponse({"detail": "method not allowed"}, 405, headers)

    app.exception_handler(ItemError)(_item_error)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(405)(method_not_allowed)


async def _item_error(request: Request, error: ItemError) -> Response:
    match error:
        case NotFoundError():
            return JSONResponse({"detail": "no such item"}, 404)
        case ExistsError():
            return JSONResponse({"detail": "the item exists already"}, 412)
        case StaleError():
            return JSONResponse({"detail": "the item is not in that version: read it again"}, 412)
        case TakenError():
            detail = {"type": "taken", "loc": ["body", error.field], "msg": str(error)}
            return JSONResponse({"detail": [detail]}, 409)
    _log.warning("%s %s: %s", request.method, request.url.path, error, exc_info=error)
    return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "1"})


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    # FastAPI's handler echoes the input: the rejected password, or text that cannot be sent: a 500.
    details = [{name: one[name] for name in ("type", "loc", "msg")} for one in error.errors()[:20]]
    return JSONResponse({"detail": details}, 422)
