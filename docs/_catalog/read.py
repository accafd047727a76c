"""Read and validate the catalogue: pages, modules, proofs, locked versions, recorded runs.

Whatever is wrong is reported at once, one line a problem: the file, the line where there is one, and the remedy.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

ROOT = Path(__file__).resolve().parents[2]

#: The sections of a pattern page, in order, by their ids.
SECTIONS = {
    "when-to-use-it": "When to use it",
    "how-it-works": "How it works",
    "quick-start": "Quick start",
    "implementation": "Implementation",
    "usage": "Usage",
    "wire-it-in": "Wire it in",
    "gotchas": "Gotchas",
    "test-your-own-use": "Test your own use",
    "or-use-a-library": "Or use a library",
    "reference": "Reference",
    "resources": "Resources",
}
#: The services a page may name, as readers know them. Each has a launcher in tests/servers.
SERVICES = {
    "postgresql": "PostgreSQL",
    "valkey": "Valkey or Redis",
    "smtp": "an SMTP server",
}

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INCLUDE = re.compile(r'^[ \t]*--8<-- "(?P<path>[^":]+)(?::(?P<section>\w+))?"[ \t]*$', re.MULTILINE)
_SECTION = re.compile(r"^## .*?\{#(?P<id>[\w-]+)\}", re.MULTILINE)
_TEST = re.compile(r"^(?: {4})?(?:async )?def (?P<name>test_\w+)\(", re.MULTILINE)
_SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_HINTS = {
    "missing": "add the key",
    "extra_forbidden": "remove it, or check its spelling",
}

Word = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Text = Annotated[str, Field(min_length=3)]
_Model = TypeVar("_Model", bound=BaseModel)


class CatalogError(Exception):
    """The catalogue is wrong; each problem is a line that names file, line and remedy."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = sorted(set(problems))
        super().__init__("\n".join(self.problems))


class Variable(BaseModel):
    """An environment variable that a pattern's module reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
    purpose: Text
    required: bool
    default: str | int | float | None = None
    example: str | int | float | None = None


class Meta(BaseModel):
    """Front matter of a pattern page: what cannot be derived."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: Annotated[str, Field(min_length=3, max_length=70)]
    need: Annotated[str, Field(pattern=r"^I need .+\.$")]
    use_case: Annotated[str, Field(min_length=3, max_length=80)]
    key_benefit: Annotated[str, Field(min_length=3, max_length=50)]
    tags: Annotated[list[Word], Field(min_length=2, max_length=6)]
    aliases: Annotated[list[Text], Field(min_length=3)]
    env: list[Variable]
    services: list[Literal["postgresql", "valkey", "smtp"]]
    related: list[str]
    used_by: list[Text]
    reviewed: date
    status: Literal["current", "archived"]

    @field_validator("tags", "aliases")
    @classmethod
    def _no_twins(cls, values: list[str]) -> list[str]:
        folded = [value.casefold() for value in values]
        if twins := sorted({value for value in folded if folded.count(value) > 1}):
            raise ValueError(f"named twice: {', '.join(twins)}")
        return values


class CategoryMeta(BaseModel):
    """Front matter of a category's index page."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: Text
    summary: Annotated[str, Field(min_length=3, max_length=120)]
    order: int


@dataclass(frozen=True)
class Proof:
    """One test of a pattern: its name is the sentence it proves."""

    name: str
    path: str
    line: int

    @property
    def sentence(self) -> str:
        """The test's name in words."""
        words = self.name.removeprefix("test_").replace("_", " ")
        return words[:1].upper() + words[1:]


@dataclass(frozen=True)
class Distribution:
    """A package a module imports: what to install, the lowest version tried, the version in the lock."""

    name: str
    requirement: str
    locked: str


@dataclass(frozen=True)
class Verified:
    """What the recorded test runs say about a pattern as it stands now."""

    date: str
    pythons: tuple[str, ...]
    servers: Mapping[str, str]
    passed: int
    failed: int
    skipped: int


@dataclass(frozen=True)
class Pattern:
    """A pattern: its page, and what is derived from it."""

    category: str
    slug: str
    meta: Meta
    body: str
    modules: tuple[str, ...]
    shown: tuple[str, ...]
    proofs: tuple[Proof, ...]
    requires: tuple[Distribution, ...]
    colors: tuple[str, ...]
    verified: Verified | None = None

    @property
    def id(self) -> str:
        """`category/slug`."""
        return f"{self.category}/{self.slug}"

    @property
    def src(self) -> str:
        """Path of the page below docs/."""
        return f"patterns/{self.id}.md"

    @property
    def url(self) -> str:
        """Address of the page on the site."""
        return f"patterns/{self.id}/"

    @property
    def archived(self) -> bool:
        """Whether the page is kept only for those who have its address."""
        return self.meta.status == "archived"


@dataclass(frozen=True)
class Category:
    """A category and its patterns."""

    name: str
    meta: CategoryMeta
    patterns: tuple[Pattern, ...]


@dataclass(frozen=True)
class Catalog:
    """The whole library."""

    root: Path
    categories: tuple[Category, ...]
    front_door: tuple[str, ...]

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """All patterns, archived ones included, in the order of their categories."""
        return tuple(pattern for category in self.categories for pattern in category.patterns)

    @property
    def current(self) -> tuple[Pattern, ...]:
        """Patterns that tables list: those on the front page's list first, none that is archived."""
        rank = {name: number for number, name in enumerate(self.front_door)}
        listed = [pattern for pattern in self.patterns if not pattern.archived]
        return tuple(sorted(listed, key=lambda pattern: rank.get(pattern.id, len(rank))))

    def by_src(self, src: str) -> Pattern | None:
        """Return the pattern whose page is `src`, if it is a pattern's page."""
        return next((pattern for pattern in self.patterns if pattern.src == src), None)


def folder_of(category: str) -> str:
    """Return the folder of a category's modules and proofs: Python names have no hyphens."""
    return category.replace("-", "_")


def split(text: str) -> tuple[str, str]:
    """Split a page into front matter and body; a page without front matter has an empty one."""
    if text.startswith("---\n") and "\n---\n" in text:
        head, _, body = text[4:].partition("\n---\n")
        return head, body
    return "", text


def line_of(text: str, needle: str | re.Pattern[str], default: int = 1) -> int:
    """Return the 1-based line of the first match of `needle` in `text`."""
    match = re.search(re.escape(needle) if isinstance(needle, str) else needle, text)
    return text.count("\n", 0, match.start()) + 1 if match else default


@functools.cache
def _parsed(path: Path, stamp: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def tree(path: Path) -> ast.Module:
    """Return the syntax tree of a Python file, parsed once while it does not change."""
    return _parsed(path, path.stat().st_mtime_ns)


def load(root: Path = ROOT) -> Catalog:
    """Read everything below `root`; raise `CatalogError` with all problems at once."""
    return _Reader(root).catalog()


class _Reader:
    """One reading of the tree; problems are collected, not raised one by one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.docs = root / "docs"
        self.problems: list[str] = []
        self.known = {
            f"{path.parent.name}/{path.stem}" for path in self.docs.glob("patterns/*/*.md") if path.name != "index.md"
        }
        self.wanted, self.locked = _requirements(root)
        self.runs = _runs(root)

    def catalog(self) -> Catalog:
        categories = sorted(
            (self._category(path) for path in sorted(self.docs.glob("patterns/*/")) if path.is_dir()),
            key=lambda category: (category.meta.order, category.name),
        )
        front_door = self._front_door()
        if self.problems:
            raise CatalogError(self.problems)
        return Catalog(self.root, tuple(categories), front_door)

    def _problem(self, path: Path | str, line: int | None, what: str, remedy: str) -> None:
        where = path if isinstance(path, str) else path.relative_to(self.root).as_posix()
        self.problems.append(f"{where}{f':{line}' if line else ''}: {what}; {remedy}")

    def _front_door(self) -> tuple[str, ...]:
        index = self.docs / "index.md"
        if not index.is_file():
            return ()
        text = index.read_text(encoding="utf-8")
        listed = self._yaml(index, text).get("front_door") or []
        for name in listed:
            if name not in self.known:
                line = line_of(text, str(name))
                self._problem(
                    index,
                    line,
                    f"front_door names {name!r}, which is no page",
                    "correct or remove it",
                )
        return tuple(listed)

    def _category(self, folder: Path) -> Category:
        index = folder / "index.md"
        fallback = CategoryMeta.model_construct(title=folder.name, summary="", order=0)
        meta = fallback
        if not _SLUG.fullmatch(folder.name):
            self._problem(
                folder,
                None,
                f"{folder.name!r} is no category name",
                "use lower-case words with hyphens",
            )
        if not index.is_file():
            self._problem(
                index,
                None,
                "the category has no index page",
                "write its guide, see CONTRIBUTING.md",
            )
        else:
            text = index.read_text(encoding="utf-8")
            meta = self._validated(CategoryMeta, index, text) or fallback
        pages = [path for path in sorted(folder.glob("*.md")) if path.name != "index.md"]
        found = [pattern for path in pages if (pattern := self._pattern(path))]
        return Category(folder.name, meta, tuple(found))

    def _pattern(self, path: Path) -> Pattern | None:
        text = path.read_text(encoding="utf-8")
        category, slug = path.parent.name, path.stem
        if not _SLUG.fullmatch(slug):
            self._problem(path, None, f"{slug!r} is no slug", "rename the page: lower-case words with hyphens")
        meta = self._validated(Meta, path, text)
        if meta is None:
            return None
        for name in meta.related:
            if name not in self.known or name == f"{category}/{slug}":
                line = line_of(text, name)
                self._problem(path, line, f"related: {name!r} is no other page", "use category/slug of a page")
        modules, shown = self._includes(path, text)
        self._sections(path, text)
        pattern = Pattern(
            category,
            slug,
            meta,
            split(text)[1],
            tuple(modules),
            tuple(shown),
            tuple(self._proofs(category, slug, path)),
            tuple(self._requires(modules)),
            tuple(self._colors(modules)),
        )
        return dataclasses.replace(pattern, verified=_verified(pattern, self.runs, self.root))

    def _yaml(self, path: Path, text: str) -> dict[str, Any]:
        head, _ = split(text)
        try:
            data = yaml.load(head, Loader=_LOADER) or {}  # noqa: S506 -- a safe loader, the one in C where there is one
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line + 2 if mark else 1
            self._problem(
                path,
                line,
                f"front matter is not YAML ({getattr(error, 'problem', error)})",
                "correct it",
            )
            return {}
        if not isinstance(data, dict):
            self._problem(
                path,
                1,
                "front matter is not a mapping",
                "write `key: value` lines between --- lines",
            )
            return {}
        return data

    def _validated(self, model: type[_Model], path: Path, text: str) -> _Model | None:
        before = len(self.problems)
        data = self._yaml(path, text)
        if len(self.problems) > before:
            return None
        try:
            return model.model_validate(data)
        except ValidationError as error:
            for problem in error.errors():
                place = ".".join(str(part) for part in problem["loc"])
                key = str(problem["loc"][0])
                line = line_of(text, re.compile(rf"^{re.escape(key)}:", re.MULTILINE))
                remedy = _HINTS.get(problem["type"], f"it is {str(problem['input'])[:60]!r} now")
                self._problem(path, line, f"{place}: {problem['msg']}", remedy)
            return None

    def _sections(self, path: Path, text: str) -> None:
        found = [match["id"] for match in _SECTION.finditer(text)]
        if found == list(SECTIONS):
            return
        for number, wanted in enumerate(SECTIONS):
            if number >= len(found) or found[number] != wanted:
                got = f"there is {found[number]!r}" if number < len(found) else "the page ends"
                line = line_of(text, f"{{#{found[number]}}}") if number < len(found) else text.count("\n") + 1
                heading = f"## {SECTIONS[wanted]} {{#{wanted}}}"
                self._problem(
                    path,
                    line,
                    f"section {number + 1} must be {wanted!r}, {got}",
                    f"write `{heading}` here",
                )
                return
        extra = found[len(SECTIONS)]
        self._problem(
            path,
            line_of(text, f"{{#{extra}}}"),
            f"section {extra!r} is not in the template",
            "remove it",
        )

    def _includes(self, path: Path, text: str) -> tuple[list[str], list[str]]:
        modules: list[str] = []
        shown: list[str] = []
        for match in _INCLUDE.finditer(text):
            target, line = match["path"], text.count("\n", 0, match.start()) + 1
            file = self.root / target
            if not file.is_file():
                self._problem(path, line, f"include of {target!r}, which does not exist", "correct the path")
            elif target.startswith("snippets/"):
                if match["section"]:
                    self._problem(path, line, f"{target!r} is included in part", "include the whole module")
                if target in modules:
                    self._problem(path, line, f"{target!r} is shown twice", "remove one of the includes")
                modules.append(target)
            elif match["section"] and f"--8<-- [start:{match['section']}]" not in file.read_text(encoding="utf-8"):
                self._problem(
                    path,
                    line,
                    f"{target} has no section {match['section']!r}",
                    "mark it with --8<-- [start:...]",
                )
            else:
                shown.append(target)
        return modules, shown

    def _proofs(self, category: str, slug: str, page: Path) -> list[Proof]:
        folder = self.root / "tests" / "patterns" / folder_of(category)
        stem = f"test_{slug.replace('-', '_')}"
        other = {
            f"test_{name.partition('/')[2].replace('-', '_')}" for name in self.known if name != f"{category}/{slug}"
        }
        files = [
            p
            for p in sorted(folder.glob(f"{stem}*.py"))
            if p.stem == stem or (p.stem.startswith(f"{stem}_") and p.stem not in other)
        ]
        if not files:
            where = (folder / f"{stem}.py").relative_to(self.root).as_posix()
            self._problem(page, None, "the pattern has no proofs", f"write {where}")
        found = [proof for file in files for proof in _proofs_in(self.root, file, file.stat().st_mtime_ns)]
        return sorted(found, key=lambda proof: (proof.path, proof.line))

    def _scans(self, modules: list[str]) -> Iterator[tuple[Path, _Scan]]:
        for module in modules:
            path = self.root / module
            try:
                yield path, _scan(path, path.stat().st_mtime_ns)
            except SyntaxError as error:
                self._problem(path, error.lineno, f"the module is not Python ({error.msg})", "correct it")

    def _requires(self, modules: list[str]) -> list[Distribution]:
        own = {Path(module).stem for module in modules} | {Path(module).parent.name for module in modules}
        found: dict[str, Distribution] = {}
        for path, scan in self._scans(modules):
            for name, line in scan.imports:
                if name in sys.stdlib_module_names or name in own:
                    continue
                distribution: str = canonicalize_name(name)
                if distribution not in self.wanted:
                    distribution = _distribution_of(name, frozenset(self.wanted))
                if distribution not in self.wanted:
                    remedy = "add its distribution to [dependency-groups] patterns and run `make lock`"
                    self._problem(path, line, f"imports {name!r}, which is not declared", remedy)
                elif distribution not in self.locked:
                    self._problem(path, line, f"imports {name!r}, which is not locked", "run `make lock`")
                else:
                    requirement = str(self.wanted[distribution])
                    found[distribution] = Distribution(distribution, requirement, self.locked[distribution])
        return [found[name] for name in sorted(found)]

    def _colors(self, modules: list[str]) -> list[str]:
        """Tell from names whether async and sync callers are served: modules `x_sync`, `x_async`, or `f` and `af`."""
        stems = {Path(module).stem for module in modules}
        twins = any(stem.endswith(("_sync", "_async")) for stem in stems)
        scans = [scan for _, scan in self._scans(modules)]
        waiting = {name for scan in scans for name in scan.waiting}
        paired = any(f"a{name}" in waiting for scan in scans for name in scan.plain)
        if not waiting:
            return ["sync"]
        return ["async", "sync"] if twins or paired else ["async"]


@dataclass(frozen=True)
class _Scan:
    """What is read off a module's source: imports with their lines, names of public coroutines and of functions."""

    imports: tuple[tuple[str, int], ...]
    waiting: frozenset[str]
    plain: frozenset[str]


@functools.cache
def _scan(path: Path, stamp: int) -> _Scan:
    imports: list[tuple[str, int]] = []
    waiting: set[str] = set()
    plain: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            imports += [(alias.name.partition(".")[0], node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            imports.append((node.module.partition(".")[0], node.lineno))
        elif isinstance(node, ast.AsyncFunctionDef) and not node.name.startswith("_"):
            waiting.add(node.name)
        elif isinstance(node, ast.FunctionDef):
            plain.add(node.name)
    return _Scan(tuple(imports), frozenset(waiting), frozenset(plain))


@functools.cache
def _proofs_in(root: Path, file: Path, stamp: int) -> tuple[Proof, ...]:
    text, name = file.read_text(encoding="utf-8"), file.relative_to(root).as_posix()
    found = []
    line, seen = 1, 0
    for match in _TEST.finditer(text):  # a hundred files: parsing each would take seconds
        line, seen = line + text.count("\n", seen, match.start("name")), match.start("name")
        found.append(Proof(match["name"], name, line))
    return tuple(found)


@functools.cache
def _distribution_of(module: str, wanted: frozenset[str]) -> str:
    """Find the distribution of an import name that differs from it (`yaml` -> pyyaml), among the declared ones."""
    from importlib.metadata import (
        packages_distributions,
    )  # slow: it reads every installed file list

    names = {canonicalize_name(name) for name in packages_distributions().get(module, [])}
    return next(iter(sorted(names & wanted)), module)


def _requirements(root: Path) -> tuple[dict[str, Requirement], dict[str, str]]:
    """Return what the modules may import, by canonical name, and every locked version."""
    declared = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    wanted: dict[str, Requirement] = {}
    for line in declared["dependency-groups"]["patterns"]:
        try:
            requirement = Requirement(line)
        except InvalidRequirement as error:
            raise CatalogError([f"pyproject.toml: dependency group patterns: {line!r}: {error}"]) from None
        wanted[canonicalize_name(requirement.name)] = requirement
    return wanted, pins(root / "requirements.txt")


def pins(lock: Path) -> dict[str, str]:
    """Return every locked version of a lock file, by canonical name."""
    found = re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([\w.+!-]+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def fingerprint(pattern: Pattern, root: Path = ROOT) -> str:
    """Return a digest of what a run proves: page, modules, proofs and the locked versions they ran with."""
    digest = hashlib.sha256(repr([(d.name, d.locked) for d in pattern.requires]).encode())
    for name in sorted({f"docs/{pattern.src}", *pattern.modules, *(proof.path for proof in pattern.proofs)}):
        digest.update(name.encode() + b"\0" + (root / name).read_bytes() + b"\0")
    return digest.hexdigest()


def _runs(root: Path) -> list[dict[str, Any]]:
    """Read what test runs have recorded in .verified/, one file a Python version."""
    runs = []
    for path in sorted((root / ".verified").glob("*.json")):
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue  # a run that was killed while it wrote proves nothing
        if isinstance(run, dict) and {"python", "date", "patterns"} <= run.keys():
            runs.append(run)
    return runs


def _verified(pattern: Pattern, runs: list[dict[str, Any]], root: Path) -> Verified | None:
    if not runs:
        return None
    now = fingerprint(pattern, root)
    matching = [r for r in runs if r["patterns"].get(pattern.id, {}).get("fingerprint") == now]
    if not matching:
        return None
    results = [run["patterns"][pattern.id] for run in matching]
    servers: dict[str, str] = {}
    for result in results:
        servers |= result.get("servers", {})
    newest = max(matching, key=lambda run: str(run["date"]))
    return Verified(
        str(newest["date"]),
        tuple(
            sorted(
                {str(run["python"]) for run in matching},
                key=lambda v: [int(n) for n in re.findall(r"\d+", v)],
            )
        ),
        servers,
        min(result["passed"] for result in results),
        max(result["failed"] for result in results),
        max(result["skipped"] for result in results),
    )
