"""Break the modules on purpose, one small change at a time, and see whether their proofs notice.

`make mutate` runs this for every pattern, `make mutate PATTERN=category/slug` for one. README.md, beside this
file, tells which changes are tried and how the score is counted.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from mutation.errors import Unusable
from mutation.explained import Explained, explanations, outdated
from mutation.mutants import near, sample, sites
from mutation.proving import Bench, Crew
from mutation.scoring import GOAL, Score
from mutation.subjects import Subject, generated, subjects_of

ROOT = Path(__file__).resolve().parents[2]


def judge_module(module: str, bench: Bench, limit: float, known: Sequence[Explained]) -> Score:
    """Try the sampled mutants of one module."""
    begin = time.monotonic()
    source = (ROOT / module).read_text(encoding="utf-8")
    mutants = sample(module, source, sites(source))
    score = Score(module, len(sites(source)), len(mutants))
    for number in score.count(bench.kill(mutants, limit), known):
        _show(f"\r{module}: {number} of {len(mutants)} ")
    _show("\r\x1b[K")
    score.seconds = time.monotonic() - begin
    return score


def judge_pattern(subject: Subject, twins: Mapping[str, str], known: Sequence[Explained], crew: Crew) -> list[str]:
    """Judge the modules of a pattern and print it; return the problems."""
    problems = list[str]()
    for module in subject.modules:
        if module in twins:
            _say(f"{module:<52} skipped: it is generated from {twins[module]}")
    modules = [module for module in subject.modules if module not in twins]
    if not modules:
        return problems
    with crew.at(subject) as bench:
        clean = bench.clean()
        if clean.status != 0:
            problem = f"{subject.name}: the proofs fail without any mutant"
            _say(f"{problem}:\n{clean.output}")
            return [problem]
        for module in modules:
            score = judge_module(module, bench, max(20.0, 5 * clean.seconds), known)
            _say(str(score))
            for mutant in score.excused:
                _say(f"{module}: explained/ excuses a mutant that was killed:\n{mutant.diff}")
            for mutant in score.survivors:
                _say(mutant.diff + "\n")
            if score.share < GOAL:
                problems.append(f"{module}: {score.percent} % is under {GOAL:.0%}")
        if bench.clean().status != 0:
            problems.append(f"{subject.name}: the proofs failed once without any mutant: they cannot be relied on")
    return problems


def _say(text: str) -> None:
    print(text, flush=True)


def _show(text: str) -> None:
    if sys.stderr.isatty():
        print(text, end="", file=sys.stderr, flush=True)


def workers() -> int:
    """Return the number in WORKERS, 2 without it."""
    text = os.environ.get("WORKERS") or "2"
    if text == "auto":
        return os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise Unusable(f"WORKERS={text!r} is no number of workers")
    return int(text)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    _on_signals(signal.SIG_IGN)  # the way out is not to be cut short
    raise KeyboardInterrupt


def _on_signals(handler: signal.Handlers | None = None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt if handler is None else handler)


def main(names: Sequence[str]) -> int:
    """Judge the named patterns, or all; return the exit status."""
    try:
        size, twins = workers(), generated(ROOT)
        subjects, known = subjects_of(ROOT, names), explanations(Path(__file__).with_name("explained"))
        _on_signals()
        judged = {module for subject in subjects for module in subject.modules}
        problems = list(outdated(known, judged, twins, ROOT, near))
        with tempfile.TemporaryDirectory(prefix="mut-") as folder, Crew(ROOT, Path(folder), size) as crew:
            for subject in subjects:
                problems += judge_pattern(subject, twins, known, crew)
    except Unusable as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
