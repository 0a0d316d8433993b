"""What is known of one Python file, and what is said about any file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

How = Literal["import", "read", "write", "computed"]


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
    """Something to be said about a file; `line` is 0 where lines mean nothing.

    `grave` is what refuses where an entrypoint reaches it, or where presence is enough; the rest warns.
    """

    rule: str
    line: int
    reason: str
    grave: bool = True


@dataclass(slots=True)
class Facts:
    """Everything that is known of one file.

    Attributes:
        imports: dotted names that may be modules to load, with their line.
        loads: modules of absolute import statements, with their line, and whether the file can do without:
            the statement is in a function, a `try` or an `if`.
        aliases: the dotted names that a name in the file may stand for.
        stars: modules imported with `*`.
    """

    imports: list[tuple[str, int]] = field(default_factory=list)
    loads: list[tuple[str, int, bool]] = field(default_factory=list)
    aliases: dict[str, list[str]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
