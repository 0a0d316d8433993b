"""How sure a model is of the truth, record by record: the number that membership shows in.

class     log-odds of the true class (Carlini et al. 2022, section IV-C), which is close to Gaussian; of
          scores that are no probabilities, the margin over the best other class
quantity  minus the absolute error
time      minus the distance between the rank of the risk and the rank of the time; a censored time is only a
          lower bound, so a risk that ranks below it is no error
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rapha.spec.refusals import Refused

Floats = NDArray[np.float64]
Predictions = NDArray[np.float32]
_LEAST: Final = 2.0**-24
"""Half a unit in the last place of a float32 near 1: the smallest doubt that a prediction can express."""
_SUM_SLACK: Final = 1e-3
_UNDECIDED: Final = 0.5
"""The largest distance of a probability from 0 and 1, where no smaller one occurs."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What is known of each record.

    Attributes:
        target: shape (rows,). Integers are class numbers from 0; floats are quantities, or times.
        event: shape (rows,); where given, `target` is the time of an event, or of censoring where False.
    """

    target: NDArray[Any]
    event: NDArray[np.bool_] | None = None

    @property
    def classes(self) -> bool:
        """Whether `target` holds class numbers."""
        return self.event is None and self.target.dtype.kind in "biu"


@dataclass(frozen=True, slots=True)
class Scale:
    """How predictions are read. Decided once, on the released model, and kept for its shadows.

    Attributes:
        probabilities: whether predictions of classes are in [0, 1], and of several columns add up to 1.
        doubt: half the smallest distance from 0 or 1 that occurs. A forest of 60 trees that says 1 means more
            than 59/60; taken for certainty, its one undecided tree would outweigh all else in the log-odds.
    """

    probabilities: bool
    doubt: float = _LEAST


def scale_of(truth: Truth, predictions: Predictions) -> Scale:
    """The scale of the released model's `predictions`."""
    inside = bool(predictions.min() >= 0 and predictions.max() <= 1)
    if truth.classes and predictions.shape[1] > 1:
        total = predictions.sum(axis=1, dtype=np.float64)
        inside = inside and bool(np.abs(total - 1).max() <= _SUM_SLACK)
    if not inside or not truth.classes:
        return Scale(False)
    distance = np.minimum(predictions, 1 - predictions)
    smallest = float(distance[distance > 0].min(initial=_UNDECIDED))
    return Scale(True, max(smallest / 2, _LEAST))


def confidences(truth: Truth, predictions: Predictions, scale: Scale) -> Floats:
    """Confidence in the truth of each record, float64[rows], always finite; more is surer.

    Args:
        predictions: finite, shape (rows, columns), as `rapha.runtime.metrics` takes them.
        scale: of the released model; where that predicts probabilities, what is beyond [0, 1] is taken for
            its ends.

    Raises:
        Refused: `job.outputs` where the predictions don't cover the classes; `node.internal` where there is
            not one row for each truth.
    """
    if len(predictions) != len(truth.target):
        raise Refused("node.internal", "there is not one prediction for each record")
    values = predictions.astype(np.float64)
    if truth.event is not None:
        return _of_times(truth.target.astype(np.float64), truth.event, values[:, 0])
    if not truth.classes:
        return -np.abs(values[:, 0] - truth.target.astype(np.float64))
    return _of_classes(truth.target.astype(np.int64), values, scale)


def midranks(values: NDArray[Any]) -> Floats:
    """Ranks from 1, equal values sharing the middle of theirs: float64 of the same length."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    counts = np.diff(np.r_[first, len(ranked)])
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(first + (counts + 1) / 2, counts)
    return ranks


def _of_classes(target: NDArray[np.int64], values: Floats, scale: Scale) -> Floats:
    columns = values.shape[1]
    if target.min() < 0 or target.max() >= max(2, columns):
        raise Refused("job.outputs", f"predictions: {columns} columns do not cover the classes")
    if columns == 1:
        if scale.probabilities:
            sure = np.clip(values[:, 0], scale.doubt, 1 - scale.doubt)
            values = np.log(sure / (1 - sure))[:, None]
        signed: Floats = np.where(target == 1, 1, -1) * values[:, 0]
        return signed
    rows = np.arange(len(values))
    chosen, others = values[rows, target], values.copy()
    others[rows, target] = 0 if scale.probabilities else -np.inf
    if scale.probabilities:
        rest = np.maximum(others, 0).sum(axis=1)
        odds: Floats = np.log(np.maximum(chosen, scale.doubt)) - np.log(np.maximum(rest, scale.doubt))
        return odds
    margin: Floats = chosen - others.max(axis=1)
    return margin


def _of_times(time: Floats, event: NDArray[np.bool_], risk: Floats) -> Floats:
    # The soonest has the highest rank of urgency, as the highest risk should have.
    over = (midranks(risk) - midranks(-time)) / len(time)
    distance: Floats = np.where(event, np.abs(over), np.maximum(over, 0))
    return -distance
