"""What an attempt inside and the same attempt outside say together."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from rapha.runtime.sandbox.probe.attempts import run
from rapha.runtime.sandbox.probe.attempts.kit import Attempt

_HOW: Final = 200


class Result(StrEnum):
    """What came of one attempt in one place; `begun` is one that was ended before it could say."""

    reached = run.REACHED
    refused = run.REFUSED
    died = run.DIED
    hung = run.HUNG
    broken = run.BROKEN
    begun = run.BEGUN


class Control(StrEnum):
    """Whether the attempt works where there are no walls."""

    reached = "reached"
    failed = "failed"


class Inside(StrEnum):
    """What the walls did; `error` is an attempt that showed nothing."""

    held = "held"
    escaped = "escaped"
    error = "error"


class Verdict(StrEnum):
    """`no_control`: it could not be found out, and counts as no."""

    held = "held"
    escaped = "escaped"
    no_control = "no_control"


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of one attempt in one place.

    Attributes:
        result: see `Result`.
        code: an errno; negative for the signal that ended it; 0 where there is neither.
        how: words.
    """

    result: Result
    code: int
    how: str

    @property
    def shown(self) -> str:
        """The code by name, and the words."""
        return f"{errno.errorcode.get(self.code, '')} {self.how}".strip()


@dataclass(frozen=True, slots=True)
class Probe:
    """One attempt's row."""

    id: str
    family: str
    what: str
    control: Control
    inside: Inside
    verdict: Verdict
    how: str

    def dump(self) -> dict[str, str]:
        """As JSON shows it."""
        return {name: str(getattr(self, name)) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An attempt that this host offers nothing to try on, and why."""

    id: str
    why: str


@dataclass(frozen=True, slots=True)
class Report:
    """The suite's answer.

    Attributes:
        driver: whose walls; `unsafe-none` where there were none.
        walls: as the driver observed them.
        probes: one row an attempt.
        left_out: what needs another kernel, processor or user than this.
    """

    driver: str
    walls: Mapping[str, str]
    probes: tuple[Probe, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many of each verdict."""
        return {v.value: sum(probe.verdict is v for probe in self.probes) for v in Verdict}

    @property
    def ok(self) -> bool:
        """Whether there were attempts, and all were held, each with its control."""
        return bool(self.probes) and all(probe.verdict is Verdict.held for probe in self.probes)

    @property
    def escaped(self) -> bool:
        """Whether anything got through; then what could not be found out no longer matters."""
        return any(probe.verdict is Verdict.escaped for probe in self.probes)

    def dump(self) -> dict[str, Any]:
        """The JSON object that `rapha sandbox probe` prints."""
        return {
            "ok": self.ok,
            "driver": self.driver,
            "walls": dict(self.walls),
            "counts": self.counts,
            "probes": [probe.dump() for probe in self.probes],
            "left_out": [{"id": one.id, "why": one.why} for one in self.left_out],
        }


_SILENT: Final = Tried(Result.broken, 0, "said nothing")


def judge(attempt: Attempt, control: Tried | None, inside: Tried | None) -> Probe | LeftOut:
    """The row for `attempt`; None is an attempt of which nothing was heard.

    1. What got through has escaped, whatever its control says.
    2. What the kernel says that it doesn't have, to one who would be allowed it, is left out.
    3. Without a control that got through, nothing was shown.
    4. An attempt that hung or broke inside has shown nothing either.
    5. What was refused, or killed by a signal, was held.
    """
    control, inside = control or _SILENT, inside or _SILENT
    works = control.result is Result.reached
    stopped = inside.result in {Result.refused, Result.died}
    state = Inside.held if stopped else Inside.error
    verdict, how = Verdict.held, inside.shown
    if inside.result is Result.reached:  # 1
        state, verdict = Inside.escaped, Verdict.escaped
    elif not works and control.code in attempt.absent and stopped:  # 2
        return LeftOut(attempt.id, f"not on this host: {control.shown}"[:_HOW])
    elif not works:  # 3
        verdict, how = Verdict.no_control, f"outside: {control.result}: {control.shown}"
    elif not stopped:  # 4
        verdict, how = Verdict.no_control, f"inside: {inside.result}: {inside.shown}"
    shown = Control.reached if works else Control.failed
    return Probe(attempt.id, attempt.family, attempt.what, shown, state, verdict, how[:_HOW])


def read(data: bytes, known: Iterable[str]) -> dict[str, Tried]:
    """What lines of JSON on an attempt's output say, by id.

    The output is the sandbox's: what is not a line of ours about an attempt that was asked for is passed
    over, and of two lines the one that got further stands, so that no later one can take it back.
    """
    wanted = frozenset(known)
    found: dict[str, Tried] = {}
    for line in data.split(b"\n"):
        said = _line(line)
        if said is None or said[0] not in wanted:
            continue
        name, tried = said
        before = found.get(name)
        if before is None or before.result is Result.begun or tried.result is Result.reached:
            found[name] = tried
    return found


def _line(line: bytes) -> tuple[str, Tried] | None:
    try:
        value = json.loads(line.strip(b"\0"))
        name, result, code, how = value["id"], value["result"], value["code"], value["how"]
        if type(name) is str and type(code) is int and type(how) is str:
            return name, Tried(Result(result), code, how[:_HOW])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return None
