"""Read the catalogue from a tree and validate it.

Whatever is wrong is reported at once, one line a problem: the file, the line where there is one, and the remedy.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from _catalog import code, pages, records, rules, services
from _catalog.lock import Lock
from _catalog.model import (
    ROOT,
    SECTIONS,
    Catalog,
    CatalogError,
    Category,
    CategoryMeta,
    Distribution,
    Meta,
    Pattern,
    Proof,
    folder_of,
)
from _catalog.pages import line_of, line_of_key

_SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_M = TypeVar("_M", bound=BaseModel)


def load(root: Path = ROOT) -> Catalog:
    """Read everything below `root`; raise `CatalogError` with all problems at once."""
    return _Reader(root).catalog()


class _Reader:
    """One reading of the tree; problems are collected, not raised one by one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.docs = root / "docs"
        self.problems: list[str] = []
        self.lock = Lock(root)
        self.services = services.load(root)
        self.runs = records.load(root)
        self.sources = records.Sources(root)
        self.known = {
            f"{path.parent.name}/{path.stem}" for path in self.docs.glob("patterns/*/*.md") if path.name != "index.md"
        }

    def catalog(self) -> Catalog:
        """Read all categories; raise `CatalogError` when there was any problem."""
        folders = [path for path in sorted(self.docs.glob("patterns/*/")) if path.is_dir()]
        categories = sorted(
            (self._category(path) for path in folders), key=lambda category: (category.meta.order, category.name)
        )
        catalog = Catalog(self.root, tuple(categories), self._front_door(), self.services)
        for pattern, key, value, what, remedy in rules.across(catalog):
            path = self.docs / pattern.src
            self._add_problem(path, line_of(path.read_text(encoding="utf-8"), value), f"{key}: {what}", remedy)
        if self.problems:
            raise CatalogError(self.problems)
        return catalog

    def _add_problem(self, path: Path | str, line: int | None, what: str, remedy: str) -> None:
        where = path if isinstance(path, str) else path.relative_to(self.root).as_posix()
        self.problems.append(f"{where}{f':{line}' if line else ''}: {what}; {remedy}")

    def _text(self, path: Path) -> str | None:
        try:
            return pages.text_of(path)
        except pages.PageError as error:
            self._add_problem(path, error.line, error.what, error.remedy)
            return None

    def _front_matter(self, path: Path, text: str) -> dict[str, Any] | None:
        try:
            return pages.front_matter(text)
        except pages.PageError as error:
            self._add_problem(path, error.line, error.what, error.remedy)
            return None

    def _front_door(self) -> tuple[str, ...]:
        index = self.docs / "index.md"
        text = self._text(index) if index.is_file() else None
        listed = ((self._front_matter(index, text) or {}) if text else {}).get("front_door") or []
        for name in listed:
            if name not in self.known:
                line = line_of(text or "", str(name))
                self._add_problem(index, line, f"front_door names {name!r}, which is no page", "correct or remove it")
        return tuple(listed)

    def _category(self, folder: Path) -> Category:
        index = folder / "index.md"
        fallback = CategoryMeta.model_construct(title=folder.name, summary="", order=0)
        meta = fallback
        if not _SLUG.fullmatch(folder.name):
            what = f"{folder.name!r} is no category name"
            self._add_problem(folder, None, what, "use lower-case words with hyphens")
        if not index.is_file():
            self._add_problem(index, None, "the category has no index page", "write its guide, see CONTRIBUTING.md")
        elif (text := self._text(index)) is not None:
            meta = self._validated(CategoryMeta, index, text) or fallback
        found = [path for path in sorted(folder.glob("*.md")) if path.name != "index.md"]
        return Category(folder.name, meta, tuple(pattern for path in found if (pattern := self._pattern(path))))

    def _pattern(self, path: Path) -> Pattern | None:
        text = self._text(path)
        if text is None:
            return None
        category, slug = path.parent.name, path.stem
        if not _SLUG.fullmatch(slug):
            self._add_problem(path, None, f"{slug!r} is no slug", "rename the page: lower-case words with hyphens")
        meta = self._validated(Meta, path, text)
        if meta is None:
            return None
        self._check_names(path, text, meta, f"{category}/{slug}")
        self._check_sections(path, text)
        modules, shown = self._includes(path, text)
        pattern = Pattern(
            category,
            slug,
            meta,
            pages.split(text)[1],
            tuple(modules),
            tuple(shown),
            tuple(self._proofs(category, slug, path)),
            tuple(self._requires(modules)),
            tuple(self._colors(modules)),
        )
        return dataclasses.replace(pattern, verified=records.verified(pattern, self.runs, self.sources))

    def _validated(self, model: type[_M], path: Path, text: str) -> _M | None:
        data = self._front_matter(path, text)
        if data is None:
            return None
        try:
            return model.model_validate(data)
        except ValidationError as error:
            for problem in error.errors():
                what, remedy = rules.in_plain_words(problem)
                self._add_problem(path, line_of_key(text, str(problem["loc"][0])), what, remedy)
            return None

    def _check_names(self, path: Path, text: str, meta: Meta, own: str) -> None:
        for name in meta.related:
            if name not in self.known or name == own:
                what = f"related: {name!r} is no other page"
                self._add_problem(path, line_of(text, name), what, "use category/slug of a page")
        for name in meta.services:
            if name not in self.services:
                what = f"services: {name!r} has no launcher in tests/servers"
                self._add_problem(path, line_of_key(text, "services"), what, f"there are {', '.join(self.services)}")

    def _check_sections(self, path: Path, text: str) -> None:
        found = pages.section_ids(text)
        if found == list(SECTIONS):
            return
        for number, wanted in enumerate(SECTIONS):
            if number >= len(found) or found[number] != wanted:
                got = f"there is {found[number]!r}" if number < len(found) else "the page ends"
                line = line_of(text, f"{{#{found[number]}}}") if number < len(found) else text.count("\n") + 1
                what = f"section {number + 1} must be {wanted!r}, {got}"
                self._add_problem(path, line, what, f"write `## {SECTIONS[wanted]} {{#{wanted}}}` here")
                return
        extra = found[len(SECTIONS)]
        line = line_of(text, f"{{#{extra}}}")
        self._add_problem(path, line, f"section {extra!r} is not in the template", "remove it")

    def _includes(self, path: Path, text: str) -> tuple[list[str], list[str]]:
        modules: list[str] = []
        shown: list[str] = []
        for include in pages.includes(text):
            target, line = include.path, include.line
            file = self.root / target
            if not file.is_file():
                self._add_problem(path, line, f"include of {target!r}, which does not exist", "correct the path")
            elif target.startswith("snippets/"):
                if include.section:
                    self._add_problem(path, line, f"{target!r} is included in part", "include the whole module")
                if target in modules:
                    self._add_problem(path, line, f"{target!r} is shown twice", "remove one of the includes")
                modules.append(target)
            elif include.section and f"--8<-- [start:{include.section}]" not in file.read_text(encoding="utf-8"):
                what = f"{target} has no section {include.section!r}"
                self._add_problem(path, line, what, "mark it with --8<-- [start:...]")
            else:
                shown.append(target)
        return modules, shown

    def _proofs(self, category: str, slug: str, page: Path) -> list[Proof]:
        folder = self.root / "tests" / "patterns" / folder_of(category)
        stem = f"test_{folder_of(slug)}"
        other = {f"test_{folder_of(name.partition('/')[2])}" for name in self.known if name != f"{category}/{slug}"}
        files = [
            path
            for path in sorted(folder.glob(f"{stem}*.py"))
            if path.stem == stem or (path.stem.startswith(f"{stem}_") and path.stem not in other)
        ]
        if not files:
            where = (folder / f"{stem}.py").relative_to(self.root).as_posix()
            self._add_problem(page, None, "the pattern has no proofs", f"write {where}")
        found = [proof for file in files for proof in code.proofs_in(self.root, file)]
        return sorted(found, key=lambda proof: (proof.path, proof.line))

    def _scans(self, modules: list[str]) -> Iterator[tuple[Path, code.Scan]]:
        for module in modules:
            path = self.root / module
            try:
                yield path, code.scan(path)
            except SyntaxError as error:
                self._add_problem(path, error.lineno, f"the module is not Python ({error.msg})", "correct it")

    def _requires(self, modules: list[str]) -> list[Distribution]:
        own = {Path(module).stem for module in modules} | {Path(module).parent.name for module in modules}
        found: dict[str, Distribution] = {}
        for path, scan in self._scans(modules):
            for name, line in scan.imports:
                if name in sys.stdlib_module_names or name in own:
                    continue
                distribution = self.lock.distribution_of(name)
                if isinstance(distribution, str):
                    self._add_problem(path, line, *distribution.split("; ", 1))
                else:
                    found[distribution.name] = distribution
        return [found[name] for name in sorted(found)]

    def _colors(self, modules: list[str]) -> list[str]:
        """Tell by names whether async and sync callers are served: modules `x_async` and `x_sync`, or `f` and `af`."""
        twins = any(Path(module).stem.endswith(("_sync", "_async")) for module in modules)
        scans = [scan for _, scan in self._scans(modules)]
        waiting = {name for scan in scans for name in scan.waiting}
        paired = any(f"a{name}" in waiting for scan in scans for name in scan.plain)
        if not waiting:
            return ["sync"]
        return ["async", "sync"] if twins or paired else ["async"]
