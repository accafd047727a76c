"""What `make mutate` prints, and the exit status that it ends with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mutation import run, tiny
from mutation.errors import Unusable
from mutation.explained import Explained
from mutation.mutants import Mutant
from mutation.proving import Outcome, Run

PASSED, FAILED = Run(0, 1.0, "1 passed"), Run(1, 1.0, "1 failed")


class Bench:
    """Knows what becomes of each mutant, and of each clean run."""

    def __init__(self, outcomes: Sequence[Outcome], cleans: Sequence[Run]) -> None:
        self._outcomes = outcomes
        self._cleans = list(cleans)
        self.limits = list[float]()

    def clean(self) -> Run:
        return self._cleans.pop(0)

    def kill(self, mutants: Sequence[Mutant], limit: float) -> Iterator[tuple[Mutant, Outcome]]:
        self.limits.append(limit)
        yield from zip(mutants, self._outcomes, strict=True)


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the whole on a tiny tree whose mutants have these fates."""
    tiny.plant(tmp_path)

    def judge(*outcomes: Outcome, cleans: Sequence[Run] = (PASSED, PASSED), known: Sequence[Explained] = ()) -> int:
        judge.bench = bench = Bench(outcomes, cleans)  # type: ignore[attr-defined]

        class Crew:
            def __init__(self, root: Path, folder: Path, size: int) -> None:
                assert (root, folder.is_dir(), size) == (tmp_path, True, 2)

            def __enter__(self) -> Crew:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            @contextlib.contextmanager
            def at(self, subject: object) -> Iterator[Bench]:
                assert subject == tiny.SUBJECT
                yield bench

        mutants = [tiny.mutant(f"return {number}") for number in range(len(outcomes))]
        monkeypatch.setattr(run, "Crew", Crew)
        monkeypatch.setattr(run, "explanations", lambda folder: list(known))
        monkeypatch.setattr(run, "near", lambda *_: iter(mutants))
        monkeypatch.setattr(run, "sample", lambda module, source, found: mutants)
        return run.main([])

    monkeypatch.delenv("WORKERS", raising=False)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "_on_signals", lambda: None)
    monkeypatch.setattr(run, "subjects_of", lambda root, names: [tiny.SUBJECT])
    monkeypatch.setattr(run, "sites", lambda source: ())
    return judge


def test_nine_of_ten_killed_is_enough_and_the_survivor_is_shown(judge: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(*["killed"] * 9, "survived") == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{tiny.MODULE} ")
    assert "+    return 9\n" in out
    assert err == ""


def test_less_than_nine_of_ten_is_a_problem(judge: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(*["killed"] * 8, "survived", "survived") == 1
    assert capsys.readouterr().err == f"{tiny.MODULE}: 80 % is under 90%\n"


def test_proofs_that_fail_without_a_mutant_are_refused(judge: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge("killed", cleans=[FAILED]) == 1
    out, err = capsys.readouterr()
    assert out == "tiny/counting: the proofs fail without any mutant:\n1 failed\n"
    assert err == "tiny/counting: the proofs fail without any mutant\n"
    assert judge.bench.limits == [], "no mutant was tried"


def test_proofs_that_fail_at_the_end_cannot_be_relied_on(judge: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge("killed", cleans=[PASSED, FAILED]) == 1
    assert "cannot be relied on" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "limit"), [(1.0, 20.0), (10.0, 50.0)])
def test_a_mutant_has_twenty_seconds_or_five_times_the_clean_run(judge: Any, seconds: float, limit: float) -> None:
    judge("killed", cleans=[replace(PASSED, seconds=seconds), PASSED])
    assert judge.bench.limits == [limit]


def test_an_explanation_that_excuses_a_killed_mutant_is_named(judge: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge("killed", known=[Explained(tiny.MODULE, "return a + b", "Operator", "why")]) == 0
    assert "explained/ excuses a mutant that was killed:\n--- " in capsys.readouterr().out


def test_an_outdated_explanation_is_a_problem(judge: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge("killed", known=[Explained("snippets/gone.py", "x", "Operator", "why")]) == 1
    assert "snippets/gone.py has no Operator on 'x' any more" in capsys.readouterr().err


def test_a_generated_module_is_skipped_in_one_line(
    judge: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tests" / "twins").mkdir()
    text = f'[[twin]]\nsource = "snippets/tiny/source.py"\ntarget = "{tiny.MODULE}"\n'
    (tmp_path / "tests" / "twins" / "twins.toml").write_text(text)
    assert judge("survived", cleans=()) == 0, "no proof is run for it"
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split() == [tiny.MODULE, *["skipped:", "it", "is", "generated", "from", "snippets/tiny/source.py"]]


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_a_number_of_workers_that_is_none_is_refused(
    judge: Any, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORKERS", text)
    assert judge("killed") == 2
    assert capsys.readouterr().err == f"WORKERS='{text}' is no number of workers\n"


def test_workers_are_two_or_as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = []
    for text in ("", "7", "auto"):
        monkeypatch.setenv("WORKERS", text)
        numbers.append(run.workers())
    assert numbers[:2] == [2, 7]
    assert numbers[2] >= 1


def test_a_run_that_cannot_go_on_says_why(
    judge: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(root: Path, names: Sequence[str]) -> None:
        raise Unusable("there is no pattern")

    monkeypatch.setattr(run, "subjects_of", refuse)
    assert judge("killed") == 2
    assert capsys.readouterr().err == "there is no pattern\n"
