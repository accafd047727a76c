"""Strict models, text types and SQL helpers for input from strangers, on pydantic.

Whatever is refused raises `InputProblem`: JSON pointers (RFC 6901) and codes, never a value.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeVar

from email_validator import EmailNotValidError, validate_email
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic import ValidationInfo as Info

M = TypeVar("M", bound=BaseModel)

MAX_ERRORS = 20  # in one answer
# A string of JSON, closed or not: so that no quote is tried twice, which would take long.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_SORT = re.compile(r"([a-z][a-z0-9_]{0,31})(?::(asc|desc))?")
# Letters and symbols that show nothing: fillers of Hangul, the blank of Braille.
_UNSEEN = frozenset("\u115f\u1160\u3164\uffa0\u2800")
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # reorder what follows
_DEVICES = re.compile(
    r"(?:CON(?:IN\$|OUT\$)?|PRN|AUX|NUL|(?:COM|LPT)[0-9¹²³])(?:[ .].*)?", re.IGNORECASE
)


@dataclass(frozen=True)
class FieldError:
    """One mistake: where (a JSON pointer, "" for the whole) and which. Never the value."""

    pointer: str
    code: str


class InputProblem(Exception):
    """The input is refused. `status` is the answer's: 413 for size, 415 for type, else 422."""

    def __init__(self, errors: Sequence[FieldError], status: int = 422) -> None:
        super().__init__(", ".join(f"{e.pointer or '(whole)'}: {e.code}" for e in errors))
        self.errors, self.status = tuple(errors), status


class TextError(ValueError):
    """Raise it in a validator of your own: its code stands in the answer."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


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
    """
    if len(body) > max_bytes:
        raise InputProblem([FieldError("", "too_large")], 413)
    depth = 0
    for bracket in _STRING.sub(b"", body).translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > max_depth:
            _refuse("too_deep")
    try:
        json.loads(
            body.decode(),
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError):  # and "from None", because the cause holds the input
        raise InputProblem([FieldError("", "json_invalid")]) from None
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problem = InputProblem(field_errors(error.errors(include_input=False, include_url=False)))
    raise problem


def field_errors(errors: Sequence[Any], *, skip: int = 0) -> list[FieldError]:
    """Keep place and code of pydantic's errors, and drop messages, inputs and contexts."""
    found = []
    for error in errors[:MAX_ERRORS]:
        path = error["loc"][skip:] if error["loc"][:skip] == ("body",) else error["loc"]
        cause = error.get("ctx", {}).get("error")
        code = cause.code if isinstance(cause, TextError) else error["type"]
        found.append(FieldError(_pointer(path), code))
    return found


def changes(patch: BaseModel) -> dict[str, Any]:
    """Return what a PATCH wants changed: the fields that were sent, as None if sent as null."""
    return patch.model_dump(exclude_unset=True)


def order_by(spec: str, allowed: Mapping[str, str]) -> str:
    """Turn `created:desc,name` into SQL to stand after ORDER BY.

    Args:
        spec: What the client sent.
        allowed: Public name to SQL, written by you: `{"created": "created_at"}`.

    Raises:
        InputProblem: The form is wrong, a name is unknown or named twice.
    """
    parts: dict[str, str] = {}
    for entry in _sort(spec).split(","):
        name, _, direction = entry.partition(":")
        if name not in allowed or name in parts:
            _refuse("sort_unknown", "/sort")
        parts[name] = f"{allowed[name]} {'DESC' if direction == 'desc' else 'ASC'}"
    return ", ".join(parts.values())


def like_pattern(text: str) -> str:
    r"""Escape text so that LIKE takes it literally. Add your own `%` around it.

    For PostgreSQL and MySQL as it is; elsewhere write `LIKE ... ESCAPE '\'`. Bind the result.
    """
    return re.sub(r"([\\%_])", r"\\\1", _no_controls(text, "/search"))


def safe_filename(text: str) -> str:
    """Return a name to show or to download as: one path part, no device of Windows.

    Store uploads under a name of your own (a UUID) all the same.

    Raises:
        InputProblem: Nothing usable is left, or it has more than 255 bytes.
    """
    if len(text) > 4_096:
        _refuse("filename", "/filename")
    last = re.split(r"[/\\]", _no_controls(text, "/filename"))[-1]
    if len(last) > 255:
        _refuse("filename", "/filename")
    name = re.sub(r'[<>:"|?*]', "_", unicodedata.normalize("NFC", last)).strip(" .")
    if not _visible(name) or _DEVICES.fullmatch(name) or len(name.encode()) > 255:
        _refuse("filename", "/filename")
    return name


def _refuse(code: str, pointer: str = "") -> NoReturn:
    raise InputProblem([FieldError(pointer, code)])


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # parsers differ in which of the two they believe
        _refuse("duplicate_key")
    return found


def _no_constant(text: str) -> NoReturn:
    _refuse("json_invalid")  # NaN and Infinity are no JSON, though Python reads them


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # 1e999
        _refuse("finite_number")
    return number


def _pointer(path: Sequence[str | int]) -> str:
    return "".join(f"/{str(p).replace('~', '~0').replace('/', '~1')[:100]}" for p in path)


def _has_controls(text: str) -> bool:
    return any(unicodedata.category(c) in ("Cc", "Cs") or c in _BIDI for c in text)


def _no_controls(text: str, pointer: str) -> str:
    if _has_controls(text):
        _refuse("control_character", pointer)
    return text


def _visible(text: str) -> bool:
    return any(unicodedata.category(c)[0] in "LNPS" and c not in _UNSEEN for c in text)


def clean_line(text: str, *, longest: int) -> str:
    """Return one line of text in NFC, without blanks around it, of 1 to `longest` code points.

    Raises:
        TextError: For a validator: `AfterValidator(partial(clean_line, longest=9))`.
    """
    # Before normalizing: that takes seconds for 60,000 accents in a row.
    if len(text) > 4 * longest:
        raise TextError("too_long")
    if _has_controls(text):
        raise TextError("control_character")
    text = unicodedata.normalize("NFC", text).strip()
    if not _visible(text):
        raise TextError("empty")
    if len(text) > longest:
        raise TextError("too_long")
    return text


def _name(text: str) -> str:
    return clean_line(text, longest=100)


def _slug(text: str) -> str:
    if len(text) > 64 or not _SLUG.fullmatch(text):  # "$" would also match before a last "\n"
        raise TextError("slug")
    return text


def _email(text: str) -> str:
    try:
        if len(text) > 254:
            raise EmailNotValidError
        return validate_email(
            text,
            check_deliverability=False,
            allow_display_name=False,
            allow_quoted_local=False,
            allow_domain_literal=False,
        ).normalized
    except EmailNotValidError:
        raise TextError("email") from None


def _page_size(value: object, info: Info) -> object:
    # A query string holds text. In JSON a number is a number.
    if info.mode == "python" and isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}", value):
        return int(value)
    return value


def _sort(text: str) -> str:
    entries = text.split(",", 5)
    if len(entries) > 5 or not all(_SORT.fullmatch(e) for e in entries):
        _refuse("sort", "/sort")
    return text


def _sort_field(text: str) -> str:
    try:
        return _sort(text)
    except InputProblem:
        raise TextError("sort") from None


Name = Annotated[str, AfterValidator(_name)]
"""One line of text, 1 to 100 code points, in NFC."""
Slug = Annotated[str, AfterValidator(_slug)]
"""Lower-case letters, digits and single hyphens, 1 to 64."""
Email = Annotated[str, AfterValidator(_email)]
"""One plain address, its domain lower-cased. Whether it exists, only a message to it can tell."""
PageSize = Annotated[int, BeforeValidator(_page_size), Field(strict=True, ge=1, le=100)]
"""1 to 100. For JSON, and for query strings."""
SortSpec = Annotated[str, AfterValidator(_sort_field)]
"""Up to five `name`, `name:asc` or `name:desc`, separated by commas. Hand it to `order_by`."""
