"""The catalogue's place in MkDocs: mkdocs-macros loads this file and calls the functions below."""

from __future__ import annotations

import html
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
DOCS = Path(__file__).resolve().parents[1]
if str(DOCS) not in sys.path:
    sys.path.insert(0, str(DOCS))
# `mkdocs serve` loads this file anew on each change. What it imports is loaded anew only when it has changed,
# because it remembers what it has parsed.
_STAMP = max(path.stat().st_mtime_ns for path in Path(__file__).parent.rglob("*.*"))
if getattr(sys.modules.get("_catalog"), "stamp", None) != _STAMP:
    for _name in [name for name in sys.modules if name.partition(".")[0] == "_catalog"]:
        del sys.modules[_name]

import jinja2  # noqa: E402
import pathspec  # noqa: E402
from mkdocs.exceptions import Abort  # noqa: E402 -- a SystemExit that a live server survives
from mkdocs.plugins import get_plugin_logger  # noqa: E402

from _catalog import artifacts, diagrams, live, read  # noqa: E402
from _catalog.macros import Macros  # noqa: E402
from _catalog.model import CatalogError  # noqa: E402
from _catalog.navigation import navigation  # noqa: E402

sys.modules["_catalog"].stamp = _STAMP  # type: ignore[attr-defined]

log = get_plugin_logger("catalogue")
logging.getLogger("mkdocs.plugins.macros").setLevel(logging.WARNING)  # at each build it lists what it knows


def define_env(env: Any) -> None:
    """Read the catalogue, make the navigation, add the macros and the diagram fence."""
    config = env.conf
    env.pp_catalog = catalog = _or_stop(read.load)
    config["nav"] = navigation(catalog)
    hidden = [pattern.src for pattern in catalog.patterns if pattern.archived]
    config["not_in_nav"] = pathspec.GitIgnoreSpec.from_lines(hidden)
    if live.is_serving():
        live.forget_stale(catalog, Path(config["site_dir"]))

    def fence(*args: Any, **kwargs: Any) -> str:
        try:
            return diagrams.fence(*args, **kwargs)
        except CatalogError as error:
            if config["strict"]:
                raise SystemExit(str(error)) from None  # SuperFences would swallow any other error
            log.error(str(error))  # noqa: TRY400 -- the message is the point
            return f'<div class="admonition failure"><p>{html.escape(str(error))}</p></div>'

    config["mdx_configs"].setdefault("pymdownx.superfences", {})["custom_fences"] = [
        {"name": "mermaid", "class": "mermaid", "format": fence, "validator": diagrams.validate}
    ]

    def bind(name: str) -> None:
        def call(*args: str) -> str:
            macros = Macros(catalog, env.page.file.src_uri, "{repo}/blob/{branch}".format(**config["extra"]))
            return macros.exported()[name](*args)

        env.macro(call, name)

    for name in Macros(catalog, "").exported():
        bind(name)


def on_pre_page_macros(env: Any) -> None:
    """Expand a page's macros here, so that a mistake is told in one line; while serving, the page shows that line."""
    if env.pp_catalog.by_src(env.page.file.src_uri):
        env.page.meta["search"] = {"exclude": True}  # search.tune makes its entries
    try:
        env.markdown = env.env.from_string(env.markdown).render(**env.variables)
        env.page.meta["render_macros"] = False  # once is enough
    except (jinja2.TemplateError, TypeError, CatalogError) as error:
        message = explain(error, env)
        if env.conf["strict"]:
            raise Abort(message) from None
        log.error(message)  # noqa: TRY400 -- the message is the point, the traceback is not
        env.markdown = f'!!! failure "This page is broken"\n    {message}\n'


def explain(error: Exception, env: Any) -> str:
    """Say what is wrong with a macro call: file, line, remedy."""
    if isinstance(error, CatalogError):
        return str(error)
    line = getattr(error, "lineno", None) or 1
    trace = error.__traceback__
    while trace and not isinstance(error, jinja2.TemplateSyntaxError):
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    path = DOCS / env.page.file.src_uri
    text = path.read_text(encoding="utf-8")
    line += text.count("\n", 0, text.index(env.markdown.strip()[:200]))
    known = ", ".join(sorted(Macros(env.pp_catalog, "").exported()))
    remedy = f"the macros are {known}" if isinstance(error, jinja2.UndefinedError) else "correct the call"
    return f"docs/{env.page.file.src_uri}:{line}: {error}; {remedy}"


def on_post_build(env: Any) -> None:
    """Write the files beside the pages."""
    site, base = Path(env.conf["site_dir"]), env.conf["site_url"] or ""
    moved = env.conf["extra"].get("redirects") or {}
    _or_stop(artifacts.write, env.pp_catalog, site, base, moved, live=live.is_serving())


def _or_stop(call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call; a `CatalogError` ends the build with its message alone."""
    try:
        return call(*args, **kwargs)
    except CatalogError as error:
        raise Abort(str(error)) from None
