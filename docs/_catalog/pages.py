"""Read Markdown pages: front matter, sections, includes, code fences. What is wrong is told with its line."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INCLUDE = re.compile(
    r'^(?P<indent>[ \t]*)--8<-- "(?P<path>[^":]+)(?::(?P<section>\w+))?"[ \t]*$',
    re.MULTILINE,
)
_SECTION = re.compile(r"^## .*?\{#(?P<id>[\w-]+)\}[ \t]*$", re.MULTILINE)


class PageError(Exception):
    """A page cannot be read: the line, what is wrong, the remedy."""

    def __init__(self, line: int, what: str, remedy: str) -> None:
        super().__init__(what)
        self.line = line
        self.what = what
        self.remedy = remedy


@dataclass(frozen=True)
class Include:
    """A line that includes a file, whole or one of its sections."""

    path: str
    section: str | None
    line: int


def text_of(path: Path) -> str:
    """Return a page's text; raise `PageError` when it is not UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PageError(line, "the page is not UTF-8 text", "save it as UTF-8") from None


def split(text: str) -> tuple[str, str]:
    """Split a page into front matter and body; a page without front matter has an empty one."""
    if text.startswith("---\n") and "\n---\n" in text:
        head, _, body = text[4:].partition("\n---\n")
        return head, body
    return "", text


def line_of(text: str, needle: str | re.Pattern[str], default: int = 1) -> int:
    """Return the 1-based line of the first match of `needle` in `text`."""
    match = re.search(re.escape(needle) if isinstance(needle, str) else needle, text)
    return text.count("\n", 0, match.start()) + 1 if match else default


def line_of_key(text: str, key: str) -> int:
    """Return the line of a key of the front matter."""
    return line_of(text, re.compile(rf"^{re.escape(key)}:", re.MULTILINE))


def front_matter(text: str) -> dict[str, Any]:
    """Return a page's front matter; raise `PageError` when it is no mapping in YAML."""
    head, _ = split(text)
    try:
        data = yaml.load(head, Loader=_LOADER) or {}  # noqa: S506 -- a safe loader, the one in C where there is one
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = f"front matter is not YAML ({getattr(error, 'problem', error)})"
        raise PageError(mark.line + 2 if mark else 1, what, "correct it") from None
    except ValueError as error:  # a date that no calendar has
        raise PageError(1, f"front matter holds an impossible value ({error})", "correct it") from None
    if not isinstance(data, dict):
        raise PageError(1, "front matter is not a mapping", "write `key: value` lines between --- lines")
    return data


def section_ids(text: str) -> list[str]:
    """Return the ids of a page's sections, in order."""
    return [match["id"] for match in _SECTION.finditer(text)]


def sections(body: str) -> dict[str, str]:
    """Return the text of each section, by its id."""
    found = list(_SECTION.finditer(body))
    ends = [match.start() for match in found[1:]] + [len(body)]
    return {match["id"]: body[match.end() : end] for match, end in zip(found, ends, strict=True)}


def includes(text: str) -> Iterator[Include]:
    """Yield the includes of a page."""
    for match in _INCLUDE.finditer(text):
        yield Include(match["path"], match["section"], text.count("\n", 0, match.start()) + 1)


def with_includes(root: Path, text: str) -> str:
    """Return a text with its includes resolved: the file, or the marked section, indented as the line was."""

    def included(match: re.Match[str]) -> str:
        found = (root / match["path"]).read_text(encoding="utf-8")
        if section := match["section"]:
            found = found.partition(f"--8<-- [start:{section}]")[2].partition("\n")[2]
            found = found.partition(f"--8<-- [end:{section}]")[0].rpartition("\n")[0]
            found = textwrap.dedent(found)
        return textwrap.indent(found.rstrip("\n"), match["indent"])

    return _INCLUDE.sub(included, text)
