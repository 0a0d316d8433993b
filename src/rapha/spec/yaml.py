"""The YAML subset of `job.yaml`: JSON's types, no duplicate key, no alias, no tag, bounded size."""

from __future__ import annotations

from typing import Any, Final

import yaml

from rapha.spec.refusals import Refused

MAX_CHARS: Final = 1_000_000


class _Loader(yaml.SafeLoader):
    """SafeLoader without timestamps (a date stays text), aliases and duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(None, None, "aliases are not allowed", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(None, None, "keys must be text", key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"duplicate key {key.value!r}", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag in _TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    for _TAGS in [{f"tag:yaml.org,2002:{t}" for t in ("null", "bool", "int", "float")}]
}


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
        raise Refused("schema.yaml", str(error).splitlines()[0]) from None
