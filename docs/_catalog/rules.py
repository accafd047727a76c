"""What front matter must keep to beyond its types, and how a mistake in it is told in plain words."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from _catalog.model import Catalog, Pattern

_REMEDIES = {
    "missing": "add the key",
    "extra_forbidden": "remove it, or check its spelling",
}
_WORDS = "lower-case words of letters and digits, joined by hyphens"
#: By key, what its value has to be, where a type's own message would be a riddle.
_WANTED = {
    "reviewed": "a day that exists, as YYYY-MM-DD",
    "need": "a sentence that begins with 'I need' and ends with a period",
    "tags": f"2 to 6 tags, each of {_WORDS}",
    "services": f"a list of services, each of {_WORDS}",
}


def in_plain_words(problem: Mapping[str, Any]) -> tuple[str, str]:
    """Turn one of pydantic's errors into what is wrong and what to do."""
    key, kind = str(problem["loc"][0]), str(problem["type"])
    place = ".".join(str(part) for part in problem["loc"])
    now = f"it is {_shortened(problem['input'])} now"
    if kind in _REMEDIES:
        return f"{place}: {problem['msg']}", _REMEDIES[kind]
    if key in _WANTED and kind != "value_error":
        return f"{place}: write {_WANTED[key]}", now
    return f"{place}: {str(problem['msg']).removeprefix('Value error, ')}", now


def across(catalog: Catalog) -> Iterator[tuple[Pattern, str, str, str, str]]:
    """Yield what is wrong between pages: pattern, key, the value, what is wrong, the remedy."""
    yield from _misspelled_tags(catalog)
    yield from _shared_aliases(catalog)


def _misspelled_tags(catalog: Catalog) -> Iterator[tuple[Pattern, str, str, str, str]]:
    """A tag of one page alone that is almost a tag of several is a slip."""
    counts = Counter(tag for pattern in catalog.patterns for tag in pattern.meta.tags)
    known = [tag for tag, count in counts.items() if count > 1]
    for pattern in catalog.patterns:
        for tag in pattern.meta.tags:
            near = difflib.get_close_matches(tag, [other for other in known if other[0] == tag[0]], 1, 0.85)
            if counts[tag] == 1 and near:
                yield pattern, "tags", tag, f"no other page has {tag!r}", f"did you mean {near[0]!r}?"


def _shared_aliases(catalog: Catalog) -> Iterator[tuple[Pattern, str, str, str, str]]:
    """An alias leads to one page."""
    owners: defaultdict[str, list[Pattern]] = defaultdict(list)
    for pattern in catalog.patterns:
        for alias in pattern.meta.aliases:
            owners[alias.casefold()].append(pattern)
    for pattern in catalog.patterns:
        for alias in pattern.meta.aliases:
            first = owners[alias.casefold()][0]
            if first is not pattern:
                yield pattern, "aliases", alias, f"{alias!r} is an alias of docs/{first.src} too", "remove it from one"


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
