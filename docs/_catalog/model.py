"""What the catalogue is made of: the types that everything else reads or writes, and nothing that reads files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

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

Word = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Text = Annotated[str, Field(min_length=3)]


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
    services: list[Word]
    related: list[str]
    used_by: list[Text]
    reviewed: date
    status: Literal["current", "archived"]

    @field_validator("tags", "aliases")
    @classmethod
    def _refuse_twins(cls, values: list[str]) -> list[str]:
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
class Service:
    """Something that has to run beside the code: what pages call it, and the words readers know it by."""

    name: str
    words: str
    module: str  # the launcher, as tests import it


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
    def markdown(self) -> str:
        """Address of the page as one Markdown file."""
        return f"patterns/{self.id}.md"

    @property
    def archived(self) -> bool:
        """Whether the page is kept only for those who have its address."""
        return self.meta.status == "archived"

    @property
    def proof_files(self) -> tuple[str, ...]:
        """The files that prove it."""
        return tuple(sorted({proof.path for proof in self.proofs}))

    @property
    def package(self) -> str | None:
        """The folder of its modules where that is a package, `snippets/category/package`; None where there is none."""
        first = Path(self.modules[0]) if self.modules else Path()
        return first.parent.as_posix() if len(first.parts) > 3 else None

    @property
    def archive(self) -> str | None:
        """Address of the archive of its modules, None where there is only one."""
        if len(self.modules) < 2:
            return None
        return f"{self.package or Path(self.modules[0]).parent.as_posix() + '/' + folder_of(self.slug)}.zip"


@dataclass(frozen=True)
class Category:
    """A category and its patterns."""

    name: str
    meta: CategoryMeta
    patterns: tuple[Pattern, ...]

    @property
    def current(self) -> tuple[Pattern, ...]:
        """Its patterns, without those that are archived."""
        return tuple(pattern for pattern in self.patterns if not pattern.archived)


@dataclass(frozen=True)
class Catalog:
    """The whole library."""

    root: Path
    categories: tuple[Category, ...]
    front_door: tuple[str, ...]
    services: Mapping[str, Service]

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

    def by_id(self, name: str) -> Pattern:
        """Return the pattern `category/slug`; raise `CatalogError` when there is none."""
        for pattern in self.patterns:
            if pattern.id == name:
                return pattern
        known = ", ".join(pattern.id for pattern in self.patterns)
        raise CatalogError([f"{name!r} is no pattern; there are: {known}"])

    def words_of(self, pattern: Pattern) -> list[str]:
        """Return the services that a pattern needs, in the words readers know."""
        return [self.services[name].words for name in pattern.meta.services]


def folder_of(name: str) -> str:
    """Return a category's or slug's name as Python writes it: no hyphens."""
    return name.replace("-", "_")
