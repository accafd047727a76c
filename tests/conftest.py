"""What every test runs with: the modules as a reader imports them, all fixtures, the record of the run."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import hypothesis

ROOT = Path(__file__).resolve().parents[1]
# A reader copies a module next to their own code and imports it by its name: so do the proofs.
sys.path[:0] = [str(folder) for folder in sorted((ROOT / "snippets").iterdir()) if folder.is_dir()]

# Quick by default; `make check` looks longer. A test that says how many examples it needs has its own way.
hypothesis.settings.register_profile("quick", max_examples=30, deadline=None)
hypothesis.settings.register_profile("long", max_examples=100, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def _launchers() -> list[str]:
    """Name the files in tests/servers that have fixtures: whoever adds a server adds one file."""
    files = sorted((ROOT / "tests" / "servers").glob("[!_]*.py"))
    launchers = [file for file in files if not file.stem.startswith("test_")]
    return [f"servers.{file.stem}" for file in launchers if "@pytest.fixture" in file.read_text(encoding="utf-8")]


pytest_plugins = [*_launchers(), "harness.fixtures", "record"]


def pytest_collection_finish() -> None:
    """Spare each full collection what lives as long as the process: modules and thousands of tests."""
    gc.collect()
    gc.freeze()
