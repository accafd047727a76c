"""A pytest plugin that records what ran, so that the site's badges say what the last run saw and nothing else.

It writes `.verified/<python>-<platform>.json`: for each pattern whose proofs all ran, their number and outcome, the
versions of the real servers, and a fingerprint of page, modules, proofs and locked packages. A build shows a record
only while the fingerprint still holds.
"""

from __future__ import annotations

import datetime
import json
import platform
import sys
from pathlib import Path
from typing import Any

import pytest

from _catalog import read
from servers.fixtures import VERSIONS

_RANK = {"skipped": 0, "passed": 1, "failed": 2}


class Recorder:
    """Collects outcomes on the process that reports them (with xdist: the controller)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.outcomes: dict[tuple[str, str], str] = {}
        self.servers: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        path, _, name = report.nodeid.partition("::")
        if path.startswith("tests/patterns/"):
            key = (path, name.partition("[")[0].rpartition("::")[2])
            worst = max(self.outcomes.get(key, "skipped"), report.outcome, key=_RANK.__getitem__)
            self.outcomes[key] = worst

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        self.servers |= getattr(node, "workeroutput", {}).get("servers", {})

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["servers"] = dict(VERSIONS)
        elif self.outcomes and not session.config.option.collectonly:
            self.servers |= VERSIONS
            self._write()

    def _write(self) -> None:
        try:
            catalog = read.load(self.root)
        except read.CatalogError:
            return  # the shape tests say what is wrong; a broken catalogue proves nothing
        path = self.root / ".verified" / f"{platform.python_version()}-{sys.platform}.json"
        patterns = self._previous(path)
        for pattern in catalog.patterns:
            keys = [(proof.path, proof.name) for proof in pattern.proofs]
            outcomes = [self.outcomes[key] for key in keys if key in self.outcomes]
            if outcomes and (len(outcomes) == len(keys) or "failed" in outcomes):
                counts = {name: outcomes.count(name) for name in _RANK}
                servers = {s: self.servers[s] for s in pattern.meta.services if s in self.servers}
                found = read.fingerprint(pattern, self.root)
                patterns[pattern.id] = {"fingerprint": found, "servers": servers, **counts}
        run = {
            "python": platform.python_version(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "patterns": patterns,
        }
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(run, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @staticmethod
    def _previous(path: Path) -> dict[str, Any]:
        try:
            kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["patterns"]
        except (OSError, ValueError, KeyError):
            return {}
        return kept


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(config.rootpath), "run-record")
