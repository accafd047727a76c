"""A change that no proof could notice makes no difference here, and every other one does."""

from __future__ import annotations

import textwrap

import pytest

from mutation.observable import observable

SAME = {
    "an annotation": ("def f(a: int) -> str: return a", "def f(a: float) -> bytes: return a"),
    "the annotation of a variable": ("x: int = 1", "x: int | None = 1"),
    "a docstring": ('"""One."""\nx = 1', '"""Two."""\nx = 1'),
    "the docstring of a function": ('def f():\n  """One."""\n  return 1', "def f():\n  return 1"),
    "a default where there is no body": ("def f(a=1): ...", "def f(a=2): ..."),
    "overload": ("@overload\ndef f(a): ...", "def f(a): ..."),
    "what only a type checker imports": ("if TYPE_CHECKING:\n  import a", "if TYPE_CHECKING:\n  import b"),
    "the bare star": ("def f(a, *, b=1): return a", "def f(a, /, b=1): return a"),
    "white space": ("x=1", "x  =  1  # one"),
}
DIFFERENT = {
    "a call in an annotation": ("def f(a: Field(le=1)): return a", "def f(a: Field(le=2)): return a"),
    "a call deep in an annotation": ("x: A[int, Field(le=1)] = 1", "x: A[int, Field(le=2)] = 1"),
    "a default": ("def f(a=1): return a", "def f(a=2): return a"),
    "the default of a keyword": ("def f(*, a=1): return a", "def f(*, a=2): return a"),
    "a decorator": ("@cache\ndef f(): return 1", "def f(): return 1"),
    "a decorator that is not overload": ("@property\ndef f(): ...", "def f(): ..."),
    "the other branch": ("if TYPE_CHECKING:\n  x = 1\nelse:\n  x = 2", "if TYPE_CHECKING:\n  x = 1\nelse:\n  x = 3"),
    "another condition": ("if CHECKING:\n  x = 1", "if CHECKING:\n  x = 2"),
    "a text that is no docstring": ("x = 1\n'one'", "x = 1\n'two'"),
    "a number": ("x = 1", "x = 2"),
    "one in an async function": ("async def f():\n  return 1", "async def f():\n  return 2"),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_a_change_that_is_not_evaluated_makes_no_difference(one: str, other: str) -> None:
    assert observable(one) == observable(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_a_change_that_is_evaluated_makes_a_difference(one: str, other: str) -> None:
    assert observable(one) != observable(other)


@pytest.mark.parametrize("source", ["x = ", "return 1", "x is 1", "x = 1\n()()"])
def test_what_the_compiler_refuses_or_warns_of_is_no_mutant(source: str) -> None:
    with pytest.raises(SyntaxError):
        observable(textwrap.dedent(source))
