"""Turn Python values into bytes that other processes can trust, and back with their types.

Whoever may write to Redis chooses the bytes found there, so they are read as data, never as code:
JSON (RFC 8259), and no class is made from it that is not named in `JsonSerializer(types=...)`.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
import math
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Protocol
from uuid import UUID
from zoneinfo import ZoneInfo


class UnserializableValue(TypeError):
    """A value that would not come back as it went in; the message names its type."""


class Serializer(Protocol):
    """Turns values into bytes and back."""

    def dumps(self, value: Any) -> bytes:
        """Return bytes that `loads` turns into an equal value, else raise `UnserializableValue`."""
        ...

    def loads(self, data: bytes) -> Any:
        """Return the value; raise `ValueError` for bytes that `dumps` cannot have made."""
        ...


class JsonSerializer:
    """JSON that keeps Python's types, and refuses what it cannot keep.

    Kept: None, bool, int, float (NaN too), str, bytes, list, tuple, set, frozenset, dict with any
    of these as keys, Decimal, UUID, date, timedelta, naive time, datetime (naive, with a fixed
    offset or a ZoneInfo), and the dataclasses and enums in `types`.
    """

    def __init__(self, types: Iterable[type] = ()) -> None:
        self._types: dict[str, type] = {}
        for cls in types:
            if not (dataclasses.is_dataclass(cls) or issubclass(cls, enum.Enum)):
                raise TypeError(f"{cls.__qualname__} is neither a dataclass nor an enum")
            if self._types.setdefault(cls.__name__, cls) is not cls:
                raise ValueError(f"two different classes are called {cls.__name__}")

    def dumps(self, value: Any, *, canonical: bool = False) -> bytes:
        """Return JSON; `canonical`: equal dicts give equal bytes whatever their order."""
        try:
            text = json.dumps(
                self._plain(value, canonical),
                ensure_ascii=False,
                separators=(",", ":"),
                sort_keys=canonical,
            )
        except (ValueError, RecursionError) as error:  # an int of 5,000 digits, a list in itself
            raise UnserializableValue(f"{type(value).__qualname__}: {error}") from error
        return text.encode("utf-8", "surrogatepass")

    def loads(self, data: bytes) -> Any:
        """Return the value; raise `ValueError` for anything that `dumps` did not write."""
        try:
            return json.loads(data.decode("utf-8", "surrogatepass"), object_hook=self._revive)
        except Exception as error:  # hostile bytes may fail anywhere in there
            raise ValueError(f"not written by this cache: {error!r}") from error

    def _plain(self, value: Any, canonical: bool) -> Any:
        def plain(part: Any) -> Any:
            return self._plain(part, canonical)

        kind = type(value)  # exact: a subclass of int or dict would come back as its base class
        tag = f"${kind.__name__}"
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {tag: str(value)}
        if kind is list:
            return [plain(item) for item in value]
        if kind is dict and all(type(key) is str and key[:1] != "$" for key in value):
            return {key: plain(item) for key, item in value.items()}
        if kind is dict:
            pairs = [[plain(key), plain(item)] for key, item in value.items()]
            return {tag: sorted(pairs, key=json.dumps) if canonical else pairs}
        if kind is tuple:
            return {tag: [plain(item) for item in value]}
        if kind in (set, frozenset):
            return {tag: sorted((plain(item) for item in value), key=json.dumps)}
        if kind in _TO_JSON:
            return {tag: _TO_JSON[kind](value)}
        if self._types.get(kind.__name__) is not kind:
            raise UnserializableValue(
                f"{kind.__module__}.{kind.__qualname__} is no type this cache keeps; dataclasses "
                f"and enums are allowed by JsonSerializer(types=[{kind.__name__}])"
            )
        if issubclass(kind, enum.Enum):
            return {"$class": [kind.__name__, plain(value.value)]}
        state = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"$class": [kind.__name__, plain(state)]}

    def _revive(self, node: dict[str, Any]) -> Any:
        tag = next(iter(node), "")
        if tag[:1] != "$":
            return node
        (body,) = node.values()
        if tag != "$class":
            return _FROM_JSON[tag](body)
        name, state = body
        cls: Any = self._types[name]
        if issubclass(cls, enum.Enum):
            return cls(state)
        if state.keys() != {field.name for field in dataclasses.fields(cls)}:
            raise ValueError(f"{name} had other fields when this was written")
        made = object.__new__(cls)  # put back as it was: its __post_init__ has run long ago
        for field, part in state.items():
            object.__setattr__(made, field, part)
        return made


def _datetime_to_json(value: datetime) -> list[Any]:
    zone = value.tzinfo
    place: str | float | None = None
    if isinstance(zone, timezone):
        place = zone.utcoffset(None).total_seconds()
    elif isinstance(zone, ZoneInfo) and zone.key:  # an offset alone would lose the zone's rules
        place = zone.key
    elif zone is not None:
        raise UnserializableValue(f"datetime with a tzinfo of type {type(zone).__qualname__}")
    return [value.replace(tzinfo=None).isoformat(), value.fold, place]


def _datetime_from_json(body: list[Any]) -> datetime:
    text, fold, place = body
    value = datetime.fromisoformat(text).replace(fold=fold)
    if place is None:
        return value
    zone = ZoneInfo(place) if isinstance(place, str) else timezone(timedelta(seconds=place))
    return value.replace(tzinfo=zone)


def _time_to_json(value: time) -> str:
    if value.tzinfo is not None:
        raise UnserializableValue("time with a tzinfo")
    return value.isoformat()


_TO_JSON: dict[type, Callable[[Any], Any]] = {
    bytes: lambda value: base64.b64encode(value).decode(),
    Decimal: str,
    UUID: str,
    date: date.isoformat,
    time: _time_to_json,
    datetime: _datetime_to_json,
    timedelta: lambda value: [value.days, value.seconds, value.microseconds],
}
_FROM_JSON: dict[str, Callable[[Any], Any]] = {
    "$float": float,
    "$dict": dict,
    "$tuple": tuple,
    "$set": set,
    "$frozenset": frozenset,
    "$bytes": base64.b64decode,
    "$Decimal": Decimal,
    "$UUID": UUID,
    "$date": date.fromisoformat,
    "$time": time.fromisoformat,
    "$datetime": _datetime_from_json,
    "$timedelta": lambda body: timedelta(*body),
}
