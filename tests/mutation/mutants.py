"""Which mutants there are: the changes that cosmic-ray's operators can make, and the sample of them that is tried."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import importlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mutation.observable import observable

SAMPLE = 60  # mutants of one module
# Identity for equality, or the reverse: for strings, small numbers and plain objects only the interpreter could tell.
ACCIDENTS = {f"ReplaceComparisonOperator_{swap}" for swap in ("Eq_Is", "Is_Eq", "NotEq_IsNot", "IsNot_NotEq")}


@dataclass(frozen=True)
class Site:
    """One change that an operator can make: `occurrence` is its number among those of the operator."""

    operator: str
    occurrence: int
    place: tuple[tuple[int, int], tuple[int, int]]
    line: str
    below: str  # what the line before it says
    nth: int  # among the sites of this operator on lines that read the same


@dataclass(frozen=True)
class Mutant:
    """A module with one change in it."""

    module: str
    operator: str
    line: str
    below: str
    before: str
    after: str

    @property
    def diff(self) -> str:
        """The changed lines, as a unified diff."""
        old, new = self.before.splitlines(), self.after.splitlines()
        return "\n".join(difflib.unified_diff(old, new, self.module, self.operator, n=0, lineterm=""))

    @property
    def becomes(self) -> str:
        """The first changed line as it reads now."""
        added = (line[1:].strip() for line in self.diff.splitlines()[2:] if line.startswith("+"))
        return next(added, "")


@functools.cache
def sites(source: str) -> tuple[Site, ...]:
    """Return every change that the operators of cosmic-ray, those without settings, can make."""
    # Imported by name: it is installed beside the peers of the benchmarks, not where the types are checked.
    trees, plugins = importlib.import_module("cosmic_ray.ast"), importlib.import_module("cosmic_ray.plugins")
    nodes = list(trees.ast_nodes(trees.get_ast(source)))
    lines = source.splitlines()
    found: list[Site] = []
    for name in plugins.operator_names():
        kind, name = plugins.get_operator(name), name.removeprefix("core/")
        if kind.arguments() or name in ACCIDENTS:
            continue
        operator, twins = kind(), Counter[str]()
        places = (place for node in nodes for place in operator.mutation_positions(node))
        for occurrence, (begin, end) in enumerate(places):
            below, line = lines[begin[0] - 2].strip() if begin[0] > 1 else "", lines[begin[0] - 1].strip()
            found.append(Site(name, occurrence, (begin, end), line, below, twins[line]))
            twins[line] += 1
    return tuple(found)


Maker = Callable[[str, str, Site], Mutant | None]


def make(module: str, source: str, site: Site) -> Mutant | None:
    """Return the mutant of a site; None when the operator cannot make it, or what it makes does not compile."""
    mutating, plugins = importlib.import_module("cosmic_ray.mutating"), importlib.import_module("cosmic_ray.plugins")
    operator = plugins.get_operator(f"core/{site.operator}")()
    with contextlib.suppress(AttributeError, SyntaxError):
        after = mutating.mutate_code(source, operator, site.occurrence)
        if site.operator in {"NumberReplacer", "RemoveDecorator"}:  # they also eat the white space before it
            after = _in_place(source, after, site)
        observable(after)
        return Mutant(module, site.operator, site.line, site.below, source, after)
    return None


def _in_place(source: str, after: str, site: Site) -> str:
    """Return `source` with the change of `after` at this site, and with all its line breaks."""
    lines, ((first, column), (last, end_column)) = source.splitlines(keepends=True), site.place
    if site.operator == "RemoveDecorator":
        return "".join(lines[: first - 1] + lines[last - 1 :])
    tail = lines[last - 1][end_column:] + "".join(lines[last:])
    number = after.removesuffix(tail).split()[-1]
    return "".join(lines[: first - 1]) + lines[first - 1][:column] + number + tail


def sample(module: str, source: str, found: Sequence[Site], make: Maker = make) -> list[Mutant]:
    """Return at most `SAMPLE` mutants that a proof can notice.

    The order is drawn by a hash of the module's path and the line's text, so the same code gives the same mutants
    for everybody, and an edit of one line leaves most of the others'. Every place in the code has its turn before
    one is changed in a second way: `a + b` alone can be broken in eleven.
    """

    def draw(site: Site) -> bytes:
        return hashlib.sha256("\0".join((module, site.line, site.operator, str(site.nth))).encode()).digest()

    turns, order = Counter[object](), list[tuple[int, bytes, Site]]()
    for site in sorted(found, key=draw):
        order.append((turns[site.place], draw(site), site))
        turns[site.place] += 1
    known, chosen = {observable(source)}, list[Mutant]()
    for *_, site in sorted(order, key=lambda entry: entry[:2]):
        mutant = make(module, source, site)
        if mutant and (meaning := observable(mutant.after)) not in known:
            known.add(meaning)
            chosen.append(mutant)
        if len(chosen) == SAMPLE:
            break
    return chosen


def near(module: str, source: str, line: str, operator: str) -> Iterator[Mutant]:
    """Make every mutant of this operator on lines that read so, sampled or not."""
    for site in sites(source):
        if (site.line, site.operator) == (line, operator) and (mutant := make(module, source, site)):
            yield mutant
