"""A walk over a syntax tree that gives only the nodes that say something here."""

from __future__ import annotations

import ast
from typing import Final

_TELLING: Final = frozenset(
    {
        *(ast.Import, ast.ImportFrom, ast.alias, ast.Assign, ast.AnnAssign, ast.NamedExpr),
        *(ast.Call, ast.Attribute, ast.Subscript, ast.Compare, ast.Name),
        *(ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.arg),
        *(ast.Global, ast.Nonlocal, ast.For, ast.comprehension, ast.Match),
    }
)
# Fields without a name or an expression below them: contexts, operators, texts.
_SKIPPED: Final = frozenset({"ctx", "op", "ops", "kind", "type_comment", "id", "attr", "arg", "lineno"})


_FIELDS: Final = {
    kind: tuple(name for name in kind._fields if name not in _SKIPPED)
    for kind in vars(ast).values()
    if isinstance(kind, type) and issubclass(kind, ast.AST)
}
# Without anything below them; most nodes of a tree are one of these.
_LEAVES: Final = frozenset({ast.Name, ast.Constant, ast.alias, ast.Pass, ast.Break, ast.Continue})


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
            if kind in _LEAVES:
                continue
            for name in _FIELDS[kind]:
                value = getattr(node, name, None)
                if value is None:
                    continue
                if type(value) is list:
                    below += [item for item in value if isinstance(item, ast.AST)]
                elif isinstance(value, ast.AST):
                    below.append(value)
        level = below
    return found
