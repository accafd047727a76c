"""Models that convert nothing, made from the bytes of a request within bounds, on pydantic.

Whatever is refused raises `InputProblem`.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from input_problem import FieldError, InputProblem, field_errors, refuse

M = TypeVar("M", bound=BaseModel)

# A string of JSON, closed or not: so that no quote is tried twice, which would take long.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class StrictModel(BaseModel):
    """A model that converts nothing, knows all its fields, and takes no NaN or Infinity."""

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )


def parse_json(body: bytes, model: type[M], *, max_bytes: int = 65_536, max_depth: int = 32) -> M:
    """Make a model from the bytes of a request (RFC 8259), or refuse them.

    Args:
        body: As it arrived. Do not parse it before: dates and UUIDs are strings only in JSON.
        model: A subclass of StrictModel.
        max_bytes: Longest body.
        max_depth: Brackets inside brackets.

    Raises:
        InputProblem: 413 for a body that is too long, otherwise 422.
        ValueError: A limit is no whole number from 0.
    """
    for name, limit in (("max_bytes", max_bytes), ("max_depth", max_depth)):
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
            raise ValueError(f"{name} must be a whole number, 0 or more, got {limit!r}")
    if len(body) > max_bytes:
        raise InputProblem([FieldError("", "too_large")], 413)
    depth = 0
    for bracket in _STRING.sub(b"", body).translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > max_depth:
            refuse("too_deep")
    try:
        json.loads(
            body.decode(),
            object_pairs_hook=_refuse_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite_number,
        )
    except (ValueError, RecursionError):  # and "from None", because the cause holds the input
        raise InputProblem([FieldError("", "json_invalid")]) from None
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problem = InputProblem(field_errors(error.errors(include_input=False, include_url=False)))
    raise problem


def changes(patch: BaseModel) -> dict[str, Any]:
    """Return what a PATCH wants changed: the fields that were sent, as None if sent as null."""
    return patch.model_dump(exclude_unset=True)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # parsers differ in which of the two they believe
        refuse("duplicate_key")
    return found


def _refuse_constant(text: str) -> NoReturn:
    refuse("json_invalid")  # NaN and Infinity are no JSON, though Python reads them


def _finite_number(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # 1e999
        refuse("finite_number")
    return number
