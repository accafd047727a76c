"""A pytest plugin that records how the proofs of each pattern ended: `_catalog.records` says what a record is."""

from __future__ import annotations

import datetime
import platform
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from _catalog import read, records
from _catalog.model import CatalogError, Pattern
from servers.versions import VERSIONS

_RANK = {"skipped": 0, "passed": 1, "failed": 2}


class Recorder:
    """Collects outcomes on the process that reports them (with xdist: the controller)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.began = time.time()
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
            self._save_results()

    def _save_results(self) -> None:
        try:
            catalog = read.load(self.root)
        except CatalogError:
            return  # the shape tests say what is wrong; a broken catalogue proves nothing
        sources = records.Sources(self.root)
        results = {p.id: result for p in catalog.patterns if (result := self._result_of(p, sources))}
        records.save(self.root, records.Run(platform.python_version(), sys.platform, results))

    def _result_of(self, pattern: Pattern, sources: records.Sources) -> records.Result | None:
        """Return how the proofs ended, if all of them ran; one that failed is told in any case."""
        keys = [(proof.path, proof.name) for proof in pattern.proofs]
        outcomes = [self.outcomes[key] for key in keys if key in self.outcomes]
        if not outcomes or (len(outcomes) < len(keys) and "failed" not in outcomes):
            return None
        files = sources.files_of(pattern)
        if any((self.root / name).stat().st_mtime > self.began for name in files):
            return None  # somebody edited it meanwhile: nobody knows which of the two was run
        return records.Result(
            fingerprint=sources.fingerprint(pattern),
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            passed=outcomes.count("passed"),
            failed=outcomes.count("failed"),
            skipped=outcomes.count("skipped"),
            servers={name: self.servers[name] for name in pattern.meta.services if name in self.servers},
        )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(config.rootpath), "run-record")
