"""What one Python file does, as facts from its syntax tree. Nothing is imported or run."""

from __future__ import annotations

import ast
import re
import warnings
from typing import Final

from rapha.runtime.scan.facts import Facts, How, Note, Use
from rapha.runtime.scan.fold import fold
from rapha.runtime.scan.names import IMPORTERS, PLAIN_BUILTINS, Names
from rapha.runtime.scan.rules import RuleSet
from rapha.runtime.scan.scopes import rebound
from rapha.runtime.scan.tree import telling

MAX_SOURCE: Final = 512 * 1024
"""Bytes of one Python file; the syntax tree of a larger one may take over 400 MB."""
_MAX_STARS: Final = 8
# Modules whose members are told by the module's name, wherever that stands in a chain of attributes.
_MODULES: Final = frozenset(
    {"os", "posix", "sys", "builtins", "subprocess", "ctypes", "importlib", "pty", "runpy"}
)
_VISITED: Final = frozenset({ast.Call, ast.Attribute, ast.Subscript, ast.Compare, ast.Name, ast.FunctionDef})
_GETTERS: Final = frozenset({"operator.attrgetter", "operator.methodcaller"})
_ARRAY_LOADERS: Final = frozenset({"numpy.load", "numpy.lib.npyio.load", "numpy.lib.format.read_array"})
_QUERY: Final = re.compile(r"@\s*\w+\s*[.(]|__\w+__")
_ATTRIBUTE_CALLS: Final = frozenset(
    {"builtins.getattr", "builtins.hasattr", "builtins.setattr", "builtins.delattr"}
)


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
        self._outermost = {id(statement) for statement in tree.body}
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
            if type(node) in _VISITED:
                self._visit(node)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.name if alias.asname else alias.name.partition(".")[0]
                self._names.alias(alias.asname or bound, bound, node.lineno)
                self._imported(alias.name, node.lineno)
                self._loads(alias.name, node)
            return
        module = "." * node.level + (node.module or "")
        self.facts.imports.append((module, node.lineno))
        self._loads(module, node)
        for alias in node.names:
            if alias.name == "*":
                self._star(module, node.lineno)
                self.facts.uses.append(Use(module, node.lineno, "import"))
                continue
            name = f"{module}.{alias.name}" if node.module else module + alias.name
            self._names.alias(alias.asname or alias.name, name, node.lineno)
            self._imported(name, node.lineno)

    def _loads(self, module: str, node: ast.stmt) -> None:
        if not module.startswith("."):
            self.facts.loads.append((module, node.lineno, id(node) not in self._outermost))

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
        if type(node) is ast.Name:
            if type(node.ctx) is ast.Load and self._names.may_name(node.id):
                self._expression(node)
            return
        match node:
            case ast.Call():
                self._call(node)
                self._expression(node)
            case ast.Attribute():
                if node.attr in self._rules.attributes:
                    self._attribute(node.attr, node.lineno)
                self._expression(node)
                self._chain(node)
                self._spoken_for.add(id(node.value))
            case ast.Subscript():
                self._subscript(node)
            case ast.Compare(comparators=[right], ops=[ast.In() | ast.NotIn()]):
                # `"torch" in sys.modules` asks; it takes nothing.
                if self._names.dotted(right) == ["sys.modules"]:
                    self._spoken_for.add(id(right))
            case ast.FunctionDef(name="__reduce__" | "__reduce_ex__" as name):
                reason = f"`{name}` says what unpickling calls."
                self.facts.notes.append(Note("image.pickle", node.lineno, reason, grave=False))
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

    def _chain(self, node: ast.Attribute) -> None:
        """`anything.os.system`: a module is one whatever it is an attribute of."""
        if id(node) in self._spoken_for:
            return
        attributes: list[str] = []
        root: ast.expr = node
        while isinstance(root, ast.Attribute):
            attributes.append(root.attr)
            root = root.value
        inner = attributes[1:]
        if not _MODULES.isdisjoint(inner) and not self._names.dotted(root):
            last = max(i for i, attr in enumerate(reversed(attributes)) if attr in _MODULES)
            self._use(".".join([*reversed(attributes)][last:]), node.lineno, "read")
        looked_up = isinstance(root, ast.Call) and self._names.dotted(root.func) == ["builtins.getattr"]
        if looked_up and attributes[-1] in self._rules.methods and not self._names.dotted(root):
            reason = f"`{attributes[-1]}` of what a computed name gives."
            self.facts.notes.append(Note("image.dynamic_code", node.lineno, reason))

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
            elif function in _GETTERS:
                self._getter(node, function)
            elif function == "builtins.vars" and node.args:
                self._spoken_for.add(id(node.args[0]))
            elif function in _ARRAY_LOADERS and not _names_pickling(node):
                reason = f"`{function}` may be told to load a pickle."
                self.facts.notes.append(Note("image.pickle", node.lineno, reason))
            elif function == "torch.load" and any(map(_is_true, node.keywords)):
                self._spoken_for.add(id(node.func))
        self._plain_uses(node)
        self._handed_on(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("__setattr__", "__getattribute__"):
            writes = "builtins." + {"__setattr__": "setattr"}.get(node.func.attr, "getattr")
            if len(node.args) >= 2:
                self._attribute_call(node, node.args[0], node.args[1], writes)

    def _plain_uses(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass"):
            # A class that something is compared with is not used.
            self._spoken_for.update(id(part) for argument in node.args[1:] for part in ast.walk(argument))
        elif isinstance(node.func, ast.Attribute) and node.func.attr in ("eval", "query") and node.args:
            # pandas resolves `@name.attribute` and calls it (DataFrame.query).
            if _QUERY.search(fold(node.args[0]) or ""):
                reason = f"The text of `{node.func.attr}` reaches into the program."
                self.facts.notes.append(Note("image.dynamic_code", node.lineno, reason))
        elif isinstance(node.func, ast.Attribute) and node.func.attr in ("format", "format_map"):
            text = fold(node.func.value) or ""
            for name in self._rules.attributes:
                if "." + name in text:
                    self._attribute(name, node.lineno)

    def _getter(self, node: ast.Call, function: str) -> None:
        """`operator.attrgetter("os.system")` is a lookup for which the object comes later."""
        for argument in node.args if function.endswith("attrgetter") else node.args[:1]:
            written = fold(argument)
            parts = written.split(".") if written is not None else []
            watched = self._rules.attributes.keys() | self._rules.reexported | self._rules.methods
            if written is None or not watched.isdisjoint(parts):
                shown = f"`{function}` of `{written}`" if written else f"`{function}` of a computed name"
                note = Note("image.dynamic_code", node.lineno, f"{shown}.", grave=written is not None)
                self.facts.notes.append(note)

    def _handed_on(self, node: ast.Call) -> None:
        """`reduce(getattr, names, module)`: a lookup in a module by names that can't be told."""
        names = [
            self._names.dotted(a) for a in node.args if isinstance(a, ast.Name | ast.Attribute | ast.List)
        ]
        if ["builtins.getattr"] in names and sum(map(bool, names)) > 1:
            reason = "`getattr` is handed on together with a module."
            self.facts.notes.append(Note("image.dynamic_code", node.lineno, reason))

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


def _names_pickling(node: ast.Call) -> bool:
    """Whether a call of `numpy.load` says by keyword alone, where the rules see it, if it takes pickles."""
    spread = any(keyword.arg is None for keyword in node.keywords)
    return not spread and len(node.args) < 3 and not any(isinstance(a, ast.Starred) for a in node.args)


def _is_true(keyword: ast.keyword) -> bool:
    value = keyword.value
    return keyword.arg == "weights_only" and isinstance(value, ast.Constant) and value.value is True
