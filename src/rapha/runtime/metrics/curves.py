"""Binned curves. A full ROC curve has as many points as there are negatives, and gives the labels away."""

from __future__ import annotations

import numpy as np

from rapha.runtime.metrics.case import TENTHS, Case, Floats, ratio
from rapha.runtime.metrics.interface import Point
from rapha.runtime.metrics.ranking import Ranked
from rapha.spec.release_plan import CURVE_POINTS


def roc(case: Case) -> list[Point]:
    """`roc.1` … `roc.9`: sensitivity at false positive rates 0.1 … 0.9, linear between scores.

    Raises:
        Refused: `job.outputs` for more than two classes.
    """
    ranked = Ranked.of(case.binary(), case.scores[:, -1])
    cases, controls = case.count(ranked.positive), case.count(~ranked.positive)
    curve = _Curve(ranked)
    points = []
    for n in range(1, CURVE_POINTS["roc"] + 1):
        rate = n / (CURVE_POINTS["roc"] + 1)
        apart = min(rate, 1 - rate) * controls + 1e-9
        points.append(Point(f"roc.{n}", curve.at(rate), curve.moves(rate), [cases, controls, apart]))
    return points


def calibration(case: Case) -> list[Point]:
    """`calibration.1` … `calibration.10`: share of positives where the prediction is in that tenth.

    Raises:
        Refused: `job.outputs` for more than two classes, or what is no probability.
    """
    tenth, positive = case.tenths(), case.binary()
    points = []
    for n in range(TENTHS):
        rows = tenth == n
        inside = int(np.count_nonzero(rows))
        if inside:
            moves = rows * np.where(positive, -1, 1) / inside
            value = float(positive[rows].mean())
            points.append(Point(f"calibration.{n + 1}", value, moves, [case.count(rows)]))
    return points


class _Curve:
    """True positives over false ones, with corners after each run of equal scores."""

    def __init__(self, ranked: Ranked) -> None:
        self._ranked = ranked
        self._up, self._down = ranked.counts()
        self._true, self._false = np.r_[0.0, np.cumsum(self._up)], np.r_[0.0, np.cumsum(self._down)]

    def _found(self, false: Floats) -> Floats:
        return np.asarray(np.interp(false, self._false, self._true))

    def at(self, rate: float) -> float:
        """Sensitivity where `rate` of the negatives are called positive; not finite without positives."""
        found = self._found(np.asarray(rate * self._false[-1]))
        return float(ratio(found, np.asarray(self._true[-1])))

    def moves(self, rate: float) -> Floats:
        """By row, how far `at` moves if its label were the other; exact."""
        now = self.at(rate)
        return self._ranked.turned(self._turned(rate, -1) - now, self._turned(rate, +1) - now)

    def _turned(self, rate: float, change: int) -> Floats:
        """By run, `at` if one row in it turned positive (+1) or negative (−1)."""
        at = rate * (self._false[-1] - change)
        begin, before = self._false[:-1], self._true[:-1]
        width = self._down - change
        slope = np.divide(self._up + change, width, out=np.zeros_like(width), where=width > 0)
        within = before + (at - begin) * slope
        beyond = self._found(np.asarray(at + change)) + change
        found = np.where(
            at < begin, self._found(np.asarray(at)), np.where(at < begin + width, within, beyond)
        )
        return ratio(found, np.asarray(self._true[-1] + change))
