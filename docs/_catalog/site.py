"""The catalogue's place in MkDocs: mkdocs-macros loads this file and calls the functions below."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1]
if str(DOCS) not in sys.path:
    sys.path.insert(0, str(DOCS))
for _name in [name for name in sys.modules if name.partition(".")[0] == "_catalog"]:
    del sys.modules[_name]  # `mkdocs serve` loads this file anew on each change: so must what it imports

from mkdocs.exceptions import PluginError  # noqa: E402

from _catalog import artifacts, diagrams, read  # noqa: E402
from _catalog.render import Macros  # noqa: E402


def define_env(env: Any) -> None:
    """Read the catalogue, make the navigation, add the macros and the diagram fence."""
    try:
        catalog = read.load()
    except read.CatalogError as error:
        raise PluginError(f"the catalogue is wrong\n{error}") from None
    config = env.conf
    config["nav"] = navigation(catalog)
    config["mdx_configs"].setdefault("pymdownx.superfences", {})["custom_fences"] = [
        {
            "name": "mermaid",
            "class": "mermaid",
            "format": _plainly(diagrams.fence),
            "validator": diagrams.validate,
        }
    ]
    env.pp_catalog = catalog

    def bind(name: str) -> None:
        def call(*args: str) -> str:
            macros = Macros(catalog, env.page.file.src_uri, config["extra"].get("repo") or "")
            return _plainly(macros.exported()[name])(*args)

        env.macro(call, name)

    for name in Macros(catalog, "").exported():
        bind(name)


def on_post_build(env: Any) -> None:
    """Write the files beside the pages."""
    redirects = env.conf["extra"].get("redirects") or {}
    _plainly(artifacts.write)(
        env.pp_catalog, Path(env.conf["site_dir"]), env.conf["site_url"] or "", redirects
    )


def navigation(catalog: read.Catalog) -> list[Any]:
    """Return the navigation: nothing to edit by hand when a pattern is added."""
    patterns: list[Any] = ["patterns/index.md"]
    for category in catalog.categories:
        pages = [{p.meta.title: p.src} for p in category.patterns if not p.archived]
        patterns.append({category.meta.title: [f"patterns/{category.name}/index.md", *pages]})
    find = [
        {"By need": "find/index.md"},
        *({f"By {n}": f"find/{n}.md"} for n in ("tag", "library", "service")),
    ]
    about = [f"about/{path.name}" for path in sorted((DOCS / "about").glob("*.md"), key=_about_order)]
    return [{"Quick reference": "index.md"}, {"Patterns": patterns}, {"Find": find}, {"About": about}]


def _about_order(path: Path) -> tuple[bool, str]:
    return path.name != "index.md", path.name


def _plainly(call: Any) -> Any:
    """Turn a `CatalogError` into the error that MkDocs prints as one line, without a traceback."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except read.CatalogError as error:
            raise PluginError(str(error)) from None

    return wrapped
