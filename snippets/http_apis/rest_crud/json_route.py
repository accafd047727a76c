"""JSON bodies by the letter: one media type a route, unique names, no NaN, and never a 500."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute


class JsonRoute(APIRoute):
    """A route that answers 415 to another media type than its body's, and 400 to what is not JSON.

    Use it as a router's `route_class`. A route's media type is `application/json` unless its body
    parameter says otherwise: `Body(media_type="application/merge-patch+json")`.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler behind the check of the media type."""
        handle = super().get_route_handler()
        expected = getattr(self.body_field and self.body_field.field_info, "media_type", None)

        async def checked(request: Request) -> Response:
            sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if expected and sent != expected:
                header = "Accept-Patch" if request.method == "PATCH" else "Accept"
                raise HTTPException(415, f"send {expected}", {header: expected})
            return await handle(_JsonRequest(request.scope, request.receive))

        return checked


class _JsonRequest(Request):
    async def json(self) -> Any:
        """Parse the body; FastAPI calls this for every JSON media type."""
        try:
            text = (await self.body()).decode()
            return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
        # Bad UTF-8, bad JSON, integers of 5,000 digits are ValueErrors; deep nesting is the other.
        except (ValueError, RecursionError) as error:
            message = "the body must be JSON in UTF-8, each name once, without NaN and Infinity"
            raise HTTPException(400, message) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # the default keeps the last and says nothing
        raise ValueError("a name appears twice")
    "".join(found).encode()  # half a surrogate pair: no error answer could name such a field
    return found


def _refuse_constant(constant: str) -> Any:
    raise ValueError(constant)
