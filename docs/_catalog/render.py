"""What pages show: each function here is a macro, or a part of one. All of it is Markdown or plain HTML."""

from __future__ import annotations

import html
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _catalog.read import SERVICES, Catalog, CatalogError, Pattern, Verified, line_of

_esc = html.escape


@dataclass(frozen=True)
class Macros:
    """The macros of one page. `sources` is where a line of a proof can be read."""

    catalog: Catalog
    src: str
    sources: str = ""
    for_markdown: bool = False  # an artifact for machines: no scripts, no buttons

    def exported(self) -> Mapping[str, Callable[..., str]]:
        """Return the macros by the names that pages call."""
        return {
            "opening": self.opening,
            "quick_start": self.quick_start,
            "proof": self.proof,
            "proofs": self.proofs,
            "measured": self.measured,
            "plot": self.plot,
            "quick_reference": self.quick_reference,
            "category_table": self.category_table,
            "categories": self.categories,
            "by_need": self.by_need,
            "by_tag": self.by_tag,
            "by_library": self.by_library,
            "by_service": self.by_service,
            "status": self.status,
        }

    # Parts of a pattern page.

    def opening(self) -> str:
        """Title, need, aliases, facts and actions."""
        pattern = self._pattern()
        meta = pattern.meta
        parts = [f"# {meta.title}\n", f"{meta.need}\n{{ .pp-need }}\n"]
        if pattern.archived:
            instead = ", ".join(self._link(other) for other in self._related(pattern)) or "the quick reference"
            parts.append(f'!!! warning "Archived"\n    This pattern is no longer kept up to date. Use {instead}.\n')
        parts.append(f"**Also searched as:** {' · '.join(_esc(a) for a in meta.aliases)}\n{{ .pp-aliases }}\n")
        rows = [(name, text) for name, text in self._facts(pattern) if text]
        if self.for_markdown:
            parts += [f"- {name}: {_strip(text)}" for name, text in rows]
        else:
            facts = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows)
            parts.append(f'<div class="pp-facts"><dl>{facts}</dl>{self._actions(pattern)}</div>')
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
            rows = []
            for variable in pattern.meta.env:
                default = "*required*" if variable.required else "none"
                if variable.default is not None:
                    default = f"`{variable.default}`"
                example = f"`{variable.example}`" if variable.example is not None else ""
                rows.append([f"`{variable.name}`", variable.purpose, default, example])
            parts.append(table(["Variable", "Purpose", "Default", "Example"], rows) + "\n")
        if pattern.meta.services:
            running = " and ".join(SERVICES[service] for service in pattern.meta.services)
            parts.append(f"It talks to {running}, which you run yourself.\n")
        files = _and([f'<a href="{self._up(m)}" download><code>{_shown(m)}</code></a>' for m in pattern.modules])
        if archive := archive_of(pattern):
            files = f'<a href="{self._up(archive)}" download><code>{Path(archive).name}</code></a>'
            if len(Path(pattern.modules[0]).parts) > 3:
                files += f", which is one folder, <code>{Path(pattern.modules[0]).parent.name}/</code>"
            parts.append(f"Download {files}, and unpack it next to your own code.\n")
        else:
            parts.append(f"Download {files}, and put it next to your own code.\n")
        return "\n".join(parts)

    def proof(self, name: str) -> str:
        """Return a link to the test `name`, which must exist."""
        pattern = self._pattern()
        found = next((proof for proof in pattern.proofs if proof.name == name), None)
        if found is None:
            page = (self.catalog.root / "docs" / self.src).read_text(encoding="utf-8")
            line = line_of(page, re.compile(rf"proof\(\s*[\"']{re.escape(name)}[\"']"))
            files = ", ".join(sorted({proof.path for proof in pattern.proofs})) or "its test file"
            raise CatalogError(
                [f"docs/{self.src}:{line}: no test is named {name!r}; write it in {files}, or correct it"]
            )
        if self.for_markdown:
            return f"(proof: `{found.path}::{found.name}`)"
        return f"[Proof: {found.sentence}](#{found.name}){{ .pp-proof }}"

    def proofs(self) -> str:
        """List what is proved: each test's name as a sentence, linked to its source."""
        pattern = self._pattern()
        count = len(pattern.proofs)
        head = f"### What is proved ({count}) {{#proofs}}\n"
        if self.for_markdown:
            return head + "\n" + "\n".join(f"- {proof.sentence}" for proof in pattern.proofs) + "\n"
        items = "".join(
            f'<li id="{proof.name}"><a href="{self._source(proof.path, proof.line)}">{_esc(proof.sentence)}</a></li>'
            for proof in pattern.proofs
        )
        return f'{head}\n{self._verdict(pattern)}\n\n<ul class="pp-proofs">{items}</ul>\n'

    def measured(self, name: str) -> str:
        """Return a table that `make bench` recorded."""
        facts = self._measurements()
        if name not in facts["tables"]:
            raise self._unmeasured(name, "table", facts["tables"])
        recorded = facts["tables"][name]
        return (
            table([column or "What" for column in recorded["columns"]], recorded["rows"])
            + f"\n\n{recorded['note']} Measured on {facts['date']} with Python {facts['python']} on "
            f"{facts['machine']} by `{facts['command']}`, all rows in one run.\n{{ .pp-measured }}\n"
        )

    def plot(self, name: str) -> str:
        """Return a plot that `make bench` drew."""
        facts = self._measurements()
        if name not in facts["plots"]:
            raise self._unmeasured(name, "plot", facts["plots"])
        if self.for_markdown:
            return f"(Plot: {facts['plots'][name]})"
        pattern = self._pattern()
        path = self.catalog.root / "docs" / "_measured" / pattern.category / f"{pattern.slug}.{name}.svg"
        svg = re.sub(r">\s+<", "><", path.read_text(encoding="utf-8").strip()).replace("\n", " ")
        return f"<figure>{svg}<figcaption>{_esc(facts['plots'][name])}</figcaption></figure>\n"

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
        return self._grouped(
            (category.meta.title, [p for p in self.catalog.current if p.category == category.name])
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
        return self._by(lambda pattern: [SERVICES[s] for s in pattern.meta.services] or ["no service"])

    def status(self) -> str:
        """Tell for each pattern when it was reviewed and what the recorded test runs say."""
        rows = [
            [self._link(p), str(p.meta.reviewed), str(len(p.proofs)), verdict(p.verified)]
            for p in self.catalog.patterns
        ]
        return table(["Pattern", "Reviewed", "Proofs", "Last recorded run"], rows)

    # Parts.

    def _pattern(self) -> Pattern:
        pattern = self.catalog.by_src(self.src)
        if pattern is None:
            raise CatalogError([f"docs/{self.src}: this macro is for pattern pages; remove the call"])
        return pattern

    def _related(self, pattern: Pattern) -> list[Pattern]:
        return [other for other in self.catalog.patterns if other.id in pattern.meta.related]

    def _facts(self, pattern: Pattern) -> list[tuple[str, str]]:
        needs = [f"{d.name} {d.locked}" for d in pattern.requires]
        needs += [SERVICES[service] for service in pattern.meta.services]
        tags = " ".join(f'<a class="pp-tag" href="{self._up(f"find/tag/#{t}")}">{t}</a>' for t in pattern.meta.tags)
        related = ", ".join(
            f'<a href="{self._up(other.url)}">{_esc(other.meta.title)}</a>' for other in self._related(pattern)
        )
        return [
            ("Works with", _and(list(pattern.colors))),
            ("Needs", _esc(_and(needs)) or "the standard library only"),
            (
                "Proofs",
                f'<a href="#proofs">{len(pattern.proofs)} proofs</a>: {self._badge(pattern)}',
            ),
            ("Reviewed", str(pattern.meta.reviewed)),
            ("Tags", tags),
            ("Related", related),
            ("Used by", ", ".join(_esc(name) for name in pattern.meta.used_by)),
        ]

    def _badge(self, pattern: Pattern) -> str:
        state = "none" if not pattern.verified else "bad" if pattern.verified.failed else "good"
        return f'<span class="pp-badge pp-badge--{state}">{verdict(pattern.verified)}</span>'

    def _verdict(self, pattern: Pattern) -> str:
        return f"Last recorded run: {verdict(pattern.verified)}."

    def _actions(self, pattern: Pattern) -> str:
        rows = []
        for module in pattern.modules:
            name, address = _esc(_shown(module)), self._up(module)
            rows.append(
                f'<li><code>{name}</code> <button type="button" data-copy="{address}" hidden>Copy</button>'
                f' <a href="{address}" download="{_esc(Path(module).name)}">Download</a></li>'
            )
        if archive := archive_of(pattern):
            link = f'<a href="{self._up(archive)}" download>Download all {len(pattern.modules)} files</a>'
            rows.append(f"<li><code>{Path(archive).name}</code> {link}</li>")
        page = self._up(f"{pattern.url.rstrip('/')}.md")
        return (
            f'<ul class="pp-actions">{"".join(rows)}<li><a href="#implementation">Jump to the code</a>'
            f' <button type="button" data-copy="{page}" hidden>Copy page as Markdown</button>'
            f' <a href="{page}">View as Markdown</a></li></ul>'
        )

    def _measurements(self) -> dict[str, Any]:
        pattern = self._pattern()
        path = self.catalog.root / "docs" / "_measured" / pattern.category / f"{pattern.slug}.json"
        if not path.is_file():
            raise CatalogError([f"docs/{self.src}: nothing was measured; run `make bench PATTERN={pattern.id}`"])
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return facts

    def _unmeasured(self, name: str, kind: str, known: Iterable[str]) -> CatalogError:
        page = (self.catalog.root / "docs" / self.src).read_text(encoding="utf-8")
        there = ", ".join(known) or "none"
        return CatalogError(
            [f"docs/{self.src}:{line_of(page, name)}: no {kind} {name!r} was measured; there is: {there}"]
        )

    def _reference_table(self, patterns: Sequence[Pattern], css: str) -> str:
        if not patterns:
            return "There is no pattern here yet.\n"
        rows = []
        for pattern in patterns:
            tags = " ".join(pattern.meta.tags)
            words = _esc(" ".join([pattern.category, tags, *pattern.meta.aliases]).lower(), quote=True)
            link = f'<a href="{self._up(pattern.url)}">{_esc(pattern.meta.title)}</a>'
            cells = "".join(
                f"<td>{text}</td>" for text in (_esc(pattern.meta.use_case), _esc(pattern.meta.key_benefit))
            )
            rows.append(f'<tr data-tags="{tags}" data-words="{words}"><th scope="row">{link}</th>{cells}</tr>')
        if self.for_markdown:
            return table(
                ["Pattern", "Use case", "Key benefit"],
                [[self._link(p), p.meta.use_case, p.meta.key_benefit] for p in patterns],
            )
        head = "".join(f'<th scope="col">{name}</th>' for name in ("Pattern", "Use case", "Key benefit"))
        return (
            f'<div class="pp-table {css}"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>\n"
        )

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
                parts.append(f"## {title} {{#{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}}}\n")
                parts += [f"- {p.meta.need} → {self._link(p)}" for p in patterns]
                parts.append("")
        return "\n".join(parts) or "There is no pattern here yet.\n"

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


def verdict(verified: Verified | None) -> str:
    """Say what the recorded runs say; without a record, say that."""
    if verified is None:
        return "not verified in this build"
    pythons = _and([f"Python {v}" for v in verified.pythons])
    servers = "".join(f", {server}" for _, server in sorted(verified.servers.items()))
    outcome = f"{verified.failed} failed" if verified.failed else f"{verified.passed} passed"
    skipped = f", {verified.skipped} skipped" if verified.skipped else ""
    return f"{outcome}{skipped} on {verified.date} with {pythons}{servers}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(header), "|" + " --- |" * len(header), *map(line, rows)])


def archive_of(pattern: Pattern) -> str | None:
    """Return the address of the archive of a pattern's modules, None where there is only one."""
    first = Path(pattern.modules[0]) if len(pattern.modules) > 1 else None
    if first is None:
        return None
    stem = first.parent if len(first.parts) > 3 else first.parent / pattern.slug.replace("-", "_")
    return f"{stem.as_posix()}.zip"


def _shown(module: str) -> str:
    return "/".join(module.split("/")[2:])


def _and(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 2 else parts)


def _strip(text: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", text))
