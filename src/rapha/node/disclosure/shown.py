"""What both HTML and PDF print, as words and shares: made by `rapha.node.disclosure.view`."""

from __future__ import annotations

from dataclasses import dataclass

from rapha.spec.verdicts import Verdict


@dataclass(frozen=True, slots=True)
class Part:
    """One source of bits; `share` of the whole bound is in [0, 1]."""

    name: str
    bits: str
    share: float


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that could be hidden in what a release lets out, in sizes that people know."""

    bits: str
    size: str
    slices: str
    rows: str
    files: tuple[tuple[str, str], ...]
    more_files: str
    all_files: tuple[tuple[str, str], ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Meter:
    """One cap of the dataset, over all jobs. `before` and `job` are shares of it in [0, 1], drawn one on
    the other; `over` says that it is spent beyond its end."""

    name: str
    said: str
    before: float
    job: float
    over: bool


@dataclass(frozen=True, slots=True)
class CheckLine:
    """One of the nine checks."""

    n: int
    id: str
    verdict: str
    mark: str
    found: str
    does_not_show: str


@dataclass(frozen=True, slots=True)
class Numbers:
    """Rows of cells that fit on one sheet, in words how many more there are, and every row in full."""

    rows: tuple[tuple[str, ...], ...]
    more: str
    whole: tuple[tuple[str, ...], ...]

    @property
    def cut(self) -> bool:
        """Whether the one sheet leaves anything out."""
        return self.rows != self.whole


@dataclass(frozen=True, slots=True)
class Choice:
    """A verdict, what it does, and the words that sign it."""

    verdict: Verdict
    title: str
    consequence: str
    command: str


@dataclass(frozen=True, slots=True)
class View:
    """Everything that is printed, in order. `show` is the command that prints what has no room there."""

    title: str
    kicker: str
    stamp: str
    facts: tuple[tuple[str, str], ...]
    bound: Bound
    guarantee: str
    meters: tuple[Meter, ...]
    ledger: str
    checks: tuple[CheckLine, ...]
    transformed: str
    tensors: Numbers
    trusted: Numbers
    measured: str
    reported: Numbers
    sentence: str
    choices: tuple[Choice, ...]
    signing: str
    show: str
    digests: tuple[tuple[str, str], ...]
