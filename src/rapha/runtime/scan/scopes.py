"""Where a file gives a built-in's name to something of its own, as in `def eval(model): …`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Final

_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_OWN_SCOPE: Final = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.Lambda,
    ast.ClassDef,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)


def rebound(tree: ast.Module, nodes: list[ast.AST], names: frozenset[str]) -> frozenset[int]:
    """The ids of the nodes that read one of `names` and can't mean the built-in.

    Sound for one file: a name bound anywhere in a function is that function's alone (Language
    Reference 4.2.2), and one bound by a top-level statement is bound for what stands after it,
    unless it is deleted. A `global` or `nonlocal` declaration of one of them ends that reasoning.
    """
    binding = [n for n in nodes if type(n) in _BINDERS and (type(n) is not ast.Name or n.id in names)]
    if not any(_binds(node) & names for node in binding):
        return frozenset()
    if any(isinstance(n, ast.Global | ast.Nonlocal) and names.intersection(n.names) for n in nodes):
        return frozenset()
    found: set[int] = set()
    for node in nodes:
        if isinstance(node, _Function):
            found |= _in_function(node, names)
    deleted = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Del)}
    bound_at = _top_level(tree, names - deleted)
    found |= {
        id(node)
        for node in nodes
        if isinstance(node, ast.Name) and node.id in bound_at and node.lineno > bound_at[node.id]
    }
    return frozenset(found)


_BINDERS: Final = frozenset(
    {ast.Name, ast.arg, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.alias}
)


def _binds(node: ast.AST) -> set[str]:
    if type(node) is ast.Name:
        return {node.id} if type(node.ctx) is ast.Store else set()
    match node:
        case ast.arg(arg=name):
            return {name}
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.alias(name=name, asname=asname):
            return {asname or name}
    return set()


def _top_level(tree: ast.Module, names: frozenset[str]) -> dict[str, int]:
    """The last line of each top-level statement that surely binds one of `names`, first ones first."""
    bound: dict[str, int] = {}
    for statement in tree.body:
        line = statement.end_lineno or statement.lineno
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                # Defaults and decorators run before the name is bound; they stand above the first body line.
                line = statement.body[0].lineno - 1
                new = {statement.name}
            case ast.Assign(targets=[ast.Name(id=name)]):
                new = {name}
            case ast.Import(names=imported) | ast.ImportFrom(names=imported):
                new = {alias.asname or alias.name for alias in imported}
            case _:
                continue
        for name in new & names:
            bound.setdefault(name, line)
    return bound


def _in_function(function: _Function, names: frozenset[str]) -> set[int]:
    arguments = function.args
    listed = [
        *arguments.posonlyargs,
        *arguments.args,
        *arguments.kwonlyargs,
        arguments.vararg,
        arguments.kwarg,
    ]
    local = {argument.arg for argument in listed if argument is not None}
    own = list(_own_nodes(function))
    for node in own:
        local |= _binds(node)
    local &= names
    if not local:
        return set()
    body = function.body if isinstance(function.body, list) else [function.body]
    return {
        id(node)
        for statement in body
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and node.id in local
    }


def _own_nodes(function: _Function) -> Iterator[ast.AST]:
    """The nodes of a function's own scope; a nested scope gives its name only."""
    pending: list[ast.AST] = list(function.body) if isinstance(function.body, list) else [function.body]
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, _OWN_SCOPE):
            pending.extend(ast.iter_child_nodes(node))
