"""What readers take with them: raw modules and proofs, archives, and each page as one Markdown file."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

from _catalog.macros import Macros
from _catalog.model import Catalog, Pattern
from _catalog.pages import with_includes
from _catalog.templating import page_template


def write_files(catalog: Catalog, pattern: Pattern, site: Path) -> None:
    """Copy a pattern's modules and proofs, and write its page as Markdown."""
    for file in (*pattern.modules, *pattern.proof_files):
        target = site / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(catalog.root / file, target)
    (site / pattern.markdown).write_text(as_markdown(catalog, pattern), encoding="utf-8")


def write_archive(catalog: Catalog, pattern: Pattern, site: Path) -> None:
    """Zip the modules of a pattern that has several, a package with its folder; the same bytes each time."""
    if not pattern.archive:
        return
    files = {Path(module): Path(module).name for module in pattern.modules}
    if pattern.package:
        folder = Path(pattern.package)
        files = {folder / file.name: f"{folder.name}/{file.name}" for file in (catalog.root / folder).glob("*.py")}
    with zipfile.ZipFile(site / pattern.archive, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, name in sorted(files.items()):
            entry = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, (catalog.root / path).read_bytes(), zipfile.ZIP_DEFLATED)


def as_markdown(catalog: Catalog, pattern: Pattern) -> str:
    """Return a page's Markdown with macros and includes resolved and the generated reference left out."""
    macros = Macros(catalog, pattern.src, for_markdown=True)
    body = with_includes(catalog.root, page_template(pattern.body).render(**macros.exported()))
    body = re.sub(r"^## Reference \{#reference\}\n.*?(?=^## )", "", body, flags=re.MULTILINE | re.DOTALL)
    body = re.sub(r"^(#+ .*?) ?\{#[\w-]+\}$", r"\1", body, flags=re.MULTILINE)
    return re.sub(r"^\{ \.pp-[\w-]+ \}\n", "", body, flags=re.MULTILINE).lstrip()
