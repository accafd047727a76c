"""An explanation excuses the mutant that it is about, no other, and no longer than there is one."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mutation.errors import Unusable
from mutation.explained import Explained, explanations, outdated
from mutation.mutants import Mutant

ROOT = Path(__file__).resolve().parents[2]
ENTRY = Explained("snippets/a.py", "return 1", "NumberReplacer", "why")
MUTANT = Mutant("snippets/a.py", "NumberReplacer", "return 1", "def f():", "return 1", "return 2")
TEXT = '[[explained]]\nmodule = "m"\nline = "l"\noperator = "o"\nwhy = "w"\n'


@pytest.mark.parametrize("change", [{}, {"becomes": "return 2"}, {"below": "def f():"}], ids=str)
def test_an_explanation_fits_its_mutant(change: dict[str, str]) -> None:
    assert replace(ENTRY, **change).fits(MUTANT)


@pytest.mark.parametrize("key", ["module", "line", "operator", "becomes", "below"])
def test_an_explanation_of_something_else_does_not_fit(key: str) -> None:
    assert not replace(ENTRY, **{key: "something else"}).fits(MUTANT)


def test_the_files_of_all_categories_are_read(tmp_path: Path) -> None:
    (tmp_path / "email.toml").write_text(TEXT + TEXT)
    (tmp_path / "caching.toml").write_text(TEXT + 'becomes = "b"\nbelow = "c"\n')
    (tmp_path / "empty.toml").write_text("# nothing yet\n")
    assert explanations(tmp_path) == [Explained("m", "l", "o", "w", "b", "c"), *[Explained("m", "l", "o", "w")] * 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT + TEXT.replace('why = "w"', ""), "email.toml: entry 2: missing 1 required positional argument: 'why'"),
        (TEXT + 'because = "w"', "email.toml: entry 1: got an unexpected keyword argument 'because'"),
        ("[[explained", "email.toml: "),
    ],
    ids=["a key is missing", "a key means nothing", "no TOML"],
)
def test_an_entry_that_is_wrong_is_named_with_its_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "email.toml").write_text(text)
    with pytest.raises(Unusable) as caught:
        explanations(tmp_path)
    assert f"{tmp_path.name}/{message}" in str(caught.value)


def reports(root: Path, entry: Explained, judged: Collection[str], generated: Collection[str] = ()) -> list[str]:
    def near(module: str, source: str, line: str, operator: str) -> Iterator[Mutant]:
        if (source, line, operator) == ("return 1", MUTANT.line, MUTANT.operator):
            yield replace(MUTANT, module=module)

    return list(outdated([entry], judged, generated, root, near))


def test_an_explanation_is_outdated_once_no_mutant_fits_it(tmp_path: Path) -> None:
    (tmp_path / "snippets").mkdir()
    (tmp_path / "snippets" / "a.py").write_text("return 1")
    judged = {"snippets/a.py"}
    assert reports(tmp_path, ENTRY, judged) == []
    (gone,) = reports(tmp_path, replace(ENTRY, line="return 3"), judged)
    assert gone == "explained/: snippets/a.py has no NumberReplacer on 'return 3' any more: remove the entry"
    (other,) = reports(tmp_path, replace(ENTRY, becomes="return 3"), judged)
    assert "has no NumberReplacer on 'return 3' any more" in other
    assert reports(tmp_path, replace(ENTRY, line="return 3"), set()) == [], "this module was not asked for"


def test_an_explanation_of_a_module_that_is_gone_is_outdated(tmp_path: Path) -> None:
    (report,) = reports(tmp_path, ENTRY, set())
    assert report.startswith("explained/: snippets/a.py has no NumberReplacer")


def test_an_explanation_of_a_generated_module_belongs_to_its_source(tmp_path: Path) -> None:
    (report,) = reports(tmp_path, ENTRY, {ENTRY.module}, {ENTRY.module})
    assert report.endswith("is generated and has no mutants: explain its source's")


@pytest.mark.parametrize(
    "file", sorted(Path(__file__).with_name("explained").glob("*.toml")), ids=lambda file: file.stem
)
def test_every_explanation_is_of_a_line_that_a_module_of_its_category_has(file: Path) -> None:
    wrong = []
    for entry in tomllib.loads(file.read_text(encoding="utf-8"))["explained"]:
        module = ROOT / entry["module"]
        lines = {line.strip() for line in module.read_text().splitlines()} if module.is_file() else set[str]()
        if not entry["module"].startswith(f"snippets/{file.stem.replace('-', '_')}/") or entry["line"] not in lines:
            wrong.append(f"{entry['module']}: {entry['line']}")
    assert not wrong, "\n".join(wrong)
