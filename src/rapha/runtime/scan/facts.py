"""What one Python file does, as facts from its syntax tree. Nothing is imported or run."""

from __future__ import annotations

import ast
import warnings
from dataclasses import dataclass, field
from typing import Final, Literal

from rapha.runtime.scan.fold import fold
from rapha.runtime.scan.names import IMPORTERS, PLAIN_BUILTINS, Names
from rapha.runtime.scan.rules import RuleSet
from rapha.runtime.scan.scopes import rebound
from rapha.runtime.scan.tree import telling

How = Literal["import", "read", "write", "computed"]
MAX_SOURCE: Final = 1024 * 1024
"""Bytes of one Python file; a larger one can't be judged in time."""
_MAX_STARS: Final = 8
_ATTRIBUTE_CALLS: Final = frozenset(
    {"builtins.getattr", "builtins.hasattr", "builtins.setattr", "builtins.delattr"}
)


@dataclass(frozen=True, slots=True)
class Use:
    """A dotted name that the code touches; leading dots are those of a relative import.

    `computed` is an access whose attribute name is not written out.
    """

    name: str
    line: int
    how: How


@dataclass(frozen=True, slots=True)
class Note:
    """Something that is what it is whatever the imports say."""

    rule: str
    line: int
    reason: str


@dataclass(slots=True)
class Facts:
    """Everything that is known of one file.

    Attributes:
        imports: dotted names that may be modules to load, with their line.
        aliases: the dotted names that a name in the file may stand for.
        stars: modules imported with `*`.
    """

    imports: list[tuple[str, int]] = field(default_factory=list)
    aliases: dict[str, list[str]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


def collect(source: bytes, rules: RuleSet) -> Facts:
    """Parse one file. A file that can't be judged gives one `image.unparsable` note, never an error."""
    if len(source) > MAX_SOURCE:
        return _unparsable(1, f"it is over {MAX_SOURCE} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        return _Collector(tree, rules).facts
    except SyntaxError as error:
        return _unparsable(error.lineno or 1, error.msg)
    except (ValueError, RecursionError, MemoryError) as error:
        # NUL bytes, unknown encodings, and nesting that exhausts the parser or this reader.
        return _unparsable(1, str(error) or "it is nested too deeply")


def _unparsable(line: int, why: str) -> Facts:
    return Facts(notes=[Note("image.unparsable", max(line, 1), f"The file can't be parsed: {why[:200]}.")])


class _Collector:
    """Two passes over the nodes of a file, parents first: names, then what is done with them."""

    def __init__(self, tree: ast.Module, rules: RuleSet) -> None:
        self.facts = Facts()
        self._rules = rules
        self._spoken_for: set[int] = set()
        nodes = telling(tree)
        self._names = Names(rules.builtins, rebound(tree, nodes, rules.builtins | PLAIN_BUILTINS))
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._import(node)
        self._names.follow(nodes)
        self.facts.aliases = self._names.aliases
        self.facts.notes += [
            Note("image.dynamic_code", line, f"{name!r} stands for more modules than can be followed.")
            for name, line in self._names.overfull.items()
        ]
        for node in nodes:
            self._visit(node)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.name if alias.asname else alias.name.partition(".")[0]
                self._names.alias(alias.asname or bound, bound, node.lineno)
                self._imported(alias.name, node.lineno)
            return
        module = "." * node.level + (node.module or "")
        self.facts.imports.append((module, node.lineno))
        for alias in node.names:
            if alias.name == "*":
                self._star(module, node.lineno)
                self.facts.uses.append(Use(module, node.lineno, "import"))
                continue
            name = f"{module}.{alias.name}" if node.module else module + alias.name
            self._names.alias(alias.asname or alias.name, name, node.lineno)
            self._imported(name, node.lineno)

    def _star(self, module: str, line: int) -> None:
        if len(self.facts.stars) == _MAX_STARS:
            self.facts.notes.append(
                Note("image.dynamic_code", line, "There are more `import *` than can be followed.")
            )
        else:
            self.facts.stars.append(module)
            self._names.stars.append(module)

    def _imported(self, name: str, line: int) -> None:
        self.facts.imports.append((name, line))
        self.facts.uses.append(Use(name, line, "import"))

    def _visit(self, node: ast.AST) -> None:
        match node:
            case ast.Call():
                self._call(node)
                self._expression(node)
            case ast.Attribute():
                if node.attr in self._rules.attributes:
                    self._attribute(node.attr, node.lineno)
                self._expression(node)
                self._spoken_for.add(id(node.value))
            case ast.Subscript():
                self._subscript(node)
            case ast.Compare(comparators=[right], ops=[ast.In() | ast.NotIn()]):
                # `"torch" in sys.modules` asks; it takes nothing.
                if self._names.dotted(right) == ["sys.modules"]:
                    self._spoken_for.add(id(right))
            case ast.Name(ctx=ast.Load()):
                self._expression(node)
            case _:
                pass

    def _expression(self, node: ast.Attribute | ast.Call | ast.Name | ast.Subscript) -> None:
        """Note the outermost dotted name once, as read or written."""
        if id(node) in self._spoken_for:
            return
        context = getattr(node, "ctx", None)
        how: How = "write" if isinstance(context, ast.Store | ast.Del) else "read"
        for name in self._names.dotted(node):
            self._use(name, node.lineno, how)

    def _subscript(self, node: ast.Subscript) -> None:
        if isinstance(node.ctx, ast.Load):
            self._expression(node)
            if self._names.dotted(node):
                self._spoken_for.add(id(node.value))
            elif self._names.dotted(node.value) == ["sys.modules"]:
                self._spoken_for.add(id(node.value))
                if not (isinstance(node.slice, ast.Name) and node.slice.id == "__name__"):
                    self._use("sys.modules", node.lineno, "computed")
        else:
            for name in self._names.dotted(node.value):
                if name == "sys.modules" or name.endswith(".__dict__"):
                    self._use(name, node.lineno, "write")
                    self._spoken_for.add(id(node.value))
        key = fold(node.slice)
        if key is not None and key in self._rules.attributes:
            self._attribute(key, node.lineno)

    def _attribute(self, name: str, line: int) -> None:
        self.facts.notes.append(
            Note(self._rules.attributes[name], line, f"`{name}` is a way round the rules.")
        )

    def _call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            self._keyword(keyword)
        for function in self._names.dotted(node.func):
            if function in IMPORTERS:
                self._spoken_for.add(id(node.func))
                self._import_call(node, function)
            elif function in _ATTRIBUTE_CALLS and len(node.args) >= 2:
                self._attribute_call(node, node.args[0], node.args[1], function)
            elif function == "builtins.vars" and node.args:
                self._spoken_for.add(id(node.args[0]))
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("__setattr__", "__getattribute__"):
            writes = "builtins." + {"__setattr__": "setattr"}.get(node.func.attr, "getattr")
            if len(node.args) >= 2:
                self._attribute_call(node, node.args[0], node.args[1], writes)

    def _keyword(self, keyword: ast.keyword) -> None:
        safe = self._rules.keywords.get(keyword.arg or "")
        if safe is None or (isinstance(keyword.value, ast.Constant) and keyword.value.value is safe):
            return
        self.facts.notes.append(
            Note(
                "image.pickle", keyword.value.lineno, f"`{keyword.arg}` is not {safe}: it may load a pickle."
            )
        )

    def _import_call(self, node: ast.Call, function: str) -> None:
        argument = (
            node.args[0] if node.args else next((k.value for k in node.keywords if k.arg == "name"), None)
        )
        name = fold(argument) if argument is not None else None
        if name is None:
            self.facts.notes.append(
                Note("image.dynamic_code", node.lineno, f"`{function}` with a name that is not written out.")
            )
            return
        self._imported(name, node.lineno)

    def _attribute_call(self, node: ast.Call, on: ast.expr, name: ast.expr, function: str) -> None:
        self._spoken_for.add(id(on))
        written = fold(name)
        if written is not None and written in self._rules.attributes:
            self._attribute(written, node.lineno)
        changes = function in ("builtins.setattr", "builtins.delattr")
        for base in self._names.dotted(on):
            if written is None:
                self._use(base, node.lineno, "computed")
            if changes:
                self._use(f"{base}.{written or '*'}", node.lineno, "write")

    def _use(self, name: str, line: int, how: How) -> None:
        self.facts.uses.append(Use(name, line, how))
