"""What may be installed: the declared dependencies of the patterns, and the versions in the lock files."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from _catalog.model import CatalogError, Distribution


def declared(root: Path) -> dict[str, Requirement]:
    """Return what the modules may import, by canonical name."""
    groups = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    wanted: dict[str, Requirement] = {}
    for line in groups["patterns"]:
        try:
            requirement = Requirement(line)
        except InvalidRequirement as error:
            raise CatalogError([f"pyproject.toml: dependency group patterns: {line!r}: {error}"]) from None
        wanted[canonicalize_name(requirement.name)] = requirement
    return wanted


def pins(lock: Path) -> dict[str, str]:
    """Return every locked version of a lock file, by canonical name."""
    found = re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([\w.+!-]+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


class Lock:
    """The declared and the locked dependencies of one tree."""

    def __init__(self, root: Path) -> None:
        self.wanted = declared(root)
        self.locked = pins(root / "requirements.txt")

    def distribution_of(self, module: str) -> Distribution | str:
        """Return what provides an imported module, or the problem and its remedy as `problem; remedy`."""
        name: str = canonicalize_name(module)
        if name not in self.wanted:
            name = _installed_as(module, frozenset(self.wanted))
        if name not in self.wanted:
            remedy = "add its distribution to [dependency-groups] patterns and run `make lock`"
            return f"imports {module!r}, which is not declared; {remedy}"
        if name not in self.locked:
            return f"imports {module!r}, which is not locked; run `make lock`"
        return Distribution(name, str(self.wanted[name]), self.locked[name])


@functools.cache
def _installed_as(module: str, wanted: frozenset[str]) -> str:
    """Find the distribution of an import name that differs from it (`yaml` -> pyyaml), among the declared ones."""
    names = {canonicalize_name(name) for name in _installed().get(module, [])}
    return next(iter(sorted(names & wanted)), module)


@functools.cache
def _installed() -> Mapping[str, list[str]]:
    from importlib.metadata import packages_distributions

    return packages_distributions()  # slow: it reads every installed file list
