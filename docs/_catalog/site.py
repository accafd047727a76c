"""The catalogue's place in MkDocs: mkdocs-macros loads this file and calls the functions below."""

from __future__ import annotations

import html
import os
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
_STAMP = max(path.stat().st_mtime_ns for path in Path(__file__).parent.glob("*.py"))
if getattr(sys.modules.get("_catalog"), "stamp", None) != _STAMP:
    for _name in [name for name in sys.modules if name.partition(".")[0] == "_catalog"]:
        del sys.modules[_name]

import jinja2  # noqa: E402
import pathspec  # noqa: E402
from mkdocs.exceptions import Abort  # noqa: E402 -- a SystemExit that a live server survives
from mkdocs.plugins import get_plugin_logger  # noqa: E402

from _catalog import artifacts, diagrams, read  # noqa: E402
from _catalog.render import Macros  # noqa: E402

sys.modules["_catalog"].stamp = _STAMP  # type: ignore[attr-defined]

log = get_plugin_logger("catalogue")


def define_env(env: Any) -> None:
    """Read the catalogue, make the navigation, add the macros and the diagram fence."""
    config = env.conf
    env.pp_catalog = catalog = _or_stop(read.load)
    config["nav"] = navigation(catalog)
    hidden = [pattern.src for pattern in catalog.patterns if pattern.archived]
    config["not_in_nav"] = pathspec.GitIgnoreSpec.from_lines(hidden)
    if os.environ.get("PROVEN_PATTERNS_LIVE"):
        forget_stale(catalog, Path(config["site_dir"]))

    def fence(*args: Any, **kwargs: Any) -> str:
        try:
            return diagrams.fence(*args, **kwargs)
        except read.CatalogError as error:
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


def forget_stale(catalog: read.Catalog, site: Path) -> None:
    """Remove built pages that an edit has made stale, so that the live server builds those again and no others.

    MkDocs compares a page with its source only. A page here shows modules, proofs and measurements too, and pages
    that list patterns show all front matter.
    """
    shared = [DOCS.parent / "mkdocs.yml", *(DOCS / "_catalog").glob("*.py"), *(DOCS / "_theme").rglob("*.*")]
    newest = max(path.stat().st_mtime for path in shared)
    for pattern in catalog.patterns:
        shown = [DOCS.parent / name for name in (*pattern.modules, *pattern.shown, *{p.path for p in pattern.proofs})]
        shown += (DOCS / "_measured" / pattern.category).glob(f"{pattern.slug}.*")
        built = site / pattern.url / "index.html"
        if built.is_file() and built.stat().st_mtime < max(newest, *(path.stat().st_mtime for path in shown)):
            built.unlink()
    listing = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} - {p.src for p in catalog.patterns}
    for src in listing:
        (site / src).with_suffix("").joinpath("index.html").unlink(missing_ok=True)
        (site / src).with_suffix(".html").unlink(missing_ok=True)


def on_pre_page_macros(env: Any) -> None:
    """Expand a page's macros here, so that a mistake is told in one line; while serving, the page shows that line."""
    if env.pp_catalog.by_src(env.page.file.src_uri):
        env.page.meta["search"] = {"exclude": True}  # artifacts.tune makes its entries
    try:
        env.markdown = env.env.from_string(env.markdown).render(**env.variables)
        env.page.meta["render_macros"] = False  # once is enough
    except (jinja2.TemplateError, TypeError, read.CatalogError) as error:
        message = explain(error, env)
        if env.conf["strict"]:
            raise Abort(message) from None
        log.error(message)  # noqa: TRY400 -- the message is the point, the traceback is not
        env.markdown = f'!!! failure "This page is broken"\n    {message}\n'


def explain(error: Exception, env: Any) -> str:
    """Say what is wrong with a macro call: file, line, remedy."""
    if isinstance(error, read.CatalogError):
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
    redirects = env.conf["extra"].get("redirects") or {}
    _or_stop(artifacts.write, env.pp_catalog, Path(env.conf["site_dir"]), env.conf["site_url"] or "", redirects)


def navigation(catalog: read.Catalog) -> list[Any]:
    """Return the navigation: nothing to edit by hand when a pattern is added."""
    patterns: list[Any] = ["patterns/index.md"]
    for category in catalog.categories:
        pages = [{p.meta.title: p.src} for p in category.patterns if not p.archived]
        patterns.append({category.meta.title: [f"patterns/{category.name}/index.md", *pages]})
    find = [{"By need": "find/index.md"}, *({f"By {n}": f"find/{n}.md"} for n in ("tag", "library", "service"))]
    about = sorted((path.name for path in (DOCS / "about").glob("*.md")), key=lambda name: (name != "index.md", name))
    return [
        {"Quick reference": "index.md"},
        {"Patterns": patterns},
        {"Find": find},
        {"About": [f"about/{name}" for name in about]},
    ]


def _or_stop(call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call; a `CatalogError` ends the build with its message alone, and a live server keeps the last good site."""
    try:
        return call(*args, **kwargs)
    except read.CatalogError as error:
        raise Abort(str(error)) from None
