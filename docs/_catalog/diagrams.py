"""Mermaid fences become SVG, drawn once by content and kept in docs/_diagrams under the name of their page.

The stored SVG carries no colors: the site's stylesheet gives them, so one drawing serves both palettes. Its first line
holds a digest of what was drawn.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from _catalog.model import ROOT, CatalogError
from _catalog.pages import line_of
from _catalog.templating import filled

DOCS = ROOT / "docs"
_SVG = "http://www.w3.org/2000/svg"
_FENCE = re.compile(
    r'^(?P<indent> *)```mermaid(?: \{title="(?P<title>[^"]*)"\})?[^\n]*\n(?P<source>.*?)\n(?P=indent)```$',
    re.MULTILINE | re.DOTALL,
)
_KEY = re.compile(r"^<!-- (?P<key>[0-9a-f]{16}) -->$")
_CONFIG = {
    "theme": "base",
    "fontFamily": "arial",  # its metrics are known to the renderer, and Liberation Sans shares them
    "htmlLabels": False,
    "flowchart": {"htmlLabels": False},
}


@dataclass(frozen=True)
class Fence:
    """A diagram on a page, and the file that its drawing is kept in."""

    page: Path
    line: int
    title: str | None
    source: str
    kept: Path

    @property
    def key(self) -> str:
        """A digest of what is drawn."""
        return key_of(self.source)


def key_of(source: str) -> str:
    """Return a digest of what is drawn."""
    return hashlib.sha256(f"3\n{source.strip()}".encode()).hexdigest()[:16]


def fences(docs: Path = DOCS) -> Iterator[Fence]:
    """Yield every Mermaid fence below `docs`. The first of patterns/a/b.md is kept in _diagrams/a/b.1.svg."""
    for page in sorted(docs.rglob("*.md")):
        text = page.read_text(encoding="utf-8", errors="replace")
        if "```mermaid" not in text:
            continue
        place = page.relative_to(docs).with_suffix("").as_posix().removeprefix("patterns/")
        counted = Counter[str]()
        for match in _FENCE.finditer(text):
            source = re.sub(rf"^{match['indent']}", "", match["source"], flags=re.MULTILINE)
            counted[place] += 1
            kept = docs / "_diagrams" / f"{place}.{counted[place]}.svg"
            yield Fence(page, text.count("\n", 0, match.start()) + 1, match["title"], source, kept)


def draw(source: str) -> str:
    """Draw a diagram; the result has neither colors, nor ids that could clash, nor parts that are not used."""
    import mermaidx  # it loads a JavaScript engine: only when there is something to draw

    ElementTree.register_namespace("", _SVG)
    svg = ElementTree.fromstring(mermaidx.render(source, config=_CONFIG).svg().replace("my-svg", "d"))  # noqa: S314 -- drawn here
    for parent in list(svg.iter()):
        for child in list(parent):
            if child.tag == f"{{{_SVG}}}style":
                parent.remove(child)
    text = ElementTree.tostring(svg, encoding="unicode")
    for parent in list(svg.iter()):
        for child in list(parent):
            name = child.get("id", "")
            kind = child.tag.rpartition("}")[2]
            if kind in {"marker", "symbol", "filter", "linearGradient"} and f"#{name}" not in text:
                parent.remove(child)
    for node in svg.iter():
        _strip_node(node, text)
    box = [float(number) for number in svg.get("viewBox", "0 0 1 1").split()]
    svg.attrib.pop("style", None)
    svg.attrib.pop("role", None)
    svg.set("width", f"{box[2]:.0f}")
    svg.set("height", f"{box[3]:.0f}")
    out = ElementTree.tostring(svg, encoding="unicode")
    out = re.sub(r"(\d+\.\d)\d+", r"\1", out)
    return re.sub(r"<g ?/>|<defs ?/>", "", out)


def _strip_node(node: ElementTree.Element, text: str) -> None:
    for attribute in [a for a in node.attrib if a.startswith("data-") or a in {"name", "aria-roledescription"}]:
        del node.attrib[attribute]
    for attribute in ("fill", "stroke"):
        if node.get(attribute, "none") != "none":
            del node.attrib[attribute]
    if node.tag != f"{{{_SVG}}}marker" and f"#{node.get('id')}" not in text:
        node.attrib.pop("id", None)
    if "style" in node.attrib:
        colors = r"(font-family|font-size|font-weight|fill|stroke): ?[^;]+;?|;+"
        node.set("style", re.sub(colors, "", node.get("style", "")))
        if not node.get("style", "").strip():
            del node.attrib["style"]


def kept_drawing(path: Path, key: str) -> str | None:
    """Return a kept drawing, if it is of this content."""
    if not path.is_file():
        return None
    first, _, svg = path.read_text(encoding="utf-8").partition("\n")
    match = _KEY.match(first)
    return svg.strip() if match and match["key"] == key else None


def svg_of(fence: Fence) -> str:
    """Return the drawing of a diagram: the kept one, or a new one that is kept from now on."""
    if kept := kept_drawing(fence.kept, fence.key):
        return kept
    drawn = draw(fence.source)
    fence.kept.parent.mkdir(parents=True, exist_ok=True)
    partial = fence.kept.with_suffix(".partial")
    partial.write_text(f"<!-- {fence.key} -->\n{drawn}\n", encoding="utf-8")
    partial.replace(fence.kept)  # two builds at once must never see half a file
    return drawn


def refresh(docs: Path = DOCS) -> tuple[int, int]:
    """Draw what is missing or has changed, and remove what no page shows any more; return both counts."""
    wanted = {fence.kept: fence for fence in fences(docs)}
    missing = [fence for path, fence in wanted.items() if kept_drawing(path, fence.key) is None]
    unused = [path for path in (docs / "_diagrams").rglob("*.svg") if path not in wanted]
    for fence in missing:
        svg_of(fence)
    for path in unused:
        path.unlink()
    return len(missing), len(unused)


def validate(language: str, inputs: dict[str, str], options: dict[str, Any], attrs: dict[str, Any], md: Any) -> bool:
    """Take the fence's `title`: SuperFences asks for each fence."""
    options["title"] = inputs.pop("title", "")
    return not inputs


def fence(source: str, language: str, css_class: str, options: dict[str, Any], md: Any, **kwargs: Any) -> str:
    """Turn one Mermaid fence into an SVG with a text alternative: SuperFences calls it."""
    title = options.get("title", "")
    found = _drawn(max(path.stat().st_mtime_ns for path in DOCS.rglob("*.md"))).get(key_of(source))
    if not title:
        where = _where(source, found)
        raise CatalogError([f'{where}: the diagram has no text alternative; write ```mermaid {{title="..."}}'])
    try:
        svg = svg_of(found) if found else draw(source)
    except Exception as error:
        words = " ".join(str(error).split())
        raise CatalogError(
            [f"{_where(source, found)}: Mermaid cannot draw this ({words}); correct the diagram"]
        ) from error
    key = key_of(source)
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r"url\(#|href=\"#", lambda match: f"{match[0]}{key}-", svg)
    label = f'role="img" aria-labelledby="{key}"'
    svg = svg.replace("<svg ", f"<svg {label} ", 1).replace(">", f'><title id="{key}">{escape(title)}</title>', 1)
    width = re.search(r'\bwidth="(\d+)"', svg)
    return filled("diagram", svg=Markup(svg), width=width and width[1])  # noqa: S704 -- drawn here


@functools.lru_cache(maxsize=1)
def _drawn(stamp: int) -> dict[str, Fence]:
    """Return the diagrams of all pages by what they show, read once while no page changes."""
    return {each.key: each for each in fences()}


def _where(source: str, found: Fence | None) -> str:
    if found:
        return f"{found.page.relative_to(ROOT).as_posix()}:{found.line}"
    first = source.strip().splitlines()[0]
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if first in text:
            return f"{page.relative_to(ROOT).as_posix()}:{line_of(text, first)}"
    return "docs"
