"""No number that leaves may be about one patient: the dominance rules.

A job chooses its predictions freely, so it can make a metric a question about one patient: all scores equal
but one, probabilities of ½ but for one. What a number asks about a patient is how far it moves if the labels
of that patient were others. A number is left out

1. alone, where one patient moves it by more than 1/cell of what all patients do together (the dominance rule
   of statistical disclosure control), or the square of that move is more than 2/cell of the sum of squares:
   of labels that are not known, the others hide that one by their variance;
2. together with what was told before, where some combination of the numbers is about one patient. If labels
   were independent with variance ¼, the numbers would explain a share of each patient's variance: the
   leverage of the patient in what is told, rounding counted as noise where it is: a number whose largest move
   is about its step may be exact, as an accuracy over 20 patients in steps of 0.05. It may not exceed 5/cell,
   a half at the smallest cell that production accepts.

What is told, is told no finer than the largest move of one patient (`grain`): where the others move a number
in equal steps, a finer remainder would be that patient.

Whether a number is left out must not tell a label either. So the moves are those of labels that were drawn
again: the held-out labels in random order. Below a cell of 10, which only a demo may have, the rules fade
with its square, since so few patients always move a number far. All of this is about one job; what several
jobs tell together is bounded by the dataset's caps alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from rapha.runtime.metrics.case import Floats, Indices
from rapha.runtime.metrics.rounding import share_step
from rapha.spec.dataset import LEAST_CELL
from rapha.spec.release_plan import METRIC_DECIMALS

_SQUARES: Final = 2.0
_LEVERAGE: Final = 5.0
_VARIANCE: Final = 0.25
"""Of a label with even odds, the most that it can be."""
_FINEST: Final = 10.0**-METRIC_DECIMALS
_NOTHING: Final = 1e-12
"""A move by less is none: floating point."""
_OFF_GRID: Final = 1.05
"""How much larger than the largest move a step is where most values fall between two steps."""
_EXACT: Final = 1e-12
"""Of the square of the largest move: the variance that is left to a number told as it is, floating point."""
_CAPACITY: Final = 2**25
"""Moves that are remembered, patients × numbers; a number beyond is left out."""


class Dominance:
    """What the numbers of one job tell about each patient, were the labels those of one draw.

    Args:
        patients: how many there are, over all of the held-out split.
        cell: the dataset's minimum cell.
    """

    def __init__(self, patients: int, cell: int) -> None:
        self._patients, self._strength = patients, min(1.0, cell / LEAST_CELL)
        self._cell, self._most = cell * self._strength, min(1.0, _LEVERAGE / cell)
        self._share = np.zeros(patients)
        self._told: list[Floats] = []

    def grain(self, questions: Sequence[Floats], who: Indices) -> float | None:
        """How fine a number may be told, or None where it may not be; if it may, it counts as told.

        Args:
            questions: moves by row (see `Metric.moves`); of several, the number is the mean.
            who: shape (rows,), which patient each row is of.
        """
        each = [self._by_patient(moves, who) for moves in questions]
        if not all(map(self._alone, each)):
            return None
        moves = each[0] if len(each) == 1 else np.asarray(np.mean(np.abs(each), axis=0))
        grain = max(_FINEST, float(np.abs(moves).max()) * self._strength)
        noise = 1 / 12 if share_step(grain) > _OFF_GRID * grain else _EXACT
        return grain if self._together(moves, noise * grain**2) else None

    def _by_patient(self, moves: Floats, who: Indices) -> Floats:
        """What the rows of each patient move together."""
        size = np.bincount(who, weights=np.abs(moves), minlength=self._patients)
        net = np.bincount(who, weights=moves, minlength=self._patients)
        return np.copysign(size, net)

    def _alone(self, moves: Floats) -> bool:
        """Rule 1."""
        size = np.abs(moves)
        largest = size.max()
        if not np.isfinite(largest):
            return False
        if largest < _NOTHING:
            return True
        shares = size / largest * (1 + 1e-9)
        return bool(shares.sum() >= self._cell and _SQUARES * (shares**2).sum() >= self._cell)

    def _together(self, moves: Floats, noise: float) -> bool:
        """Rule 2, by one step of Gaussian conditioning: `told` are what the numbers tell anew, whitened.

        Args:
            noise: variance of rounding.
        """
        if (len(self._told) + 1) * self._patients > _CAPACITY:
            return False
        rest, left = moves.copy(), _VARIANCE * float(moves @ moves) + noise
        for told in self._told:
            known = _VARIANCE * float(told @ moves)
            rest -= known * told
            left -= known**2
        anew = rest / np.sqrt(max(left, noise))
        share = self._share + _VARIANCE * anew**2
        if share.max() > self._most:
            return False
        self._share, self._told = share, [*self._told, anew]
        return True
