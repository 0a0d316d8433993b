"""From facts about Python files to findings."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Final

from rapha.runtime.scan.facts import Facts, Note, Use
from rapha.runtime.scan.graph import Graph
from rapha.runtime.scan.rules import RuleSet

_MAX_HOPS: Final = 8
_OWN: Final = ("rapha_trainer", "rapha")
_PLAIN_SPECIALS: Final = frozenset(
    {"__name__", "__file__", "__doc__", "__version__", "__all__", "__package__"}
)


class Judge:
    """Applies one rule set to the files of one image."""

    def __init__(self, facts: Mapping[str, Facts], graph: Graph, rules: RuleSet) -> None:
        """`graph` says which names are the image's own."""
        self._facts = facts
        self._graph = graph
        self._rules = rules
        self._known: dict[tuple[str, str], set[str]] = {}

    def judge(self, path: str) -> Iterator[Note]:
        """What is to be said about the file at `path`."""
        facts = self._facts[path]
        yield from facts.notes
        for use in dict.fromkeys(facts.uses):
            for name in self._outside(path, use.name):
                yield from self._use(use, name)

    def _outside(self, path: str, name: str) -> set[str]:
        """The names outside the image that `name` may stand for, through the image's own modules."""
        # An absolute name means the same in every file.
        key = (path if name.startswith(".") else "", name)
        if key not in self._known:
            self._known[key] = self._follow(path, name)
        return self._known[key]

    def _follow(self, path: str, name: str) -> set[str]:
        found: set[str] = set()
        seen: set[tuple[str, str]] = set()
        pending = [(path, name, 0)]
        while pending:
            where, current, hops = pending.pop()
            if (where, current) in seen or hops > _MAX_HOPS or len(seen) > 256:
                continue
            seen.add((where, current))
            located = self._graph.locate(where, current)
            # A full image may bring the standard library itself; its names mean what they always mean.
            if not located or current.partition(".")[0] in sys.stdlib_module_names:
                found.add(self._rules.canonical(current))
            for place in located:
                if not place.rest or not place.loaded:
                    continue
                module = self._facts[place.loaded[-1]]
                head, tail = place.rest[0], "".join("." + part for part in place.rest[1:])
                for target in (*module.aliases.get(head, ()), *(f"{star}.{head}" for star in module.stars)):
                    pending.append((place.loaded[-1], target + tail, hops + 1))
        return found

    def _use(self, use: Use, name: str) -> Iterator[Note]:
        inner = _inner(name)
        if use.how == "write":
            yield from self._write(use, name)
        elif (hit := self._rules.match(name)) is not None:
            entry, rule = hit
            slight = entry in self._rules.slight
            yield Note(rule, use.line, _REASONS[use.how].format(name=name, entry=entry), not slight)
        elif use.how == "computed" and name in self._rules.opaque:
            yield _note(use, _REASONS["computed"].format(name=name))
        elif use.how == "read" and inner.partition(".")[0] in _OWN:
            yield Note("image.shadowing", use.line, f"`{name}` reaches into the module itself.")
        elif use.how == "read" and (name in self._rules.opaque or inner in self._rules.opaque):
            yield _note(use, f"`{name}` is passed on as a value; what is used of it can't be told.")

    def _write(self, use: Use, name: str) -> Iterator[Note]:
        top = name.partition(".")[0]
        grave = top in _OWN or top == "builtins" or name.startswith("sys.modules")
        if grave or (top in sys.stdlib_module_names and not self._may_write(name)):
            yield Note("image.shadowing", use.line, f"`{name}` is assigned to.", grave)

    def _may_write(self, name: str) -> bool:
        return any(name == open_ or name.startswith(open_ + ".") for open_ in self._rules.writable)


_REASONS: Final = {
    "import": "`{name}` is imported ({entry} is on the list).",
    "read": "`{name}` is used ({entry} is on the list).",
    "computed": "An attribute of `{name}` is looked up by a name that is not written out.",
}


def _note(use: Use, reason: str) -> Note:
    return Note("image.dynamic_code", use.line, reason)


def _inner(name: str) -> str:
    """The module whose inside a name reaches by a special attribute (`os.__dict__`), if any."""
    parts = name.split(".")
    for index, part in enumerate(parts[1:], 1):
        if part.startswith("__") and part not in _PLAIN_SPECIALS:
            return ".".join(parts[:index])
    return ""
