"""Start a pattern: page, module and proofs, each saying what to write. All are red until that is done."""

from __future__ import annotations

import datetime
import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import jinja2

from _catalog.model import ROOT, SECTIONS, CatalogError, folder_of

_NAME = re.compile(r"([a-z][a-z0-9]*(?:-[a-z0-9]+)*)/([a-z][a-z0-9]*(?:-[a-z0-9]+)*)")
_TEXTS = {
    "when-to-use-it": "TODO: say when to use it, when not to, and link to the pattern to use instead.",
    "how-it-works": """```mermaid {title="TODO: tell in one sentence what the diagram shows"}
flowchart LR
  A[TODO: draw] --> B[the mechanism]
```

TODO: say the two or three rules that matter.""",
    "quick-start": "{$ quick_start() $}",
    "implementation": """```python title="MODULE.py"
--8<-- "snippets/FOLDER/MODULE.py"
```""",
    "usage": """TODO: begin with the shortest useful example, then the failure a reader will meet. All of them run.

```python
import MODULE

print(MODULE.__doc__ is not None)
#> True
```""",
    "wire-it-in": "TODO: show where it plugs into a real application (FastAPI, a worker, a script).",
    "gotchas": """### TODO: name the danger

TODO: say what the naive code does and what the pattern does. {$ proof("test_todo_name_what_must_hold") $}""",
    "test-your-own-use": """```python title="test_yours.py"
--8<-- "tests/patterns/FOLDER/test_SLUG_own.py:own"
```

{$ proofs() $}""",
    "or-use-a-library": "TODO: name the well-kept alternatives, what each adds, and the measured ratio.",
    "reference": "::: MODULE",
    "resources": "TODO: link the standards and the official documents.",
}


def start(name: str, root: Path = ROOT) -> list[Path]:
    """Write the files of the pattern `category/slug` and return them; a wrong name writes nothing.

    A category that does not exist yet gets its guide and its file of queries.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise CatalogError(
            [f"{name!r} is no pattern name; write category/slug in lower case, e.g. resilience/hedged-calls"]
        )
    category, slug = match.groups()
    folder, module = folder_of(category), _module_of(slug)
    files = {
        "page.md": root / "docs" / "patterns" / category / f"{slug}.md",
        "module.py": root / "snippets" / folder / f"{module}.py",
        "proof.py": root / "tests" / "patterns" / folder / f"test_{folder_of(slug)}.py",
        "own.py": root / "tests" / "patterns" / folder / f"test_{folder_of(slug)}_own.py",
    }
    taken = [path for path in files.values() if path.exists()]
    taken += [path for path in root.glob(f"snippets/*/{module}.py") if path not in taken]
    if taken:
        there = ", ".join(path.relative_to(root).as_posix() for path in taken)
        raise CatalogError([f"{name!r} exists already ({there}); choose another slug"])
    guide = root / "docs" / "patterns" / category / "index.md"
    if not guide.exists():
        files["category.md"] = guide
        files["queries.tsv"] = root / "tests" / "site" / "queries" / f"{category}.tsv"
    names = {"MODULE": module, "FOLDER": folder, "SLUG": folder_of(slug)}
    values = {
        "id": name,
        "slug": slug,
        "category": category,
        "order": 10 * (len(list(guide.parent.parent.glob("*/index.md"))) + 1),
        "today": datetime.date.today(),  # noqa: DTZ011 -- the writer's day
        "sections": SECTIONS,
        "texts": {section: _named(_TEXTS[section], names) for section in SECTIONS},
        "code": files["module.py"].relative_to(root).as_posix(),
        "proof": files["proof.py"].relative_to(root).as_posix(),
        "own": files["own.py"].relative_to(root).as_posix(),
    }
    for template, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_scaffolds().get_template(f"{template}.j2").render(values), encoding="utf-8")
    return list(files.values())


def _module_of(slug: str) -> str:
    """Return the module's name: two words at least, and one that hides nothing."""
    module = folder_of(slug)
    if "_" not in module:
        raise CatalogError([f"{slug!r} is one word, and a module {module}.py collides easily; write two, {slug}-..."])
    if module in sys.stdlib_module_names or module == "index":
        raise CatalogError([f"a module {module!r} would hide Python's own; choose another slug"])
    if importlib.util.find_spec(module) is not None:
        raise CatalogError([f"a module {module!r} would hide an installed package of that name; choose another slug"])
    return module


def _named(text: str, names: Mapping[str, str]) -> str:
    for mark, name in names.items():
        text = text.replace(mark, name)
    return text


def _scaffolds() -> jinja2.Environment:
    return jinja2.Environment(  # noqa: S701 -- Markdown and Python
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("scaffold")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        comment_start_string="<##",  # `{#` begins the id of a heading
        comment_end_string="##>",
        keep_trailing_newline=True,
    )
