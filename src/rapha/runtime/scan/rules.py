"""The scanner's rules, read from the table in the package."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True, slots=True, eq=False)
class RuleSet:
    """What is looked for; `rules.yaml` says what each part means.

    Attributes:
        version: names the table in reports and receipts.
        names: refusal code by dotted name; None where the name is allowed.
        builtins: the names of built-in functions among them.
        slight: entries of `names` that warn even where they are reached.
        methods: members of watched modules that are told by their name alone behind a computed lookup.
        pickle_data: globals that a pickle may import, as `module.name`.
        symbols: refusal code by dynamic symbol of native code.
    """

    version: str
    names: Mapping[str, str | None]
    builtins: frozenset[str]
    reexported: frozenset[str]
    opaque: frozenset[str]
    attributes: Mapping[str, str]
    keywords: Mapping[str, bool]
    slight: frozenset[str]
    methods: frozenset[str]
    pickle_data: frozenset[str]
    symbols: Mapping[str, str]
    writable: frozenset[str]
    protected: frozenset[str]
    shell_network: frozenset[str]

    def match(self, name: str) -> tuple[str, str] | None:
        """The rule entry that covers a dotted name and its code; the longest entry decides."""
        entry = name
        while entry:
            if entry in self.names:
                code = self.names[entry]
                return (entry, code) if code is not None else None
            entry = entry.rpartition(".")[0]
        return None

    def canonical(self, name: str) -> str:
        """The name from the last re-exported module in it: `torch.os.system` is `os.system`."""
        parts = name.split(".")
        for index in range(len(parts) - 1, 0, -1):
            bare = parts[index].lstrip("_")
            if bare in self.reexported:
                return ".".join([bare, *parts[index + 1 :]])
        return name

    def is_taken(self, module: str) -> bool:
        """Whether a top-level module name belongs to the standard library or the runtime."""
        return module in self.protected or module in sys.stdlib_module_names


@functools.cache
def default_rules() -> RuleSet:
    """The table that ships with this version."""
    return parse_rules(yaml.safe_load(files(__package__).joinpath("rules.yaml").read_text("utf-8")))


def parse_rules(table: Mapping[str, Any]) -> RuleSet:
    """Rules from a table of the form of `rules.yaml`. Raises KeyError for an absent part."""
    names: dict[str, str | None] = {name: code for code, listed in table["names"].items() for name in listed}
    names |= dict.fromkeys(table["allowed"])
    return RuleSet(
        version=table["version"],
        names=names,
        builtins=frozenset(n.removeprefix("builtins.") for n in names if n.startswith("builtins.")),
        reexported=frozenset(table["reexported"]),
        opaque=frozenset(table["opaque"]),
        attributes={name: code for code, listed in table["attributes"].items() for name in listed},
        keywords=table["keywords"],
        slight=frozenset(table["slight"]),
        methods=frozenset(table["methods"]),
        pickle_data=frozenset(table["pickle_data"]),
        symbols={symbol: code for code, listed in table["symbols"].items() for symbol in listed},
        writable=frozenset(table["writable"]),
        protected=frozenset(table["protected"]),
        shell_network=frozenset(table["shell_network"]),
    )
