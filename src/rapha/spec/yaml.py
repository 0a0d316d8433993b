"""The YAML subset of `job.yaml`: JSON's types, no duplicate key, anchor, alias or tag, bounded size, depth.

Scalars resolve as in YAML 1.2's core schema less its octal and hexadecimal numbers, so that `no`, `010` and
`1:30` stay the text that was written instead of becoming false, 8 and 90.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import yaml

from rapha.spec.refusals import Refused

MAX_CHARS: Final = 1_000_000
MAX_DEPTH: Final = 64


class _Loader(yaml.SafeLoader):
    """SafeLoader made narrower. A date stays text."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _error("anchors and aliases are not allowed", event)
        if event.tag is not None:
            raise _error("tags are not allowed", event)
        if self.depth >= MAX_DEPTH:
            raise _error(f"nested deeper than {MAX_DEPTH}", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != _TAG + "str":
                raise _error("keys must be text", key)
            if key.value in seen:
                raise _error(f"duplicate key {key.value!r}", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if any("\ud800" <= c <= "\udfff" for c in value):  # half a pair has no UTF-8 form
            raise _error("text with a lone surrogate", node)
        return value


def _error(problem: str, at: yaml.Event | yaml.Node) -> yaml.MarkedYAMLError:
    mark: Any = at.start_mark
    return yaml.MarkedYAMLError(None, None, problem, mark)


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    value = float(loader.construct_scalar(node))
    if not math.isfinite(value):
        raise _error("a number is beyond what a double holds", node)
    return value


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    try:
        return int(loader.construct_scalar(node))
    except ValueError:  # the interpreter's limit of digits
        raise _error("a number has too many digits", node) from None


_TAG: Final = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?", list("-+0123456789")),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern + r"\Z"), _first)
_Loader.add_constructor(_TAG + "int", _int)
_Loader.add_constructor(_TAG + "float", _float)


def load(text: str) -> Any:
    """Parse one document.

    Raises:
        Refused: `schema.yaml` naming line and column, `schema.too_large`.
    """
    if len(text) > MAX_CHARS:
        raise Refused("schema.too_large", f"{len(text)} characters, the limit is {MAX_CHARS}")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader, made narrower
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise Refused("schema.yaml", f"{where}{error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise Refused("schema.yaml", (str(error).splitlines() or ["not YAML"])[0]) from None
