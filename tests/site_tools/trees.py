"""Synthetic trees of the whole project: empty, with one pattern, or with as many as the catalogue will have."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from _catalog import read
from _catalog.model import ROOT, Pattern
from _catalog.pages import split


def make(target: Path, count: int) -> Path:
    """Make a tree at `target` with `count` patterns, cloned in turn from the real ones, and return it."""
    catalog = read.load()
    (target / "docs").mkdir(parents=True)
    for name in ("mkdocs.yml", "pyproject.toml", "requirements.txt"):
        shutil.copyfile(ROOT / name, target / name)
    for name in ("_catalog", "_theme", "_diagrams", "find", "about"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "docs" / name, target / "docs" / name, ignore=ignore)
    for name in ("servers", "harness"):  # the services that pages may name, and what every proof runs with
        shutil.copytree(ROOT / "tests" / name, target / "tests" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "tests" / "conftest.py", target / "tests" / "conftest.py")
    for folder in ("docs/patterns", "docs/_measured", "snippets", "tests/patterns"):
        (target / folder).mkdir(parents=True)
    shutil.copyfile(ROOT / "docs/patterns/index.md", target / "docs/patterns/index.md")
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    index = re.sub(r"^front_door: .*\n(?:  - .*\n)*", "front_door: []\n", index, flags=re.MULTILINE)
    (target / "docs/index.md").write_text(index, encoding="utf-8")
    for number in range(count):
        _clone(catalog.patterns[number % len(catalog.patterns)], target, number)
    return target


def _clone(pattern: Pattern, target: Path, number: int) -> None:
    folder = target / "docs" / "patterns" / pattern.category
    if not folder.is_dir():
        folder.mkdir()
        guide = (ROOT / "docs/patterns" / pattern.category / "index.md").read_text(encoding="utf-8")
        # A guide links to patterns by their real names.
        guide = re.sub(r"\[([^]]+)\]\([\w./-]+\.md(?:#[\w-]+)?\)", r"\1", guide)
        (folder / "index.md").write_text(guide, encoding="utf-8")
    ending = f"{number:03}"
    names = {Path(m).stem if len(Path(m).parts) == 3 else Path(m).parent.name for m in pattern.modules}
    slug_ = pattern.slug.replace("-", "_")

    words = "|".join(sorted(names, key=len, reverse=True))
    # A proof may be several files: test_slug.py, test_slug_faults.py.
    own = re.compile(rf"(?<![\w-])(?:{words})(?![\w-])|\btest_{slug_}(?=[_.])")

    def renamed(text: str) -> str:
        return own.sub(lambda match: f"{match[0]}_{ending}", text)

    page = (ROOT / "docs" / pattern.src).read_text(encoding="utf-8")
    page = re.sub(r"^title: .*$", f"title: {pattern.slug} {ending}", page, flags=re.MULTILINE)
    head, body = split(page)
    aliases = re.search(r"^aliases:\n((?:  - .*\n)+)", head, re.MULTILINE)
    if aliases:  # an alias leads to one page, so a clone has its own
        numbered = re.sub(r"""^  - (["']?)(.+?)\1$""", rf"  - \g<1>\2 {ending}\1", aliases[1], flags=re.MULTILINE)
        head = head.replace(aliases[1], numbered)
    page = f"---\n{head}\n---\n{body}"
    page = re.sub(r"^related:.*\n(?:  - .*\n)*", "related: []\n", page, flags=re.MULTILINE)
    page = re.sub(r"\[([^]]+)\]\([\w./-]+\.md(?:#[\w-]+)?\)", r"\1", page)
    head, body = split(page)
    body = re.sub(rf'((?:measured|plot)\("[\w-]+)_{ending}"', r'\1"', renamed(body))  # tables keep their names
    (folder / f"{pattern.slug}-{ending}.md").write_text(f"---\n{head}\n---\n{body}", encoding="utf-8")
    files = {Path(m) for m in pattern.modules} | {Path(proof.path) for proof in pattern.proofs}
    files |= {f.relative_to(ROOT) for m in pattern.modules for f in (ROOT / m).parent.glob("__init__.py")}
    for file in files:
        parts = [renamed(part) for part in file.parts]
        copy = target.joinpath(*parts)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(renamed((ROOT / file).read_text(encoding="utf-8")), encoding="utf-8")
    for file in (ROOT / "docs/_diagrams" / pattern.category).glob(f"{pattern.slug}.*"):
        name = file.name.replace(pattern.slug, f"{pattern.slug}-{ending}", 1)
        shutil.copyfile(file, target / "docs/_diagrams" / pattern.category / name)
    for file in (ROOT / "docs/_measured" / pattern.category).glob(f"{pattern.slug}.*"):
        copy = (
            target / "docs/_measured" / pattern.category / file.name.replace(pattern.slug, f"{pattern.slug}-{ending}")
        )
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
