"""The patterns are those of the catalogue, and a generated module is known by its twin's entry."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from _catalog import model, read
from mutation.errors import Unusable
from mutation.subjects import Subject, generated, subjects_of


def pattern(name: str, services: list[str]) -> Any:
    proofs = [SimpleNamespace(path=path) for path in ("tests/a.py", "tests/a.py", "tests/b.py")]
    return SimpleNamespace(id=name, modules=("m.py", "m.sql"), proofs=proofs, meta=SimpleNamespace(services=services))


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    patterns = [pattern("email/smtp", ["smtp"]), pattern("caching/memory", [])]
    monkeypatch.setattr(read, "load", lambda root: SimpleNamespace(patterns=patterns))


def twins(root: Path, text: str) -> dict[str, str]:
    folder = root / "tests" / "twins"
    folder.mkdir(parents=True)
    (folder / "twins.toml").write_text(text)
    return generated(root)


def test_a_module_is_generated_when_a_twin_names_it_as_its_target(tmp_path: Path) -> None:
    text = '[[twin]]\nsource = "x_async.py"\ntarget = "x_sync.py"\nreplace = [["a", "b"]]\n'
    assert twins(tmp_path, text) == {"x_sync.py": "x_async.py"}


def test_without_a_list_of_twins_no_module_is_generated(tmp_path: Path) -> None:
    assert generated(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "message"), [("[[twin]]\ntarget = 'a'", "a twin has no 'source'"), ("[[", "twins.toml: ")]
)
def test_a_list_of_twins_that_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(Unusable, match=message):
        twins(tmp_path, text)


@pytest.mark.usefixtures("catalogue")
def test_a_pattern_is_its_modules_its_proofs_once_and_its_services(tmp_path: Path) -> None:
    before = list(sys.path)
    assert subjects_of(tmp_path, ["email/smtp"]) == [
        Subject("email/smtp", ("m.py",), ("tests/a.py", "tests/b.py"), ("smtp",)),
    ]
    assert [subject.name for subject in subjects_of(tmp_path, [])] == ["email/smtp", "caching/memory"]
    assert sys.path == before


@pytest.mark.usefixtures("catalogue")
def test_a_pattern_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="there is no pattern email/nope; there are: email/smtp, caching/memory"):
        subjects_of(tmp_path, ["email/nope", "email/smtp"])


def test_what_is_wrong_with_the_catalogue_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(root: Path) -> None:
        raise model.CatalogError(["docs/patterns/x.md:1: no title; add the key"])

    monkeypatch.setattr(read, "load", broken)
    with pytest.raises(Unusable, match="no title"):
        subjects_of(tmp_path, [])
