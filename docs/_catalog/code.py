"""Read Python files without running them: what modules import and define, and which tests a proof file has."""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

from _catalog.model import Proof

_TEST = re.compile(r"^(?: {4})?(?:async )?def (?P<name>test_\w+)\(", re.MULTILINE)
_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<package>[\w.]+)[ \t]+import[ \t]+(?P<names>\([^)]*\)|[^\n(]+)"
    r"|import[ \t]+(?P<modules>[^\n]+))",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Scan:
    """What is read off a module's source: imports with their lines, names of public coroutines and of functions."""

    imports: tuple[tuple[str, int], ...]
    waiting: frozenset[str]
    plain: frozenset[str]


def tree(path: Path) -> ast.Module:
    """Return the syntax tree of a Python file, parsed once while it does not change."""
    return _parsed(path, path.stat().st_mtime_ns)


def scan(path: Path) -> Scan:
    """Scan a module, once while it does not change; raise `SyntaxError` when it is not Python."""
    return _scanned(path, path.stat().st_mtime_ns)


def proofs_in(root: Path, path: Path) -> tuple[Proof, ...]:
    """Return the tests of a file, read once while it does not change."""
    return _proofs(root, path, path.stat().st_mtime_ns)


def imported_names(path: Path) -> frozenset[str]:
    """Return every dotted name that a file may import: modules, and what it takes from packages."""
    return _imported(path, path.stat().st_mtime_ns)


@functools.cache
def _parsed(path: Path, stamp: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@functools.cache
def _scanned(path: Path, stamp: int) -> Scan:
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
    return Scan(tuple(imports), frozenset(waiting), frozenset(plain))


@functools.cache
def _proofs(root: Path, path: Path, stamp: int) -> tuple[Proof, ...]:
    text, name = path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()
    found = []
    line, seen = 1, 0
    for match in _TEST.finditer(text):  # a hundred files: parsing each would take seconds
        line, seen = line + text.count("\n", seen, match.start("name")), match.start("name")
        found.append(Proof(match["name"], name, line))
    return tuple(found)


@functools.cache
def _imported(path: Path, stamp: int) -> frozenset[str]:
    found: set[str] = set()
    for match in _IMPORT.finditer(path.read_text(encoding="utf-8")):  # as above: no parsing
        if match["package"]:
            found.add(match["package"])
            names = re.findall(r"\w+", re.sub(r"#[^\n]*|\bas\s+\w+", "", match["names"]))
            found |= {f"{match['package']}.{name}" for name in names}
        else:
            found |= {part.split()[0] for part in match["modules"].split(",") if part.strip()}
    return frozenset(found)
