"""The process that runs the proofs: it has imported everything but the modules and the proofs, and forks for each run.

`python -m mutation.warm`, in a copy of the tree, reads one line of JSON for each run and answers with one. It ends,
with all that it started, when its input does: also when the one who reads the answers was killed.

Its argument tells what to warm up for, `{"files": [...], "services": [...]}`. A run is asked for with
`{"arguments": [...], "log": "...", "limit": seconds}`, the answer is `{"status": ..., "seconds": ...}`, with no
status when the run was late.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutation.shared import Shared

GRACE = 3.0  # seconds for a run to end in order
PATIENCE = 12.0  # a watched server has 10 s to stop, see servers/_process.py
# The order of the proofs is that of the files, and no run is recorded or measured: the same work every time.
OPTIONS = ("-x", "-q", "-p", "no:randomly", "-p", "no:record", "--no-cov", "--hypothesis-seed=0", "--color=no")
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_NOTHING = "def test_nothing() -> None:\n    pass\n"


def imports(source: str) -> Iterator[str]:
    """Name what the source imports: modules, and what may be one (`from package import this`)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


class WarmUp:
    """A plugin: imports what the proofs will, as pytest would, and starts the servers that they share."""

    def __init__(self, tree: Path, files: Sequence[str], shared: Shared) -> None:
        self._tree = tree
        self._files = files
        self._shared = shared

    def pytest_collection(self) -> None:
        # In a session of pytest, for it rewrites what belongs to its plugins while it is imported.
        for name in self._third_party():
            with contextlib.suppress(Exception):  # not a module, or not to be had: the proofs will tell
                importlib.import_module(name)
        self._shared.start()

    def _third_party(self) -> Iterator[str]:
        """Name what the files, and what stands beside them for their use, import from outside the tree."""
        files = [self._tree / file for file in self._files]
        files += [kit for folder in {file.parent for file in files} for kit in folder.glob("*_kit.py")]
        for name in sorted({name for file in files for name in imports(file.read_text(encoding="utf-8"))}):
            if not is_local(name.partition(".")[0], self._tree):
                yield name


def is_local(name: str, tree: Path) -> bool:
    """Tell whether this module or package is part of the tree, or not to be found at all."""
    spec = importlib.util.find_spec(name)
    places = [spec.origin or "", *(spec.submodule_search_locations or [])] if spec else [tree]
    return any(Path(place).is_relative_to(tree) for place in places)


def threads() -> list[str]:
    """Name the threads of this process but for the main one: in a fork they would be gone, and their locks held."""
    known = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    with contextlib.suppress(OSError):  # where there is no /proc, those that Python knows have to do
        number = len(list(Path("/proc/self/task").iterdir())) - 1
        known += ["one that is not of Python"] * (number - len(known))
    return known


def imported(tree: Path) -> list[str]:
    """Name the modules and proofs that are imported: a fork would have them as they were before they were broken."""
    folders = (tree / "snippets", tree / "tests" / "patterns")
    files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
    return [name for name, file in files.items() if any(Path(file).is_relative_to(folder) for folder in folders)]


@dataclass
class Request:
    """One run that is asked for."""

    arguments: list[str]
    log: str
    limit: float


class Desk:
    """Takes the requests, and forks a child for each."""

    def __init__(self, requests: int, answers: int, shared: Shared) -> None:
        self._requests = requests
        self._answers = answers
        self._shared = shared
        self._read = b""

    def read_line(self) -> Any:
        """Return the next line; None when there is none any more."""
        while b"\n" not in self._read:
            more = os.read(self._requests, 65536)
            if not more:
                return None
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    def serve(self) -> Request | None:
        """Fork a child for each request and answer it; return None at the end.

        In the child it returns the request at once. The child then ends as every run of Python does: with what
        `atexit` holds, and waiting for its threads.
        """
        while line := self.read_line():
            request = Request(**line)
            begin = time.monotonic()
            child = os.fork()
            if not child:
                self._become_child(request)
                return request
            status = self._wait(child, begin + request.limit)
            seconds = time.monotonic() - begin
            end(child, gone=status is not None)
            self._shared.empty()
            os.write(self._answers, json.dumps({"status": status, "seconds": seconds}).encode() + b"\n")
        return None

    def _become_child(self, request: Request) -> None:
        os.setsid()
        self._shared.let_go()
        log = os.open(request.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for file, number in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(file, number)
        for file in (self._requests, self._answers, log, nothing):  # held open, our end would not be noticed
            os.close(file)

    def _wait(self, child: int, deadline: float) -> int | None:
        """Return the child's exit status; None when it is late, or nobody wants to know any more."""
        while time.monotonic() < deadline:
            gone, status = os.waitpid(child, os.WNOHANG)
            if gone:
                return os.waitstatus_to_exitcode(status)
            if select.select([self._requests], [], [], 0.01)[0]:  # nobody asks before we have answered: it is the end
                break
        return None


def end(child: int, *, gone: bool) -> None:
    """End a child and its children. Its servers end when it is gone: their watchers, which SIGINT leaves, see to it."""
    for number, patience in ((signal.SIGINT, GRACE), (signal.SIGKILL, 600.0)):
        deadline = time.monotonic() + patience
        if not gone:
            os.kill(child, number)
        while not gone and time.monotonic() < deadline:
            gone = os.waitpid(child, os.WNOHANG)[0] == child
            time.sleep(0 if gone else 0.01)
    deadline = time.monotonic() + PATIENCE
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left in its group
        os.killpg(child, signal.SIGINT)
        while time.monotonic() < deadline:
            _reap(child)
            os.killpg(child, 0)
            time.sleep(0.01)
        os.killpg(child, signal.SIGKILL)
        _reap(child)


def _adopt_orphans() -> None:
    """Become the parent of those whose parent is gone. The init of a container may never reap them, or late."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap(group: int) -> None:
    """Let those go that are dead: a group has members while nobody has asked for their status."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass


def main() -> int:
    """Warm up and serve; in a child, run the proofs."""
    import pytest

    _adopt_orphans()
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # what the warming prints belongs into the log
    os.close(nothing)
    tree = Path.cwd()
    sys.path.remove(os.environ.pop("PYTHONPATH"))  # ours: the runs have the path that `python -m pytest` has
    first = json.loads(sys.argv[1])
    shared = Shared(first["services"])
    desk = Desk(requests, answers, shared)
    empty = tree / "tests" / "test_nothing.py"
    empty.write_text(_NOTHING, encoding="utf-8")
    status = pytest.main([*OPTIONS, str(empty)], plugins=[WarmUp(tree, first["files"], shared)])
    empty.unlink()
    problems = [f"pytest does not run here (exit status {int(status)})"] if status else []
    problems += [f"a thread lives before the first run: {name}" for name in threads()]
    problems += [f"{name} is imported before the first run" for name in imported(tree)]
    if problems:
        print("\n".join(problems), file=sys.stderr)
        shared.stop()
        return 1
    gc.collect()
    gc.freeze()  # what lives as long as this process is not looked at, and so not copied, in its children
    request = desk.serve()
    if request:
        return int(pytest.main([*OPTIONS, *request.arguments]))
    shared.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
