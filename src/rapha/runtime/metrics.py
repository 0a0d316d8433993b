"""Trusted metrics: computed by the node from labels that the job never saw, rounded, small cells left out.

A metric is a function of (labels, predictions, weights), where each row of `weights` is one resample of
the patients, so that a bootstrap sorts the scores once for many resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rapha.spec.refusals import Refused
from rapha.spec.release_plan import CURVE_POINTS, METRIC_DECIMALS, TRUSTED_METRICS, TrustedMetric

Floats = npt.NDArray[np.float64]
RESAMPLES: Final = 200
MIN_CELL: Final = 10
_BLOCK: Final = 2**22
"""Weights that are in memory at once."""
_PAIR_ROWS: Final = 256
"""Rows of the pairwise comparison that are in memory at once."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What the node kept.

    Attributes:
        target: shape (rows,). Class number from 0; or the value (rmse); or the time (concordance).
        event: shape (rows,), True where `target` is an event and not a censoring time. Concordance only.
        patient: shape (rows,), equal for rows of one patient, the unit that is resampled and counted.
            None where each row is a patient.
    """

    target: npt.NDArray[Any]
    event: npt.NDArray[np.bool_] | None = None
    patient: npt.NDArray[Any] | None = None


def parse_predictions(data: bytes, rows: int, columns: int) -> npt.NDArray[np.float32]:
    """Little-endian float32 in C order, shape (rows, columns).

    Raises:
        Refused: `job.outputs` for a wrong count or a value that is not finite.
    """
    if rows < 1 or columns < 1 or len(data) != 4 * rows * columns:
        raise Refused("job.outputs", f"predictions: {len(data)} bytes for {rows} × {columns} float32")
    values = np.frombuffer(data, "<f4").reshape(rows, columns)
    if not np.isfinite(values).all():
        raise Refused("job.outputs", "predictions: a value is not finite")
    return values


def evaluate(
    names: Sequence[TrustedMetric],
    labels: Labels,
    predictions: npt.NDArray[np.float32],
    *,
    seed: int,
    min_cell: int = MIN_CELL,
) -> dict[str, float]:
    """The planned metrics, rounded to 3 decimals: `auroc`, `auroc.low`, `auroc.high`, `roc.1` ….

    `predictions` has shape (rows, columns): one column is a probability or score of class 1 (a risk for
    concordance, a value for rmse), more are one score a class. The interval is a percentile bootstrap
    over patients with `seed`. A result that rests on fewer than `min_cell` patients is left out.

    Raises:
        Refused: `job.outputs` where predictions do not fit the labels or the metric.
    """
    scores = np.asarray(predictions, np.float64)
    rows = len(labels.target)
    if scores.ndim != 2 or len(scores) != rows or not np.isfinite(scores).all():
        raise Refused("job.outputs", f"predictions: expected {rows} finite rows")
    patients = _patients(labels)
    if np.unique(patients).size < min_cell:
        return {}
    results: dict[str, float] = {}
    for name in names:
        if name in CURVE_POINTS:
            results |= _CURVES[name](labels, scores, min_cell)
        elif min(_cells(name, labels)) >= min_cell:
            results |= _interval(name, labels, scores, _resamples(patients, seed))
    return results


def _patients(labels: Labels) -> npt.NDArray[np.intp]:
    if labels.patient is None:
        return np.arange(len(labels.target))
    return np.unique(labels.patient, return_inverse=True)[1]


def _count(labels: Labels, mask: npt.NDArray[np.bool_]) -> int:
    """Patients among the rows of `mask`."""
    return int(np.unique(_patients(labels)[mask]).size)


def _cells(name: TrustedMetric, labels: Labels) -> list[int]:
    """Patients in each group that the metric divides the rows into."""
    if name in ("auroc", "auprc"):
        classes = range(max(2, int(labels.target.max()) + 1))
        return [_count(labels, labels.target == c) for c in classes]
    if name == "concordance" and labels.event is not None:
        return [_count(labels, labels.event)]
    return [_count(labels, np.ones(len(labels.target), np.bool_))]


def _resamples(patients: npt.NDArray[np.intp], seed: int) -> Iterator[Floats]:
    """Blocks of shape (resamples, rows): how often each row is drawn, all rows of a patient together."""
    count = int(patients.max()) + 1
    generator, share = np.random.default_rng(seed), np.full(count, 1 / count)
    block = max(1, min(RESAMPLES, _BLOCK // len(patients)))
    for begin in range(0, RESAMPLES, block):
        drawn = generator.multinomial(count, share, min(block, RESAMPLES - begin))
        yield drawn.astype(np.float64)[:, patients]


def _interval(
    name: TrustedMetric, labels: Labels, scores: Floats, resamples: Iterator[Floats]
) -> dict[str, float]:
    metric = _METRICS[name]
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may lack a class
        value = float(metric(labels, scores, np.ones((1, len(scores))))[0])
        if not np.isfinite(value):
            return {}  # before the resamples: a job may claim a thousand classes that nobody has
        drawn = np.concatenate([metric(labels, scores, weights) for weights in resamples])
    drawn = drawn[np.isfinite(drawn)]
    if not drawn.size:
        return {}
    low, high = np.percentile(drawn, [2.5, 97.5])
    parts = {name: value, f"{name}.low": low, f"{name}.high": high}
    return {key: published(name, float(value)) for key, value in parts.items()}


def published(name: TrustedMetric, value: float) -> float:
    """`value` in the range that the plan prices, at 3 decimals."""
    low, high = TRUSTED_METRICS[name]
    return round(min(max(value, low), high), METRIC_DECIMALS) + 0.0


def _classes(labels: Labels, scores: Floats) -> list[tuple[npt.NDArray[np.bool_], Floats]]:
    """(is positive, score) of each one-against-rest question: one for two classes."""
    if scores.shape[1] <= 2:
        return [(_binary(labels), scores[:, -1])]
    if labels.target.max() >= scores.shape[1]:
        raise Refused("job.outputs", f"predictions: {scores.shape[1]} columns do not cover the classes")
    return [(labels.target == c, scores[:, c]) for c in range(scores.shape[1])]


def _binary(labels: Labels) -> npt.NDArray[np.bool_]:
    if not np.isin(labels.target, (0, 1)).all():
        raise Refused("job.outputs", "predictions: one score a row, and the labels have more classes")
    positive: npt.NDArray[np.bool_] = labels.target == 1
    return positive


def _sorted_groups(score: Floats) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Order by falling score, and where each run of equal scores begins in it."""
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    return order, np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])


def _steps(positive: npt.NDArray[np.bool_], score: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weight of positives and of negatives at each distinct score, falling; shape (resamples, scores)."""
    order, starts = _sorted_groups(score)
    drawn = weights[:, order]
    up = np.add.reduceat(drawn * positive[order], starts, axis=1)
    return up, np.add.reduceat(drawn * ~positive[order], starts, axis=1)


def _auroc(labels: Labels, scores: Floats, weights: Floats) -> Floats:
    """Mann–Whitney with mid-ranks for ties; macro average of one against rest for more classes."""

    def one(positive: npt.NDArray[np.bool_], score: Floats) -> Floats:
        up, down = _steps(positive, score, weights)
        above = np.cumsum(up, axis=1)
        wins = (down * (above - up / 2)).sum(axis=1)
        return _ratio(wins, up.sum(axis=1) * down.sum(axis=1))

    return _macro([one(*question) for question in _classes(labels, scores)])


def _auprc(labels: Labels, scores: Floats, weights: Floats) -> Floats:
    """Average precision: Σ (recall step) × precision, without interpolation; macro average."""

    def one(positive: npt.NDArray[np.bool_], score: Floats) -> Floats:
        up, down = _steps(positive, score, weights)
        found = np.cumsum(up, axis=1)
        seen = found + np.cumsum(down, axis=1)
        precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
        return _ratio((up * precision).sum(axis=1), up.sum(axis=1))

    return _macro([one(*question) for question in _classes(labels, scores)])


def _ratio(part: Floats, whole: Floats) -> Floats:
    result: Floats = part / whole
    return result


def _macro(each: list[Floats]) -> Floats:
    mean: Floats = np.mean(each, axis=0)
    return mean


def _accuracy(labels: Labels, scores: Floats, weights: Floats) -> Floats:
    """Share of right classes: 0.5 and above is class 1 for one column, the largest score for more."""
    chosen = (scores[:, 0] >= 0.5).astype(int) if scores.shape[1] == 1 else scores.argmax(axis=1)
    return _average((chosen == labels.target).astype(np.float64), weights)


def _brier(labels: Labels, scores: Floats, weights: Floats) -> Floats:
    """Mean squared error of probabilities, in [0, 1]; over classes, half of their sum."""
    _check_probabilities(scores)
    if scores.shape[1] == 1:
        return _average((scores[:, 0] - _binary(labels)) ** 2, weights)
    truth = labels.target[:, None] == np.arange(scores.shape[1])
    return _average(((scores - truth) ** 2).sum(axis=1) / 2, weights)


def _rmse(labels: Labels, scores: Floats, weights: Floats) -> Floats:
    """Root mean squared error of the first column."""
    return np.sqrt(_average((scores[:, 0] - labels.target.astype(np.float64)) ** 2, weights))


def _average(values: Floats, weights: Floats) -> Floats:
    return _ratio(weights @ values, weights.sum(axis=1))


def _concordance(labels: Labels, scores: Floats, weights: Floats) -> Floats:
    """Harrell's C. A pair counts if the shorter time is an event (of equal times: just one is).

    Equal risks count half (Harrell et al., 1996).
    """
    if labels.event is None:
        raise Refused("node.config", "concordance needs censored times as labels")
    time, event, risk = labels.target.astype(np.float64), labels.event, scores[:, 0]
    right = np.zeros(len(weights))
    pairs = np.zeros(len(weights))
    for begin in range(0, len(time), _PAIR_ROWS):
        rows = slice(begin, begin + _PAIR_ROWS)
        later = (time[rows, None] < time) | ((time[rows, None] == time) & ~event)
        usable = later & event[rows, None]
        wins = (risk[rows, None] > risk) + 0.5 * (risk[rows, None] == risk)
        pairs += (weights[:, rows] * (weights @ usable.T.astype(np.float64))).sum(axis=1)
        right += (weights[:, rows] * (weights @ (usable * wins).T)).sum(axis=1)
    return _ratio(right, pairs)


def _check_probabilities(scores: Floats) -> None:
    if scores.min() < 0 or scores.max() > 1:
        raise Refused("job.outputs", "predictions: the metric needs probabilities in [0, 1]")


def _roc(labels: Labels, scores: Floats, min_cell: int) -> dict[str, float]:
    """`roc.1` … `roc.9`: sensitivity at false positive rates 0.1 … 0.9, linear between scores.

    A full curve is as many points as there are negatives and gives the labels away; nine don't.
    """
    positive, score = _binary(labels), scores[:, -1]
    cases, controls = _count(labels, positive), _count(labels, ~positive)
    if min(cases, controls) < min_cell:
        return {}
    up, down = (np.r_[0.0, np.cumsum(s[0])] for s in _steps(positive, score, np.ones((1, len(score)))))
    rates = {n: n / (CURVE_POINTS["roc"] + 1) for n in range(1, CURVE_POINTS["roc"] + 1)}
    return {
        f"roc.{n}": published("roc", float(np.interp(rate, down / down[-1], up / up[-1])))
        for n, rate in rates.items()
        if min(rate, 1 - rate) * controls >= min_cell
    }


def _calibration(labels: Labels, scores: Floats, min_cell: int) -> dict[str, float]:
    """`calibration.1` … `calibration.10`: share of positives where the prediction is in that tenth."""
    _check_probabilities(scores)
    positive, tenth = _binary(labels), np.minimum((scores[:, -1] * 10).astype(int) + 1, 10)
    return {
        f"calibration.{n}": published("calibration", float(positive[tenth == n].mean()))
        for n in range(1, CURVE_POINTS["calibration"] + 1)
        if _count(labels, tenth == n) >= min_cell
    }


_METRICS: Final[dict[str, Callable[[Labels, Floats, Floats], Floats]]] = {
    **{"auroc": _auroc, "auprc": _auprc, "accuracy": _accuracy},
    **{"brier": _brier, "rmse": _rmse, "concordance": _concordance},
}
_CURVES: Final[dict[str, Callable[[Labels, Floats, int], dict[str, float]]]] = {
    "roc": _roc,
    "calibration": _calibration,
}
