"""Mutants are told apart by running the proofs, and nothing is left behind: on a tiny tree, in real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mutation import tiny, warm
from mutation.errors import Unusable
from mutation.mutants import Mutant
from mutation.proving import Bench, Crew, Run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="mutants are tried in forks, which Windows has not")

# Leaves a child of its own in the background, tells its number, and hangs.
_GRANDCHILD = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path({file!r}).write_text(str(child.pid))
"""
_DRIVER = """
import sys, tempfile
from pathlib import Path
from mutation import run, tiny

run.ROOT, tempfile.tempdir, grandchild = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
run.subjects_of = lambda root, names: [tiny.SUBJECT]
run.explanations = lambda folder: []
run.sites = lambda source: ()
run.sample = lambda module, source, found: [tiny.mutant("while True: pass", grandchild)] * 3
raise SystemExit(run.main([]))
"""


@pytest.fixture(autouse=True)
def _few_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@contextlib.contextmanager
def working(root: Path, folder: Path, size: int = 1) -> Iterator[Bench]:
    with Crew(root, folder, size) as crew, crew.at(tiny.SUBJECT) as bench:
        yield bench


def become(bench: Bench, *mutants: Mutant, limit: float = 20.0) -> list[str]:
    outcomes = {id(mutant): outcome for mutant, outcome in bench.kill(mutants, limit)}
    return [outcomes[id(mutant)] for mutant in mutants]


def is_alive(process: int) -> bool:
    """Tell whether a process runs; one that is dead and not reaped does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return bool(state.stdout.strip()) and not state.stdout.startswith("Z")


def parent(process: int) -> int:
    return int(subprocess.run(["ps", "-o", "ppid=", "-p", str(process)], capture_output=True, check=True).stdout)


def wait_for_number(file: Path) -> int:
    deadline = time.monotonic() + 20
    while not (file.is_file() and file.read_text()):
        assert time.monotonic() < deadline, "the mutant was never run"
        time.sleep(0.01)
    return int(file.read_text())


def test_a_mutant_is_killed_survives_or_hangs_and_the_next_finds_nothing_of_it(tmp_path: Path) -> None:
    number = tmp_path / "number"
    wrong, same, hung = tiny.mutant("return a - b"), tiny.mutant("return b + a"), tiny.mutant("while True: pass")
    with working(tiny.plant(tmp_path / "root"), tmp_path / "work") as bench:
        assert bench.clean().status == 0
        assert become(bench, wrong, same, wrong, tiny.mutant("return a +"), same) == [
            *("killed", "survived", "killed", "killed", "survived"),
        ]
        hung = tiny.mutant("while True: pass", _GRANDCHILD.format(file=str(number)))
        assert become(bench, hung, limit=1.5) == ["timeout"]
        assert not is_alive(wait_for_number(number))
        assert bench.clean().status == 0
    assert (tmp_path / "root" / tiny.MODULE).read_text() == tiny.SOURCE


def test_workers_break_copies_of_their_own(tmp_path: Path) -> None:
    wrong, same = tiny.mutant("return a - b"), tiny.mutant("return b + a")
    with working(tiny.plant(tmp_path / "root"), tmp_path / "work", 2) as bench:
        assert become(bench, *[wrong, same] * 3) == ["killed", "survived"] * 3


def test_each_run_imports_the_module_and_the_proof_anew(tmp_path: Path) -> None:
    proof = """
        import os, sys, counting
        def test_it():
            assert os.getpid() == counting.born == born
        born = os.getpid()
    """
    with working(tiny.plant(tmp_path / "root", proof), tmp_path / "work") as bench:
        same = tiny.mutant("return a + b", "import os\nborn = os.getpid()\n")
        assert become(bench, same, same) == ["survived", "survived"]


def test_a_run_waits_for_its_threads_as_any_run_of_python_does(tmp_path: Path) -> None:
    begin = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
    with working(tiny.plant(tmp_path / "root"), tmp_path / "work") as bench:
        assert become(bench, tiny.mutant("return a + b", begin), limit=0.6) == ["timeout"]


def test_proofs_that_fail_without_a_mutant_say_why(tmp_path: Path) -> None:
    with working(tiny.plant(tmp_path / "root", "def test_it():\n    assert 1 == 2\n"), tmp_path / "work") as bench:
        clean = bench.clean()
    assert clean.status == 1
    assert "assert 1 == 2" in clean.output


def test_hash_and_hypothesis_seed_are_fixed_and_shared_servers_are_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://production")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    proof = """
        import os, sys
        def test_it(request):
            assert os.environ["PYTHONHASHSEED"] == "0"
            assert request.config.getoption("hypothesis_seed") == "0"
            assert not {"DATABASE_URL", "PYTHONPATH"} & set(os.environ)
            assert not any(path.endswith("tests") for path in sys.path)
    """
    with working(tiny.plant(tmp_path / "root", proof), tmp_path / "work") as bench:
        clean = bench.clean()
    assert clean.status == 0, clean.output


def test_a_process_that_must_not_be_forked_refuses_and_says_why(tmp_path: Path) -> None:
    spoiled = """
        import threading
        threading.Thread(target=threading.Event().wait, name="forgotten", daemon=True).start()
        import counting
    """
    root = tiny.plant(tmp_path / "root", conftest=spoiled)
    with (
        pytest.raises(Unusable, match=r"thread lives .*: forgotten\ncounting is imported before"),
        working(root, tmp_path / "work") as bench,
    ):
        bench.clean()


def test_a_thread_that_python_does_not_know_is_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/self/task").is_dir():
        pytest.skip("only Linux lists the threads of a process")
    release = threading.Event()
    foreign = threading.Thread(target=release.wait, name="foreign")
    foreign.start()
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread()])
    try:
        assert "one that is not of Python" in warm.threads()
    finally:
        release.set()
        foreign.join()


def test_what_ignores_the_polite_signal_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "GRACE", 0.05)
    monkeypatch.setattr(warm, "PATIENCE", 0.05)
    number = tmp_path / "number"
    stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + _GRANDCHILD.format(file=str(number))
    process = subprocess.Popen([sys.executable, "-c", stubborn + "time.sleep(60)"], start_new_session=True)
    grandchild = wait_for_number(number)
    warm.end(process.pid, gone=False)
    process.wait()
    deadline = time.monotonic() + 5
    while is_alive(grandchild):
        assert time.monotonic() < deadline, "a grandchild outlived its run"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_whoever_is_interrupted_leaves_no_process_and_no_file(tmp_path: Path, number: signal.Signals) -> None:
    file, temporary = tmp_path / "number", tmp_path / "temporary"
    temporary.mkdir()
    # With the bytecode that is there already, it takes a second less.
    bytecode = Path(sys.pycache_prefix or tmp_path / "bytecode")
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONPYCACHEPREFIX": str(bytecode), "WORKERS": "1"}
    hung = _GRANDCHILD.format(file=str(file))
    process = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, str(tiny.plant(tmp_path / "root")), str(temporary), hung],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        grandchild = wait_for_number(file)
        child = os.getpgid(grandchild)
        left = [grandchild, child, parent(child)]
        assert parent(parent(child)) == process.pid
    finally:
        process.send_signal(number)
    try:
        output = process.communicate(timeout=20)[0].decode()
    finally:
        process.kill()  # where it did not end
    deadline = time.monotonic() + 5
    while any(map(is_alive, left)):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.01)
    if number != signal.SIGKILL:  # nobody is there to remove files after that
        assert (process.returncode, output) == (130, "stopped\n")
        assert not list(temporary.iterdir())
        assert not list(bytecode.joinpath(*temporary.resolve().parts[1:]).glob("mut-*"))


def test_a_system_without_fork_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    with pytest.raises(Unusable, match="this system has none"):
        Crew(tmp_path, tmp_path, 1)


def test_only_a_passed_run_is_a_survivor() -> None:
    assert [Run(status, 1.0, "").outcome for status in (0, 1, 2, 5, -9, None)] == [
        "survived",
        *["killed"] * 4,
        "timeout",
    ]


def test_what_a_proof_imports_is_named_with_what_may_be_a_module() -> None:
    source = "import a.b, c\nfrom d.e import f\nfrom . import g\ndef h():\n    import i\n"
    assert set(warm.imports(source)) == {"a.b", "c", "d.e", "d.e.f", "i"}


def test_only_what_lies_outside_the_tree_is_imported_before_the_proofs(tmp_path: Path) -> None:
    assert warm.is_local("mutation", Path(__file__).parents[1])
    assert warm.is_local("no_such_module", tmp_path)
    assert not warm.is_local("pytest", tmp_path)
