"""The HTML of the catalogue: templates beside this file, filled in."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import jinja2

#: How macros are written in pages. The usual marks would clash with `{#id}` and with code that shows templates.
IN_PAGES: dict[str, Any] = {
    "variable_start_string": "{$",
    "variable_end_string": "$}",
    "block_start_string": "{%%",
    "block_end_string": "%%}",
    "comment_start_string": "{##",
    "comment_end_string": "##}",
}


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def filled(name: str, **values: Any) -> str:
    """Return the HTML of a template, on one line: Markdown takes an empty or indented line for its own."""
    return re.sub(r"\n\s*", "", _templates().get_template(f"{name}.html").render(**values))


def page_template(text: str) -> jinja2.Template:
    """Return a page's text as a template."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, **IN_PAGES)  # noqa: S701 -- Markdown
    return environment.from_string(text)
