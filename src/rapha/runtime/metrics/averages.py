"""Metrics that are means over rows, and the root of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from rapha.runtime.metrics.case import TENTHS, Case, Floats, Indices, ratio


@dataclass(frozen=True, slots=True)
class _Mean:
    """`each` is a row's share of the sum; `change`, what it becomes more if the row's label were another."""

    case: Case
    each: Floats
    change: Floats

    def values(self, weights: Floats) -> Floats:
        return ratio(weights @ self.each, weights.sum(axis=1))

    def moves(self) -> list[Floats]:
        return [self.change / self.case.rows]

    def cells(self) -> list[float]:
        return [self.case.patients]


@dataclass(frozen=True, slots=True)
class Accuracy(_Mean):
    """Share of right classes: 0.5 and above is class 1 for one column, the largest score for more."""

    chosen: Indices

    @classmethod
    def of(cls, case: Case) -> Self:
        """Never refuses: a class that nobody has is a wrong answer."""
        scores = case.scores
        chosen = (scores[:, 0] >= 0.5).astype(np.intp) if scores.shape[1] == 1 else scores.argmax(axis=1)
        right = (chosen == case.target).astype(np.float64)
        return cls(case, right, 1 - 2 * right, chosen)

    def cells(self) -> list[float]:
        """Patients in each class that was predicted: of one, the share of right answers is a label."""
        return [self.case.count(self.chosen == c) for c in np.unique(self.chosen)]


class Brier(_Mean):
    """Mean squared error of probabilities, in [0, 1]; over classes, half of their sum."""

    @classmethod
    def of(cls, case: Case) -> Self:
        """Raises `Refused` (`job.outputs`)."""
        scores = case.probabilities()
        if scores.shape[1] == 1:
            positive, score = case.binary(), scores[:, 0]
            return cls(case, (score - positive) ** 2, np.where(positive, -1, 1) * (1 - 2 * score))
        truth = case.target[:, None] == np.arange(scores.shape[1])
        own = np.where(truth, scores, 0).sum(axis=1)
        # From class c to d it becomes p(c) − p(d) more: most for the least or the likeliest other class.
        least = np.where(truth, np.inf, scores).min(axis=1)
        likeliest = np.where(truth, -np.inf, scores).max(axis=1)
        change = np.where(own - least >= likeliest - own, own - least, own - likeliest)
        return cls(case, ((scores - truth) ** 2).sum(axis=1) / 2, change)


class Rmse(_Mean):
    """Root mean squared error of the first column. Another label is one that is a standard deviation away."""

    @classmethod
    def of(cls, case: Case) -> Self:
        """Never refuses."""
        target = case.target.astype(np.float64)
        error, away = case.scores[:, 0] - target, float(target.std())
        return cls(case, error**2, away * (2 * np.abs(error) + away))

    def values(self, weights: Floats) -> Floats:
        """As `Metric`."""
        return np.sqrt(super().values(weights))

    def moves(self) -> list[Floats]:
        """As `Metric`."""
        now = self.each.mean()
        return [np.sqrt(now + self.change / self.case.rows) - np.sqrt(now)]


@dataclass(frozen=True, slots=True)
class CalibrationError:
    """Expected calibration error: over tenths, |mean prediction − share of positives|, weighted by rows."""

    case: Case
    surplus: Floats
    tenth: Indices

    @classmethod
    def of(cls, case: Case) -> Self:
        """Raises `Refused` (`job.outputs`)."""
        tenth = case.tenths()
        return cls(case, case.binary() - case.scores[:, -1], tenth)

    def _gaps(self, weights: Floats) -> Floats:
        gaps = np.zeros((len(weights), TENTHS))
        for n in range(TENTHS):
            rows = np.flatnonzero(self.tenth == n)
            gaps[:, n] = weights[:, rows] @ self.surplus[rows]
        return gaps

    def values(self, weights: Floats) -> Floats:
        """As `Metric`."""
        return ratio(np.abs(self._gaps(weights)).sum(axis=1), weights.sum(axis=1))

    def moves(self) -> list[Floats]:
        """As `Metric`; exact."""
        gap = self._gaps(np.ones((1, self.case.rows)))[0][self.tenth]
        turned = np.where(self.case.binary(), -1, 1)
        return [(np.abs(gap + turned) - np.abs(gap)) / self.case.rows]

    def cells(self) -> list[float]:
        """As `Metric`."""
        return [self.case.patients]
