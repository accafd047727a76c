"""The locked packages are above every vulnerability that a page or a pattern knows of, and none is abandoned."""

from __future__ import annotations

import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from _catalog import lock as locked
from _catalog.model import ROOT

LOCKS = ("requirements.txt", "requirements-bench.txt")

#: The first release without the hole, by package.
FLOORS = {
    "authlib": ("1.6.12", "CVE-2026-27962, CVE-2026-41425, CVE-2026-44681: a token's own key, a state of any browser"),
    "pyjwt": ("2.12.0", "CVE-2026-32597: unknown critical headers were accepted"),
    "starlette": ("1.0.1", "CVE-2026-48710: the Host header changed request.url.path"),
}
#: What pages advise against, and what a proof must not come to depend on.
ABANDONED = {"advocate", "arq", "bleach", "oidc-provider-mock", "passlib", "pycrypto", "python-jose"}


@pytest.mark.parametrize("lock", LOCKS)
def test_the_locked_versions_are_above_every_hole_that_is_known_here(lock: str) -> None:
    pins = locked.pins(ROOT / lock)
    for name, (floor, why) in FLOORS.items():
        assert name in pins, f"{lock}: {name} is not locked; remove it from FLOORS, or lock it"
        assert Version(pins[name]) >= Version(floor), (
            f"{lock}: {name} {pins[name]} is below {floor} ({why}); run `make lock`"
        )


def test_the_install_lines_on_the_pages_are_above_them_too() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]["patterns"]
    lowest: dict[str, SpecifierSet] = {canonicalize_name(r.name): r.specifier for r in map(Requirement, declared)}
    for name, (floor, why) in FLOORS.items():
        for bound in lowest.get(name, SpecifierSet()):
            assert Version(bound.version) >= Version(floor), f"pyproject.toml: {name}{bound} admits {why}"


@pytest.mark.parametrize("lock", LOCKS)
def test_no_abandoned_library_is_locked(lock: str) -> None:
    assert not ABANDONED & locked.pins(ROOT / lock).keys()
