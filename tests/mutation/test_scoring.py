"""A score counts what the proofs could have noticed, and rounds to nobody's favor."""

from __future__ import annotations

from dataclasses import replace

from mutation import tiny
from mutation.explained import Explained
from mutation.mutants import Mutant
from mutation.proving import Outcome
from mutation.scoring import GOAL, Score


def scored(*outcomes: Outcome, known: int = 0) -> Score:
    """Score mutants of these fates; the first `known` are explained."""
    mutants = [tiny.mutant(f"return {number}") for number in range(len(outcomes))]
    explained = [Explained(tiny.MODULE, "return a + b", "Operator", "why", each.becomes) for each in mutants[:known]]
    score = Score(tiny.MODULE, 100, len(outcomes))
    assert list(score.count(zip(mutants, outcomes, strict=True), explained)) == list(range(1, len(outcomes) + 1))
    return score


def test_killed_and_late_mutants_are_noticed_and_survivors_are_shown() -> None:
    score = scored("killed", "timeout", "survived", "killed")
    assert (score.killed, score.late, score.explained) == (3, 1, 0)
    assert [mutant.becomes for mutant in score.survivors] == ["return 2"]
    assert score.share == 0.75


def test_an_explained_survivor_counts_neither_for_nor_against() -> None:
    score = scored("survived", "killed", "killed", "survived", known=1)
    assert (score.explained, score.killed, len(score.survivors)) == (1, 2, 1)
    assert score.share == 2 / 3


def test_an_explained_mutant_that_was_killed_counts_and_is_named() -> None:
    score = scored("killed", "survived", known=1)
    assert (score.killed, score.share) == (1, 0.5)
    assert [mutant.becomes for mutant in score.excused] == ["return 0"]


def test_a_module_without_a_mutant_to_kill_has_the_full_score() -> None:
    assert scored("survived", known=1).share == 1.0
    assert scored().share == 1.0


def test_a_share_just_under_the_goal_is_not_rounded_up_to_it() -> None:
    score = Score("m", 1000, 1000, killed=899)
    assert score.share < GOAL == 0.9
    assert "  89 %" in str(score)


def test_a_score_tells_what_it_is_made_of() -> None:
    score = replace(scored("survived", "killed", "timeout", known=1), seconds=1.6)
    assert (
        str(score).split(maxsplit=1)[1]
        == "100 %     2 s  2 of 3 killed, 1 explained, 1 of them by time, drawn from 100"
    )
    assert str(scored("killed")).endswith("1 of 1 killed, drawn from 100")


def test_survivors_are_shown_in_the_order_of_their_lines() -> None:
    source = "".join(f"x{number} = {number}\n" for number in range(12))
    lines = [10, 2, 9]
    mutants = [Mutant("m", "o", "", "", source, source.replace(f"= {line}\n", "= -1\n")) for line in lines]
    score = Score("m")
    list(score.count([(mutant, "survived") for mutant in mutants], []))
    assert [mutant.diff.split("@@ -")[1].split()[0] for mutant in score.survivors] == ["3", "10", "11"]
