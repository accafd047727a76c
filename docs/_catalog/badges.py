"""What a page says about the recorded runs, and how built pages are kept true to them."""

from __future__ import annotations

import re
from pathlib import Path

from markupsafe import Markup

from _catalog.markdown import listed
from _catalog.model import Catalog, Pattern, Verified
from _catalog.templating import filled

_BADGE = re.compile(r'<span class="pp-badge[^"]*" data-pattern="(?P<id>[\w/-]+)">[^<]*</span>')


def verdict(verified: Verified | None) -> str:
    """Say what the recorded runs say; without a record, say how to make one."""
    if verified is None:
        return "run `make test` to verify here"
    pythons = listed([f"Python {version}" for version in verified.pythons])
    servers = "".join(f", {server}" for _, server in sorted(verified.servers.items()))
    outcome = f"{verified.failed} failed" if verified.failed else f"{verified.passed} passed"
    skipped = f", {verified.skipped} skipped" if verified.skipped else ""
    return f"{outcome}{skipped} on {verified.date} with {pythons}{servers}"


def badge(pattern: Pattern) -> Markup:
    """Return the badge of a pattern; it has a tick only where a record that still holds is green."""
    state = "none" if not pattern.verified else "bad" if pattern.verified.failed else "good"
    words = verdict(pattern.verified).replace("`", "")
    return Markup(filled("badge", state=state, id=pattern.id, words=words))  # noqa: S704 -- made by a template


def refresh(catalog: Catalog, site: Path) -> list[Path]:
    """Make every badge of a built site say what the records say now; return the pages that changed."""
    now = {pattern.id: str(badge(pattern)) for pattern in catalog.patterns}
    changed = []
    for page in site.rglob("index.html"):
        text = page.read_text(encoding="utf-8")
        fresh = _BADGE.sub(lambda match: now.get(match["id"], match[0]), text)
        if fresh != text:
            page.write_text(fresh, encoding="utf-8")
            changed.append(page)
    return changed
