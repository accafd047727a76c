"""What pages show: each public method here is a macro. What they return is Markdown, or HTML from a template."""

from __future__ import annotations

import html
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from _catalog.badges import badge, verdict
from _catalog.markdown import anchor, listed, table
from _catalog.model import Catalog, CatalogError, Pattern
from _catalog.pages import line_of
from _catalog.templating import filled

#: The macros, by the names that pages call.
_NAMES = (
    *("opening", "quick_start", "proof", "proofs", "measured", "plot"),
    *("quick_reference", "category_table", "categories", "by_need", "by_tag", "by_library", "by_service", "status"),
)
_COLUMNS = ("Pattern", "Use case", "Key benefit")
_NOTHING = "There is no pattern here yet.\n"


@dataclass(frozen=True)
class Macros:
    """The macros of one page. `sources` is where a line of a proof can be read."""

    catalog: Catalog
    src: str
    sources: str = ""
    for_markdown: bool = False  # an artifact for machines: no scripts, no buttons

    def exported(self) -> Mapping[str, Callable[..., str]]:
        """Return the macros by the names that pages call."""
        return {name: getattr(self, name) for name in _NAMES}

    # Parts of a pattern page.

    def opening(self) -> str:
        """Title, need, aliases, facts and actions."""
        pattern = self._pattern()
        meta = pattern.meta
        parts = [f"# {meta.title}\n", f"{meta.need}\n{{ .pp-need }}\n"]
        if pattern.archived:
            instead = ", ".join(self._link(other) for other in self._related(pattern)) or "the quick reference"
            parts.append(f'!!! warning "Archived"\n    This pattern is no longer kept up to date. Use {instead}.\n')
        aliases = " · ".join(html.escape(alias) for alias in meta.aliases)
        parts.append(f"**Also searched as:** {aliases}\n{{ .pp-aliases }}\n")
        facts = [(name, text) for name, text in self._facts(pattern) if text]
        if self.for_markdown:
            parts += [f"- {name}: {Markup(text).striptags()}" for name, text in facts]  # noqa: S704 -- striptags takes the tags out
        else:
            parts.append(filled("facts", facts=facts, actions=self._actions(pattern)))
        return "\n".join(parts)

    def quick_start(self) -> str:
        """Install line, environment table, downloads."""
        pattern = self._pattern()
        parts = []
        if pattern.requires:
            wanted = " ".join(f'"{d.requirement}"' for d in pattern.requires)
            parts.append(f"```bash\npip install {wanted}\n```\n")
        else:
            parts.append("Nothing to install: the standard library is enough.\n")
        if pattern.meta.env:
            parts.append(table(["Variable", "Purpose", "Default", "Example"], _variables(pattern)) + "\n")
        if pattern.meta.services:
            parts.append(f"It talks to {' and '.join(self.catalog.words_of(pattern))}, which you run yourself.\n")
        parts.append(f"Download {self._downloads(pattern)} next to your own code.\n")
        return "\n".join(parts)

    def proof(self, name: str) -> str:
        """Return a link to the test `name`, which must exist."""
        pattern = self._pattern()
        found = next((proof for proof in pattern.proofs if proof.name == name), None)
        if found is None:
            line = line_of(self._source_text(), re.compile(rf"proof\(\s*[\"']{re.escape(name)}[\"']"))
            files = ", ".join(pattern.proof_files) or "its test file"
            raise CatalogError(
                [f"docs/{self.src}:{line}: no test is named {name!r}; write it in {files}, or correct it"]
            )
        if self.for_markdown:
            return f"(proof: `{found.path}::{found.name}`)"
        return f"[Proof: {found.sentence}](#{found.name}){{ .pp-proof }}"

    def proofs(self) -> str:
        """List what is proved: each test's name as a sentence, linked to its source."""
        pattern = self._pattern()
        head = f"### What is proved ({len(pattern.proofs)}) {{#proofs}}\n"
        if self.for_markdown:
            return head + "\n" + "\n".join(f"- {proof.sentence}" for proof in pattern.proofs) + "\n"
        rows = [
            {"name": proof.name, "address": self._source(proof.path, proof.line), "sentence": proof.sentence}
            for proof in pattern.proofs
        ]
        return f"{head}\nLast recorded run: {badge(pattern)}\n\n{filled('proofs', proofs=rows)}\n"

    def measured(self, name: str) -> str:
        """Return a table that `make bench` recorded."""
        facts = self._measurements()
        recorded = facts["tables"].get(name)
        if recorded is None:
            raise self._unmeasured(name, "table", facts["tables"])
        rows = table([column or "What" for column in recorded["columns"]], recorded["rows"])
        return (
            f"{rows}\n\n{recorded['note']} Measured on {facts['date']} with Python {facts['python']} on "
            f"{facts['machine']} by `{facts['command']}`, all rows in one run.\n{{ .pp-measured }}\n"
        )

    def plot(self, name: str) -> str:
        """Return a plot that `make bench` drew."""
        facts = self._measurements()
        caption = facts["plots"].get(name)
        if caption is None:
            raise self._unmeasured(name, "plot", facts["plots"])
        if self.for_markdown:
            return f"(Plot: {caption})"
        pattern = self._pattern()
        path = self.catalog.root / "docs" / "_measured" / pattern.category / f"{pattern.slug}.{name}.svg"
        svg = re.sub(r">\s+<", "><", path.read_text(encoding="utf-8").strip()).replace("\n", " ")
        return filled("plot", svg=Markup(svg), caption=caption) + "\n"  # noqa: S704 -- drawn by `make bench`

    # Tables of the whole library.

    def quick_reference(self) -> str:
        """Return every pattern, a row one click from its page."""
        return self._reference_table(self.catalog.current, "pp-reference")

    def category_table(self) -> str:
        """Return the patterns of the category whose index page this is."""
        category = self.src.split("/")[1]
        return self._reference_table([p for p in self.catalog.current if p.category == category], "")

    def categories(self) -> str:
        """List the categories with what they are for."""
        return "\n".join(
            f"- [{c.meta.title}]({self._to(f'patterns/{c.name}/index.md')}): {c.meta.summary}"
            for c in self.catalog.categories
        )

    def by_need(self) -> str:
        """List the patterns by what a reader needs, a heading a category."""
        current = self.catalog.current
        return self._grouped(
            (category.meta.title, [pattern for pattern in current if pattern.category == category.name])
            for category in self.catalog.categories
        )

    def by_tag(self) -> str:
        """List the patterns under each tag."""
        return self._by(lambda pattern: pattern.meta.tags)

    def by_library(self) -> str:
        """List the patterns under each package that their modules import."""
        return self._by(lambda pattern: [d.name for d in pattern.requires] or ["standard library only"])

    def by_service(self) -> str:
        """List the patterns under each service they need running."""
        return self._by(lambda pattern: self.catalog.words_of(pattern) or ["no service"])

    def status(self) -> str:
        """Tell for each pattern when it was reviewed and what the recorded test runs say."""
        rows = [
            [
                self._link(pattern),
                str(pattern.meta.reviewed),
                str(len(pattern.proofs)),
                verdict(pattern.verified) if self.for_markdown else str(badge(pattern)),
            ]
            for pattern in self.catalog.patterns
        ]
        return table(["Pattern", "Reviewed", "Proofs", "Last recorded run"], rows)

    # Parts of these.

    def _pattern(self) -> Pattern:
        pattern = self.catalog.by_src(self.src)
        if pattern is None:
            raise CatalogError([f"docs/{self.src}: this macro is for pattern pages; remove the call"])
        return pattern

    def _related(self, pattern: Pattern) -> list[Pattern]:
        return [other for other in self.catalog.patterns if other.id in pattern.meta.related]

    def _facts(self, pattern: Pattern) -> list[tuple[str, str]]:
        needs = [f"{d.name} {d.locked}" for d in pattern.requires] + self.catalog.words_of(pattern)
        tags = [{"name": tag, "address": self._up(f"find/tag/#{tag}")} for tag in pattern.meta.tags]
        related = [{"words": p.meta.title, "address": self._up(p.url)} for p in self._related(pattern)]
        proofs = Markup('<a href="#proofs">{} proofs</a>: {}').format(len(pattern.proofs), badge(pattern))
        return [
            ("Works with", listed(list(pattern.colors))),
            ("Needs", listed(needs) or "the standard library only"),
            ("Proofs", proofs),
            ("Reviewed", str(pattern.meta.reviewed)),
            ("Tags", _markup("tags", tags=tags)),
            ("Related", _markup("links", links=related)),
            ("Used by", ", ".join(pattern.meta.used_by)),
        ]

    def _actions(self, pattern: Pattern) -> Markup:
        files = [
            {"shown": _shown(module), "name": Path(module).name, "address": self._up(module)}
            for module in pattern.modules
        ]
        archive = pattern.archive and {"name": Path(pattern.archive).name, "address": self._up(pattern.archive)}
        return _markup("actions", files=files, archive=archive, page=self._up(pattern.markdown))

    def _downloads(self, pattern: Pattern) -> str:
        """Say what to download, and what to do with it."""
        if not pattern.archive:
            files = [_markup("download", address=self._up(m), shown=_shown(m)) for m in pattern.modules]
            return f"{listed(files)}, and put it"
        link = _markup("download", address=self._up(pattern.archive), shown=Path(pattern.archive).name)
        if pattern.package:
            return f"{link}, which is one folder, <code>{Path(pattern.package).name}/</code>, and unpack it"
        return f"{link}, and unpack it"

    def _measurements(self) -> dict[str, Any]:
        pattern = self._pattern()
        path = self.catalog.root / "docs" / "_measured" / pattern.category / f"{pattern.slug}.json"
        if not path.is_file():
            raise CatalogError([f"docs/{self.src}: nothing was measured; run `make bench PATTERN={pattern.id}`"])
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return facts

    def _unmeasured(self, name: str, kind: str, known: Iterable[str]) -> CatalogError:
        line = line_of(self._source_text(), name)
        there = ", ".join(known) or "none"
        return CatalogError([f"docs/{self.src}:{line}: no {kind} {name!r} was measured; there is: {there}"])

    def _reference_table(self, patterns: Sequence[Pattern], kind: str) -> str:
        if not patterns:
            return _NOTHING
        if self.for_markdown:
            return table(_COLUMNS, [[self._link(p), p.meta.use_case, p.meta.key_benefit] for p in patterns])
        rows = [
            {
                "tags": " ".join(p.meta.tags),
                "words": " ".join([p.category, *p.meta.tags, *p.meta.aliases]).lower(),
                "address": self._up(p.url),
                "title": p.meta.title,
                "cells": (p.meta.use_case, p.meta.key_benefit),
            }
            for p in patterns
        ]
        return filled("reference", kind=kind, columns=_COLUMNS, rows=rows) + "\n"

    def _by(self, keys: Callable[[Pattern], Iterable[str]]) -> str:
        groups: dict[str, list[Pattern]] = {}
        for pattern in self.catalog.current:
            for key in keys(pattern):
                groups.setdefault(key, []).append(pattern)
        return self._grouped(sorted(groups.items()))

    def _grouped(self, groups: Iterable[tuple[str, list[Pattern]]]) -> str:
        parts = []
        for title, patterns in groups:
            if patterns:
                parts.append(f"## {title} {{#{anchor(title)}}}\n")
                parts += [f"- {pattern.meta.need} → {self._link(pattern)}" for pattern in patterns]
                parts.append("")
        return "\n".join(parts) or _NOTHING

    def _link(self, pattern: Pattern) -> str:
        return f"[{pattern.meta.title}]({self._to(pattern.src)})"

    def _to(self, src: str) -> str:
        """Return a link to another page's source, which MkDocs checks and turns into its address."""
        return posixpath.relpath(src, posixpath.dirname(self.src) or ".")

    def _up(self, address: str) -> str:
        """Return the way from this page's address to `address` on the site."""
        here = self.src.removesuffix("index.md").removesuffix(".md")
        return "../" * len([part for part in here.split("/") if part]) + address

    def _source(self, path: str, line: int) -> str:
        return f"{self.sources}/{path}#L{line}" if self.sources else self._up(path)

    def _source_text(self) -> str:
        return (self.catalog.root / "docs" / self.src).read_text(encoding="utf-8")


def _variables(pattern: Pattern) -> list[list[str]]:
    rows = []
    for variable in pattern.meta.env:
        default = "*required*" if variable.required else "none"
        if variable.default is not None:
            default = f"`{variable.default}`"
        example = f"`{variable.example}`" if variable.example is not None else ""
        rows.append([f"`{variable.name}`", variable.purpose, default, example])
    return rows


def _markup(template: str, **values: Any) -> Markup:
    return Markup(filled(template, **values))  # noqa: S704 -- templates escape what they are given


def _shown(module: str) -> str:
    return "/".join(module.split("/")[2:])
