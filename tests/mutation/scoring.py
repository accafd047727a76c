"""The score of a module: how many of its mutants the proofs have noticed, and which they have not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mutation.explained import Explained
from mutation.mutants import Mutant
from mutation.proving import Outcome

GOAL = 0.9  # of the mutants have to be killed


@dataclass
class Score:
    """What became of the mutants of one module."""

    module: str
    sites: int = 0
    sampled: int = 0
    killed: int = 0
    late: int = 0
    explained: int = 0
    seconds: float = 0.0
    survivors: list[Mutant] = dataclasses.field(default_factory=list)
    excused: list[Mutant] = dataclasses.field(default_factory=list)  # explained, and killed all the same

    @property
    def share(self) -> float:
        """Killed, of those that somebody could kill."""
        possible = self.sampled - self.explained
        return self.killed / possible if possible else 1.0

    @property
    def percent(self) -> int:
        """The share as it is shown: 89.9 % is not 90 %."""
        return int(self.share * 100)

    def __str__(self) -> str:
        parts = [f"{self.killed} of {self.sampled} killed", f"drawn from {self.sites}"]
        if self.late:
            parts.insert(1, f"{self.late} of them by time")
        if self.explained:
            parts.insert(1, f"{self.explained} explained")
        return f"{self.module:<52} {self.percent:>3} %  {self.seconds:>4.0f} s  {', '.join(parts)}"

    def count(self, tried: Iterable[tuple[Mutant, Outcome]], known: Sequence[Explained]) -> Iterator[int]:
        """Count what became of each mutant; yield how many are counted."""
        for number, (mutant, outcome) in enumerate(tried, 1):
            explained = any(entry.fits(mutant) for entry in known)
            if outcome != "survived":
                self.killed += 1
                self.late += outcome == "timeout"
                self.excused += [mutant] if explained else []
            elif explained:
                self.explained += 1
            else:
                self.survivors.append(mutant)
            yield number
        self.survivors.sort(key=_first_line)


def _first_line(mutant: Mutant) -> int:
    return int(mutant.diff.split("@@ -")[1].split()[0].split(",")[0])
