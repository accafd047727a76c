"""JSON as the same bytes on every platform, to be digested or signed: a subset of RFC 8785.

The subset has no fractions: send cents, not euros. How JavaScript writes a fraction is the hard
part of the standard.
"""

from __future__ import annotations

import json

_SAFE = 2**53 - 1  # Number.MAX_SAFE_INTEGER: beyond it JavaScript reads another number


def canonical_json(value: object) -> bytes:
    """Write JSON with sorted names and no spaces, equal to `JSON.stringify` of sorted objects.

    Args:
        value: None, bool, int, str, and lists, tuples and dicts of those.

    Raises:
        ValueError: It holds a float, an integer beyond 2**53 - 1, a lone surrogate, a name that is
            not text, or another type; or it is nested too deep, or holds itself.
    """
    try:
        text = json.dumps(_in_order(value), ensure_ascii=False, separators=(",", ":"))
        return text.encode()
    except RecursionError:
        raise ValueError("the value is nested too deep, or holds itself") from None
    except UnicodeEncodeError:  # and "from None": the cause holds the text
        raise ValueError("a text holds a lone surrogate, which is no Unicode") from None


def _in_order(value: object) -> object:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if not -_SAFE <= value <= _SAFE:
            raise ValueError("an integer is beyond 2**53 - 1: send it as text")
        return int(value)
    if isinstance(value, list | tuple):
        return [_in_order(item) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(name, str) for name in value):
            raise ValueError("a name in an object is not text")
        # JavaScript sorts UTF-16 code units, which differs from Python's order beyond U+FFFF.
        names = sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
        return {name: _in_order(value[name]) for name in names}
    hint = ": send an integer of a smaller unit, or text" if isinstance(value, float) else ""
    raise ValueError(f"{type(value).__name__} has no canonical form here{hint}")
