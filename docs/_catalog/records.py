"""What test runs have recorded, and whether it still holds: the one module that writes, reads and judges records.

A run of the tests leaves `.verified/<python>-<platform>.json`: for each pattern whose proofs all ran, how they ended,
on which day, with which real servers, and a fingerprint of everything that the proofs read. A record counts only while
the fingerprint is the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
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


def verified(pattern: Pattern, runs: Iterable[Run], root: Path) -> Verified | None:
    """Return what the records say about a pattern as it stands now; None when none of them is about that."""
    about = [(run, run.results[pattern.id]) for run in runs if pattern.id in run.results]
    if not about:
        return None
    now = fingerprint(pattern, root)
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
    seen = [(pattern, verified(pattern, runs, catalog.root)) for pattern in catalog.patterns]
    return [pattern for pattern, record in seen if record is None or record.failed]


def fingerprint(pattern: Pattern, root: Path) -> str:
    """Return a digest of everything that the proofs of a pattern read, names included."""
    digest = hashlib.sha256()
    for name in files_of(pattern, root):
        digest.update(f"{name}\0{_digest_of(root / name)}\0".encode())
    return digest.hexdigest()


def files_of(pattern: Pattern, root: Path) -> list[str]:
    """Return the files that a pattern's proofs read: their own, what those import, and what all proofs run with.

    Among them are the page and its measurements, kits and applications beside the proofs (a server process loads them
    by name), the harness, the launchers, the settings of the tests, and the lock with every version.
    """
    folder, stem = root / "tests" / "patterns" / folder_of(pattern.category), folder_of(pattern.slug)
    beside = [path for path in folder.glob(f"{stem}_*") if path.is_file() and not path.name.startswith("test_")]
    beside += folder.glob("conftest.py")
    own = [root / name for name in (*pattern.modules, *pattern.proof_files)]
    shared = [path for name in SHARED_FOLDERS for path in (root / name).glob("*.py")]
    shared += [path for name in SHARED if (path := root / name).is_file()]
    measured = (root / "docs" / "_measured" / pattern.category).glob(f"{pattern.slug}.*")
    imported = _closure(root, [*own, *beside, *shared])
    files = {root / "docs" / pattern.src, *imported, *measured}
    return sorted(path.relative_to(root).as_posix() for path in files)


def _closure(root: Path, files: Iterable[Path]) -> set[Path]:
    """Return the files with all that they import from this tree, and so on."""
    found: set[Path] = set()
    waiting = list(files)
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        if path.suffix == ".py":
            for name in imported_names(path):
                waiting += _files_named(root, name)
    return found


def _files_named(root: Path, name: str) -> Iterator[Path]:
    """Yield the files of this tree that an import of this dotted name loads."""
    parts = name.split(".")
    for start in _import_roots(root):
        for length in range(1, len(parts) + 1):
            place = start.joinpath(*parts[:length])
            for path in (place.with_suffix(".py"), place / "__init__.py"):
                if path.is_file():
                    yield path


def _import_roots(root: Path) -> list[Path]:
    return [root / "tests", *(path for path in (root / "snippets").iterdir() if path.is_dir())]


def _digest_of(path: Path) -> str:
    found = path.stat()
    return _content_digest(path, found.st_mtime_ns, found.st_size)


@functools.cache
def _content_digest(path: Path, stamp: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(path: Path) -> Run | None:
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        results = {str(name): Result(**result) for name, result in data["patterns"].items()}
        return Run(str(data["python"]), str(data["platform"]), results)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _version(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
