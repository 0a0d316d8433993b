"""What the names in one file stand for: modules and their members, as dotted names."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Final

from rapha.runtime.scan.fold import fold

PLAIN_BUILTINS: Final = frozenset(
    {"getattr", "hasattr", "setattr", "delattr", "vars", "globals", "locals", "type"}
)
"""Built-in functions that are harmless as such, and by which others can be reached."""
IMPORTERS: Final = frozenset({"builtins.__import__", "importlib.import_module", "importlib.__import__"})
_ITEM_METHODS: Final = frozenset({"get", "pop", "setdefault", "__getitem__"})
_MAX_NAMES: Final = 16
_MAX_DEPTH: Final = 64
_MAX_ROUNDS: Final = 12


class Names:
    """Aliases by imports and assignments, without regard to order or scope: a superset of the truth.

    Attributes:
        aliases: the dotted names that a name in the file may stand for.
        stars: modules imported with `*`, from which any other name may come.
        overfull: names with more of them than are kept, with a line.
    """

    def __init__(self, builtins: frozenset[str], local: frozenset[int]) -> None:
        """`builtins` are watched; `local` are ids of nodes that surely are not the built-in."""
        self.aliases: dict[str, list[str]] = {}
        self.stars: list[str] = []
        self.overfull: dict[str, int] = {}
        self._builtins = builtins
        self._watched = builtins | PLAIN_BUILTINS | {"__builtins__", "__path__"}
        self._local = local

    def alias(self, name: str, stands_for: str, line: int) -> None:
        """`name` may stand for the dotted name `stands_for`."""
        known = self.aliases.setdefault(name, [])
        if stands_for in known:
            return
        if len(known) == _MAX_NAMES:
            self.overfull.setdefault(name, line)
        else:
            known.append(stands_for)

    def follow(self, nodes: Iterable[ast.AST]) -> None:
        """`s = os` and the like make `s` another name; loops are cut by the number of rounds."""
        pairs = [pair for node in nodes if type(node) in _BINDING for pair in _bindings(node)]
        for _ in range(_MAX_ROUNDS):
            before = sum(map(len, self.aliases.values()))
            for target, value in pairs:
                for name in self.dotted(value):
                    self.alias(target, name, value.lineno)
            if before == sum(map(len, self.aliases.values())):
                return
        self.overfull.setdefault(pairs[-1][0], pairs[-1][1].lineno)

    def dotted(self, node: ast.expr, depth: int = 0) -> list[str]:
        """The dotted names that an expression may stand for, as far as its text says."""
        attributes: list[str] = []
        while type(node) is ast.Attribute:
            attributes.append(node.attr)
            node = node.value
        # Most names stand for nothing of interest: that is told before anything is put together.
        if type(node) is ast.Name and not self.may_name(node.id):
            return []
        roots = self._root(node, depth) if depth < _MAX_DEPTH else []
        if not attributes:
            return roots
        tail = "".join("." + name for name in reversed(attributes))
        return [root + tail for root in roots]

    def may_name(self, name: str) -> bool:
        """Whether a bare name can stand for anything here."""
        return name in self.aliases or name in self._watched or bool(self.stars)

    def _root(self, node: ast.expr, depth: int) -> list[str]:
        match node:
            case ast.Name():
                return self._named(node)
            case ast.NamedExpr():
                return self.dotted(node.value, depth + 1)
            case ast.Call(args=[first, *rest]):
                return [
                    *self._method(node.func, first, rest, depth + 1),
                    *(
                        name
                        for function in self.dotted(node.func, depth + 1)
                        for name in self._returned(function, first, rest, depth + 1)
                    ),
                ]
            case ast.Call(args=[]) if self.dotted(node.func, depth + 1) in (
                ["builtins.globals"],
                ["builtins.locals"],
                ["builtins.vars"],
            ):
                return ["(scope).__dict__"]
            case ast.Subscript():
                return self._item(node.value, node.slice, depth + 1)
        return []

    def _method(self, function: ast.expr, first: ast.expr, rest: list[ast.expr], depth: int) -> list[str]:
        """`d.get("a")` is `d["a"]`, and `object.__getattribute__(m, "a")` is `m.a`."""
        if not isinstance(function, ast.Attribute):
            return []
        if function.attr in _ITEM_METHODS:
            return self._item(function.value, first, depth)
        if function.attr in ("__getattribute__", "__getattr__"):
            on, key = (first, rest[0]) if rest else (function.value, first)
            name = fold(key)
            return [] if name is None else [f"{base}.{name}" for base in self.dotted(on, depth)]
        return []

    def _named(self, node: ast.Name) -> list[str]:
        found = list(self.aliases.get(node.id, ()))
        if node.id in ("__builtins__", "__path__"):
            found.append(node.id.replace("__builtins__", "builtins"))
        watched = node.id in self._builtins or node.id in PLAIN_BUILTINS
        if watched and id(node) not in self._local:
            found.append(f"builtins.{node.id}")
        return found or [f"{star}.{node.id}" for star in self.stars]

    def _returned(self, function: str, first: ast.expr, rest: list[ast.expr], depth: int) -> list[str]:
        """What a call that gives a module or an attribute stands for."""
        if function in IMPORTERS:
            name = fold(first)
            # `__import__("a.b")` gives `a`, unless a list of names follows (Library Reference, __import__).
            whole = function == "importlib.import_module" or len(rest) >= 3
            return [] if name is None else [name if whole else name.partition(".")[0]]
        if function == "builtins.getattr" and rest and (name := fold(rest[0])) is not None:
            return [f"{base}.{name}" for base in self.dotted(first, depth)]
        if function == "builtins.type" and not rest:
            return [f"{base}.__class__" for base in self.dotted(first, depth)]
        if function == "builtins.vars":
            return [f"{base}.__dict__" for base in self.dotted(first, depth)]
        return []

    def _item(self, on: ast.expr, index: ast.expr, depth: int) -> list[str]:
        key = fold(index)
        if key is None:
            return []
        found = []
        for base in self.dotted(on, depth):
            if base == "(scope).__dict__":
                found += self._named(ast.Name(key, ast.Load()))
            elif base == "sys.modules":
                found.append(key)
            elif base.endswith(".__dict__"):
                found.append(f"{base.removesuffix('.__dict__')}.{key}")
            elif base == "builtins":
                found.append(f"builtins.{key}")
        return found


_BINDING: Final = frozenset({ast.Assign, ast.AnnAssign, ast.NamedExpr, ast.For, ast.comprehension, ast.Match})


def _bindings(node: ast.AST) -> list[tuple[str, ast.expr]]:
    match node:
        case ast.Assign(targets=targets, value=value):
            return [pair for target in targets for pair in _paired(target, value)]
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            return [(name, value)]
        case ast.NamedExpr(target=ast.Name(id=name), value=value):
            return [(name, value)]
        case ast.For(target=target, iter=ast.List(elts=items) | ast.Tuple(elts=items)):
            return [pair for item in items for pair in _paired(target, item)]
        case ast.comprehension(target=target, iter=ast.List(elts=items) | ast.Tuple(elts=items)):
            return [pair for item in items for pair in _paired(target, item)]
        case ast.Match(subject=subject, cases=cases):
            patterns = (case.pattern for case in cases)
            return [(p.name, subject) for p in patterns if isinstance(p, ast.MatchAs) and p.name]
    return []


def _paired(target: ast.expr, value: ast.expr) -> list[tuple[str, ast.expr]]:
    if isinstance(target, ast.Name):
        return [(target.id, value)]
    if isinstance(target, ast.Tuple | ast.List) and isinstance(value, ast.Tuple | ast.List):
        pairs = zip(target.elts, value.elts, strict=False)
        return [(t.id, v) for t, v in pairs if isinstance(t, ast.Name)]
    return []
