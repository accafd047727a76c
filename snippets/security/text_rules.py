"""Text from strangers: one line, in one normal form, with something to see in it."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated

from email_validator import EmailNotValidError, validate_email
from pydantic import AfterValidator

from input_problem import TextError

_SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
# Letters and symbols that show nothing: fillers of Hangul, the blank of Braille.
_UNSEEN = frozenset("\u115f\u1160\u3164\uffa0\u2800")
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # reorder what follows


def clean_line(text: str, *, longest: int) -> str:
    """Return one line of text in NFC, without blanks around it, of 1 to `longest` code points.

    Raises:
        TextError: For a validator: `AfterValidator(partial(clean_line, longest=9))`.
    """
    # Before normalizing: that takes seconds for 60,000 accents in a row.
    if len(text) > 4 * longest:
        raise TextError("too_long")
    if has_controls(text):
        raise TextError("control_character")
    text = unicodedata.normalize("NFC", text).strip()
    if not is_visible(text):
        raise TextError("empty")
    if len(text) > longest:
        raise TextError("too_long")
    return text


def has_controls(text: str) -> bool:
    """Tell whether a character controls the line, breaks it, or turns its direction."""
    return any(unicodedata.category(c) in ("Cc", "Cs") or c in _BIDI for c in text)


def is_visible(text: str) -> bool:
    """Tell whether there is anything to see."""
    return any(unicodedata.category(c)[0] in "LNPS" and c not in _UNSEEN for c in text)


def _check_name(text: str) -> str:
    return clean_line(text, longest=100)


def _check_slug(text: str) -> str:
    if len(text) > 64 or not _SLUG.fullmatch(text):  # "$" would also match before a last "\n"
        raise TextError("slug")
    return text


def _check_email(text: str) -> str:
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


Name = Annotated[str, AfterValidator(_check_name)]
"""One line of text, 1 to 100 code points, in NFC."""
Slug = Annotated[str, AfterValidator(_check_slug)]
"""Lower-case letters, digits and single hyphens, 1 to 64."""
Email = Annotated[str, AfterValidator(_check_email)]
"""One plain address, its domain lower-cased. Whether it exists, only a message to it can tell."""
