"""What a benchmark is made of, and the runner that records it.

`tests/bench/<category>/<slug with underscores>.py` measures one pattern. It has `tables() -> list[Table]`, and
`plots() -> list[Plot]` where the page shows a curve. `make bench` runs them and writes
`docs/_measured/<category>/<slug>.json` (and an SVG a plot); the page shows them with `{$ measured("name") $}` and
`{$ plot("name") $}`. All rows of a table are timed in one run, interleaved: their ratio holds on a noisy machine.
"""

from __future__ import annotations

import dataclasses
import datetime
import gc
import importlib.util
import io
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT / "docs" / "_measured"


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of a page. The first column names the row; `note` says what was done, with sizes and counts."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str


@dataclasses.dataclass(frozen=True)
class Plot:
    """One plot: `draw(axes)` fills a matplotlib Axes; `alt` tells in words what a reader would see."""

    name: str
    alt: str
    draw: Callable[[Any], None]
    size: tuple[float, float] = (7.0, 3.2)


def compare(
    subjects: Mapping[str, Callable[[], object]], *, calls: int, rounds: int = 7, per_call: int = 1
) -> dict[str, float]:
    """Return the median seconds a call of each subject, timed in interleaved rounds of `calls` calls.

    `per_call` divides the result when one call does several operations.
    """
    samples: dict[str, list[float]] = {name: [] for name in subjects}
    for call in subjects.values():  # warm-up: imports, connections, caches
        call()
    enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in subjects.items():
                begin = time.perf_counter()
                for _ in range(calls):
                    call()
                samples[name].append((time.perf_counter() - begin) / calls / per_call)
    finally:
        if enabled:
            gc.enable()
    return {name: statistics.median(values) for name, values in samples.items()}


def ratio_table(name: str, seconds: Mapping[str, float], *, base: str, note: str, unit: str = "µs") -> Table:
    """Make a table of times and of ratios to the row `base` (ours), which comes first."""
    factor = {"s": 1.0, "ms": 1e3, "µs": 1e6}[unit]
    order = [base, *(key for key in seconds if key != base)]
    rows = [[key, f"{seconds[key] * factor:.3g} {unit}", f"{seconds[key] / seconds[base]:.2f} ×"] for key in order]
    return Table(name, ("", "time a call", "ratio"), rows, note)


def version(distribution: str) -> str:
    """Return "name 1.2.3" of an installed distribution, for row names."""
    return f"{distribution} {metadata.version(distribution)}"


# Colours that a plot is drawn in, and the CSS variables they become, so that it follows the reader's palette.
INK, FAINT, SERIES = "#010101", "#020202", ("#030303", "#040404", "#050505", "#060606")
_CSS = {INK: "--pp-ink", FAINT: "--pp-faint"} | {c: f"--pp-series-{i}" for i, c in enumerate(SERIES, 1)}


def _svg(plot: Plot) -> str:
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": plot.name,
        "font.size": 10,
        "font.family": "sans-serif",
        "axes.prop_cycle": mpl.cycler(color=SERIES),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": FAINT,
    }
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=plot.size, layout="constrained")
        plot.draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in _CSS.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bfont: ([\d.]+)px [^;"]+', r"font-size: \1px", svg)
    prefix = re.sub(r"\W", "-", plot.name)  # several plots on one page: their ids must not meet
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", svg)
    title = f'<title id="{prefix}-title">{_escape(plot.alt)}</title>'
    return re.sub(
        r'<svg ([^>]*?)width="[^"]*" height="[^"]*"([^>]*)>|<svg ([^>]*)>',
        lambda m: (
            f'<svg class="pp-plot" role="img" aria-labelledby="{prefix}-title" '
            f"{_clean(m[1] or m[3] or '')}{_clean(m[2] or '')}>{title}"
        ),
        svg,
        count=1,
    )


def _clean(attributes: str) -> str:
    return re.sub(r'\s*(width|height)="[^"]*"', "", attributes)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def record(path: Path) -> None:
    """Run one benchmark and write what it measured."""
    spec = importlib.util.spec_from_file_location(f"bench_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    target = MEASURED / path.parent.name.replace("_", "-")
    target.mkdir(parents=True, exist_ok=True)
    slug = path.stem.replace("_", "-")
    tables = {t.name: {"columns": t.columns, "rows": t.rows, "note": t.note} for t in module.tables()}
    plots = {}
    for plot in getattr(module, "plots", list)():
        (target / f"{slug}.{plot.name}.svg").write_text(_svg(plot) + "\n", encoding="utf-8")
        plots[plot.name] = plot.alt
    facts = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "command": f"make bench PATTERN={target.name}/{slug}",
        "tables": tables,
        "plots": plots,
    }
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    (target / f"{slug}.json").write_text(text + "\n", encoding="utf-8")


def main(patterns: Sequence[str]) -> int:
    """Run the named benchmarks ("category/slug"), or all."""
    sys.path[:0] = [str(p) for p in (ROOT / "tests", *sorted((ROOT / "snippets").iterdir()))]
    known = {
        f"{p.parent.name.replace('_', '-')}/{p.stem.replace('_', '-')}": p
        for p in sorted((ROOT / "tests" / "bench").glob("*/*.py"))
    }
    for name in patterns or known:
        if name not in known:
            print(f"no benchmark for {name!r}; there are: {', '.join(known)}", file=sys.stderr)
            return 2
        print(f"measuring {name} ...", flush=True)
        record(known[name])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
