"""The planned metrics of a job, over everybody who was held out and over subgroups of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from rapha.runtime.metrics import averages, curves, pairs, ranking
from rapha.runtime.metrics.bootstrap import percentiles
from rapha.runtime.metrics.case import Case, Floats, Indices, Labels, Mask
from rapha.runtime.metrics.chance import Chance
from rapha.runtime.metrics.dominance import Dominance
from rapha.runtime.metrics.groups import Groups
from rapha.runtime.metrics.interface import Metric, Point
from rapha.runtime.metrics.rounding import Told, coarse, published, widened
from rapha.spec.release_plan import (
    SENSITIVITY_AT,
    TrustedMetric,
    metric_keys,
)

MIN_CELL: Final = 10
_DRAWS: Final = 2
"""Draws of labels by which the rules are judged; each must admit a number."""
_METRICS: Final[Mapping[TrustedMetric, Callable[[Case], Metric]]] = {
    "auroc": ranking.Auroc.of,
    "auprc": ranking.Auprc.of,
    "accuracy": averages.Accuracy.of,
    "brier": averages.Brier.of,
    "rmse": averages.Rmse.of,
    "concordance": pairs.Concordance.of,
    "calibration_error": averages.CalibrationError.of,
    "sensitivity_at_90": functools.partial(
        ranking.SensitivityAt.of, specificity=SENSITIVITY_AT["sensitivity_at_90"]
    ),
    "sensitivity_at_95": functools.partial(
        ranking.SensitivityAt.of, specificity=SENSITIVITY_AT["sensitivity_at_95"]
    ),
}
_QUANTITIES: Final = ("rmse", "concordance")
"""Their labels are no classes, even where they are 0 and 1."""
_CURVES: Final[Mapping[TrustedMetric, Callable[[Case], list[Point]]]] = {
    "roc": curves.roc,
    "calibration": curves.calibration,
}


def evaluate(
    names: Sequence[TrustedMetric],
    labels: Labels,
    predictions: npt.NDArray[np.float32],
    *,
    seed: int,
    min_cell: int = MIN_CELL,
    groups: Mapping[str, Mask] | None = None,
) -> dict[str, float]:
    """The planned metrics, rounded to 3 decimals: `auroc`, `auroc.low`, `auroc.high`, `roc.1` ….

    `predictions` has shape (rows, columns): one column is a probability or score of class 1 (a risk for
    concordance, a value for rmse), more are one score a class. The interval is a percentile bootstrap
    over patients, told in steps. A result is left out where it rests on fewer than `min_cell`
    patients, or is about one of them (`rapha.runtime.metrics.dominance`); what is named first is kept first.

    Args:
        labels, predictions: rows in an order that is the same for every job.
        seed: of the dataset, secret; everything random comes from it (`rapha.runtime.metrics.chance`).
        groups: by name such as `sex=1`, in the plan's order, which rows are in that subgroup; its numbers
            are called `auroc@sex=1`.

    Raises:
        Refused: `job.outputs` where predictions do not fit the labels or the metric; `node.config` where the
            labels are not of the metric's kind.
    """
    case = Case.of(labels, predictions)
    if case.patients < min_cell:
        return {}
    teller = _Teller(case.patients, min_cell, seed)
    results = teller.tell(names, case, case.who, "")
    singles = [name for name in names if name in _METRICS]
    apart = Groups(case, min_cell)
    for group, rows in (groups or {}).items():
        if apart.admits(group.partition("=")[0], rows):
            results |= teller.tell(singles, case.part(rows), case.who[rows], group)
    return results


class _Teller:
    """Tells what may be told of one job."""

    def __init__(self, patients: int, min_cell: int, seed: int) -> None:
        self._cell, self._chance = min_cell, Chance(seed)
        self._rules = [Dominance(patients, min_cell) for _ in range(_DRAWS)]

    def tell(self, names: Sequence[TrustedMetric], case: Case, who: Indices, group: str) -> dict[str, float]:
        """What of the metrics `names` over `case` may be told; `who` numbers its patients among all."""
        generator = self._chance.labels(who)
        draws = [case.drawn(generator) for _ in self._rules]
        points: dict[str, float] = {}
        found: dict[TrustedMetric, tuple[Metric, float, Told]] = {}
        for name in names:
            if name in _CURVES:
                points |= self._curve(name, case, draws, who)
                continue
            metric = _METRICS[name](case)
            value = float(metric.values(np.ones((1, case.rows)))[0])
            # Before the resamples: a job may claim classes that nobody has.
            moves = [_directed(name, draw, _METRICS[name](draw).moves()) for draw in draws]
            told = self._told(name, value, metric.cells(), moves, who)
            if told is not None:
                found[name] = metric, value, told
        measured = {name: metric for name, (metric, _, _) in found.items()}
        ends = percentiles(case, measured, self._chance.resamples(who))
        for name, (low, high) in ends.items():
            _, value, told = found[name]
            below, above = (widened(name, reach, told.step) for reach in (value - low, high - value))
            numbers = (told.value, told.value - below, told.value + above)
            keys = metric_keys(name, group)
            points |= {key: published(name, number) for key, number in zip(keys, numbers, strict=True)}
        return points

    def _curve(self, name: TrustedMetric, case: Case, draws: list[Case], who: Indices) -> dict[str, float]:
        drawn = [{point.key: point.moves for point in _CURVES[name](draw)} for draw in draws]
        points = {}
        for point in _CURVES[name](case):
            each = zip(draws, drawn, strict=True)
            moves = [_directed(name, draw, [found[point.key]]) for draw, found in each]
            told = self._told(name, point.value, point.cells, moves, who)
            if told is not None:
                points[point.key] = published(name, told.value)
        return points

    def _told(
        self, name: TrustedMetric, value: float, cells: list[float], draws: list[list[Floats]], who: Indices
    ) -> Told | None:
        if not np.isfinite(value) or min(cells) < self._cell:
            return None
        grains = [rule.grain(moves, who) for rule, moves in zip(self._rules, draws, strict=True)]
        finest = [grain for grain in grains if grain is not None]
        if len(finest) < len(grains):
            return None
        return coarse(name, value, max(finest), functools.partial(self._chance.rounding, name, value))


def _directed(name: TrustedMetric, case: Case, moves: list[Floats]) -> list[Floats]:
    """The moves towards class 1, where there are two classes; else their sizes.

    So the sign of a move is not that of the label that was drawn: labels are drawn for each group anew, and
    the rules have to see what the numbers of several groups tell together.
    """
    if name in _QUANTITIES or not case.is_binary:
        return [np.abs(each) for each in moves]
    return [np.where(case.target == 1, -each, each) for each in moves]
