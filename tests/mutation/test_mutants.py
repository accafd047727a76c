"""The sample is the same for everybody, and holds only what a proof could notice."""

from __future__ import annotations

import random
import textwrap
from collections import Counter
from dataclasses import replace

import pytest

from mutation import mutants
from mutation.mutants import SAMPLE, Mutant, Site, near, sample, sites

MODULE = "snippets/resilience/circuit_breaker.py"
LINES = tuple(f"x{number} = {number}" for number in range(100))


def site(line: int, operator: str = "NumberReplacer") -> Site:
    return Site(operator, line, ((line + 1, 0), (line + 1, 5)), LINES[line], LINES[line - 1] if line else "", 0)


def make(module: str, source: str, site: Site) -> Mutant:
    """Stand in for cosmic-ray: each operator writes its own name on the line."""
    after = source.replace(site.line, f"{site.line.partition(' =')[0]} = '{site.operator}'")
    return Mutant(module, site.operator, site.line, site.below, source, after)


def drawn(found: list[Site], source: str = "\n".join(LINES), module: str = MODULE) -> list[tuple[str, str]]:
    return [(mutant.line, mutant.operator) for mutant in sample(module, source, found, make)]


def test_the_sample_is_the_same_whatever_order_its_sites_are_found_in() -> None:
    found = [site(line, operator) for line in range(40) for operator in ("A", "B")]
    mixed = random.Random(0).sample(found, len(found))
    assert mixed != found
    assert drawn(mixed) == drawn(found)


def test_the_order_is_a_hash_of_path_line_and_operator_for_ever() -> None:
    found = [site(line) for line in range(6)]
    assert [line for line, _ in drawn(found)] == ["x5 = 5", "x0 = 0", "x2 = 2", "x3 = 3", "x1 = 1", "x4 = 4"]
    assert [line for line, _ in drawn(found, module="snippets/other.py")] != [line for line, _ in drawn(found)]


def test_an_edited_line_leaves_the_mutants_of_the_others_as_they_are() -> None:
    before = [site(line) for line in range(100)]
    edited = [replace(each, line="x7 = 70") if each.line == "x7 = 7" else each for each in before]
    source = "\n".join(LINES).replace("x7 = 7\n", "x7 = 70\n")
    assert len(set(drawn(before)) - set(drawn(edited, source))) <= 1


def test_every_place_is_changed_once_before_one_is_changed_twice() -> None:
    found = [site(line, operator) for line in range(25) for operator in "ABCD"]
    lines = [line for line, _ in drawn(found)]
    assert len(lines) == SAMPLE == 60
    assert Counter(lines[:25]).most_common(1)[0][1] == 1
    assert Counter(lines[:50]).most_common(1)[0][1] == 2


def test_mutants_that_do_the_same_are_tried_once_and_the_module_itself_never() -> None:
    def hollow(module: str, source: str, site: Site) -> Mutant:
        after = source if site.operator == "A" else f"# {site.operator}\n{source} + 1"
        return Mutant(module, site.operator, site.line, site.below, source, after)

    found = [site(line, operator) for line in range(3) for operator in "ABC"]
    assert len(sample(MODULE, "x = 1", found, hollow)) == 1


def test_a_change_that_cannot_be_made_makes_room_for_the_next() -> None:
    found = [site(line) for line in range(70)]
    chosen = sample(MODULE, "\n".join(LINES), found, lambda *args: None if args[2].occurrence < 20 else make(*args))
    assert {mutant.line for mutant in chosen} == set(LINES[20:70])


def test_a_mutant_shows_its_change_and_how_the_line_reads_now() -> None:
    mutant = Mutant(
        "m.py", "NumberReplacer", "return 1", "def f():", "def f():\n    return 1\n", "def f():\n    return 2\n"
    )
    assert mutant.diff == "--- m.py\n+++ NumberReplacer\n@@ -2 +2 @@\n-    return 1\n+    return 2"
    assert mutant.becomes == "return 2"
    assert replace(mutant, after="def f():\n").becomes == ""


def made(source: str, operator: str) -> list[str]:
    """Return what cosmic-ray's operator makes of the source."""
    pytest.importorskip("cosmic_ray", reason="cosmic-ray is installed where `make mutate` runs: in .venv-bench")
    source = textwrap.dedent(source).lstrip()
    found = [mutants.make(MODULE, source, each) for each in sites(source) if each.operator == operator]
    return [mutant.after for mutant in found if mutant]


def test_a_removed_decorator_takes_its_line_and_no_more() -> None:
    assert made("x = 1\n\n\n@staticmethod\ndef f(): pass\n", "RemoveDecorator") == ["x = 1\n\n\ndef f(): pass\n"]


def test_a_replaced_number_leaves_the_white_space_before_it() -> None:
    assert set(made("x = (\n    1,\n)\n", "NumberReplacer")) == {"x = (\n    2,\n)\n", "x = (\n    0,\n)\n"}


def test_what_only_the_interpreter_could_tell_apart_is_no_mutant() -> None:
    assert made("a == b\n", "ReplaceComparisonOperator_Eq_NotEq")
    assert not made("a == b\n", "ReplaceComparisonOperator_Eq_Is")


def test_lines_that_read_the_same_are_told_apart_by_number_and_by_the_line_before() -> None:
    pytest.importorskip("cosmic_ray", reason="cosmic-ray is installed where `make mutate` runs: in .venv-bench")
    source = "a = 1\nx = y < z\nb = 2\nx = y < z\n"
    found = [each for each in sites(source) if each.operator == "ReplaceComparisonOperator_Lt_Gt"]
    assert [(each.below, each.nth) for each in found] == [("a = 1", 0), ("b = 2", 1)]
    made = near(MODULE, source, "x = y < z", "ReplaceComparisonOperator_Lt_Gt")
    assert [mutant.after.count(">") for mutant in made] == [1, 1]
