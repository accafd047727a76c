"""Fixtures for every test, and the record of the run that the site's badges are made from."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A reader copies a module next to their own code and imports it by its name: so do the proofs.
sys.path[:0] = [str(folder) for folder in sorted((ROOT / "snippets").iterdir()) if folder.is_dir()]

pytest_plugins = ["servers.fixtures", "harness.fixtures", "record"]


def pytest_collection_finish() -> None:
    """Spare each full collection what lives as long as the process: modules and thousands of tests."""
    gc.collect()
    gc.freeze()
