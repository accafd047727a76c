"""Measure the site: build times, weights, the live server, search. `make figures` prints the table."""

from __future__ import annotations

import gzip
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from _catalog import read
from _catalog.model import ROOT
from servers._process import free_port
from site_tools import html, searching, serving, trees

ENV = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}


def build(root: Path, site: Path) -> float:
    """Build a tree strictly and return the seconds it took, from start to end of the process."""
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    begin = time.monotonic()
    subprocess.run(argv, cwd=root, env=ENV, check=True, capture_output=True)
    return time.monotonic() - begin


def cold_weight(site: Path, address: str) -> int:
    """Return the compressed bytes of a page and of everything that it loads before a search."""
    page = site / address / "index.html"
    loaded = {page, *((page.parent / load.partition("?")[0]).resolve() for load in html.parse(page).loads)}
    return sum(len(gzip.compress(file.read_bytes(), 6)) for file in loaded)


def edit_to_view(root: Path, edits: int = 3) -> float:
    """Return the median seconds from saving a page to the live server showing it."""
    port = free_port()
    argv = [sys.executable, str(root / "docs" / "_catalog"), "serve", f"127.0.0.1:{port}"]
    process = subprocess.Popen(argv, cwd=root, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    page = max(p for p in root.glob("docs/patterns/*/*.md") if p.name != "index.md")
    url = f"http://127.0.0.1:{port}/{page.relative_to(root / 'docs').as_posix().removesuffix('.md')}/"

    def shows(text: str) -> bool:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return text in answer.read().decode()
        except OSError:
            return False

    try:
        while not shows("When to use it"):
            time.sleep(0.1)
        time.sleep(1)
        times = []
        for number in range(edits):
            mark = f"Edit number {number} of this page."
            text = page.read_text(encoding="utf-8")
            begin = time.monotonic()
            page.write_text(
                text.replace("{#when-to-use-it}\n", f"{{#when-to-use-it}}\n\n{mark}\n", 1), encoding="utf-8"
            )
            while not shows(mark):
                time.sleep(0.02)
            times.append(time.monotonic() - begin)
            time.sleep(1)
        return statistics.median(times)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def main() -> None:
    """Measure everything and print it with the target beside."""
    catalog = read.load()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows: list[tuple[str, str, str]] = []
        times = [build(ROOT, folder / "site") for _ in range(3)]
        rows.append(("build, diagrams kept", f"{statistics.median(times):.1f} s", "4 s"))
        big = trees.make(folder / "big", 103)
        rows.append(("build of 103 pages", f"{build(big, folder / 'big-site'):.1f} s", "10 s"))
        rows.append(("edit visible in the live server, 103 pages", f"{edit_to_view(big):.1f} s", "3 s"))
        heaviest = max(cold_weight(folder / "site", pattern.url) for pattern in catalog.patterns)
        rows.append(("heaviest cold pattern page, gzipped", f"{heaviest / 1024:.1f} KB", "75 KB"))
        index = gzip.compress((folder / "big-site" / "search" / "search_index.json").read_bytes())
        rows.append(("search index of 103 pages, gzipped", f"{len(index) / 1024:.1f} KB", "40 KB"))
        server, address = serving.serve(folder / "site")
        with serving.launch() as browser:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            outcomes = searching.type_in(page, address, searching.queries())
        server.shutdown()
        first = statistics.median(outcome.milliseconds for outcome in outcomes)
        rows.append((f"search success@1 over {len(outcomes)} queries", f"{searching.success(outcomes, 1):.0%}", "90 %"))
        rows.append(("search success@3", f"{searching.success(outcomes, 3):.0%}", "98 %"))
        rows.append(("first search result after the keystroke, median", f"{first:.0f} ms", "100 ms"))
    for name, value, target in rows:
        print(f"{name:50} {value:>10}   target {target}")


if __name__ == "__main__":
    main()
