"""The files beside the pages: raw modules, Markdown, llms.txt, patterns.json, and the tuned search index."""

from __future__ import annotations

import html
import json
import re
import shutil
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from _catalog import read
from _catalog.read import Catalog, Pattern
from _catalog.render import Macros, archive_of, verdict

_TEMPLATE: dict[str, Any] = {
    "undefined": jinja2.StrictUndefined,
    "autoescape": False,  # Markdown
    "variable_start_string": "{$",
    "variable_end_string": "$}",
    "block_start_string": "{%%",
    "block_end_string": "%%}",
    "comment_start_string": "{##",
    "comment_end_string": "##}",
}
#: Pages that only list others: a search would find them for everything.
UNSEARCHED = ("find/", "about/status/")

_WHOLE = re.MULTILINE | re.DOTALL
_SECTION = re.compile(r"^## .*? \{#(?P<id>[\w-]+)\}\n(?P<text>.*?)(?=^## |\Z)", _WHOLE)
_PREFORMATTED = re.compile(r"(<pre\b.*?</pre>|<script\b.*?</script>|<textarea\b.*?</textarea>)", re.DOTALL)
_UNNAMED = re.compile(
    r'(<nav class="md-nav" data-md-level="\d" )aria-labelledby="(__nav_[\d_]+)_label"([^>]*>)'
    r'(\s*<label class="md-nav__title" for="\2">(.*?)</label>)',
    re.DOTALL,
)
_NEUTRAL = re.compile(r'<span class="(?:n|p|w)">([^<]*)</span>')
_INCLUDE = re.compile(r'^(?P<indent>[ \t]*)--8<-- "(?P<path>[^":]+)(?::(?P<section>\w+))?"[ \t]*$', re.MULTILINE)


def write(catalog: Catalog, site: Path, base: str, redirects: Mapping[str, str] | None = None) -> None:
    """Write every artifact into the built site; `base` is the site's absolute address, or empty.

    What a live server has not built again since the last time stays as it is.
    """
    last = site / "patterns.schema.json"
    since = last.stat().st_mtime_ns if last.is_file() else 0
    fresh = [page for page in site.rglob("*.html") if page.stat().st_mtime_ns > since]
    for pattern in catalog.patterns:
        if since and site / pattern.url / "index.html" not in fresh:
            continue
        for file in {*pattern.modules, *(proof.path for proof in pattern.proofs)}:
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(catalog.root / file, target)
        (site / _markdown_of(pattern)).write_text(expand(catalog, pattern), encoding="utf-8")
    for page in fresh:
        page.write_text(slim(name_landmarks(page.read_text(encoding="utf-8"))), encoding="utf-8")
    _archives(catalog, site)
    (site / "llms.txt").write_text(_llms(catalog, base), encoding="utf-8")
    texts = [(site / _markdown_of(p)).read_text(encoding="utf-8").strip() for p in catalog.patterns if not p.archived]
    (site / "llms-full.txt").write_text("\n\n---\n\n".join(texts) + "\n", encoding="utf-8")
    (site / "patterns.json").write_text(json.dumps(machine_readable(catalog, base), indent=1) + "\n", encoding="utf-8")
    for old, new in (redirects or {}).items():
        _redirect(site, old, new)
    index = site / "search" / "search_index.json"
    if index.is_file():
        tuned = tune(catalog, json.loads(index.read_text(encoding="utf-8")))
        index.write_text(json.dumps(tuned, separators=(",", ":"), ensure_ascii=False), encoding="utf-8")
    last.write_text(json.dumps(schema(base), indent=1) + "\n", encoding="utf-8")


def slim(page: str) -> str:
    """Leave out what a reader never sees: templates' indentation, and highlighting that has no color of its own."""
    parts = _PREFORMATTED.split(page)
    for number, part in enumerate(parts):
        parts[number] = _NEUTRAL.sub(r"\1", part) if number % 2 else re.sub(r"\s*\n\s*", "\n", part)
    return "".join(parts)


def name_landmarks(page: str) -> str:
    """Give names to the dialog and the navigation blocks that Material leaves without, for screen readers."""
    dialog = 'data-md-component="search" role="dialog"'
    page = page.replace(dialog, f'{dialog} aria-label="Search"')
    return _UNNAMED.sub(
        lambda match: f'{match[1]}aria-label="{" ".join(_words(match[5]).split())}"{match[3]}{match[4]}', page
    )


def expand(catalog: Catalog, pattern: Pattern) -> str:
    """Return a page's Markdown with macros and includes resolved and the generated reference left out."""
    macros = Macros(catalog, pattern.src, for_markdown=True)
    environment = jinja2.Environment(**_TEMPLATE)  # noqa: S701 -- Markdown
    body = environment.from_string(pattern.body).render(**macros.exported())
    body = _INCLUDE.sub(lambda match: included(catalog.root, match), body)
    body = re.sub(r"^## Reference \{#reference\}\n.*?(?=^## )", "", body, flags=re.MULTILINE | re.DOTALL)
    body = re.sub(r"^(#+ .*?) ?\{#[\w-]+\}$", r"\1", body, flags=re.MULTILINE)
    return re.sub(r"^\{ \.pp-[\w-]+ \}\n", "", body, flags=re.MULTILINE).lstrip()


def included(root: Path, match: re.Match[str]) -> str:
    """Return the text of an include, whole or the marked section, indented as its line was."""
    text = (root / match["path"]).read_text(encoding="utf-8")
    if section := match["section"]:
        text = text.partition(f"--8<-- [start:{section}]")[2].partition("\n")[2]
        text = text.partition(f"--8<-- [end:{section}]")[0].rpartition("\n")[0]
        text = textwrap.dedent(text)
    return textwrap.indent(text.rstrip("\n"), match["indent"])


def machine_readable(catalog: Catalog, base: str) -> dict[str, Any]:
    """Return the catalogue as `patterns.json` publishes it."""
    return {
        "$schema": f"{base}patterns.schema.json",
        "patterns": [
            {
                "id": p.id,
                "category": p.category,
                "url": base + p.url,
                "markdown": f"{base}{p.url.rstrip('/')}.md",
                **p.meta.model_dump(mode="json"),
                "works_with": list(p.colors),
                "modules": [base + module for module in p.modules],
                "requires": [{"name": d.name, "requirement": d.requirement, "tested": d.locked} for d in p.requires],
                "proofs": [proof.sentence for proof in p.proofs],
                "verified": verdict(p.verified),
            }
            for p in catalog.patterns
        ],
    }


def schema(base: str) -> dict[str, Any]:
    """Return the JSON Schema of `patterns.json`."""
    meta = read.Meta.model_json_schema()
    definitions = meta.pop("$defs", {})
    text: dict[str, Any] = {"type": "string"}
    texts = {"type": "array", "items": text}
    distribution = {
        "type": "object",
        "properties": dict.fromkeys(("name", "requirement", "tested"), text),
        "required": ["name", "requirement", "tested"],
        "additionalProperties": False,
    }
    derived = {
        "id": text,
        "category": text,
        "url": text,
        "markdown": text,
        "works_with": {"type": "array", "items": {"enum": ["async", "sync"]}},
        "modules": texts,
        "requires": {"type": "array", "items": distribution},
        "proofs": texts,
        "verified": text,
    }
    pattern = {
        "type": "object",
        "properties": {**meta["properties"], **derived},
        "required": [*meta["required"], *derived],
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"{base}patterns.schema.json",
        "title": "Proven Patterns: the catalogue",
        "type": "object",
        "properties": {"$schema": text, "patterns": {"type": "array", "items": pattern}},
        "required": ["patterns"],
        "additionalProperties": False,
        "$defs": definitions,
    }


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
    return {
        **index,
        "docs": kept + [entry for p in catalog.patterns if not p.archived for entry in entries(catalog, p)],
    }


def entries(catalog: Catalog, pattern: Pattern) -> list[dict[str, Any]]:
    """Return the search entries of a pattern: the page with its danger in a paragraph, and the headings of its gotchas.

    More of the text was measured to find no more of what readers ask for, and doubled what every search loads.
    """
    sections = {m["id"]: m["text"] for m in _SECTION.finditer(pattern.body)}
    danger = _plain(sections["when-to-use-it"].strip().partition("\n\n")[0])
    need = html.escape(pattern.meta.need, quote=False)
    names = " ".join(names_of(catalog, pattern))
    gotchas = _plain(" ".join(re.findall(r"^### (.*)$", sections["gotchas"], re.MULTILINE)))
    return [
        {
            "location": pattern.url,
            "title": pattern.meta.title,
            "text": f"<p>{need} {danger}</p> <p>{names}</p>",
            "tags": [pattern.meta.title, *pattern.meta.aliases],
        },
        {"location": f"{pattern.url}#gotchas", "title": read.SECTIONS["gotchas"], "text": f"<p>{gotchas}</p>"},
    ]


def names_of(catalog: Catalog, pattern: Pattern) -> list[str]:
    """Return the identifiers a reader may search for: those that a pattern's modules use, the telling ones first."""
    found: dict[str, None] = {}
    for module in pattern.modules:
        text = (catalog.root / module).read_text(encoding="utf-8")
        for name in re.findall(
            r"\b(?:[a-z]+(?:_[a-z0-9]+)+|[A-Z][a-z0-9]+(?:[A-Z][A-Za-z0-9]+)+|[A-Z]{2,}(?:_[A-Z]+)+|[A-Z][a-z]+(?:-[A-Z][a-z]+)+)\b",
            text,
        ):
            found[name] = None
    # The separator takes PgBouncer apart; who types pgbouncer means the whole.
    whole = {word.lower() for word in re.findall(r"\b(?:[A-Z][a-z0-9]+){2,}\b", pattern.body)}
    return [*(v.name for v in pattern.meta.env), *(d.name for d in pattern.requires), *found, *sorted(whole)]


def _words(markup: str) -> str:
    return re.sub(r"<[^>]+>", "", markup)


def _plain(markdown: str) -> str:
    """Return the words of a piece of Markdown, without code, macros and marks."""
    text = re.sub(r"^ *```.*?^ *```$|\{\$.*?\$\}|\{[#.:][^}]*\}|<[^>]+>", "", markdown, flags=_WHOLE)
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    return html.escape(" ".join(re.sub(r"[*`|#]|^\W+$|^- ", " ", text, flags=re.MULTILINE).split()), quote=False)


def _markdown_of(pattern: Pattern) -> str:
    return f"{pattern.url.rstrip('/')}.md"


def _llms(catalog: Catalog, base: str) -> str:
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
        current = [pattern for pattern in category.patterns if not pattern.archived]
        if current:
            lines += ["", f"## {category.meta.title}", ""]
            lines += [f"- [{p.meta.title}]({base}{p.url.rstrip('/')}.md): {p.meta.need}" for p in current]
    return "\n".join(lines) + "\n"


def _archives(catalog: Catalog, site: Path) -> None:
    """Zip the modules of each pattern that has several, a package with its folder; the same bytes each time."""
    for pattern in catalog.patterns:
        if not (address := archive_of(pattern)):
            continue
        files = {Path(module): Path(module).name for module in pattern.modules}
        if len(Path(pattern.modules[0]).parts) > 3:
            folder = Path(pattern.modules[0]).parent
            files = {folder / file.name: f"{folder.name}/{file.name}" for file in (catalog.root / folder).glob("*.py")}
        with zipfile.ZipFile(site / address, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, name in sorted(files.items()):
                entry = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, (catalog.root / path).read_bytes(), zipfile.ZIP_DEFLATED)


def _redirect(site: Path, old: str, new: str) -> None:
    """Leave a page at an address that has moved; it works without JavaScript."""
    up = "../" * len(old.strip("/").split("/"))
    target = up + new.strip("/") + "/"
    if not (site / new.strip("/") / "index.html").is_file():
        raise read.CatalogError([f"mkdocs.yml: extra.redirects: {new!r} is no page of the site; correct the target"])
    path = site / old.strip("/") / "index.html"
    if path.is_file():
        raise read.CatalogError(
            [f"mkdocs.yml: extra.redirects: {old!r} is still a page; remove the redirect or the page"]
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Moved</title>'
        f'<meta http-equiv="refresh" content="0; url={target}"><link rel="canonical" href="{target}">'
        f'<p>This page has moved to <a href="{target}">{new}</a>.</p></html>\n',
        encoding="utf-8",
    )
