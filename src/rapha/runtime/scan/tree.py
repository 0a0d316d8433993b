"""A walk over a syntax tree that gives only the nodes that say something here."""

from __future__ import annotations

import ast
from typing import Final

_TELLING: Final = frozenset(
    {
        *(ast.Import, ast.ImportFrom, ast.alias, ast.Assign, ast.AnnAssign, ast.NamedExpr),
        *(ast.Call, ast.Attribute, ast.Subscript, ast.Compare, ast.Name),
        *(ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.arg),
        *(ast.Global, ast.Nonlocal),
    }
)
# Fields without a name or an expression below them: contexts, operators, texts.
_SKIPPED: Final = frozenset({"ctx", "op", "ops", "kind", "type_comment", "id", "attr", "arg", "lineno"})


def telling(tree: ast.AST) -> list[ast.AST]:
    """The telling nodes of `tree`, parents before children, without recursion."""
    found: list[ast.AST] = []
    level = [tree]
    while level:
        below: list[ast.AST] = []
        for node in level:
            kind = type(node)
            if kind in _TELLING:
                found.append(node)
            for name in kind._fields:
                if name in _SKIPPED:
                    continue
                value = getattr(node, name, None)
                if type(value) is list:
                    below += [item for item in value if isinstance(item, ast.AST)]
                elif isinstance(value, ast.AST):
                    below.append(value)
        level = below
    return found
