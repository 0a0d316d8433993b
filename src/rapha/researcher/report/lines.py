"""What the node's journal tells of a job's gates, as the report shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from rapha.spec.refusals import Refused

GATES: Final = (
    *("intake", "posture", "scan", "policy", "consent", "approval"),
    *("seal", "train", "guard", "release", "receipt"),
)
"""The order in which a node runs them; a test holds it to the node's own."""

_LONGEST: Final = 1e9
"""Seconds, some 30 years: no gate takes longer, and sums of it stay finite."""


@dataclass(frozen=True, slots=True)
class GateLine:
    """One gate of one job.

    Attributes:
        gate: its name, such as `intake`.
        seconds: wall time inside the gate.
        found: what it found, in the node's words.

    Raises:
        Refused: `schema.field_invalid` for a verdict or a time that no gate can have.
    """

    gate: str
    verdict: Literal["passed", "refused"]
    seconds: float
    found: str

    def __post_init__(self) -> None:
        if self.verdict not in ("passed", "refused"):
            raise Refused("schema.field_invalid", f"gate {self.gate}: verdict is passed or refused")
        if not 0 <= self.seconds <= _LONGEST:
            raise Refused("schema.field_invalid", f"gate {self.gate}: {self.seconds} is not a duration")


def in_order(timeline: Sequence[GateLine]) -> tuple[GateLine, ...]:
    """The lines in the order of the gates; a gate that is not one of the eleven comes last."""
    place = {gate: n for n, gate in enumerate(GATES)}
    return tuple(sorted(timeline, key=lambda line: place.get(line.gate, len(GATES))))


def duration(seconds: float) -> str:
    """`seconds` for people: three digits at most, in the unit that fits."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
