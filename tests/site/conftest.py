"""The built site and a browser, made once for a whole test run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from _catalog import read
from _catalog.model import ROOT, Catalog
from site_tools.one_pattern import about
from site_tools.serving import find_chromium, launch, serve


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pattern", help="of the parametrised tests, those of one pattern: category/slug")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out other patterns' pages, examples and modules. What is about the whole catalogue stays."""
    if not (wanted := config.getoption("--pattern", None)):
        return
    own = about(wanted, [item.name for item in items])
    config.hook.pytest_deselected(items=[item for item in items if item.name not in own])
    items[:] = [item for item in items if item.name in own]


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    """The catalogue, which must be valid."""
    return read.load()


def build(root: Path, site: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Build the tree at `root` into `site`, strictly, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=root,
        env={**os.environ, "STRICT": "true", "NO_MKDOCS_2_WARNING": "1", **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, built once: parallel test processes share one build."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "site-under-test"
    done, failed = shared.with_suffix(".done"), shared.with_suffix(".failed")
    try:
        shared.mkdir()
    except FileExistsError:  # another test process builds it
        while not done.exists():
            if failed.exists():
                pytest.fail(failed.read_text())
            time.sleep(0.05)
        return shared
    result = build(ROOT, shared)
    if result.returncode:
        failed.write_text(result.stdout + result.stderr)
        pytest.fail(f"the site does not build:\n{result.stdout}{result.stderr}")
    done.touch()
    return shared


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Address of the built site on loopback, with a slash at its end."""
    server, url = serve(site)
    yield url
    server.shutdown()
    server.server_close()


# No wider than a module: while Playwright is open its event loop runs, and no other may in the same process.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium. Without one these tests are skipped on a laptop and fail in CI."""
    if find_chromium() is None:
        reason = "no Chromium on this machine: install it, or name it in CHROMIUM"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with launch() as chromium:
        yield chromium
