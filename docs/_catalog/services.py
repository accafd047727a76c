"""The services that pages may name: each launcher in tests/servers says what it starts.

A launcher has at its top `SERVICE = ("postgresql", "PostgreSQL")`: the name in front matter, and the words of readers.
It is read here without being imported, since a build of the site needs no server. The launcher's fixtures and its
`environment(request)`, the variables that examples find set, are found by the tests in the same file.
"""

from __future__ import annotations

import ast
from pathlib import Path

from _catalog.code import tree
from _catalog.model import CatalogError, Service


def load(root: Path) -> dict[str, Service]:
    """Return the services by name."""
    found: dict[str, Service] = {}
    for path in sorted((root / "tests" / "servers").glob("*.py")):
        for node in tree(path).body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["SERVICE"]:
                service = _service(path, node, root)
                found[service.name] = service
    return found


def _service(path: Path, node: ast.Assign, root: Path) -> Service:
    try:
        name, words = ast.literal_eval(node.value)
    except ValueError:
        where = f"{path.relative_to(root).as_posix()}:{node.lineno}"
        raise CatalogError([f'{where}: SERVICE is no pair of texts; write ("name", "words of readers")']) from None
    return Service(str(name), str(words), f"servers.{path.stem}")
