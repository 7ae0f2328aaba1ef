"""Reads the docstrings of attributes, which Python itself does not keep."""

import ast
import inspect
import textwrap
from itertools import pairwise
from typing import Any

from tests.support.documents.markdown import one_line


def of_attributes(kind: type[Any]) -> dict[str, str]:
    """Return what stands below each attribute of a class and of its bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith(("bridge", "plugins")):
            found |= _own(base)
    return found


def annotations(kind: type[Any]) -> dict[str, str]:
    """Return the annotation of each attribute of a class, as the source has it."""
    return {
        node.target.id: ast.unparse(node.annotation)
        for node in _body(kind)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def of_class(kind: type[Any]) -> str:
    """Return the first paragraph of a class's docstring, as one line."""
    return one_line(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0])


def _own(kind: type[Any]) -> dict[str, str]:
    found = {}
    body = _body(kind)
    for node, below in pairwise(body):
        text = _text(below)
        if text is None:
            continue
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = text
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = text
    return found


def _body(kind: type[Any]) -> list[ast.stmt]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    return tree.body


def _text(node: ast.stmt) -> str | None:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        text = node.value.value
        return one_line(text) if isinstance(text, str) else None
    return None
