"""What a module does, as far as a proof could notice it: two sources that do the same are equal here."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator


def observable(source: str) -> str:
    """Return what the source does, in a form to compare: without all that is not evaluated.

    A `SyntaxError` tells that it is no Python, or that the compiler warns of it (`is` with a literal).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", SyntaxWarning)
        compile(source, "<mutant>", "exec", dont_inherit=True)
    return ast.dump(_Evaluated().visit(ast.parse(source)))


class _Evaluated(ast.NodeTransformer):
    """Takes annotations, docstrings, `...` bodies and what only a type checker runs out of a tree."""

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self._body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._body(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        """Make all parameters of one kind: an operator takes the `*` before keyword-only ones for a product."""
        self.generic_visit(node)
        padding = [None] * (len(node.posonlyargs) + len(node.args) - len(node.defaults))
        defaults = [*padding, *node.defaults, *node.kw_defaults]
        node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
        node.posonlyargs, node.kwonlyargs, node.defaults = [], [], []
        node.kw_defaults = list(defaults)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = _calls(node.annotation)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        node.annotation = _calls(node.annotation) or ast.Constant(None)
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        if ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            node.body = []
        return self.generic_visit(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        node.returns = _calls(node.returns)
        self._body(node)
        if [ast.unparse(statement) for statement in node.body] in ([], ["..."]):
            node.args.defaults, node.args.kw_defaults = [], []
            node.decorator_list = [d for d in node.decorator_list if not ast.unparse(d).endswith("overload")]
        return node

    def _body(self, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        if ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
        return self.generic_visit(node)


def _calls(annotation: ast.expr | None) -> ast.expr | None:
    """Return the calls in an annotation, `Field(max_length=72)`: those are read when the program runs."""

    def outermost(node: ast.AST) -> Iterator[ast.expr]:
        if isinstance(node, ast.Call):
            yield node
        else:
            for child in ast.iter_child_nodes(node):
                yield from outermost(child)

    found = list(outermost(annotation)) if annotation else []
    return ast.Tuple(found, ast.Load()) if found else None
