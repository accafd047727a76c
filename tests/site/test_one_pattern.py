"""`make test PATTERN=x` names all that is left to do for a pattern, whatever is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from _catalog import new, read
from _catalog.model import CatalogError
from site_tools import one_pattern, trees


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with a pattern that was only just started."""
    root = trees.make(tmp_path_factory.mktemp("one-pattern") / "tree", 1)
    new.start("own-patterns/brand-new", root)
    return root


def test_the_files_of_a_pattern_are_found_while_the_catalogue_is_broken(tree: Path) -> None:
    names = {path.relative_to(tree).as_posix() for path in one_pattern.files_of("own-patterns/brand-new", tree)}
    assert names == {
        "docs/patterns/own-patterns/brand-new.md",
        "snippets/own_patterns/brand_new.py",
        "tests/patterns/own_patterns/test_brand_new.py",
        "tests/patterns/own_patterns/test_brand_new_own.py",
    }


def test_a_pattern_that_does_not_exist_is_told_how_to_start(tree: Path) -> None:
    with pytest.raises(CatalogError, match="start it with `make new PATTERN=own-patterns/no-such`"):
        one_pattern.files_of("own-patterns/no-such", tree)


def test_every_line_that_is_left_to_write_is_named(tree: Path) -> None:
    files = one_pattern.files_of("own-patterns/brand-new", tree)
    left = list(one_pattern.unwritten(files, tree))
    assert len(left) > 20
    assert {line.partition(":")[0] for line in left} == {path.relative_to(tree).as_posix() for path in files}
    assert "snippets/own_patterns/brand_new.py:1: " in "\n".join(left)


def test_a_link_to_no_page_or_no_heading_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Title\n\n## Why it fails\n\n## Usage {#usage}\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](other.md#usage) [c](other.md#why-it-fails)\n\n[d](gone.md)\n[e](other.md#nothing)\n",
        encoding="utf-8",
    )
    assert list(one_pattern.broken_links(page, tmp_path)) == [
        "page.md:3: link to gone.md, which does not exist; correct it",
        "page.md:4: link to other.md, which has no heading #nothing; correct it",
    ]


def test_a_pattern_without_questions_is_told_where_to_write_them() -> None:
    assert list(one_pattern.missing_queries(read.load().patterns[0].id)) == []
    (left,) = one_pattern.missing_queries("resilience/no-such")
    assert left == "tests/site/queries/resilience.tsv: 0 of 3 questions; add what readers would type"


def test_what_its_own_proofs_do_not_run_is_named(tmp_path: Path) -> None:
    report = tmp_path / "coverage.json"
    files = {
        "snippets/a/whole.py": {"missing_lines": [], "missing_branches": []},
        "snippets/a/part.py": {"missing_lines": [7], "missing_branches": [[3, 5]]},
    }
    report.write_text(json.dumps({"files": files}), encoding="utf-8")
    modules = ["snippets/a/whole.py", "snippets/a/part.py", "snippets/a/none.py"]
    assert list(one_pattern.uncovered(report, modules)) == [
        "snippets/a/part.py: not run by its proofs: 7, 3->5",
        "snippets/a/none.py: its proofs do not import it",
    ]


def test_only_the_named_patterns_tests_of_the_site_are_run() -> None:
    first, second = read.load().patterns[:2]
    own = {
        f"test_a[docs/{first.src}]",
        f"test_b[{first.modules[0]}]",
        f"test_example[docs/{first.src}:12]",
        "test_about_all",  # what is about the whole catalogue stays
    }
    others = {f"test_a[docs/{second.src}]", f"test_b[{second.modules[0]}]"}
    assert one_pattern.about(first.id, [*own, *others]) == own
