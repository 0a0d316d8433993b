"""The ledger's charts: bits and epsilon over jobs, uses of patients, overlaps of cohorts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from rapha.node.datasets.ledger.messages import Line, Overlap
from rapha.runtime import charts
from rapha.runtime.charts import Element, Frame, Markup, Scale, Tick

_FRAME: Final = Frame(Scale(64, 548), Scale(240, 16))
_SIZE: Final = (560.0, 284.0)
_COLOURS: Final = 6
"""Organisations with a colour of their own; the rest share the last."""
_MOST_JOBS: Final = 200
_NEAR: Final = 0.1
"""The axis ends at the cap from this share on; below it, the columns would be too low to see."""

Stack = list[tuple[str, float]]
"""Parts of a column from below: class and height."""


def organisations(lines: Sequence[Line]) -> list[str]:
    """In order of their first job."""
    return list(dict.fromkeys(line.organisation for line in lines))


def colour(number: int) -> str:
    """Class of the organisation of that number."""
    return f"org{min(number, _COLOURS - 1)}"


def bits(lines: Sequence[Line], cap: float) -> Markup:
    """Bits charged so far after each job, stacked by organisation, and the cap where it is near."""
    return _cumulative("bits", "Bits given away after each job, by organisation", lines, cap)


def epsilon(lines: Sequence[Line], cap: float) -> Markup | None:
    """Epsilon spent so far after each job; None without a job that spent any."""
    if not any(line.charged.epsilon for line in lines):
        return None
    return _cumulative("epsilon", "Epsilon spent after each job, by organisation", lines, cap)


def uses(counts: Mapping[str, int]) -> Markup:
    """How many patients were in how many jobs."""
    found = {int(jobs): patients for jobs, patients in counts.items()}
    most = max(found, default=1)
    columns: list[Stack] = [[("org0", found.get(jobs, 0))] for jobs in range(1, most + 1)]
    said = "; ".join(f"{jobs} jobs: {patients:,} patients" for jobs, patients in sorted(found.items()))
    top = float(max(found.values(), default=1))
    return _columns(
        "uses", "Patients by the number of jobs they were in", said, columns, top, "1, 2, … jobs", "patients"
    )


def overlaps(found: Sequence[Overlap]) -> Markup | None:
    """Patients that two cohorts have in common; the diagonal is their size. None without a cohort."""
    numbers = sorted({overlap.first for overlap in found})
    if not numbers:
        return None
    side, left, top = min(48.0, 480.0 / len(numbers)), 56.0, 24.0
    most = max(1, *(overlap.patients for overlap in found))
    parts: list[Element] = []
    for row, number in enumerate(numbers):
        y = top + row * side + side / 2 + 4
        parts.append(charts.label(str(number), "tick", x=left - 8, y=y, text_anchor="end"))
        x = left + row * side + side / 2
        parts.append(charts.label(str(number), "tick", x=x, y=top - 6, text_anchor="middle"))
    for overlap in found:
        a, b = numbers.index(overlap.first), numbers.index(overlap.second)
        for row, column in {(a, b), (b, a)}:
            parts += _square(left + column * side, top + row * side, side, overlap.patients, most)
    said = "; ".join(f"{o.first} and {o.second}: {o.patients:,}" for o in found)
    title = "Patients that two cohorts have in common (on the diagonal: their size)"
    return charts.fixed(
        "overlaps", title, said, (left + side * len(numbers) + 8, top + side * len(numbers) + 8), parts
    )


def _square(x: float, y: float, side: float, patients: int, most: int) -> list[Element]:
    cell = charts.shape("rect", "heat", x=x + 1, y=y + 1, width=side - 2, height=side - 2)
    cell.set("fill-opacity", f"{0.08 + 0.6 * patients / most:.2f}")
    if side < 32:
        return [cell]
    return [
        cell,
        charts.label(_short(patients), "cell", x=x + side / 2, y=y + side / 2 + 4, text_anchor="middle"),
    ]


def _cumulative(name: str, title: str, lines: Sequence[Line], cap: float) -> Markup:
    orgs = {organisation: colour(n) for n, organisation in enumerate(organisations(lines))}
    spent: Counter[str] = Counter()
    columns: list[Stack] = []
    for line in lines:
        spent[orgs[line.organisation]] += getattr(line.charged, name)
        columns.append(sorted(spent.items()))
    total = float(sum(spent.values()))
    top = max(cap, total) if total >= _NEAR * cap else 1.2 * total or 1.0
    said = f"{total:,g} of {cap:,g} after {len(lines)} jobs"
    return _columns(name, title, said, columns[-_MOST_JOBS:], top, "jobs, oldest first", name, cap)


def _columns(
    name: str,
    title: str,
    said: str,
    columns: Sequence[Stack],
    top: float,
    across: str,
    up: str,
    cap: float | None = None,
) -> Markup:
    ticks: list[Tick] = [(k / 4, _short(top * k / 4)) for k in range(5)]
    parts = charts.axes(_FRAME, f"{across} ({len(columns)})", up, (), ticks)
    width = 1 / max(1, len(columns))
    for number, stack in enumerate(columns):
        base = 0.0
        for class_, height in stack:
            x, y = _FRAME.at((number * width, (base + height) / top))
            right, bottom = _FRAME.at(((number + 1) * width, base / top))
            gap = min(2.0, 0.2 * (right - x))
            parts.append(charts.shape("rect", class_, x=x, y=y, width=right - x - gap, height=bottom - y))
            base += height
    if cap is not None and cap <= top:
        (x, y), (right, _) = _FRAME.at((0, cap / top)), _FRAME.at((1, 0))
        parts.append(charts.shape("line", "cap", x1=x, x2=right, y1=y, y2=y))
    return charts.fixed(name, title, said, _SIZE, parts)


def _short(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:.3g}"
