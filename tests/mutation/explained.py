"""The mutants that may live, each with its reason: what explained/ says."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mutation.errors import Unusable
from mutation.mutants import Mutant

# Module, its source, line and operator to every mutant they have.
Near = Callable[[str, str, str, str], Iterable[Mutant]]


@dataclass(frozen=True)
class Explained:
    """Why a mutant may survive.

    `becomes` tells two mutants of a line and operator apart, `below` (the line before) two lines that read the same.
    """

    module: str
    line: str
    operator: str
    why: str
    becomes: str | None = None
    below: str | None = None

    def fits(self, mutant: Mutant) -> bool:
        """Tell whether this is about the mutant."""
        same = (self.module, self.line, self.operator) == (mutant.module, mutant.line, mutant.operator)
        return same and self.becomes in {None, mutant.becomes} and self.below in {None, mutant.below}


def explanations(folder: Path) -> list[Explained]:
    """Read the files of explained/; raise `Unusable` when an entry lacks a key, or has one that means nothing."""
    return [entry for path in sorted(folder.glob("*.toml")) for entry in _entries(path)]


def _entries(path: Path) -> Iterator[Explained]:
    name = f"{path.parent.name}/{path.name}"
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("explained", [])
    except tomllib.TOMLDecodeError as error:
        raise Unusable(f"{name}: {error}") from None
    for number, entry in enumerate(entries, 1):
        try:
            yield Explained(**entry)
        except TypeError as error:
            problem = str(error).removeprefix("Explained.__init__() ")
            raise Unusable(f"{name}: entry {number}: {problem}") from None


def outdated(
    known: Sequence[Explained], judged: Collection[str], generated: Collection[str], root: Path, near: Near
) -> Iterator[str]:
    """Name the explanations that no mutant fits any more: of these modules, and of modules that are gone."""
    for entry in known:
        file = root / entry.module
        change = f"{entry.module} has no {entry.operator} on {entry.becomes or entry.line!r} any more"
        if entry.module in generated:
            yield f"explained/: {entry.module} is generated and has no mutants: explain its source's"
        elif not file.is_file():
            yield f"explained/: {change}: remove the entry"
        elif entry.module in judged:
            source = file.read_text(encoding="utf-8")
            if not any(entry.fits(mutant) for mutant in near(entry.module, source, entry.line, entry.operator)):
                yield f"explained/: {change}: remove the entry"
