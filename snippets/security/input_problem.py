"""What is wrong with input from strangers: JSON pointers (RFC 6901) and codes, never a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

MAX_ERRORS = 20  # in one answer


@dataclass(frozen=True)
class FieldError:
    """One mistake: where (a JSON pointer, "" for the whole) and which. Never the value."""

    pointer: str
    code: str


class InputProblem(Exception):
    """The input is refused. `status` is the answer's: 413 for size, 415 for type, else 422."""

    def __init__(self, errors: Sequence[FieldError], status: int = 422) -> None:
        super().__init__(", ".join(f"{e.pointer or '(whole)'}: {e.code}" for e in errors))
        self.errors = tuple(errors)
        self.status = status


class TextError(ValueError):
    """Raise it in a validator of your own: its code stands in the answer."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def refuse(code: str, pointer: str = "") -> NoReturn:
    """Raise `InputProblem` for one mistake."""
    raise InputProblem([FieldError(pointer, code)])


def field_errors(errors: Sequence[Any], *, skip: int = 0) -> list[FieldError]:
    """Keep place and code of pydantic's errors, and drop messages, inputs and contexts."""
    found = []
    for error in errors[:MAX_ERRORS]:
        path = error["loc"][skip:] if error["loc"][:skip] == ("body",) else error["loc"]
        cause = error.get("ctx", {}).get("error")
        code = cause.code if isinstance(cause, TextError) else error["type"]
        found.append(FieldError(json_pointer(path), code))
    return found


def json_pointer(path: Sequence[str | int]) -> str:
    """Return the pointer to a field, each part of at most 100 characters."""
    return "".join(f"/{str(p).replace('~', '~0').replace('/', '~1')[:100]}" for p in path)
