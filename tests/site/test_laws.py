"""The laws of names and errors in CONTRIBUTING, as far as a machine can hold them."""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from _catalog.code import proofs_in, tree
from _catalog.model import ROOT, folder_of
from twins import unasync

MODULES = sorted(path for path in ROOT.glob("snippets/**/*.py") if path.name != "__init__.py")
PROOFS = sorted(ROOT.glob("tests/patterns/*/*.py"))
#: Verbs that mean nothing without the object they are done to.
BARE_VERBS = {"_ask", "_do", "_give", "_go", "_keep", "_look", "_put", "_take", "_tell", "_three"}
#: What a twin's method is called in the other color.
PLAIN = {
    "aclose": "close",
    "acall": "call",
    "async_auth_flow": "sync_auth_flow",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Return every node of a file, walked once for all laws."""
    return tuple(ast.walk(tree(path)))


modules = pytest.mark.parametrize("module", MODULES, ids=_name)
proofs = pytest.mark.parametrize("proof", PROOFS, ids=_name)


@modules
def test_a_modules_name_has_two_words_or_stands_in_a_package(module: Path) -> None:
    if len(module.relative_to(ROOT).parts) == 3:
        assert "_" in module.stem, f"{_name(module)}: one word collides in a reader's folder; write two"


@modules
def test_a_module_carries_no_pragma(module: Path) -> None:
    for number, line in enumerate(module.read_text(encoding="utf-8").splitlines(), 1):
        assert not re.search(r"#\s*(noqa|type:\s*ignore|pragma:|fmt:|isort:|ruff:)", line), (
            f"{_name(module)}:{number}: rewrite the line, or let snippets/ruff.toml decide for all modules"
        )


@modules
def test_a_private_verb_names_its_object(module: Path) -> None:
    for node in nodes(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.name not in BARE_VERBS, f"{_name(module)}:{node.lineno}: {node.name}: say what it is done to"


def packed(source: Iterable[ast.AST]) -> Iterator[int]:
    """Yield the line of each assignment in an `__init__` that sets several attributes."""
    for function in source:
        if isinstance(function, ast.FunctionDef) and function.name == "__init__":
            for node in ast.walk(function):
                if isinstance(node, ast.Assign):
                    targets = [target for target in node.targets for target in getattr(target, "elts", [target])]
                    if sum(isinstance(target, ast.Attribute) for target in targets) > 1:
                        yield node.lineno


@modules
def test_init_sets_one_attribute_a_line(module: Path) -> None:
    lines = list(packed(nodes(module)))
    assert not lines, f"{_name(module)}: set one attribute a line, not several, on lines {lines}"


def test_several_attributes_on_a_line_would_be_found() -> None:
    source = "class A:\n def __init__(self, a, b):\n  self.a, self.b = a, b\n  self.c = self.d = a\n  x, y = b\n"
    assert list(packed(ast.walk(ast.parse(source)))) == [3, 4]


def unset_messages(source: Iterable[ast.AST]) -> Iterator[tuple[int, str, str]]:
    """Yield line, exception and text of what is raised when a setting is missing."""
    for node in source:
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            text = "".join(
                part.value
                for argument in node.exc.args
                for part in ast.walk(argument)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            )
            if re.search(r"\b(is|are) not set\b|^not set\b|\bnot set:", text):
                yield node.lineno, ast.unparse(node.exc.func), text


@modules
def test_a_missing_setting_is_told_by_one_exception_in_one_wording(module: Path) -> None:
    for line, kind, text in unset_messages(nodes(module)):
        where = f"{_name(module)}:{line}"
        assert kind == "RuntimeError", f"{where}: raise RuntimeError for a setting that is missing"
        assert text.endswith(" is not set, or is empty"), f"{where}: write `NAME is not set, or is empty`"


def test_another_wording_for_a_missing_setting_would_be_found() -> None:
    source = ast.parse("raise ValueError(f'{name} is not set')\nraise KeyError('not set: ' + x)\nraise E('set')")
    assert [(line, kind) for line, kind, _ in unset_messages(ast.walk(source))] == [(1, "ValueError"), (2, "KeyError")]


def environment_readers(source: Iterable[ast.AST]) -> Iterator[tuple[int, str, str]]:
    """Yield line, name and parameter of each function that takes the environment."""
    for node in source:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args
            named = [*arguments.posonlyargs, *arguments.args]
            pairs = list(zip(reversed(named), reversed(arguments.defaults), strict=False))
            pairs += [(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d]
            for argument, default in pairs:
                if ast.unparse(default) == "os.environ":
                    yield node.lineno, node.name, argument.arg


@modules
def test_settings_are_read_by_from_env(module: Path) -> None:
    for line, name, parameter in environment_readers(nodes(module)):
        assert re.fullmatch(r"(_?\w+_)?from_env", name), (
            f"{_name(module)}:{line}: call {name} from_env, or ..._from_env"
        )
        assert parameter == "environ", f"{_name(module)}:{line}: call the parameter environ, not {parameter}"


def test_another_reader_of_the_environment_would_be_found() -> None:
    source = ast.parse("def load(env=os.environ): ...\ndef a_from_env(x, *, environ=os.environ): ...")
    assert list(environment_readers(ast.walk(source))) == [(1, "load", "env"), (2, "a_from_env", "environ")]


@modules
def test_a_number_is_told_by_the_one_rule(module: Path) -> None:
    for node in tree(module).body:
        if isinstance(node, ast.FunctionDef) and node.name in {"_is_number", "is_number"}:
            node.returns = None
            names: dict[str, Any] = {}
            exec(compile(ast.Module([node], []), _name(module), "exec"), names)
            tells = names[node.name]
            assert all(map(tells, (0, -3, 1.5, 1e9))), _name(module)
            refused = (math.nan, math.inf, -math.inf, True, 10**400, "1", None, Decimal(1))
            assert not any(map(tells, refused)), f"{_name(module)}: write it as CONTRIBUTING does"


@modules
def test_a_number_that_is_refused_is_shown(module: Path) -> None:
    """`timeout must be a number over 0, got nan`: the name, what it must be, what was got."""
    for node in nodes(module):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
            continue
        text = ast.unparse(node.exc)
        if re.search(r"must be (a|the)? ?(finite|whole|positive)? ?(number|seconds)", text):
            if "{HEADER}" in text:
                continue  # what a stranger sent is not repeated
            assert ", got {" in text, f"{_name(module)}:{node.lineno}: end the message with what was got"


@proofs
def test_a_tests_name_has_at_most_80_characters(proof: Path) -> None:
    for found in proofs_in(ROOT, proof):
        assert len(found.name) <= 80, f"{_name(proof)}:{found.line}: shorten {found.name}"


@proofs
def test_a_file_of_proofs_carries_no_pragma_for_the_whole_file(proof: Path) -> None:
    text = proof.read_text(encoding="utf-8")
    assert not re.search(r"^# (ruff: noqa|isort: split|mypy: )", text, re.MULTILINE), (
        f"{_name(proof)}: what a reader copies is a file of its own, test_<slug_>_own.py"
    )


@proofs
def test_what_stands_beside_proofs_is_named_for_its_pattern(proof: Path) -> None:
    """The fingerprint of a record takes such files by their name: a server process loads them without an import."""
    if proof.name.startswith("test_") or proof.name == "conftest.py":
        return
    slugs = [folder_of(page.stem) for page in ROOT.glob(f"docs/patterns/{proof.parent.name.replace('_', '-')}/*.md")]
    assert any(proof.stem.startswith(f"{slug}_") for slug in slugs), f"{_name(proof)}: begin its name with a slug"


# The twins.

PAIRS = [(m, m.with_name(m.name.replace("_async.py", "_sync.py"))) for m in MODULES if m.stem.endswith("_async")]
twins = pytest.mark.parametrize(("of_async", "of_sync"), PAIRS, ids=[_name(first) for first, _ in PAIRS])


#: What one color needs and the other does not, with the reason.
ONE_COLOR = {"cancel_all": "a task can be cancelled, a thread cannot"}


def _public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if not node.name.startswith("_") or PLAIN.get(node.name, node.name) in PLAIN.values():
            yield node


def _surface(module: Path) -> dict[str, set[str]]:
    """Return the public names of a module without their color, and the public methods of its classes."""
    found = {}
    for node in _public(tree(module).body):
        if node.name in ONE_COLOR:
            continue
        inner = _public(node.body) if isinstance(node, ast.ClassDef) else ()
        found[node.name.removeprefix("Async").removesuffix("_async")] = {
            PLAIN.get(method.name, method.name) for method in inner
        }
    return found


def _classes(module: Path) -> set[str]:
    """Return the classes that an application with both colors would see."""
    return {node.name for node in _public(tree(module).body) if isinstance(node, ast.ClassDef)}


def test_there_are_twins() -> None:
    assert len(PAIRS) > 10


@twins
def test_twins_have_the_same_public_names(of_async: Path, of_sync: Path) -> None:
    assert of_sync.is_file(), f"{_name(of_async)} has no twin; write {of_sync.name}, or name it without a color"
    assert _surface(of_async) == _surface(of_sync)


@twins
def test_twins_share_no_name_of_a_class(of_async: Path, of_sync: Path) -> None:
    both = _classes(of_async) & _classes(of_sync)
    assert not both, f"{_name(of_async)}: {both} stand in both twins; define them once, in the core"


@twins
def test_beside_twins_there_is_no_module_without_a_color(of_async: Path, of_sync: Path) -> None:
    bare = of_async.with_name(of_async.name.replace("_async.py", ".py"))
    assert not bare.exists(), f"{_name(bare)}: call it {bare.stem}_core.py"


def test_every_sync_module_has_an_async_twin() -> None:
    alone = {m for m in MODULES if m.stem.endswith("_sync")} - {of_sync for _, of_sync in PAIRS}
    assert not alone, f"without a twin: {sorted(map(_name, alone))}"


def test_every_generated_twin_is_one_of_the_pairs() -> None:
    known = {(_name(of_async), _name(of_sync)) for of_async, of_sync in PAIRS}
    assert {(twin.source, twin.target) for twin in unasync.pairs()} <= known
