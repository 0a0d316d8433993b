"""`metrics.json` as the report shows it: what the node measured, apart from what the job says of itself."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rapha.researcher.report import learning, plots
from rapha.runtime.charts import Markup, Point
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import CURVE_POINTS, METRIC_DECIMALS, TRUSTED_METRICS, metric_of

PARTS: Final = frozenset({"trusted", "self_reported"})
_MEANING: Final = {
    "auroc": ("AUROC", "area under the ROC curve; higher is better, 0.5 is chance"),
    "auprc": ("AUPRC", "average precision; higher is better"),
    "accuracy": ("Accuracy", "share of right answers; higher is better"),
    "brier": ("Brier score", "mean squared error of probabilities; lower is better"),
    "rmse": ("RMSE", "root mean squared error; lower is better"),
    "concordance": ("Concordance", "Harrell's C; higher is better, 0.5 is chance"),
    "calibration_error": ("Calibration error", "mean gap between predicted and observed; lower is better"),
    "sensitivity_at_90": ("Sensitivity at 90%", "share of positives found at a specificity of 90% or more"),
    "sensitivity_at_95": ("Sensitivity at 95%", "share of positives found at a specificity of 95% or more"),
}


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A value with its 95% interval; `drawn` where both lie in [0, 1]. `name` may say which subgroup."""

    name: str
    meaning: str
    value: str
    interval: str
    drawn: Markup | None


@dataclass(frozen=True, slots=True)
class Curve:
    """A chart and its points as text, for a table beside it."""

    chart: Markup
    points: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Metrics:
    """Everything about numbers that the job's owner gets.

    Attributes:
        learning: self-reported curves by name; what they show is not in `self_reported` again.
    """

    trusted: tuple[MetricRow, ...]
    roc: Curve | None
    calibration: Curve | None
    learning: tuple[tuple[str, Curve], ...]
    self_reported: tuple[tuple[str, str], ...]
    headline: str | None


def read(metrics: Mapping[str, Any]) -> Metrics:
    """The parts of a parsed `metrics.json`.

    A file of any other shape is one that the job wrote: all of it is shown as self-reported.

    Raises:
        Refused: `schema.field_invalid` for a trusted value that is not a finite number.
    """
    trusted, reported = _parts(metrics)
    rows = _rows(trusted)
    drawn = learning.curves(reported)
    return Metrics(
        trusted=rows,
        roc=_roc(trusted),
        calibration=_calibration(trusted),
        learning=tuple(_learned(n, *curve) for n, curve in enumerate(drawn.items(), start=1)),
        self_reported=tuple(
            (name, _said(value))
            for name, value in sorted(reported.items())
            if not learning.belongs(name, drawn)
        ),
        headline=next((f"{row.name} {row.value}" for row in rows if "=" not in row.name), None),
    )


def _parts(metrics: Mapping[str, Any]) -> tuple[dict[str, float], Mapping[str, Any]]:
    if metrics.keys() != PARTS or not all(isinstance(part, Mapping) for part in metrics.values()):
        return {}, metrics
    return {str(k): _number(k, v) for k, v in metrics["trusted"].items()}, metrics["self_reported"]


def _number(name: object, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise Refused("schema.field_invalid", f"metrics: {name} is not a finite number")
    return float(value)


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _rows(trusted: Mapping[str, float]) -> tuple[MetricRow, ...]:
    """Each metric over everybody, then over subgroups."""
    order = {name: n for n, name in enumerate(TRUSTED_METRICS)}
    names = {key.partition(".")[0] for key in trusted if metric_of(key) not in CURVE_POINTS}
    ordered = sorted(names, key=lambda name: (order.get(metric_of(name), len(order)), name))
    return tuple(_row(name, trusted) for name in ordered if name in trusted)


def _row(name: str, trusted: Mapping[str, float]) -> MetricRow:
    whole, _, group = name.partition("@")
    title, meaning = _MEANING.get(whole, (whole, ""))
    title = f"{title}, {group.replace('=', ' = ', 1)}" if group else title
    value, low, high = (trusted.get(f"{name}{part}") for part in ("", ".low", ".high"))
    if value is None or low is None or high is None:
        return MetricRow(title, meaning, _decimal(trusted[name]), "not released", None)
    inside = 0 <= low <= high <= 1 and 0 <= value <= 1
    drawn = plots.interval(value, low, high) if inside else None
    return MetricRow(title, meaning, _decimal(value), f"{_decimal(low)} to {_decimal(high)}", drawn)


def _decimal(value: float) -> str:
    return f"{value:,.{METRIC_DECIMALS}f}"


def _roc(trusted: Mapping[str, float]) -> Curve | None:
    points = _unit(plots.roc_points(trusted))
    if not points:
        return None
    row = _row("auroc", trusted) if "auroc" in trusted else None
    area = f"{row.value} ({row.interval})" if row else "not released"
    table = tuple((f"{x:.1f}", _decimal(y)) for x, y in points)
    return Curve(plots.roc(points, area), table)


def _calibration(trusted: Mapping[str, float]) -> Curve | None:
    points = _unit(plots.calibration_points(trusted))
    if not points:
        return None
    table = tuple((f"{x - 0.05:.1f} to {x + 0.05:.1f}", _decimal(y)) for x, y in points)
    return Curve(plots.calibration(points), table)


def _learned(number: int, name: str, values: learning.Values) -> tuple[str, Curve]:
    table = tuple((str(epoch), f"{value:g}") for epoch, value in values)
    return name, Curve(learning.chart(number, name, values), table)


def _unit(points: list[Point]) -> list[Point]:
    for _, value in points:
        if not 0 <= value <= 1:
            raise Refused("schema.field_invalid", "metrics: a point of a curve is outside [0, 1]")
    return points
