"""Running proofs against mutants, in copies of the tree, and leaving nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from mutation.errors import Stopped, Unusable
from mutation.mutants import Mutant
from mutation.subjects import Subject

CLEAN_LIMIT = 600.0  # seconds for the proofs of an unbroken module
# Ending a run takes the runner 3 s, a watched server's 12 s after that, and the shared servers' 10 s at most.
PATIENCE = 40.0
# Servers named there are shared with others, and the rest would change what pytest or Python do.
UNWANTED = {"DATABASE_URL", "REDIS_URL", "PYTEST_ADDOPTS", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}

Outcome = Literal["killed", "timeout", "survived"]


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

    def __init__(self, root: Path, folder: Path) -> None:
        self.tree = folder / "tree"
        self.log = folder / "log"
        self._temporary = folder / "tmp"
        self._temporary.mkdir(parents=True)
        unwanted = shutil.ignore_patterns("__pycache__", ".*")
        for name in ("docs", "snippets", "tests"):  # real copies: a test finds the modules beside itself
            if (root / name).is_dir():
                shutil.copytree(root / name, self.tree / name, ignore=unwanted)
        for file in (*root.glob("*.toml"), *root.glob("*.txt"), *root.glob("*.yml"), *root.glob("Makefile")):
            shutil.copy2(file, self.tree)
        self.environment = {name: value for name, value in os.environ.items() if name not in UNWANTED} | {
            "PYTHONHASHSEED": "0",
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

    def clear(self) -> None:
        """Forget the examples that Hypothesis kept of the last run's failure."""
        shutil.rmtree(self.tree / ".hypothesis" / "examples", ignore_errors=True)


class Runner:
    """The warmed process of a copy, which proves one pattern: see warm.py."""

    def __init__(self, copy: Copy, subject: Subject, stop: threading.Event) -> None:
        self._copy = copy
        self._files = subject.files
        self._stop = stop
        self._unread = b""
        needed = {"files": [*subject.files, *subject.modules], "services": subject.services}
        with copy.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mutation.warm", json.dumps(needed)],
                cwd=copy.tree,
                env=copy.environment | {"PYTHONPATH": str(Path(__file__).parents[1])},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for us; we end it
            )

    def prove(self, limit: float) -> Run:
        """Run the proofs; end them, and what they started, after `limit` seconds or by raising `Stopped`."""
        assert self._process.stdin
        if self._stop.is_set():
            raise Stopped
        self._copy.clear()
        log = self._copy.log.with_suffix(".run")
        request = {"arguments": self._files, "log": str(log), "limit": limit}
        with contextlib.suppress(BrokenPipeError):  # it is gone: there will be no answer either
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        answer = json.loads(self._answer())
        return Run(answer["status"], answer["seconds"], _tail(log))

    def _answer(self) -> bytes:
        assert self._process.stdout
        while b"\n" not in self._unread:
            if self._stop.is_set():
                raise Stopped
            if not select.select([self._process.stdout], [], [], 0.2)[0]:
                continue
            more = self._process.stdout.read(65536)
            if not more:
                raise Unusable(f"the process that runs the proofs ended:\n{_tail(self._copy.log)}")
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def close(self) -> None:
        """Tell it that nobody will ask any more."""
        assert self._process.stdin
        self._process.stdin.close()

    def end(self) -> None:
        """Have it end what it started, and itself."""
        assert self._process.stdout
        self.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-40:])


class Crew:
    """The workers, each with a copy of the tree; they are gone at the end of the `with` block."""

    def __init__(self, root: Path, folder: Path, size: int) -> None:
        if not hasattr(os, "fork"):
            raise Unusable("mutants are tried in forks of one process, and this system has none: use Linux or macOS")
        self._stop = threading.Event()
        self._folder = folder.resolve()
        self._copies = [Copy(root, self._folder / str(number)) for number in range(size)]
        self._pool = ThreadPoolExecutor(size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
        if sys.pycache_prefix:  # bytecode of the libraries is kept there for the next run, ours is of no more use
            ours = Path(sys.pycache_prefix, *self._folder.parts[1:])
            shutil.rmtree(ours, ignore_errors=True)

    @contextlib.contextmanager
    def at(self, subject: Subject) -> Iterator[Bench]:
        """Have every worker ready for the proofs of one pattern."""
        runners, bench = list[Runner](), None
        try:
            for copy in self._copies:
                runners.append(Runner(copy, subject, self._stop))
            bench = Bench(list(zip(self._copies, runners, strict=True)), self._pool)
            yield bench
        except BaseException:
            self._stop.set()
            raise
        finally:
            if bench:
                bench.settle()
            for runner in runners:
                runner.close()
            for runner in runners:
                runner.end()


class Bench:
    """The workers while they are ready for one pattern."""

    def __init__(self, places: Sequence[tuple[Copy, Runner]], pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._pending = list[Future[Any]]()
        self._free: queue.SimpleQueue[tuple[Copy, Runner]] = queue.SimpleQueue()
        for place in places:
            self._free.put(place)

    def settle(self) -> None:
        """Wait until no worker uses its runner."""
        for future in self._pending:
            future.cancel()
        wait(self._pending)

    def clean(self) -> Run:
        """Run the proofs of modules that nobody broke."""
        future = self._pool.submit(self._prove_clean)
        self._pending.append(future)
        return future.result()

    def _prove_clean(self) -> Run:
        copy, runner = self._free.get()
        try:
            return runner.prove(CLEAN_LIMIT)
        finally:
            self._free.put((copy, runner))

    def kill(self, mutants: Sequence[Mutant], limit: float) -> Iterator[tuple[Mutant, Outcome]]:
        """Try each mutant; yield what became of it, in the order in which that is known."""
        tried: dict[Future[Outcome], Mutant] = {}
        for mutant in mutants:
            tried[self._pool.submit(self._prove_mutant, mutant, limit)] = mutant
        self._pending += tried
        for future in as_completed(tried):
            yield tried[future], future.result()

    def _prove_mutant(self, mutant: Mutant, limit: float) -> Outcome:
        copy, runner = self._free.get()
        try:
            copy.write(mutant.module, mutant.after)
            return runner.prove(limit).outcome
        finally:
            copy.write(mutant.module, mutant.before)
            self._free.put((copy, runner))
