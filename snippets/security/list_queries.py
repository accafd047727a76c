"""What a client may say about a list: its page, its order, and text to search for in SQL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic import ValidationInfo as Info

from input_problem import InputProblem, TextError, refuse
from text_rules import has_controls

_SORT = re.compile(r"([a-z][a-z0-9_]{0,31})(?::(asc|desc))?")


def order_by(spec: str, allowed: Mapping[str, str]) -> str:
    """Turn `created:desc,name` into SQL to stand after ORDER BY.

    Args:
        spec: What the client sent.
        allowed: Public name to SQL, written by you: `{"created": "created_at"}`.

    Raises:
        InputProblem: The form is wrong, a name is unknown or named twice.
    """
    parts: dict[str, str] = {}
    for entry in _check_sort(spec).split(","):
        name, _, direction = entry.partition(":")
        if name not in allowed or name in parts:
            refuse("sort_unknown", "/sort")
        parts[name] = f"{allowed[name]} {'DESC' if direction == 'desc' else 'ASC'}"
    return ", ".join(parts.values())


def like_pattern(text: str) -> str:
    r"""Escape text so that LIKE takes it literally. Add your own `%` around it.

    For PostgreSQL and MySQL as it is; elsewhere write `LIKE ... ESCAPE '\'`. Bind the result.
    """
    if has_controls(text):
        refuse("control_character", "/search")
    return re.sub(r"([\\%_])", r"\\\1", text)


def _read_page_size(value: object, info: Info) -> object:
    # A query string holds text. In JSON a number is a number.
    if info.mode == "python" and isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}", value):
        return int(value)
    return value


def _check_sort(text: str) -> str:
    entries = text.split(",", 5)
    if len(entries) > 5 or not all(_SORT.fullmatch(e) for e in entries):
        refuse("sort", "/sort")
    return text


def _check_sort_field(text: str) -> str:
    try:
        return _check_sort(text)
    except InputProblem:
        raise TextError("sort") from None


PageSize = Annotated[int, BeforeValidator(_read_page_size), Field(strict=True, ge=1, le=100)]
"""1 to 100. For JSON, and for query strings."""
SortSpec = Annotated[str, AfterValidator(_check_sort_field)]
"""Up to five `name`, `name:asc` or `name:desc`, separated by commas. Hand it to `order_by`."""
