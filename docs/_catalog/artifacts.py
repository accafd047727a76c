"""Write the files beside the pages, each made by a module of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _catalog import badges, data, downloads, llms, polish, redirects, search
from _catalog.model import Catalog


class Stamp:
    """Remembers when artifacts were last written into a site that a live server keeps: older pages are left alone.

    A site that is built anew has none: mkdocs empties its folder first.
    """

    def __init__(self, site: Path) -> None:
        self._file = site / ".last-written"
        self.since = self._file.stat().st_mtime_ns if self._file.is_file() else 0

    def is_fresh(self, page: Path) -> bool:
        """Tell whether a page was built after that."""
        return page.is_file() and page.stat().st_mtime_ns > self.since

    def set_now(self) -> None:
        """What is built from now on is fresh."""
        self._file.touch()


def write(
    catalog: Catalog, site: Path, base: str, moved: Mapping[str, str] | None = None, *, live: bool = False
) -> None:
    """Write every artifact into the built site; `base` is the site's absolute address, or empty.

    With `live`, what has not been built again since the last time stays as it is, but for its badges.
    """
    stamp = Stamp(site)
    fresh = [page for page in site.rglob("*.html") if stamp.is_fresh(page)]
    for pattern in catalog.patterns:
        if stamp.is_fresh(site / pattern.url / "index.html"):
            downloads.write_files(catalog, pattern, site)
        downloads.write_archive(catalog, pattern, site)
    for page in fresh:
        page.write_text(polish.polished(page.read_text(encoding="utf-8")), encoding="utf-8")
    badges.refresh(catalog, site)
    texts = [(site / p.markdown).read_text(encoding="utf-8") for p in catalog.patterns if not p.archived]
    (site / "llms.txt").write_text(llms.index(catalog, base), encoding="utf-8")
    (site / "llms-full.txt").write_text(llms.everything(texts), encoding="utf-8")
    _write_json(site / "patterns.json", data.machine_readable(catalog, base))
    _write_json(site / "patterns.schema.json", data.schema(base))
    for old, new in (moved or {}).items():
        redirects.write(site, old, new)
    index = site / "search" / "search_index.json"
    if index.is_file():
        tuned = search.tune(catalog, json.loads(index.read_text(encoding="utf-8")))
        index.write_text(json.dumps(tuned, separators=(",", ":"), ensure_ascii=False), encoding="utf-8")
    if live:
        stamp.set_now()


def _write_json(path: Path, found: dict[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
