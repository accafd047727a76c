"""Takes secrets out of what goes into a log or an answer, by the names that stand beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_WORDS = (  # the lookahead makes them three times as fast
    r"(?=[acpst])(?:(?<!un)auth(?!or(?!i[sz])|en)|cookie|passw|passphrase|pwd|secret|token|credential"
    r"|signature|(?:api|access|private)[\W_]?key|session[\W_]?id)"
)
_NAME = re.compile(_WORDS)  # of a lower-cased text, which is faster than to ignore the case
_WORD = re.compile(r"[^:=?,\s]*")  # too little to hold a name and a value
_HINT = re.compile(rf"(?=[abcpst])(?:{_WORDS}|bearer|basic)")
# What stands between a name and its value in a header, a query, JSON or a repr; a quoted value.
_BETWEEN = r"""(?:[\\"'\]]{0,3}\s{0,3}[:=]|\\?["']\s{0,3},)\s{0,3}"""
_QUOTED = r"""b?(\\*["'])(?:(?!\2)(?:\\.|.))*"""
# No repeat stands within a repeat: a hostile text costs no more than its length.
_ADDRESSES = [
    (re.compile(r"://[^\s/?#]*@"), "://***@"),
    (re.compile(r"""\?[^\s"<>]*[^\s"<>']"""), "?***"),
]
_NAMED = [
    (re.compile(r"""(?i)\b(?=b)(bearer|basic)\s+[^\s"',]{8,}"""), r"\1 ***"),
    (
        re.compile(rf"(?is)((?=[ac])(?:authorization|cookie){_BETWEEN})(?:{_QUOTED}|[^\r\n]*)"),
        r"\1\2***",
    ),
    (re.compile(rf"(?is)({_WORDS}[\w-]{{0,30}}{_BETWEEN})(?:{_QUOTED}|[\[{{(].*|\S+)"), r"\1\2***"),
]


def redact(value: Any) -> Any:
    """Return a copy, fit for JSON, with `***` for every secret. Text stays text.

    A secret is what a name says is one: the value of a key, the second of a pair (a header), the
    `value` beside a `name`, `name=value` within a text. So are user-info and query of an address.
    A secret that nothing names is not recognized.
    """
    return _redacted_copy(value, ())


def one_line(value: object) -> str:
    """Return a text without secrets, on one line of 500 characters, that UTF-8 can carry."""
    text = redact(_text_of(value)[:4000])
    if not text.isprintable():  # line breaks, control characters, marks that turn the direction
        text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= 500 else f"{text[:499]}…"


def scrub(error: BaseException) -> None:
    """Take the secrets out of an exception's text and notes, and of all that a traceback shows.

    It is done in place: loggers and error trackers print the texts of causes, whoever made them.
    """
    chain = [error]
    for one in chain:
        one.args = tuple(redact(arg) if isinstance(arg, str) else arg for arg in one.args)
        if notes := getattr(one, "__notes__", None):
            notes[:] = map(redact, notes)
        for behind in (one.__cause__, one.__context__):
            if behind is not None and behind not in chain:
                chain.append(behind)


def _redacted_copy(value: Any, parents: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if not isinstance(value, Mapping | list | tuple | set | frozenset):
        return _hide_secrets(_text_of(value))
    if id(value) in parents or len(parents) >= 10:  # it holds itself, or is too deep for a log
        return "..."
    parents = (*parents, id(value))
    if isinstance(value, Mapping):
        items = [(_text_of(key), one) for key, one in value.items()]
        if _NAME.search(_text_of(value.get("name")).lower()) and "value" in value:
            items.append(("value", "***"))
        return {
            _hide_secrets(key): "***" if _NAME.search(key.lower()) else _redacted_copy(one, parents)
            for key, one in items
        }
    copies = [_redacted_copy(one, parents) for one in value]
    if len(copies) == 2 and isinstance(copies[0], str) and _NAME.search(copies[0].lower()):
        copies[1] = "***"
    return copies


def _hide_secrets(text: str) -> str:
    if _WORD.fullmatch(text):
        return text
    patterns = _ADDRESSES + _NAMED if _HINT.search(text.lower()) else _ADDRESSES
    for pattern, shown in patterns:
        text = pattern.sub(shown, text)
    return text


def _text_of(value: object) -> str:
    try:
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    except Exception:  # whatever it is: one error must not hide the other
        return f"<{type(value).__name__}>"
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be sent
