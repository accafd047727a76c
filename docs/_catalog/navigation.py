"""The navigation: nothing to edit by hand when a pattern is added."""

from __future__ import annotations

from typing import Any

from _catalog.model import Catalog

_FINDERS = ("tag", "library", "service")


def navigation(catalog: Catalog) -> list[Any]:
    """Return it as `nav` in mkdocs.yml would have it."""
    patterns: list[Any] = ["patterns/index.md"]
    for category in catalog.categories:
        found = [{pattern.meta.title: pattern.src} for pattern in category.current]
        patterns.append({category.meta.title: [f"patterns/{category.name}/index.md", *found]})
    names = [path.name for path in (catalog.root / "docs" / "about").glob("*.md")]
    about = sorted(names, key=lambda name: (name != "index.md", name))
    return [
        {"Quick reference": "index.md"},
        {"Patterns": patterns},
        {"Find": [{"By need": "find/index.md"}, *({f"By {name}": f"find/{name}.md"} for name in _FINDERS)]},
        {"About": [f"about/{name}" for name in about]},
    ]
