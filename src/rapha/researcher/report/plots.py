"""The report's charts: gates over time, the record funnel, ROC, calibration, intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rapha.researcher.report.lines import GateLine, duration
from rapha.runtime import charts
from rapha.runtime.charts import Element, Frame, Markup, Point, Scale
from rapha.spec.release_plan import CURVE_POINTS

_ROW: Final = 36.0
_BAR: Final = 10.0
_LEAST: Final = 0.4
"""Percent of the width at which a bar can still be seen."""
_SIZE: Final = (340.0, 376.0)
_FRAME: Final = Frame(Scale(46, 330), Scale(330, 46))

Pair = tuple[str, str]
Count = int | str
"""Records, or text such as `<10` for a suppressed small cell."""


def timeline(lines: Sequence[GateLine]) -> Markup:
    """Each gate's time, one after the other, on one shared scale of seconds."""
    total = sum(line.seconds for line in lines)
    parts: list[Element] = []
    begin = 0.0
    for row, line in enumerate(lines):
        share, start = (100 * s / total if total else 0.0 for s in (line.seconds, begin))
        name = line.gate if line.verdict == "passed" else f"{line.gate} (refused)"
        parts += _row(row, name, duration(line.seconds))
        parts.append(_bar(row, f"bar {line.verdict}", min(start, 100 - _LEAST), share))
        begin += line.seconds
    said = "; ".join(f"{line.gate} {duration(line.seconds)}, {line.verdict}" for line in lines)
    title = f"Time inside each gate, {duration(total)} in all"
    return charts.fluid("timeline", title, said, _ROW * len(lines), parts)


def funnel(stages: Mapping[str, Count]) -> Markup:
    """Records that remain after each stage; a suppressed count is drawn hollow, at its upper limit."""
    most = max(map(upper, stages.values()), default=0)
    parts: list[Element] = []
    for row, (stage, count) in enumerate(stages.items()):
        parts += _row(row, stage, counted(count))
        kind = "bar passed" if isinstance(count, int) else "bar hollow"
        parts.append(_bar(row, kind, 0, 100 * upper(count) / most if most else 0))
    said = "; ".join(f"{stage}: {counted(count)}" for stage, count in stages.items())
    return charts.fluid("funnel", "Records after each stage", said, _ROW * len(stages), parts)


def upper(count: Count) -> int:
    """The count, or the limit that a suppressed one is below."""
    return count if isinstance(count, int) else int(count.removeprefix("<"))


def counted(count: Count) -> str:
    """The count with separators; a suppressed one in words."""
    return f"{count:,}" if isinstance(count, int) else f"fewer than {upper(count):,} patients"


def _row(row: int, name: str, value: str) -> list[Element]:
    y = row * _ROW + 15
    return [
        charts.label(name, "name", x="0", y=y),
        charts.label(value, "value", x="100%", y=y, text_anchor="end"),
        charts.shape("rect", "track", x="0", y=y + 7, width="100%", height=_BAR, rx=2),
    ]


def _bar(row: int, class_: str, start: float, share: float) -> Element:
    width = max(_LEAST, min(share, 100 - start))
    across = {"x": f"{start:.2f}%", "width": f"{width:.2f}%"}
    return charts.shape("rect", class_, y=row * _ROW + 22, height=_BAR, rx=2, **across)


def roc_points(trusted: Mapping[str, float]) -> list[Point]:
    """(false positive rate, sensitivity) of `roc.1` …: point k is at k / (points + 1)."""
    return _points(trusted, "roc", 0.0, 1 / (CURVE_POINTS["roc"] + 1))


def calibration_points(trusted: Mapping[str, float]) -> list[Point]:
    """(middle of the tenth of predictions, share of positives) of `calibration.1` …."""
    width = 1 / CURVE_POINTS["calibration"]
    return _points(trusted, "calibration", -width / 2, width)


def _points(trusted: Mapping[str, float], name: str, offset: float, step: float) -> list[Point]:
    values = ((k, trusted.get(f"{name}.{k}")) for k in range(1, CURVE_POINTS[name] + 1))
    return [(round(offset + k * step, 6), value) for k, value in values if value is not None]


def roc(points: Sequence[Point], area: str) -> Markup:
    """Sensitivity over false positive rate, with the diagonal of a coin; `area` is the legend."""
    said = "; ".join(f"at {x:.1f}: {y:.3f}" for x, y in points)
    return _curve(
        "roc",
        ("ROC curve", f"Sensitivity at false positive rates. {said}."),
        points,
        ("False positive rate", "Sensitivity"),
        (f"this model, AUROC {area}", "chance, AUROC 0.5"),
    )


def calibration(points: Sequence[Point]) -> Markup:
    """Share of positives over predicted probability, with the diagonal of a calibrated model."""
    said = "; ".join(f"predicted {x:.2f}: {y:.3f}" for x, y in points)
    return _curve(
        "calibration",
        ("Calibration", f"Share of positives in each tenth of predictions. {said}."),
        points,
        ("Predicted probability, middle of the tenth", "Share of positives"),
        ("this model", "predicted as it happens"),
    )


def _curve(name: str, words: Pair, points: Sequence[Point], names: Pair, legend: Pair) -> Markup:
    parts = charts.axes(_FRAME, *names)
    parts.append(charts.polyline(_FRAME, ((0, 0), (1, 1)), "diagonal"))
    parts += [charts.polyline(_FRAME, run, "line") for run in _runs(points) if len(run) > 1]
    parts += charts.dots(_FRAME, points, "dot")
    for row, (class_, text) in enumerate(zip(("line", "diagonal"), legend, strict=True)):
        y = 12 + 17 * row
        parts.append(charts.shape("line", class_, x1=_FRAME.x.start, x2=_FRAME.x.start + 26, y1=y, y2=y))
        parts.append(charts.label(text, "legend", x=_FRAME.x.start + 34, y=y + 4))
    return charts.fixed(name, *words, _SIZE, parts)


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """Neighbours only: a line across a suppressed point would show what was left out."""
    runs: list[list[Point]] = []
    for point in points:
        if runs and point[0] - runs[-1][-1][0] < 0.15:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs


def interval(value: float, low: float, high: float) -> Markup:
    """A value in [0, 1] and its interval, as a dot on a bar."""
    at, begin, end = (f"{2 + 96 * v:.2f}%" for v in (value, low, high))
    return charts.ornament(
        16,
        [
            charts.shape("line", "grid", x1="2%", x2="98%", y1=8, y2=8),
            charts.shape("line", "whisker", x1=begin, x2=end, y1=8, y2=8),
            charts.shape("circle", "dot", cx=at, cy=8, r=4),
        ],
    )
