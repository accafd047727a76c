"""Entity tags and the preconditions made of them (RFC 9110, sections 8.8.3 and 13.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

#: `*`: whatever the version is, as long as there is one.
ANY: Final = "*"
Tags = frozenset[str] | Literal["*"]

# One element of the list, with its comma. A tag may hold a comma itself, so split(",") will not do;
# elements may be empty. `*+` gives nothing back: else a header of blanks costs quadratic time.
_ELEMENT = re.compile(r'[ \t]*+(?P<tag>(?:W/)?"[!\x23-\x7e\x80-\xff]*")?[ \t]*(?:,|\Z)')


def etag(version: int) -> str:
    """Return the strong, quoted entity tag of a version."""
    return f'"{version}"'


def parse_etags(lines: Iterable[str]) -> Tags:
    """Return the tags of an `If-Match` or `If-None-Match` field, weak ones with `W/`, or `ANY`.

    Args:
        lines: Every line of the field: a client or proxy may split a list over several.

    Raises:
        ValueError: The field is neither `*` nor a list of quoted tags.

    """
    field = ",".join(lines)
    if field.strip(" \t") == ANY:
        return ANY
    tags, position = set(), 0
    while position < len(field):
        element = _ELEMENT.match(field, position)
        if element is None:
            raise ValueError('not an entity tag: expected * or "..." or W/"..."')
        if element["tag"]:
            tags.add(element["tag"])
        position = element.end()
    return frozenset(tags)


@dataclass(frozen=True)
class Preconditions:
    """What a request demands of the current version; `None` is a header that was not sent."""

    if_match: Tags | None = None
    if_none_match: Tags | None = None

    def match(self, version: int) -> bool:
        """`If-Match` holds. Compared strongly: a weak tag, as a proxy may make, never fits."""
        tags = self.if_match
        return tags is None or tags == ANY or etag(version) in tags

    def none_match(self, version: int) -> bool:
        """`If-None-Match` holds. Compared weakly: `W/"1"` and `"1"` are the same."""
        tags = self.if_none_match
        return tags is None or not (
            tags == ANY or etag(version) in tags or f"W/{etag(version)}" in tags
        )

    def allow(self, version: int) -> bool:
        """Both hold: the item may be changed."""
        return self.match(version) and self.none_match(version)
