"""Concordance of risks with censored times in O(n log n) a resample, by a tree over times.

A pair is usable if the shorter time is an event (of equal times: just one is). With rows numbered by (time,
censored), row i pairs with every row of a greater number if it is an event. Two numbers first differ at one
bit, where i has 0 and j has 1: each bit is a level of the tree, on which the rows that agree above it are
sorted by risk, and a running sum tells what lies below each risk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from rapha.runtime.metrics.case import Case, Floats, Indices, Mask, ratio
from rapha.spec.refusals import Refused

_Small = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Level:
    """One bit. `below`, `up_to` and `start` count in `later`, the partners by group and then by rising risk.

    Attributes:
        holders: events with a 0.
        later: rows with a 1.
        start: where a holder's group begins.
        below, up_to: partners in the groups so far with a smaller risk, and with one no larger.
    """

    holders: _Small
    later: _Small
    start: _Small
    below: _Small
    up_to: _Small

    def wins(self, weights: Floats) -> Floats:
        """By holder, the weight of partners whose risk is smaller, and half of those that tie."""
        total = np.zeros((len(weights), len(self.later) + 1))
        np.cumsum(weights[:, self.later], axis=1, out=total[:, 1:])
        won: Floats = (total[:, self.below] + total[:, self.up_to]) / 2 - total[:, self.start]
        return won


@dataclass(frozen=True, slots=True)
class Concordance:
    """Harrell's C; equal risks count half (Harrell et al., 1996).

    Attributes:
        number: shape (rows,), dense, by (time, censored).
        won, met: shape (rows,), what each row adds to wins and to pairs as the event of a pair.
        won_by, met_by: the same as the other row of a pair.
    """

    case: Case
    event: Mask
    number: Indices
    levels: list[_Level]
    won: Floats
    met: Floats
    won_by: Floats
    met_by: Floats

    @classmethod
    def of(cls, case: Case) -> Self:
        """Raises `Refused` (`node.config`) where the labels are no censored times."""
        if case.event is None:
            raise Refused("node.config", "concordance needs censored times as labels")
        rows, risk = case.rows, case.scores[:, 0]
        times = np.unique(case.target, return_inverse=True)[1]
        number = np.unique(2 * times + ~case.event, return_inverse=True)[1]
        by_risk, rank = np.argsort(risk, kind="stable"), np.unique(risk, return_inverse=True)[1]
        levels, won, won_by = [], np.zeros(rows), np.zeros(rows)
        for bit in range(int(number.max()).bit_length()):
            group = number >> (bit + 1)
            order = by_risk[np.argsort(group[by_risk], kind="stable")]
            late = ((number[order] >> bit) & 1).astype(np.bool_)
            holds = ~late & case.event[order]
            levels.append(_level(order, group[order], rank[order], holds, late))
            won[levels[-1].holders] += levels[-1].wins(np.ones((1, rows)))[0]
            won_by[order[late]] += _lost(group[order], rank[order], holds, late)
        numbers = np.arange(int(number.max()) + 1)
        of_number = np.bincount(number, minlength=len(numbers))
        events = np.bincount(number[case.event], minlength=len(numbers))
        met = case.event * (rows - np.cumsum(of_number))[number]
        met_by = (np.cumsum(events) - events)[number]
        return cls(case, case.event, number, levels, won, met.astype(float), won_by, met_by.astype(float))

    def values(self, weights: Floats) -> Floats:
        """As `Metric`."""
        right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for level in self.levels:
            right += (weights[:, level.holders] * level.wins(weights)).sum(axis=1)
        size = int(self.number.max()) + 1
        for n, drawn in enumerate(weights):
            of_number = np.bincount(self.number, weights=drawn, minlength=size)
            events = np.bincount(self.number, weights=drawn * self.event, minlength=size)
            pairs[n] = events @ (drawn.sum() - np.cumsum(of_number))
        return ratio(right, pairs)

    def moves(self) -> list[Floats]:
        """As `Metric`: the most that C changes without the row, or without its pairs of one kind."""
        wins, pairs = self.won.sum(), self.met.sum()
        now = ratio(wins, pairs)
        parts = (
            (self.won, self.met),
            (self.won_by, self.met_by),
            (self.won + self.won_by, self.met + self.met_by),
        )
        changes = np.stack([ratio(wins - won, pairs - met) - now for won, met in parts])
        largest = np.abs(changes).argmax(axis=0)
        return [np.take_along_axis(changes, largest[None], axis=0)[0]]

    def cells(self) -> list[float]:
        """Patients with an event."""
        return [self.case.count(self.event)]


def _level(order: Indices, group: Indices, rank: Indices, holds: Mask, late: Mask) -> _Level:
    partners = np.r_[0, np.cumsum(late)]
    group_start, _ = _bounds(group)
    run_start, run_end = _bounds(group, rank)
    found = (order[holds], order[late], *(partners[at[holds]] for at in (group_start, run_start, run_end)))
    return _Level(*(part.astype(np.int32) for part in found))


def _lost(group: Indices, rank: Indices, holds: Mask, late: Mask) -> Floats:
    """By partner, the holders whose risk is larger, and half of those that tie."""
    holders = np.r_[0, np.cumsum(holds)]
    _, group_end = _bounds(group)
    run_start, run_end = _bounds(group, rank)
    lost: Floats = (holders[group_end] - (holders[run_start] + holders[run_end]) / 2)[late]
    return lost


def _bounds(*keys: Indices) -> tuple[Indices, Indices]:
    """For each place, where the run of equal keys that it is in begins and ends."""
    changed = np.logical_or.reduce([np.diff(key) != 0 for key in keys])
    first = np.r_[True, changed]
    starts, run = np.flatnonzero(first), np.cumsum(first) - 1
    return starts[run], np.r_[starts[1:], len(first)][run]
