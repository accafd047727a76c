"""Pages that stay at an address whose pattern has moved."""

from __future__ import annotations

from pathlib import Path

from _catalog.model import CatalogError
from _catalog.templating import filled


def write(site: Path, old: str, new: str) -> None:
    """Leave a page at `old` that leads to `new`; it works without JavaScript."""
    target = "../" * len(old.strip("/").split("/")) + new.strip("/") + "/"
    if not (site / new.strip("/") / "index.html").is_file():
        raise CatalogError([f"mkdocs.yml: extra.redirects: {new!r} is no page of the site; correct the target"])
    path = site / old.strip("/") / "index.html"
    if path.is_file():
        raise CatalogError([f"mkdocs.yml: extra.redirects: {old!r} is still a page; remove the redirect or the page"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(filled("moved", target=target, new=new) + "\n", encoding="utf-8")
