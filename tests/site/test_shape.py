"""The shape of the catalogue: every page, module and proof in its place, each message with its remedy."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from _catalog import diagrams, read
from _catalog.code import tree as tree_of
from _catalog.lock import pins
from _catalog.model import ROOT, Catalog, folder_of
from site_tools.one_pattern import unwritten

PAGES = sorted(p for p in ROOT.glob("docs/patterns/*/*.md") if p.name != "index.md")
MODULES = sorted(p for p in ROOT.glob("snippets/**/*.py") if p.name != "__init__.py")
PROOFS = sorted(ROOT.glob("tests/patterns/*/*.py"))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


pages = pytest.mark.parametrize("page", PAGES, ids=_name)
modules = pytest.mark.parametrize("module", MODULES, ids=_name)
proofs = pytest.mark.parametrize("proof", PROOFS, ids=_name)


def test_the_catalogue_is_valid() -> None:
    assert read.load().patterns, "no pattern was found below docs/patterns"


@pytest.mark.parametrize(
    "file", [*PAGES, *MODULES, *PROOFS, *ROOT.glob("docs/patterns/*/index.md"), *ROOT.glob("docs/*/*.md")], ids=_name
)
def test_nothing_is_left_to_write(file: Path) -> None:
    left = list(unwritten([file]))
    assert not left, "\n".join(left)


@pages
def test_a_page_calls_the_parts_that_are_derived(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wanted = {"opening": "first", "quick_start": "under Quick start", "proofs": "at the end of Test your own use"}
    for macro, place in wanted.items():
        found = len(re.findall(rf"\{{\$ {macro}\(\) \$\}}", text))
        assert found == 1, f"{_name(page)}: write {{$ {macro}() $}} once, {place}"
    assert not re.search(r"^# ", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE), (
        f"{_name(page)}: the title comes from the front matter; remove the `# ` heading"
    )


@pages
def test_every_gotcha_links_its_proof(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    gotchas = text.partition("{#gotchas}")[2].partition("{#test-your-own-use}")[0]
    parts = re.split(r"^### (.*)$", gotchas, flags=re.MULTILINE)
    assert len(parts) > 2, f"{_name(page)}: Gotchas has no ### heading; name each danger"
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        assert "{$ proof(" in body, f"{_name(page)}: gotcha {heading!r} links no proof; add {{$ proof(...) $}}"


@pages
def test_a_page_shows_a_test_for_the_readers_own_use(page: Path) -> None:
    section = page.read_text(encoding="utf-8").partition("{#test-your-own-use}")[2].partition("{#or-use-a-library}")[0]
    assert re.search(r'--8<-- "tests/patterns/[^"]+:own"', section), f"{_name(page)}: include the test marked `own`"


@pages
def test_a_measured_table_or_plot_stands_at_the_left_margin(page: Path) -> None:
    indented = re.findall(r"^ +\{\$ (?:measured|plot)\(.*$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert not indented, f"{_name(page)}: only its first line would be within the tab: {indented}"


@pages
def test_standards_are_linked_with_https(page: Path) -> None:
    resources = page.read_text(encoding="utf-8").partition("{#resources}")[2]
    links = re.findall(r"\]\((\S+?)\)", resources)
    assert links, f"{_name(page)}: Resources links nothing"
    assert all(link.startswith("https://") for link in links), f"{_name(page)}: {links}"


def test_every_module_is_shown_exactly_once(catalog: Catalog) -> None:
    shown = Counter(module for pattern in catalog.patterns for module in pattern.modules)
    for module in MODULES:
        assert shown[_name(module)] == 1, (
            f"{_name(module)} is shown {shown[_name(module)]} times; include it on one page"
        )


def test_every_proof_file_belongs_to_a_page(catalog: Catalog) -> None:
    used = {proof.path for pattern in catalog.patterns for proof in pattern.proofs}
    helpers = {_name(p) for p in PROOFS if not p.name.startswith("test_")}
    orphans = {_name(path) for path in PROOFS} - used - helpers
    assert not orphans, f"proofs without a page: {', '.join(sorted(orphans))}; rename or remove them"


def test_every_measurement_belongs_to_a_page_and_a_benchmark(catalog: Catalog) -> None:
    known = {pattern.id: pattern for pattern in catalog.patterns}
    for path in (ROOT / "docs" / "_measured").glob("*/*"):
        slug = path.name.partition(".")[0]
        bench = ROOT / "tests" / "bench" / folder_of(path.parent.name) / f"{slug.replace('-', '_')}.py"
        assert f"{path.parent.name}/{slug}" in known, f"{_name(path)}: no such pattern; remove the file"
        assert bench.is_file(), f"{_name(path)}: {_name(bench)} is missing; write it, or remove the measurement"


def test_module_names_are_unique_and_hide_nothing() -> None:
    """Whoever copies two patterns into one folder must lose neither a module nor a library."""
    tops = Counter(
        module.stem if len(module.relative_to(ROOT).parts) == 3 else module.parent.name
        for module in {m if len(m.relative_to(ROOT).parts) == 3 else m.parent / "_" for m in MODULES}
    )
    assert not [name for name, count in tops.items() if count > 1]
    packages = {name.replace("-", "_") for name in pins(ROOT / "requirements.txt")} | set(sys.stdlib_module_names)
    for name in tops:
        assert name not in packages, f"a module named {name!r} would hide a library; rename it"


def _public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body)


@modules
def test_every_public_name_has_a_docstring(module: Path) -> None:
    tree = tree_of(module)
    assert ast.get_docstring(tree), f"{_name(module)}:1: say in a docstring what the module does"
    overloads = {"overload", "typing.overload"}
    for node in _public(tree.body):
        if any(ast.unparse(decorator) in overloads for decorator in node.decorator_list):
            continue
        assert ast.get_docstring(node), f"{_name(module)}:{node.lineno}: {node.name} has no docstring; write one"


_SECRET_NAME = re.compile(r"(?i)(password|passwd|secret|token|api_?key|private_?key|credential)s?$")
_SECRET_TEXT = re.compile(
    r"whsec_\w{8}|sk_(live|test)_|AKIA[0-9A-Z]{12}|ghp_\w{20}|-----BEGIN|://[^/\s:@{]+:[^/\s:@{]+@|\b[A-Za-z0-9+/]{40,}={0,2}$"
)


def _literals(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Yield line, name and text of every string that is assigned, passed or defaulted to a name."""
    for node in ast.walk(tree):
        pairs: list[tuple[str, ast.expr | None]] = []
        if isinstance(node, ast.Assign):
            pairs = [(ast.unparse(target), node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign):
            pairs = [(ast.unparse(node.target), node.value)]
        elif isinstance(node, ast.keyword) and node.arg:
            pairs = [(node.arg, node.value)]
        elif isinstance(node, ast.arguments):
            named = [*node.posonlyargs, *node.args]
            pairs = [(a.arg, d) for a, d in zip(named[-len(node.defaults) :], node.defaults, strict=False)]
            pairs += [(a.arg, d) for a, d in zip(node.kwonlyargs, node.kw_defaults, strict=True)]
        for name, value in pairs:
            if isinstance(value, ast.Constant) and isinstance(value.value, str | bytes) and value.value:
                text = value.value if isinstance(value.value, str) else value.value.decode("latin-1")
                yield value.lineno, name.rpartition(".")[2], text


@modules
def test_no_secret_stands_in_a_module(module: Path) -> None:
    for line, name, text in _literals(tree_of(module)):
        # The name of an environment variable is no secret.
        if _SECRET_NAME.search(name) and not re.fullmatch(r"[A-Z][A-Z0-9_]*", text):
            pytest.fail(f"{_name(module)}:{line}: {name} = {text[:8]!r}...; read it at start-up")
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value.replace("user:password@host", "")  # how a message shows the form of an address
            assert not _SECRET_TEXT.search(text), f"{_name(module)}:{node.lineno}: this looks like a secret; remove it"


def test_a_literal_secret_would_be_found() -> None:
    found = {
        name for _, name, _ in _literals(ast.parse("def f(*, password='hunter2'): ...\nAPI_KEY = 'x'\ng(token='y')"))
    }
    assert found == {"password", "API_KEY", "token"}
    assert all(_SECRET_NAME.search(name) for name in found)
    assert _SECRET_TEXT.search("postgresql://app:hunter2@db/shop")


@modules
def test_a_module_imports_no_other_pattern(module: Path, catalog: Catalog) -> None:
    if module.parent.name == "recipes":
        return
    own = next(pattern for pattern in catalog.patterns if _name(module) in pattern.modules)
    mine = {Path(m).stem for m in own.modules} | {Path(m).parent.name for m in own.modules}
    others = {m.stem for m in MODULES} - mine
    for node in ast.walk(tree_of(module)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in names:
            assert name.partition(".")[0] not in others, f"{_name(module)}: imports {name}, which is another pattern's"


@modules
def test_a_module_carries_no_marker_of_the_site(module: Path) -> None:
    assert "--8<--" not in module.read_text(encoding="utf-8"), f"{_name(module)}: markers are stripped on the page"


@proofs
def test_proofs_name_their_page_and_are_sentences(proof: Path) -> None:
    if not proof.name.startswith("test_"):
        return
    tree = tree_of(proof)
    folder, stem = proof.parent.name.replace("_", "-"), proof.stem.removeprefix("test_").replace("_", "-")
    docstring = ast.get_docstring(tree) or ""
    assert docstring.startswith(f"Proves docs/patterns/{folder}/"), f"{_name(proof)}:1: begin with the page it proves"
    assert stem.startswith(docstring.partition(f"docs/patterns/{folder}/")[2].partition(".md")[0])
    names = [n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    tests = [name for name in names if name.startswith("test_")]
    assert len(tests) == len(set(tests)), f"{_name(proof)}: two tests share a name, so one never runs"
    for name in tests:
        assert name.count("_") >= 3, f"{_name(proof)}: {name} is no sentence; say what holds"


@proofs
def test_every_test_can_fail(proof: Path) -> None:
    """A test without an assertion, an expected error or a called check proves nothing."""
    tree = tree_of(proof)
    checks = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and _asserts(n)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            called = {ast.unparse(c.func).rpartition(".")[2] for c in ast.walk(node) if isinstance(c, ast.Call)}
            assert _asserts(node) or called & checks, f"{_name(proof)}:{node.lineno}: {node.name} asserts nothing"


# The last two run a hypothesis state machine, whose rules and invariants assert.
_CHECKS = {"raises", "fail", "warns", "runTest", "run_state_machine_as_test"}


def _asserts(function: ast.AST) -> bool:
    return any(
        isinstance(node, ast.Assert)
        or (isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in _CHECKS)
        for node in ast.walk(function)
    )


def test_every_diagram_is_drawn_and_none_is_left_over() -> None:
    wanted = {fence.kept: fence for fence in diagrams.fences()}
    remedy = "run `make examples`: it draws what is missing and removes what no page shows"
    assert set((ROOT / "docs" / "_diagrams").rglob("*.svg")) == wanted.keys(), remedy
    for path, fence in wanted.items():
        assert diagrams.kept_drawing(path, fence.key), f"{_name(path)} is not what the page says; {remedy}"


def test_every_diagram_has_a_text_alternative() -> None:
    for fence in diagrams.fences():
        where = f"{_name(fence.page)}:{fence.line}"
        assert fence.title, f'{where}: add {{title="..."}}, the sentence a blind reader gets'
        assert len(fence.title) > 30, f"{where}: the title must tell what the diagram shows"


def test_the_lock_has_a_hash_for_every_pin_and_no_address() -> None:
    for name in ("requirements.txt", "requirements-bench.txt"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "://" not in text, f"{name}: names an address; compile it with `make lock`"
        pins = re.split(r"^(?=[\w.-]+(?:\[.*?\])?==)", text, flags=re.MULTILINE)[1:]
        assert pins
        for pin in pins:
            assert "--hash=sha256:" in pin, f"{name}: {pin.splitlines()[0]} has no hash"


def test_every_declared_dependency_of_the_patterns_is_imported(catalog: Catalog) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]["patterns"]
    used = {d.requirement for pattern in catalog.patterns for d in pattern.requires}
    unused = sorted(set(declared) - used)
    assert not unused, f"pyproject.toml: group patterns declares what no module imports: {unused}"
