"""What is judged: the patterns of the catalogue, less the modules that are generated from others."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mutation.errors import Unusable


@dataclass(frozen=True)
class Subject:
    """A pattern: its modules, the files that prove them, and the servers that these need."""

    name: str
    modules: tuple[str, ...]
    files: tuple[str, ...]
    services: tuple[str, ...] = ()


def generated(root: Path) -> dict[str, str]:
    """Return the modules that are generated, each with its source.

    Their mutants would be the source's once more, and a survivor could not be mended in them.
    """
    try:
        text = (root / "tests" / "twins" / "twins.toml").read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    try:
        return {twin["target"]: twin["source"] for twin in tomllib.loads(text).get("twin", [])}
    except tomllib.TOMLDecodeError as error:
        raise Unusable(f"tests/twins/twins.toml: {error}") from None
    except KeyError as error:
        raise Unusable(f"tests/twins/twins.toml: a twin has no {error}") from None


def subjects_of(root: Path, names: Sequence[str]) -> list[Subject]:
    """Return the patterns of these names ("category/slug"), or all; raise `Unusable` when one is not there."""
    sys.path.insert(0, str(root / "docs"))
    from _catalog import model, read

    try:
        patterns = {pattern.id: pattern for pattern in read.load(root).patterns}
    except model.CatalogError as error:
        raise Unusable(str(error)) from None
    finally:
        sys.path.remove(str(root / "docs"))
    if missing := [name for name in names if name not in patterns]:
        raise Unusable(f"there is no pattern {', '.join(missing)}; there are: {', '.join(patterns)}")
    return [
        Subject(
            name,
            tuple(module for module in pattern.modules if module.endswith(".py")),
            tuple(dict.fromkeys(proof.path for proof in pattern.proofs)),
            tuple(pattern.meta.services),
        )
        for name, pattern in patterns.items()
        if name in names or not names
    ]
