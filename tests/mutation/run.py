"""Break the modules on purpose, one small change at a time, and see whether their proofs notice.

`make mutate` runs this for every pattern, `make mutate PATTERN=category/slug` for one. README.md, beside this
file, tells which changes are tried and how the score is counted.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, Self

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = 60  # mutants of one module
GOAL = 0.9  # of them have to be killed
CLEAN_LIMIT = 600.0  # seconds for the proofs of an unbroken module
PATIENCE = 12.0  # a watched server has 10 s to stop, see servers/_process.py
# Identity for equality, or the reverse: for strings, small numbers and plain objects only the interpreter could tell.
ACCIDENTS = {f"ReplaceComparisonOperator_{swap}" for swap in ("Eq_Is", "Is_Eq", "NotEq_IsNot", "IsNot_NotEq")}

Outcome = Literal["killed", "timeout", "survived"]


class Stopped(Exception):  # noqa: N818 -- somebody asked for it
    """The run is being interrupted: what is under way has been ended."""


class Unusable(Exception):  # noqa: N818 -- the message is for whoever runs this
    """The run cannot start or go on as it was asked for."""


# Which mutants there are


@dataclass(frozen=True)
class Site:
    """One change that an operator can make: `occurrence` is its number among those of the operator."""

    operator: str
    occurrence: int
    place: tuple[tuple[int, int], tuple[int, int]]
    line: str
    below: str  # what the line before it says
    nth: int  # among the sites of this operator on lines that read the same


@dataclass(frozen=True)
class Mutant:
    """A module with one change in it."""

    module: str
    operator: str
    line: str
    below: str
    before: str
    after: str

    @property
    def diff(self) -> str:
        """The changed lines, as a unified diff."""
        old, new = self.before.splitlines(), self.after.splitlines()
        return "\n".join(difflib.unified_diff(old, new, self.module, self.operator, n=0, lineterm=""))

    @property
    def becomes(self) -> str:
        """The first changed line as it reads now."""
        added = (line[1:].strip() for line in self.diff.splitlines()[2:] if line.startswith("+"))
        return next(added, "")


def sites(source: str) -> list[Site]:
    """Return every change that the operators of cosmic-ray, those without settings, can make."""
    # Imported by name: it is installed beside the peers of the benchmarks, not where the types are checked.
    trees, plugins = importlib.import_module("cosmic_ray.ast"), importlib.import_module("cosmic_ray.plugins")
    nodes = list(trees.ast_nodes(trees.get_ast(source)))
    lines = source.splitlines()
    found: list[Site] = []
    for name in plugins.operator_names():
        kind, name = plugins.get_operator(name), name.removeprefix("core/")
        if kind.arguments() or name in ACCIDENTS:
            continue
        operator, twins = kind(), Counter[str]()
        places = (place for node in nodes for place in operator.mutation_positions(node))
        for occurrence, (begin, end) in enumerate(places):
            below, line = lines[begin[0] - 2].strip() if begin[0] > 1 else "", lines[begin[0] - 1].strip()
            found.append(Site(name, occurrence, (begin, end), line, below, twins[line]))
            twins[line] += 1
    return found


def sample(module: str, source: str, found: Sequence[Site]) -> list[Mutant]:
    """Return at most `SAMPLE` mutants that a proof can notice.

    The order is drawn by a hash of the module's path and the line's text, so the same code gives the same mutants
    for everybody, and an edit of one line leaves most of the others'. Every place in the code has its turn before
    one is changed in a second way: `a + b` alone can be broken in eleven.
    """

    def draw(site: Site) -> bytes:
        return hashlib.sha256("\0".join((module, site.line, site.operator, str(site.nth))).encode()).digest()

    turns, order = Counter[object](), list[tuple[int, bytes, Site]]()
    for site in sorted(found, key=draw):
        order.append((turns[site.place], draw(site), site))
        turns[site.place] += 1
    known, chosen = {observable(source)}, list[Mutant]()
    for *_, site in sorted(order, key=lambda entry: entry[:2]):
        mutant = make(module, source, site)
        if mutant and (meaning := observable(mutant.after)) not in known:
            known.add(meaning)
            chosen.append(mutant)
        if len(chosen) == SAMPLE:
            break
    return chosen


def make(module: str, source: str, site: Site) -> Mutant | None:
    """Return the mutant of a site; None when the operator cannot make it, or what it makes does not compile."""
    mutating, plugins = importlib.import_module("cosmic_ray.mutating"), importlib.import_module("cosmic_ray.plugins")
    operator = plugins.get_operator(f"core/{site.operator}")()
    with contextlib.suppress(AttributeError, SyntaxError):
        after = mutating.mutate_code(source, operator, site.occurrence)
        if site.operator in {"NumberReplacer", "RemoveDecorator"}:  # they also eat the white space before it
            after = _in_place(source, after, site)
        observable(after)
        return Mutant(module, site.operator, site.line, site.below, source, after)
    return None


def _in_place(source: str, after: str, site: Site) -> str:
    """Return `source` with the change of `after` at this site, and with all its line breaks."""
    lines, ((first, column), (last, end_column)) = source.splitlines(keepends=True), site.place
    if site.operator == "RemoveDecorator":
        return "".join(lines[: first - 1] + lines[last - 1 :])
    tail = lines[last - 1][end_column:] + "".join(lines[last:])
    number = after.removesuffix(tail).split()[-1]
    return "".join(lines[: first - 1]) + lines[first - 1][:column] + number + tail


def observable(source: str) -> str:
    """Return what the source does, in a form to compare: without all that is not evaluated.

    A `SyntaxError` tells that it is no Python, or that the compiler warns of it (`is` with a literal).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", SyntaxWarning)
        compile(source, "<mutant>", "exec", dont_inherit=True)
    return ast.dump(_Evaluated().visit(ast.parse(source)))


class _Evaluated(ast.NodeTransformer):
    """Takes annotations, docstrings, `...` bodies and what only a type checker runs out of a tree."""

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self._body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._body(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        """Make all parameters of one kind: an operator takes the `*` before keyword-only ones for a product."""
        self.generic_visit(node)
        padding = [None] * (len(node.posonlyargs) + len(node.args) - len(node.defaults))
        defaults = [*padding, *node.defaults, *node.kw_defaults]
        node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
        node.posonlyargs, node.kwonlyargs, node.defaults = [], [], []
        node.kw_defaults = list(defaults)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = _calls(node.annotation)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        node.annotation = _calls(node.annotation) or ast.Constant(None)
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        if ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            node.body = []
        return self.generic_visit(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        node.returns = _calls(node.returns)
        self._body(node)
        if [ast.unparse(statement) for statement in node.body] in ([], ["..."]):
            node.args.defaults, node.args.kw_defaults = [], []
            node.decorator_list = [d for d in node.decorator_list if not ast.unparse(d).endswith("overload")]
        return node

    def _body(self, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        if ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
        return self.generic_visit(node)


def _calls(annotation: ast.expr | None) -> ast.expr | None:
    """Return the calls in an annotation, `Field(max_length=72)`: those are read when the program runs."""

    def outermost(node: ast.AST) -> Iterator[ast.expr]:
        if isinstance(node, ast.Call):
            yield node
        else:
            for child in ast.iter_child_nodes(node):
                yield from outermost(child)

    found = list(outermost(annotation)) if annotation else []
    return ast.Tuple(found, ast.Load()) if found else None


# Those that may live


@dataclass(frozen=True)
class Explained:
    """Why a mutant may survive.

    `becomes` tells two mutants of a line and operator apart, `below` (the line before) two lines that read the same.
    """

    module: str
    line: str
    operator: str
    why: str
    becomes: str | None = None
    below: str | None = None

    def fits(self, mutant: Mutant) -> bool:
        """Tell whether this is about the mutant."""
        same = (self.module, self.line, self.operator) == (mutant.module, mutant.line, mutant.operator)
        return same and self.becomes in {None, mutant.becomes} and self.below in {None, mutant.below}


def explanations(folder: Path) -> list[Explained]:
    """Read the files of explained/; raise `Unusable` when an entry lacks a key, or has one that means nothing."""
    return [entry for path in sorted(folder.glob("*.toml")) for entry in _entries(path)]


def _entries(path: Path) -> Iterator[Explained]:
    name = f"{path.parent.name}/{path.name}"
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("explained", [])
    except tomllib.TOMLDecodeError as error:
        raise Unusable(f"{name}: {error}") from None
    for number, entry in enumerate(entries, 1):
        try:
            yield Explained(**entry)
        except TypeError as error:
            problem = str(error).removeprefix("Explained.__init__() ")
            raise Unusable(f"{name}: entry {number}: {problem}") from None


# Running the proofs


@dataclass(frozen=True)
class Run:
    """One run of proofs: pytest's exit status (None: it was late), the time it took, the end of what it printed."""

    status: int | None
    seconds: float
    output: str

    @property
    def outcome(self) -> Outcome:
        """What this run says about a mutant."""
        return "timeout" if self.status is None else "killed" if self.status else "survived"


class Copy:
    """A copy of the tree to break things in, with all that its runs leave behind."""

    def __init__(self, folder: Path, stop: threading.Event) -> None:
        self.tree, self._stop = folder / "tree", stop
        self._temporary, self._log = folder / "tmp", folder / "log"
        self._temporary.mkdir(parents=True)
        unwanted = shutil.ignore_patterns("__pycache__", ".*")
        for name in ("docs", "snippets", "tests"):  # real copies: a test finds the modules beside itself
            shutil.copytree(ROOT / name, self.tree / name, ignore=unwanted)
        for file in (*ROOT.glob("*.toml"), *ROOT.glob("*.txt"), *ROOT.glob("*.yml"), *ROOT.glob("Makefile")):
            shutil.copy2(file, self.tree)
        # Servers named there are shared, and a run must start with empty ones.
        unwanted_names = {
            "DATABASE_URL",
            "REDIS_URL",
            "PYTEST_ADDOPTS",
            "PYTHONPATH",
            "PYTHONDONTWRITEBYTECODE",
        }
        self._environment = {name: value for name, value in os.environ.items() if name not in unwanted_names} | {
            "PYTHONHASHSEED": "0",
            "PYTHONPYCACHEPREFIX": str(folder.parent / "bytecode"),  # compiled once, and gone at the end
            "TMPDIR": str(self._temporary),
        }
        # Bytecode is valid for a time stamp and a size. Mutants are made faster than stamps change.
        self._stamp = int(time.time())

    def write(self, module: str, source: str) -> None:
        """Put a module into the copy."""
        path = self.tree / module
        path.write_text(source, encoding="utf-8")
        self._stamp += 1
        os.utime(path, (self._stamp, self._stamp))

    def prove(self, files: Sequence[str], limit: float) -> Run:
        """Run the proofs; end them, and what they started, after `limit` seconds or by raising `Stopped`."""
        shutil.rmtree(self.tree / ".hypothesis" / "examples", ignore_errors=True)  # the last mutant's
        options = ["-x", "-q", "-p", "no:randomly", "--no-cov", "--hypothesis-seed=0", "--color=no"]
        with self._log.open("wb") as log:
            begin = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *options, *files],
                cwd=self.tree,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us; we end the run
            )
            status = None
            try:
                while status is None and time.monotonic() - begin < limit and not self._stop.is_set():
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        status = process.wait(0.2)
                seconds = time.monotonic() - begin
            finally:
                _end(process)
        if self._stop.is_set():
            raise Stopped
        return Run(status, seconds, "\n".join(self._log.read_text(errors="replace").splitlines()[-40:]))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a run of pytest and its children. Its servers end when it is gone: their watchers see to that."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3)
    process.wait()
    deadline = time.monotonic() + PATIENCE
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left in its group
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)


class Crew:
    """The workers, each with a copy of the tree; they are gone at the end of the `with` block."""

    def __init__(self, folder: Path, size: int) -> None:
        self._stop = threading.Event()
        self._free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for number in range(size):
            self._free.put(Copy(folder / str(number), self._stop))
        self._pool = ThreadPoolExecutor(size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def clean(self, files: Sequence[str]) -> Run:
        """Run proofs of modules that nobody broke."""
        return self._pool.submit(self._clean, files).result()

    def _clean(self, files: Sequence[str]) -> Run:
        copy = self._free.get()
        try:
            return copy.prove(files, CLEAN_LIMIT)
        finally:
            self._free.put(copy)

    def kill(self, mutants: Sequence[Mutant], files: Sequence[str], limit: float) -> Iterator[tuple[Mutant, Outcome]]:
        """Try each mutant; yield what became of it, in the order in which that is known."""
        tried: dict[Future[Outcome], Mutant] = {}
        for mutant in mutants:
            tried[self._pool.submit(self._kill, mutant, files, limit)] = mutant
        for future in as_completed(tried):
            yield tried[future], future.result()

    def _kill(self, mutant: Mutant, files: Sequence[str], limit: float) -> Outcome:
        copy = self._free.get()
        try:
            copy.write(mutant.module, mutant.after)
            return copy.prove(files, limit).outcome
        finally:
            copy.write(mutant.module, mutant.before)
            self._free.put(copy)


# The whole


@dataclass(frozen=True)
class Subject:
    """A pattern: its modules, and the files that prove them."""

    modules: tuple[str, ...]
    files: tuple[str, ...]


@dataclass
class Score:
    """What became of the mutants of one module."""

    module: str
    sites: int = 0
    sampled: int = 0
    killed: int = 0
    late: int = 0
    explained: int = 0
    seconds: float = 0.0
    survivors: list[Mutant] = dataclasses.field(default_factory=list)

    @property
    def share(self) -> float:
        """Killed, of those that somebody could kill."""
        possible = self.sampled - self.explained
        return self.killed / possible if possible else 1.0

    def __str__(self) -> str:
        parts = [f"{self.killed} of {self.sampled} killed", f"drawn from {self.sites}"]
        if self.late:
            parts.insert(1, f"{self.late} of them by time")
        if self.explained:
            parts.insert(1, f"{self.explained} explained")
        percent = int(self.share * 100)  # 89.9 % is not 90 %
        return f"{self.module:<52} {percent:>3} %  {self.seconds:>4.0f} s  {', '.join(parts)}"


def judge(module: str, files: Sequence[str], limit: float, crew: Crew, known: Sequence[Explained]) -> Score:
    """Try the sampled mutants of one module."""
    begin = time.monotonic()
    source = (ROOT / module).read_text(encoding="utf-8")
    found = sites(source)
    mutants = sample(module, source, found)
    score = Score(module, len(found), len(mutants))
    for number, (mutant, outcome) in enumerate(crew.kill(mutants, files, limit), 1):
        explained = any(entry.fits(mutant) for entry in known)
        if outcome == "survived" and explained:
            score.explained += 1
        elif outcome == "survived":
            score.survivors.append(mutant)
        else:
            score.killed += 1
            score.late += outcome == "timeout"
            if explained:
                _say(f"{module}: explained/ excuses a mutant that was killed:\n{mutant.diff}")
        if sys.stderr.isatty():
            print(f"\r{module}: {number} of {len(mutants)} ", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    score.survivors.sort(key=lambda mutant: int(mutant.diff.split("@@ -")[1].split()[0].split(",")[0]))
    score.seconds = time.monotonic() - begin
    return score


def outdated(known: Sequence[Explained], modules: set[str]) -> list[str]:
    """Name the explanations that no mutant of these modules fits any more."""
    lines = []
    for entry in known:
        file = ROOT / entry.module
        if entry.module not in modules and file.is_file():
            continue
        source = file.read_text(encoding="utf-8") if file.is_file() else ""
        near = [site for site in sites(source) if (site.line, site.operator) == (entry.line, entry.operator)]
        if not any(mutant and entry.fits(mutant) for mutant in (make(entry.module, source, site) for site in near)):
            change = f"{entry.operator} on {entry.becomes or entry.line!r}"
            lines.append(f"explained/: {entry.module} has no {change} any more: remove the entry")
    return lines


def run(subjects: Mapping[str, Subject], known: Sequence[Explained], crew: Crew) -> int:
    """Judge the modules of each pattern and print it; return the exit status."""
    problems = outdated(known, {module for subject in subjects.values() for module in subject.modules})
    for name, subject in subjects.items():
        clean = crew.clean(subject.files)
        if clean.status != 0:
            problems.append(f"{name}: the proofs fail without any mutant:\n{clean.output}")
            _say(problems[-1])
            continue
        for module in subject.modules:
            score = judge(module, subject.files, max(20.0, 5 * clean.seconds), crew, known)
            _say(str(score))
            for mutant in score.survivors:
                _say(mutant.diff + "\n")
            if score.share < GOAL:
                problems.append(f"{module}: {int(score.share * 100)} % is under {GOAL:.0%}")
        if crew.clean(subject.files).status != 0:
            problems.append(f"{name}: the proofs failed once without any mutant: they cannot be relied on")
    for problem in problems:
        print(problem.splitlines()[0], file=sys.stderr)
    return 1 if problems else 0


def _say(text: str) -> None:
    print(text, flush=True)


def subjects_of(names: Sequence[str]) -> dict[str, Subject]:
    """Return the patterns of these names ("category/slug"), or all; raise `Unusable` when one is not there."""
    sys.path.insert(0, str(ROOT / "docs"))
    from _catalog import read

    try:
        patterns = {pattern.id: pattern for pattern in read.load().patterns}
    except read.CatalogError as error:
        raise Unusable(str(error)) from None
    if missing := [name for name in names if name not in patterns]:
        raise Unusable(f"there is no pattern {', '.join(missing)}; there are: {', '.join(patterns)}")
    return {
        name: Subject(
            tuple(module for module in pattern.modules if module.endswith(".py")),
            tuple(dict.fromkeys(proof.path for proof in pattern.proofs)),
        )
        for name, pattern in patterns.items()
        if name in names or not names
    }


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
    _on_signals()
    try:
        subjects, known, size = (
            subjects_of(names),
            explanations(Path(__file__).with_name("explained")),
            workers(),
        )
        with tempfile.TemporaryDirectory(prefix="mut-") as folder, Crew(Path(folder), size) as crew:
            return run(subjects, known, crew)
    except Unusable as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
