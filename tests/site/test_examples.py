"""Every example on a page runs, is formatted, and prints what the page says.

`make examples` rewrites the `#>` lines from what the examples really print.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_examples import CodeExample, EvalExample, find_examples

from _catalog import pages, services
from _catalog.model import ROOT

_INCLUDE = re.compile(r'^\s*--8<-- "', re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*(?P<info>[^\n`]*)$", re.MULTILINE)
PAGES = sorted(ROOT.glob("docs/patterns/*/*.md"))
SERVICES = services.load(ROOT)


@functools.cache
def _examples() -> dict[Path, list[CodeExample]]:
    """Return the examples of all pages, which are read once."""
    found: dict[Path, list[CodeExample]] = {page: [] for page in PAGES}
    for example in find_examples(*PAGES):
        if example.prefix.split()[:1] in (["python"], ["py"]) and not _INCLUDE.search(example.source):
            found[example.path].append(example)
    return found


@functools.cache
def _services_of(page: Path) -> list[str]:
    """Return the services that a page's front matter names."""
    named: list[str] = pages.front_matter(page.read_text(encoding="utf-8")).get("services", [])
    return named


def _name(example: CodeExample) -> str:
    return f"{example.path.relative_to(ROOT).as_posix()}:{example.start_line}"


@pytest.fixture
def running(example: CodeExample, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start what the page's front matter says it needs, and set its variables as a reader would."""
    # A scratch folder: nothing an example writes stays, and its lint takes ruff's defaults, not this project's rules.
    monkeypatch.chdir(request.getfixturevalue("tmp_path"))
    for service in _services_of(example.path):
        launcher = importlib.import_module(SERVICES[service].module)
        for name, value in launcher.environment(request).items():
            monkeypatch.setenv(name, value)


@pytest.fixture
def same_logging() -> Iterator[None]:
    """Take back what an example does to the root logger: its handlers are pytest's, and every later test's."""
    root = logging.getLogger()
    level, handlers, filters = root.level, list(root.handlers), [list(handler.filters) for handler in root.handlers]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    for handler, its in zip(handlers, filters, strict=True):
        handler.filters[:] = its


@pytest.mark.parametrize("example", [each for found in _examples().values() for each in found], ids=_name)
def test_example(example: CodeExample, eval_example: EvalExample, running: None, same_logging: None) -> None:
    settings = example.prefix_settings()
    if settings.get("test") == "skip":
        assert settings.get("reason"), f'{_name(example)}: a skipped example must say why: reason="..."'
        pytest.skip(settings["reason"])
    version: Any = "py311"  # a release behind in the annotations of pytest-examples
    eval_example.set_config(
        line_length=88,
        target_version=version,
        ruff_select=["B", "E", "F", "UP"],
        ruff_ignore=["E402", *(["F821"] if "group" in settings else [])],
    )
    shared = _names_before(example, settings.get("group"))
    if eval_example.update_examples:
        eval_example.format(example)
        eval_example.run_print_update(example, module_globals=shared)
    else:
        try:
            eval_example.lint(example)
            eval_example.run_print_check(example, module_globals=shared)
        except pytest.fail.Exception as error:
            category, slug = example.path.parent.name, example.path.stem
            remedy = f"correct the example, or run `make examples PATTERN={category}/{slug}` if the new output is right"
            pytest.fail(f"{error.msg}\n{remedy}", pytrace=False)


def _names_before(example: CodeExample, group: str | None) -> dict[str, Any]:
    """Return the names that earlier examples of the group define; tests run in any order, so run those first."""
    names: dict[str, Any] = {}
    for earlier in _examples()[example.path] if group else ():
        if earlier.prefix_settings().get("group") == group:
            if earlier.start_line >= example.start_line:
                break
            code = compile(earlier.source, f"{earlier.path}:{earlier.start_line}", "exec", dont_inherit=True)
            exec(code, names)
    return names


def _fences(text: str) -> Iterator[tuple[int, str, str]]:
    closing = ""
    for match in _FENCE.finditer(text):
        mark, info = match[1], match["info"].strip()
        if closing:
            if mark.startswith(closing) and not info:
                closing = ""
        else:
            closing = mark
            yield text.count("\n", 0, match.start()) + 1, mark, info


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_python_on_a_page_escapes_the_examples(page: Path) -> None:
    if page.name == "index.md":
        return
    text = page.read_text(encoding="utf-8")
    ran = {example.start_line for example in _examples()[page]}
    python = [(line, mark) for line, mark, info in _fences(text) if re.match(r"\{?\s*\.?(py|python)\b", info)]
    lines = text.splitlines()
    for line, mark in python:
        assert mark == "```", f"{page.name}:{line}: use three backticks, or the example is not run"
        assert line in ran or _INCLUDE.match(lines[line]), f"{page.name}:{line}: this example is not run"
    assert ran, f"{page.name}: no example on the page runs; write one under Usage"
