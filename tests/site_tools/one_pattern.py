"""Everything about one pattern that can be known in seconds: `make test PATTERN=category/slug`.

Each part runs beside the others. At the end stands all that is left to do, not only the first of it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from _catalog import read
from _catalog.markdown import anchor
from _catalog.model import ROOT, CatalogError, folder_of
from _catalog.pages import includes
from site_tools.searching import queries

_TODO = re.compile(r"\bTODO\b|\btodo-(?:one|two)\b")
_LINK = re.compile(r"\]\((?P<path>[\w./-]+\.md)(?:#(?P<anchor>[\w-]+))?\)")
QUERIES = 3  # that a pattern has of its own


@dataclass(frozen=True)
class Part:
    """One part of the check: what it is about, and what is left to do; nothing is left when it is fine."""

    name: str
    left: tuple[str, ...]


def files_of(name: str, root: Path = ROOT) -> list[Path]:
    """Return page, modules, proofs and what stands beside them, also while the catalogue is broken."""
    category, _, slug = name.partition("/")
    page = root / "docs" / "patterns" / category / f"{slug}.md"
    if not page.is_file():
        raise CatalogError([f"{name!r} is no pattern; start it with `make new PATTERN={name}`"])
    found = includes(page.read_text(encoding="utf-8", errors="replace"))
    modules = [include.path for include in found if include.path.startswith("snippets/")]
    folder = root / "tests" / "patterns" / folder_of(category)
    beside = [*folder.glob(f"test_{folder_of(slug)}.py"), *folder.glob(f"test_{folder_of(slug)}_*.py")]
    beside += folder.glob(f"{folder_of(slug)}_*.py")
    return [page, *(path for module in modules if (path := root / module).is_file()), *sorted(beside)]


def unwritten(files: Sequence[Path], root: Path = ROOT) -> Iterator[str]:
    """Yield each line that still says what to write."""
    for path in files:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            if _TODO.search(line):
                yield f"{path.relative_to(root).as_posix()}:{number}: {line.strip()}"


def broken_links(page: Path, root: Path = ROOT) -> Iterator[str]:
    """Yield each link of a page to another that is not there, or has no such heading."""
    text = page.read_text(encoding="utf-8", errors="replace")
    for match in _LINK.finditer(text):
        target = (page.parent / match["path"]).resolve()
        line = text.count("\n", 0, match.start()) + 1
        where = f"{page.relative_to(root).as_posix()}:{line}: link to {match['path']}"
        if not target.is_file():
            yield f"{where}, which does not exist; correct it"
        elif match["anchor"] and match["anchor"] not in _anchors(target.read_text(encoding="utf-8")):
            yield f"{where}, which has no heading #{match['anchor']}; correct it"


def _anchors(text: str) -> set[str]:
    """Return the ids of a page's headings: those that are written, and those made of their words."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {*re.findall(r"\{#([\w-]+)\}", text), *(anchor(re.sub(r"`|\{.*\}", "", words)) for words in headings)}


def missing_queries(name: str) -> Iterator[str]:
    """Tell whether readers' questions are written down."""
    found = sum(wanted == name for _, wanted in queries())
    if found < QUERIES:
        category = name.partition("/")[0]
        yield f"tests/site/queries/{category}.tsv: {found} of {QUERIES} questions; add what readers would type"


def uncovered(report: Path, modules: Sequence[str]) -> Iterator[str]:
    """Yield the lines and branches of the modules that their own proofs do not run."""
    measured = json.loads(report.read_text(encoding="utf-8"))["files"] if report.is_file() else {}
    for module in modules:
        found = measured.get(module)
        if found is None:
            yield f"{module}: its proofs do not import it"
        elif found["missing_lines"] or found.get("missing_branches"):
            branches = [f"{a}->{b}" for a, b in found.get("missing_branches", [])]
            places = ", ".join([*map(str, found["missing_lines"]), *branches])
            yield f"{module}: not run by its proofs: {places}"


class Check:
    """The parts for one pattern."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.name = name
        self.scratch = scratch
        self.files = files_of(name)
        self.python = [str(path) for path in self.files if path.suffix == ".py"]
        self.modules = [path.relative_to(ROOT).as_posix() for path in self.files if "snippets" in path.parts]
        self.proofs = [path for path in self.python if Path(path).name.startswith("test_")]

    def parts(self) -> list[tuple[str, Callable[[], Iterator[str]]]]:
        """Return what there is to do, the longest first."""
        return [
            ("proofs", self._prove_modules),
            ("types", lambda: self._run("types", "mypy", "--no-error-summary", *self.python)),
            ("page", self._prove_page),
            ("lint", lambda: self._run("lint", "ruff", "check", "--quiet", "--output-format=concise", *self.python)),
            ("format", self._check_format),
            ("catalogue", self._read_catalogue),
            ("links", lambda: broken_links(self.files[0])),
            ("search", lambda: missing_queries(self.name)),
        ]

    def _prove_modules(self) -> Iterator[str]:
        if not self.proofs:
            yield f"tests/patterns: there is no test_{folder_of(self.name.partition('/')[2])}.py; write it"
            return
        report = self.scratch / "coverage.json"
        workers = ["-n", "2"] if len(self.proofs) > 1 else []
        yield from self._run(
            *("proofs", "pytest", "-q", "--no-header", *workers, *self.proofs),
            *("--cov", "--cov-fail-under=0", f"--cov-report=json:{report}"),
        )
        yield from uncovered(report, self.modules)

    def _prove_page(self) -> Iterator[str]:
        sites = [str(ROOT / "tests" / "site" / name) for name in ("test_examples.py", "test_shape.py")]
        twins = str(ROOT / "tests" / "twins")
        yield from self._run("page", "pytest", "-q", "--no-header", f"--pattern={self.name}", *sites, twins)

    def _check_format(self) -> Iterator[str]:
        if any(self._run("format", "ruff", "format", "--check", "--quiet", *self.python)):
            yield "run `make format`"

    def _read_catalogue(self) -> Iterator[str]:
        try:
            read.load()
        except CatalogError as error:
            yield from error.problems

    def _run(self, part: str, *command: str) -> Iterator[str]:
        environment = {**os.environ, "COVERAGE_FILE": str(self.scratch / f"{part}.coverage")}
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            yield (done.stdout + done.stderr).strip() or f"{command[0]} ended with {done.returncode}"


def check(name: str) -> list[Part]:
    """Run every part for a pattern."""
    with tempfile.TemporaryDirectory() as scratch:
        whole = Check(name, Path(scratch))

        def run(part: tuple[str, Callable[[], Iterator[str]]]) -> Part:
            title, work = part
            return Part(title, tuple(work()))

        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(run, whole.parts()))
        return [*found, Part("to write", tuple(unwritten(whole.files)))]


def about(name: str, tests: Sequence[str]) -> set[str]:
    """Return those of the site's tests that are about the pattern, or about the whole catalogue."""
    known = {name, *(path.relative_to(ROOT).as_posix() for path in files_of(name))}
    return {test for test in tests if "[" not in test or any(part in test for part in known)}


def main(name: str) -> int:
    """Check one pattern and print what is left to do."""
    try:
        parts = check(name)
    except CatalogError as error:
        print(error, file=sys.stderr)
        return 2
    for part in parts:
        print(f"{part.name:10} {'to do' if part.left else 'ok'}")
    for part in parts:
        for text in part.left:
            print(f"\n--- {part.name}\n{text}" if "\n" in text else f"{part.name}: {text}")
    return 1 if any(part.left for part in parts) else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
