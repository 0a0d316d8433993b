"""The page's tables: on the first sheet the rows that fit, and beside them every row in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rapha.node.disclosure.shown import Numbers
from rapha.node.disclosure.words import in_full, more, short
from rapha.runtime.guard.report import Transform

TENSORS: Final = 4
NUMBERS: Final = 5
REPORTED: Final = 3
_POINT: Final = "a point"
"""Of a curve, where another row has its interval."""


def tensors(transforms: Sequence[Transform]) -> Numbers:
    """The most changed tensors first."""
    worst = sorted(transforms, key=lambda t: (-t.clipped, -t.largest_error, t.tensor))
    whole = tuple(
        (in_full(t.tensor), f"{t.dtype} to {t.released_as}", f"{t.clipped:,}", f"{t.largest_error:.3g}")
        for t in worst
    )
    rows = tuple((short(t.tensor), *cells[1:]) for t, cells in zip(worst[:TENSORS], whole, strict=False))
    return Numbers(rows, more(len(worst) - len(rows), "changed no more than these"), whole)


def trusted(values: dict[str, float]) -> Numbers:
    """Everybody before any subgroup: many of them must not push the result itself off the page."""
    single = sorted((name for name in values if "." not in name), key=lambda name: ("@" in name, name))
    ends = {f"{name}.{end}" for name in single if _told(name, values) for end in ("low", "high")}
    points = sorted(values.keys() - ends - set(single), key=_in_order)
    lines = [(name, _decimal(values[name]), _interval(name, values)) for name in single]
    rows = tuple((short(name), *cells) for name, *cells in lines[:NUMBERS])
    whole = (
        *((in_full(name), *cells) for name, *cells in lines),
        *((in_full(name), _decimal(values[name]), _POINT) for name in points),
    )
    left = (more(len(single) - len(rows), "metrics"), f"{len(points)} points of curves" if points else "")
    return Numbers(rows, "; ".join(filter(None, left)), whole)


def reported(values: dict[str, object]) -> Numbers:
    """The job's own words about itself."""
    told = [(name, _said(values[name])) for name in sorted(values)]
    rows = tuple((short(name), short(said)) for name, said in told[:REPORTED])
    whole = tuple((in_full(name), in_full(said)) for name, said in told)
    return Numbers(rows, more(len(told) - len(rows), "self-reported values"), whole)


def _in_order(name: str) -> tuple[str, int, str]:
    curve, _, at = name.rpartition(".")
    return (curve, int(at), "") if at.isascii() and at.isdigit() else (curve, -1, at)


def _decimal(value: float) -> str:
    # Another number than the one that leaves would be signed, if a digit of it were left out.
    return f"{value:,.3f}" if round(value, 3) == value else str(value)


def _told(name: str, values: dict[str, float]) -> bool:
    return f"{name}.low" in values and f"{name}.high" in values


def _interval(name: str, values: dict[str, float]) -> str:
    if not _told(name, values):
        return "not told"
    return f"{_decimal(values[f'{name}.low'])} to {_decimal(values[f'{name}.high'])}"


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)  # in full: rounded here, it would be another value than the one that leaves
