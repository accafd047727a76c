"""Start a pattern: page, module and proof, each saying what to write. All three are red until that is done."""

from __future__ import annotations

import datetime
import importlib.util
import re
import sys
from pathlib import Path

from _catalog.read import ROOT, SECTIONS, CatalogError, folder_of

_TEXTS = {
    "when-to-use-it": "TODO: say when to use it, when not to, and link to the pattern to use instead.",
    "how-it-works": """```mermaid {{title="TODO: tell in one sentence what the diagram shows"}}
flowchart LR
  A[TODO: draw] --> B[the mechanism]
```

TODO: say the two or three rules that matter.""",
    "quick-start": "{{$ quick_start() $}}",
    "implementation": """```python title="{module}.py"
--8<-- "snippets/{folder}/{module}.py"
```""",
    "usage": """TODO: begin with the shortest useful example, then the failure a reader will meet. All of them run.

```python
import {module}

print({module}.__doc__ is not None)
#> True
```""",
    "wire-it-in": "TODO: show where it plugs into a real application (FastAPI, a worker, a script).",
    "gotchas": """### TODO: name the danger

TODO: say what the naive code does and what the pattern does. {{$ proof("test_todo_name_what_must_hold") $}}""",
    "test-your-own-use": """```python title="test_yours.py"
--8<-- "tests/patterns/{folder}/test_{module}.py:own"
```

{{$ proofs() $}}""",
    "or-use-a-library": "TODO: name the well-kept alternatives, what each adds, and the measured ratio.",
    "reference": "::: {module}",
    "resources": "TODO: link the standards and the official documents.",
}

_PAGE = """---
title: "TODO: title of {slug}"
need: "I need TODO: the reader's need in their own words."
use_case: "TODO: the situation, as a phrase"
key_benefit: "TODO: what the reader gains"
tags: [todo-one, todo-two]
aliases:
  - "TODO: what a reader would type"
  - "TODO: the error text they would paste"
  - "TODO: the name of a library they know"
env: []
services: []
related: []
used_by: []
reviewed: {today}
status: current
---

{{$ opening() $}}

{sections}
"""

_MODULE = '''"""TODO: say in one sentence what this module does, and name the standard it follows."""

from __future__ import annotations


def todo() -> None:
    """TODO: give types, units, errors raised."""
    raise NotImplementedError("TODO: write the pattern in {path}")
'''

_PROOF = '''"""Proves docs/patterns/{id}.md: TODO: say in one sentence what is proved."""

import pytest


# --8<-- [start:own]
def test_todo_a_short_test_that_a_reader_copies() -> None:
    pytest.fail("TODO: in {path}, test a reader's own use of the pattern")


# --8<-- [end:own]


def test_todo_name_what_must_hold() -> None:
    pytest.fail("TODO: in {path}, prove what must hold; name the test as a sentence")
'''


def start(name: str, root: Path = ROOT) -> list[Path]:
    """Write the three files of the pattern `category/slug` and return them; a wrong name writes nothing."""
    match = re.fullmatch(r"([a-z][a-z0-9]*(?:-[a-z0-9]+)*)/([a-z][a-z0-9]*(?:-[a-z0-9]+)*)", name)
    if not match:
        raise CatalogError([f"{name!r} is no pattern name; write category/slug in lower case, e.g. resilience/retry"])
    category, slug = match.groups()
    categories = sorted(path.parent.name for path in root.glob("docs/patterns/*/index.md"))
    if category not in categories:
        remedy = f"there are {', '.join(categories)}; to add one, write docs/patterns/{category}/index.md first"
        raise CatalogError([f"{category!r} is no category; {remedy}"])
    folder, module = folder_of(category), slug.replace("-", "_")
    if module in sys.stdlib_module_names or module == "index":
        raise CatalogError([f"a module {module!r} would hide Python's own; choose another slug"])
    if importlib.util.find_spec(module) is not None:
        raise CatalogError([f"a module {module!r} would hide an installed package of that name; choose another slug"])
    page = root / "docs" / "patterns" / category / f"{slug}.md"
    code = root / "snippets" / folder / f"{module}.py"
    proof = root / "tests" / "patterns" / folder / f"test_{module}.py"
    taken = [path for path in (page, code, proof) if path.exists()]
    taken += [path for path in root.glob(f"snippets/*/{module}.py") if path not in taken]
    if taken:
        there = ", ".join(path.relative_to(root).as_posix() for path in taken)
        raise CatalogError([f"{name!r} exists already ({there}); choose another slug"])
    names = {"id": name, "slug": slug, "module": module, "folder": folder, "today": datetime.date.today()}  # noqa: DTZ011
    sections = "\n\n".join(f"## {SECTIONS[key]} {{#{key}}}\n\n{_TEXTS[key].format(**names)}" for key in SECTIONS)
    texts = {
        page: _PAGE.format(**names, sections=sections),
        code: _MODULE.format(path=code.relative_to(root).as_posix()),
        proof: _PROOF.format(id=name, path=proof.relative_to(root).as_posix()),
    }
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(texts)
