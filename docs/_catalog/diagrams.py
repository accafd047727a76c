"""Mermaid fences become SVG at build time, drawn once by content and kept in docs/_diagrams.

The stored SVG carries no colors: the site's stylesheet gives them, so one drawing serves both palettes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from _catalog.read import ROOT, CatalogError, line_of

KEPT = ROOT / "docs" / "_diagrams"
_SVG = "http://www.w3.org/2000/svg"
_FENCE = re.compile(
    r'^(?P<indent> *)```mermaid(?: \{title="(?P<title>[^"]*)"\})?[^\n]*\n(?P<source>.*?)\n(?P=indent)```$',
    re.MULTILINE | re.DOTALL,
)
_CONFIG = {
    "theme": "base",
    "fontFamily": "arial",  # its metrics are known to the renderer, and Liberation Sans shares them
    "htmlLabels": False,
    "flowchart": {"htmlLabels": False},
}


def key_of(source: str) -> str:
    """Return the name that a diagram is kept under: a digest of what is drawn."""
    return hashlib.sha256(f"3\n{source.strip()}".encode()).hexdigest()[:16]


def fences(docs: Path) -> Iterator[tuple[Path, int, str | None, str]]:
    """Yield every Mermaid fence below `docs`: page, line, title, source."""
    for page in sorted(docs.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            source = re.sub(rf"^{match['indent']}", "", match["source"], flags=re.MULTILINE)
            yield page, text.count("\n", 0, match.start()) + 1, match["title"], source


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
        for attribute in [a for a in node.attrib if a.startswith("data-") or a in {"name", "aria-roledescription"}]:
            del node.attrib[attribute]
        for attribute in ("fill", "stroke"):
            if node.get(attribute, "none") != "none":
                del node.attrib[attribute]
        if node.tag != f"{{{_SVG}}}marker" and f"#{node.get('id')}" not in text:
            node.attrib.pop("id", None)
        if "style" in node.attrib:
            node.set(
                "style",
                re.sub(r"(font-family|font-size|font-weight|fill|stroke): ?[^;]+;?|;+", "", node.get("style", "")),
            )
            if not node.get("style", "").strip():
                del node.attrib["style"]
    box = [float(number) for number in svg.get("viewBox", "0 0 1 1").split()]
    svg.attrib.pop("style", None)
    svg.attrib.pop("role", None)
    svg.set("width", f"{box[2]:.0f}")
    svg.set("height", f"{box[3]:.0f}")
    out = ElementTree.tostring(svg, encoding="unicode")
    out = re.sub(r"(\d+\.\d)\d+", r"\1", out)
    return re.sub(r"<g ?/>|<defs ?/>", "", out)


def svg_of(source: str) -> str:
    """Return the drawing of a diagram: the kept one, or a new one that is kept from now on."""
    path = KEPT / f"{key_of(source)}.svg"
    if not path.is_file():
        drawn = draw(source)
        KEPT.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(drawn + "\n", encoding="utf-8")
        partial.replace(path)  # two builds at once must never see half a file
    return path.read_text(encoding="utf-8").strip()


def refresh(docs: Path = ROOT / "docs") -> tuple[int, int]:
    """Draw what is missing and remove what no page shows any more; return both counts."""
    wanted = {key_of(source): source for _, _, _, source in fences(docs)}
    missing = [source for key, source in wanted.items() if not (KEPT / f"{key}.svg").is_file()]
    unused = [path for path in KEPT.glob("*.svg") if path.stem not in wanted]
    for source in missing:
        svg_of(source)
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
    if not title:
        raise CatalogError([f'{_where(source)}: the diagram has no text alternative; write ```mermaid {{title="..."}}'])
    try:
        svg = svg_of(source)
    except Exception as error:
        raise CatalogError(
            [f"{_where(source)}: Mermaid cannot draw this ({' '.join(str(error).split())}); correct the diagram"]
        ) from error
    key = key_of(source)
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r"url\(#|href=\"#", lambda match: f"{match[0]}{key}-", svg)
    label = f'role="img" aria-labelledby="{key}"'
    svg = svg.replace("<svg ", f"<svg {label} ", 1).replace(">", f'><title id="{key}">{escape(title)}</title>', 1)
    width = re.search(r'\bwidth="(\d+)"', svg)
    natural = f' style="--pp-width: {width[1]}px"' if width else ""
    return f'<figure class="pp-diagram"{natural} tabindex="0">{svg}</figure>'


def _where(source: str) -> str:
    for page, line, _, other in fences(ROOT / "docs"):
        if other.strip() == source.strip():
            return f"{page.relative_to(ROOT).as_posix()}:{line}"
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if source.strip().splitlines()[0] in text:
            return f"{page.relative_to(ROOT).as_posix()}:{line_of(text, source.strip().splitlines()[0])}"
    return "docs"
