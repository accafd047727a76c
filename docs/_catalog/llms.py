"""For coding assistants: `llms.txt`, the way in, and `llms-full.txt`, everything in one file."""

from __future__ import annotations

from collections.abc import Iterable

from _catalog.model import Catalog


def index(catalog: Catalog, base: str) -> str:
    """Return `llms.txt`; `base` is the site's absolute address, or empty."""
    lines = [
        "# Proven Patterns",
        "",
        "> Integration patterns for Python. Each is a complete module to copy, proved by tests against real servers.",
        "",
        (
            f"Every page is Markdown at its address with `.md` ({base}patterns/CATEGORY/SLUG.md); modules are raw"
            f" files below {base}snippets/. The whole catalogue as data: {base}patterns.json. Everything in one file:"
            f" {base}llms-full.txt."
        ),
    ]
    for category in catalog.categories:
        if category.current:
            lines += ["", f"## {category.meta.title}", ""]
            lines += [f"- [{p.meta.title}]({base}{p.markdown}): {p.meta.need}" for p in category.current]
    return "\n".join(lines) + "\n"


def everything(texts: Iterable[str]) -> str:
    """Return `llms-full.txt`, made of the Markdown of all pages."""
    return "\n\n---\n\n".join(text.strip() for text in texts) + "\n"
