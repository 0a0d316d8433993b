"""Metrics of an order: how positives rank against negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from rapha.runtime.metrics.case import Case, Floats, Indices, Mask, ratio


@dataclass(frozen=True, slots=True)
class Ranked:
    """Rows by falling score, sorted once for many resamples.

    Attributes:
        positive: shape (rows,).
        order: rows by falling score.
        starts: where each run of equal scores begins in `order`.
        run: shape (rows,), the run that each row is in.
    """

    positive: Mask
    order: Indices
    starts: Indices
    run: Indices

    @classmethod
    def of(cls, positive: Mask, score: Floats) -> Self:
        """Sort, once."""
        order = np.argsort(-score, kind="stable")
        first = np.r_[True, np.diff(score[order]) != 0]
        run = np.empty(len(score), np.intp)
        run[order] = np.cumsum(first) - 1
        return cls(positive, order, np.flatnonzero(first), run)

    def steps(self, weights: Floats) -> tuple[Floats, Floats]:
        """Weight of positives and of negatives in each run; shape (resamples, runs)."""
        drawn = weights[:, self.order]
        up = np.add.reduceat(drawn * self.positive[self.order], self.starts, axis=1)
        return up, np.add.reduceat(drawn, self.starts, axis=1) - up

    def counts(self) -> tuple[Floats, Floats]:
        """Positives and negatives in each run; shape (runs,)."""
        up, down = self.steps(np.ones((1, len(self.run))))
        return up[0], down[0]

    def turned(self, if_positive: Floats, if_negative: Floats) -> Floats:
        """By row, from what each run gives if one of its positives, or of its negatives, were the other."""
        return np.where(self.positive, if_positive[self.run], if_negative[self.run])


@dataclass(frozen=True, slots=True)
class _Macro:
    """Mean over one-against-rest questions; one question for two classes."""

    case: Case
    questions: list[Ranked]

    @classmethod
    def of(cls, case: Case) -> Self:
        return cls(case, [Ranked.of(*question) for question in case.questions()])

    def cells(self) -> list[float]:
        masks = (m for q in self.questions for m in (q.positive, ~q.positive))
        return [self.case.count(mask) for mask in masks]


class Auroc(_Macro):
    """Mann–Whitney with mid-ranks for ties; macro average of one against rest for more classes."""

    def values(self, weights: Floats) -> Floats:
        """As `Metric`."""
        each = [_area(*question.steps(weights)) for question in self.questions]
        return np.asarray(np.mean(each, axis=0))

    def moves(self) -> list[Floats]:
        """As `Metric`; exact."""
        return [_area_moves(question) for question in self.questions]


class Auprc(_Macro):
    """Average precision: Σ (recall step) × precision, without interpolation; macro average."""

    def values(self, weights: Floats) -> Floats:
        """As `Metric`."""
        each = [_precision(*question.steps(weights)) for question in self.questions]
        return np.asarray(np.mean(each, axis=0))

    def moves(self) -> list[Floats]:
        """As `Metric`; exact."""
        return [_precision_moves(question) for question in self.questions]


def _area(up: Floats, down: Floats) -> Floats:
    above = np.cumsum(up, axis=1)
    return ratio((down * (above - up / 2)).sum(axis=1), up.sum(axis=1) * down.sum(axis=1))


def _area_moves(ranked: Ranked) -> Floats:
    """With U(x, y) the wins of x over y, U(P ± e, N ∓ e) = U ± U(e, N) ∓ U(P, e) − ½."""
    up, down = ranked.counts()
    positives, negatives = up.sum(), down.sum()
    lost = np.cumsum(up) - up / 2  # to positives, by a row of this run
    won = negatives - np.cumsum(down) + down / 2
    wins = (down * lost).sum()
    now = ratio(wins, positives * negatives)
    as_negative = ratio(wins + lost - won - 0.5, (positives - 1) * (negatives + 1))
    as_positive = ratio(wins - lost + won - 0.5, (positives + 1) * (negatives - 1))
    return ranked.turned(as_negative - now, as_positive - now)


def _precision(up: Floats, down: Floats) -> Floats:
    found = np.cumsum(up, axis=1)
    seen = found + np.cumsum(down, axis=1)
    precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
    return ratio((up * precision).sum(axis=1), up.sum(axis=1))


def _precision_moves(ranked: Ranked) -> Floats:
    """A row that turns changes its own run's step, and what was found in all runs from there on."""
    up, down = ranked.counts()
    found, seen, positives = np.cumsum(up), np.cumsum(up + down), up.sum()
    total = (up * found / seen).sum()
    share = up / seen
    after = share.sum() - np.cumsum(share)
    more = ((up + 1) * (found + 1) - up * found) / seen + after
    less = ((up - 1) * (found - 1) - up * found) / seen - after
    now = ratio(total, positives)
    return ranked.turned(ratio(total + less, positives - 1) - now, ratio(total + more, positives + 1) - now)


@dataclass(frozen=True, slots=True)
class SensitivityAt:
    """Share of positives at or above the smallest threshold whose specificity is at least the wanted one.

    Specificity is the share of the held-out negatives below the threshold, which is one of the scores, or
    above all of them.
    """

    case: Case
    ranked: Ranked
    specificity: float

    @classmethod
    def of(cls, case: Case, specificity: float) -> Self:
        """Raises `Refused` (`job.outputs`) for more than two classes."""
        return cls(case, Ranked.of(case.binary(), case.scores[:, -1]), specificity)

    def _allowed(self, negatives: Floats) -> Floats:
        # A billionth, so that 0.1 × 70 negatives are 7 in binary as well.
        return (1 - self.specificity) * negatives + 1e-9

    def values(self, weights: Floats) -> Floats:
        """As `Metric`."""
        up, down = self.ranked.steps(weights)
        within = np.cumsum(down, axis=1) <= self._allowed(down.sum(axis=1))[:, None]
        return ratio((up * within).sum(axis=1), up.sum(axis=1))

    def moves(self) -> list[Floats]:
        """As `Metric`; exact: a row that turns may also move the threshold."""
        up, down = self.ranked.counts()
        false, true = np.cumsum(down), np.r_[0.0, np.cumsum(up)]
        positives, runs = up.sum(), np.arange(len(up))
        now = ratio(true[self._within(false, down.sum())], positives)

        def turned(change: int) -> Floats:
            negatives = down.sum() - change
            # Runs within the allowance, had the row's own run been passed, or not yet.
            passed, before = self._within(false - change, negatives), self._within(false, negatives)
            beyond = passed > runs
            found = np.where(beyond, true[passed] + change, true[np.minimum(before, runs)])
            return ratio(found, positives + change) - now

        return [self.ranked.turned(turned(-1), turned(+1))]

    def _within(self, false: Floats, negatives: float) -> Indices:
        return np.asarray(np.searchsorted(false, self._allowed(np.asarray(negatives)), side="right"))

    def cells(self) -> list[float]:
        """Positives; negatives on either side of the threshold."""
        negatives = self.case.count(~self.ranked.positive)
        return [self.case.count(self.ranked.positive), (1 - self.specificity) * negatives + 1e-9]
