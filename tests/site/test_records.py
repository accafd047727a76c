"""A record's fingerprint covers every file of the project that the proofs of a pattern really open."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from _catalog import read, records
from _catalog.model import ROOT

# Python reports each file that it opens; the record, which reads everything when a run ends, is left out.
_WATCH = r"""
import json, os, sys
root, report, *proofs = sys.argv[1:]
opened = set()
def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        name = os.path.abspath(arguments[0])
        if sys.pycache_prefix and name.startswith(sys.pycache_prefix) and ".cpython-" in name:  # in place of the source
            name = name.removeprefix(sys.pycache_prefix).partition(".cpython-")[0] + ".py"
        opened.add(name)
sys.addaudithook(note)
import pytest
status = pytest.main(["-q", "-p", "no:record", "-p", "no:randomly", *proofs])
inside = sorted(os.path.relpath(name, root) for name in opened if name.startswith(root + os.sep))
with open(report, "w") as file:
    json.dump(inside, file)
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("webhooks/webhook-sender", ["test_webhook_sender_composed.py"]),
        ("authentication/totp", ["test_totp.py", "test_totp_own.py"]),
    ],
    ids=["one that composes others", "one with a kit"],
)
def test_a_fingerprint_covers_every_file_that_its_proofs_open(name: str, files: list[str], tmp_path: Path) -> None:
    pattern = read.load().by_id(name)
    proofs = [path for path in pattern.proof_files if Path(path).name in files]
    assert len(proofs) == len(files)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    argv = [sys.executable, "-c", _WATCH, str(ROOT), str(tmp_path / "opened.json"), *proofs]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    opened = json.loads((tmp_path / "opened.json").read_text(encoding="utf-8"))
    ours = {path for path in opened if not path.startswith((".", "site/")) and (ROOT / path).is_file()}
    covered = set(records.Sources(ROOT).files_of(pattern))
    assert set(proofs) <= ours, "nothing was watched"
    assert ours <= covered, ours - covered
