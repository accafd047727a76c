"""The search index: what of a pattern is found, and which pages stay out of it."""

from __future__ import annotations

import html
import re
from typing import Any

from _catalog.model import SECTIONS, Catalog, Pattern
from _catalog.pages import sections

#: Pages that only list others: a search would find them for everything.
UNSEARCHED = ("find/", "about/status/")

_IDENTIFIER = re.compile(
    r"\b(?:[a-z]+(?:_[a-z0-9]+)+|[A-Z][a-z0-9]+(?:[A-Z][A-Za-z0-9]+)+|[A-Z]{2,}(?:_[A-Z]+)+|[A-Z][a-z]+(?:-[A-Z][a-z]+)+)\b"
)


def tune(catalog: Catalog, index: dict[str, Any]) -> dict[str, Any]:
    """Give each pattern entries of our own making, and leave out pages that only list others.

    Material ranks the `tags` of an entry far above its title, and its title far above its text: so titles and
    aliases become tags of the page's entry, and the names that its modules use become its text. Code is left out.
    Nor is it worth the theme's while to take these long pages apart: that was a third of a build.
    """
    own = {pattern.url for pattern in catalog.patterns}
    kept = []
    for entry in index["docs"]:
        address = entry["location"].partition("#")[0]
        if address in own or address.startswith(UNSEARCHED) or re.fullmatch(r"(patterns/([\w-]+/)?)?", address):
            continue
        kept.append(entry)
    made = [entry for pattern in catalog.patterns if not pattern.archived for entry in entries(catalog, pattern)]
    return {**index, "docs": kept + made}


def entries(catalog: Catalog, pattern: Pattern) -> list[dict[str, Any]]:
    """Return the search entries of a pattern: the page with its danger in a paragraph, and the headings of its gotchas.

    More of the text was measured to find no more of what readers ask for, and doubled what every search loads.
    """
    text = sections(pattern.body)
    danger = _plain(text["when-to-use-it"].strip().partition("\n\n")[0])
    need = html.escape(pattern.meta.need, quote=False)
    names = " ".join(names_of(catalog, pattern))
    gotchas = _plain(" ".join(re.findall(r"^### (.*)$", text["gotchas"], re.MULTILINE)))
    return [
        {
            "location": pattern.url,
            "title": pattern.meta.title,
            "text": f"<p>{need} {danger}</p> <p>{names}</p>",
            "tags": [pattern.meta.title, *pattern.meta.aliases],
        },
        {"location": f"{pattern.url}#gotchas", "title": SECTIONS["gotchas"], "text": f"<p>{gotchas}</p>"},
    ]


def names_of(catalog: Catalog, pattern: Pattern) -> list[str]:
    """Return the identifiers a reader may search for: those that a pattern's modules use, the telling ones first."""
    found: dict[str, None] = {}
    for module in pattern.modules:
        found |= dict.fromkeys(_IDENTIFIER.findall((catalog.root / module).read_text(encoding="utf-8")))
    # The separator takes PgBouncer apart; who types pgbouncer means the whole.
    whole = {word.lower() for word in re.findall(r"\b(?:[A-Z][a-z0-9]+){2,}\b", pattern.body)}
    return [*(v.name for v in pattern.meta.env), *(d.name for d in pattern.requires), *found, *sorted(whole)]


def _plain(markdown: str) -> str:
    """Return the words of a piece of Markdown, without code, macros and marks."""
    marks = r"^ *```.*?^ *```$|\{\$.*?\$\}|\{[#.:][^}]*\}|<[^>]+>"
    text = re.sub(marks, "", markdown, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    return html.escape(" ".join(re.sub(r"[*`|#]|^\W+$|^- ", " ", text, flags=re.MULTILINE).split()), quote=False)
