"""What test runs have recorded, and whether it still holds: the one module that writes, reads and judges records.

A run of the tests leaves `.verified/<python>-<platform>.json`: for each pattern whose proofs all ran, how they ended,
on which day, with which real servers, and a fingerprint of everything that the proofs read. A record counts only while
the fingerprint is the same.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from _catalog.code import imported_names
from _catalog.model import Catalog, Pattern, Verified, folder_of

FOLDER = ".verified"
#: What every proof runs with, whatever it imports.
SHARED = ("pyproject.toml", "requirements.txt", "tests/conftest.py")
SHARED_FOLDERS = ("tests/harness", "tests/servers")


@dataclass(frozen=True)
class Result:
    """How the proofs of one pattern ended."""

    fingerprint: str
    date: str
    passed: int
    failed: int
    skipped: int
    servers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What was recorded with one Python on one platform: the newest result of each pattern, by its id."""

    python: str
    platform: str
    results: Mapping[str, Result]


def load(root: Path) -> list[Run]:
    """Read every record; one that cannot be read proves nothing, and is left out."""
    return [run for path in sorted((root / FOLDER).glob("*.json")) if (run := _run(path))]


def save(root: Path, run: Run) -> None:
    """Add the results of a run to those of earlier runs with the same Python, platform and patterns."""
    path = root / FOLDER / f"{run.python}-{run.platform}.json"
    earlier = _run(path)
    results = {**(earlier.results if earlier else {}), **run.results}
    path.parent.mkdir(exist_ok=True)
    data = {
        "python": run.python,
        "platform": run.platform,
        "patterns": {name: asdict(result) for name, result in sorted(results.items())},
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)  # a run that is killed while it writes must not take the last one with it


def verified(pattern: Pattern, runs: Iterable[Run], sources: Sources) -> Verified | None:
    """Return what the records say about a pattern as it stands now; None when none of them is about that."""
    about = [(run, run.results[pattern.id]) for run in runs if pattern.id in run.results]
    if not about:
        return None
    now = sources.fingerprint(pattern)
    holding = [(run, result) for run, result in about if result.fingerprint == now]
    if not holding:
        return None
    servers: dict[str, str] = {}
    for _, result in holding:
        servers |= result.servers
    return Verified(
        max(result.date for _, result in holding),
        tuple(sorted({run.python for run, _ in holding}, key=_version)),
        servers,
        min(result.passed for _, result in holding),
        max(result.failed for _, result in holding),
        max(result.skipped for _, result in holding),
    )


def unproved(catalog: Catalog, python: str, platform: str = sys.platform) -> list[Pattern]:
    """Return the patterns of which no green run with this Python and platform says that they hold as they stand."""
    runs = [run for run in load(catalog.root) if (run.python, run.platform) == (python, platform)]
    sources = Sources(catalog.root)
    seen = [(pattern, verified(pattern, runs, sources)) for pattern in catalog.patterns]
    return [pattern for pattern, record in seen if record is None or record.failed]


class Sources:
    """What the proofs of a tree read, as the tree is at this moment: each file is looked at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._modules: dict[str, Path] = {}  # by dotted name, as proofs import them
        for start in (root / "tests", *(path for path in (root / "snippets").iterdir() if path.is_dir())):
            for path in start.rglob("*.py"):
                parts = path.relative_to(start).with_suffix("").parts
                self._modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        self._imports: dict[Path, set[Path]] = {}
        self._digests: dict[Path, str] = {}
        shared = [path for name in SHARED_FOLDERS for path in (root / name).glob("*.py")]
        shared += [path for name in SHARED if (path := root / name).is_file()]
        self._shared = self._closure(shared)

    def fingerprint(self, pattern: Pattern) -> str:
        """Return a digest of everything that the proofs of a pattern read, names included."""
        digest = hashlib.sha256()
        for name in self.files_of(pattern):
            digest.update(f"{name}\0{self._digest_of(self.root / name)}\0".encode())
        return digest.hexdigest()

    def files_of(self, pattern: Pattern) -> list[str]:
        """Return the files that a pattern's proofs read: their own, what those import, and what all proofs run with.

        Among them are the page and its measurements, kits and applications beside the proofs (a server process loads
        them by name), the harness, the launchers, the settings of the tests, and the lock with every version.
        """
        folder = self.root / "tests" / "patterns" / folder_of(pattern.category)
        beside = [
            path
            for path in (*folder.glob(f"{folder_of(pattern.slug)}_*"), *folder.glob("conftest.py"))
            if path.is_file() and not path.name.startswith("test_")
        ]
        own = [self.root / name for name in (*pattern.modules, *pattern.proof_files)]
        measured = (self.root / "docs" / "_measured" / pattern.category).glob(f"{pattern.slug}.*")
        files = {self.root / "docs" / pattern.src, *measured, *self._closure([*own, *beside]), *self._shared}
        return sorted(path.relative_to(self.root).as_posix() for path in files)

    def _closure(self, files: Iterable[Path]) -> set[Path]:
        """Return the files with all that they import from this tree, and so on."""
        found: set[Path] = set()
        waiting = list(files)
        while waiting:
            path = waiting.pop()
            if path not in found:
                found.add(path)
                waiting += self._imports_of(path)
        return found

    def _imports_of(self, path: Path) -> set[Path]:
        if path not in self._imports:
            names = imported_names(path) if path.suffix == ".py" else ()
            # `from a.b import c` loads a, a.b and, where it is a module, a.b.c.
            loaded = {
                ".".join(parts[: n + 1]) for name in names if (parts := name.split(".")) for n in range(len(parts))
            }
            self._imports[path] = {self._modules[name] for name in loaded & self._modules.keys()}
        return self._imports[path]

    def _digest_of(self, path: Path) -> str:
        if path not in self._digests:
            self._digests[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._digests[path]


def _run(path: Path) -> Run | None:
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        results = {str(name): Result(**result) for name, result in data["patterns"].items()}
        return Run(str(data["python"]), str(data["platform"]), results)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _version(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
