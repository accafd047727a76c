"""What a built page holds: its code blocks, ids, links and loaded files."""

from __future__ import annotations

import functools
from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """One parsed HTML file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.blocks: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.main_links: list[str] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self._article = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if identifier := found.get("id"):
            self.ids.append(identifier)
        if tag == "a" and found.get("name"):
            self.ids.append(found["name"] or "")
        if tag == "article":
            self._article += 1
        if tag == "a" and (href := found.get("href")):
            self.links.append(href)
            if self._article:
                self.main_links.append(href)
        if tag == "link" and found.get("rel") in {"stylesheet", "icon", "preload", "preconnect"}:
            self.loads.append(found.get("href") or "")
        if tag in {"script", "img", "iframe", "source"} and found.get("src"):
            self.loads.append(found["src"] or "")
        if tag in {"pre", "code"}:
            self._open.append(tag)
            if self._open == ["pre", "code"]:
                self.blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "article":
            self._article -= 1
        if tag in {"pre", "code"} and self._open:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._open == ["pre", "code"]:
            self.blocks[-1] += data


@functools.cache
def parse(path: Path) -> Page:
    """Parse an HTML file, once."""
    return Page(path)
