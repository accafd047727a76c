"""A tree with one module and one proof, to try the tool on."""

from __future__ import annotations

import textwrap
from pathlib import Path

from mutation.mutants import Mutant
from mutation.subjects import Subject

MODULE = "snippets/tiny/counting.py"
PROOF = "tests/patterns/tiny/test_counting.py"
SUBJECT = Subject("tiny/counting", (MODULE,), (PROOF,))
SOURCE = "def add(a, b):\n    return a + b\n"
# Of the plugins that are installed, only those whose options the tool gives: they load in no time.
_SETTINGS = """
[tool.pytest]
addopts = ["--import-mode=importlib", "-p", "pytest_cov", "-p", "_hypothesis_pytestplugin", "-p", "no:cacheprovider"]
"""
_CONFTEST = """
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "snippets" / "tiny"))
"""
_PROOF = """
import counting


def test_two_and_three_are_five():
    assert counting.add(2, 3) == 5
"""


def plant(root: Path, proof: str = _PROOF, conftest: str = "") -> Path:
    """Write the tree, with more in its proof and its conftest.py if need be."""
    for path, text in (
        (MODULE, SOURCE),
        (PROOF, textwrap.dedent(proof)),
        ("tests/conftest.py", _CONFTEST + textwrap.dedent(conftest)),
        ("pyproject.toml", _SETTINGS),
    ):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return root


def mutant(line: str, before: str = "") -> Mutant:
    """Return the module with another line for its last, and perhaps something before everything."""
    after = before + SOURCE.replace("return a + b", line)
    return Mutant(MODULE, "Operator", "return a + b", "def add(a, b):", SOURCE, after)
