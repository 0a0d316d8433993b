"""Which records and patients were handed over, in memory: what may come next, and what came.

Nothing here changes before the caller has written it down: `ahead` and `chosen` only say what may be handed
over, `enter` counts it. The journal is read back through `chosen`, `retraced` and `enter`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from pyroaring import BitMap

from rapha.runtime.broker.bits import Bits
from rapha.runtime.broker.splits import NAMES, Indices, Order, bitmap

_NONE: Final = np.empty(0, dtype=np.int64)


class Run(Enum):
    """How a walk is counted."""

    FRESH = "no record of the split was used before this walk"
    USED = "all records of the split were used before"
    MIXED = "each record has to be looked up"


class Walk:
    """An epoch's order and how far it has been handed over. Made by `Tally.begin`.

    Attributes:
        first: the position at which it began.
        cursor: the next position.
    """

    def __init__(self, order: Order, run: Run, first: int) -> None:
        self.order, self.run, self.first, self.cursor = order, run, first, first


@dataclass(frozen=True, slots=True)
class Admitted:
    """What may be handed over: `count` records, of which `new` were never handed over before.

    Attributes:
        dense: their dense indices; none where a walk is retraced and they don't matter.
        fresh: the new ones, where they were looked up; none for a whole walk that is fresh.
        walk: the walk they come from, if from one.
    """

    count: int
    new: int
    dense: Indices
    fresh: Indices
    walk: Walk | None = None


class Tally:
    """Bits of used records and a Roaring bitmap of their patients, with a cap on unique records.

    Whole epochs are counted without looking up each record: a walk through a split of which nothing (or
    everything) was used before adds all of its records (or none), and enters them when it ends.
    """

    def __init__(self, patients: Indices, cap: int) -> None:
        self._patients, self._cap = patients, cap
        self._records, self._of = Bits(len(patients)), BitMap()
        self._unique = [0] * len(NAMES)
        self._live: Walk | None = None

    @property
    def unique(self) -> int:
        """How many records were handed over."""
        return sum(self._unique)

    def settled(self) -> tuple[Bits, BitMap]:
        """The records that were handed over, and their patients."""
        self._settle()
        return self._records, self._of

    def begin(self, order: Order, first: int) -> Walk:
        """A walk over `order` from position `first`; an earlier one may go on, looked up by record."""
        self._settle()
        used = self._unique[order.split.code]
        run = Run.MIXED if used else Run.FRESH
        self._live = Walk(order, Run.USED if used == len(order.split) else run, first)
        return self._live

    def resumed(self, order: Order, start: int) -> Walk:
        """The walk that goes on in `order` at `start`, as the journal tells it."""
        walk = self._live
        if walk is None or walk.cursor != start or walk.order != order:
            walk = self.begin(order, start)
        return walk

    def ahead(self, walk: Walk, count: int) -> Admitted:
        """The longest prefix of the next `count` records of `walk` that the cap allows."""
        if walk is not self._live:
            self._settle()
        dense = walk.order.dense(walk.cursor, walk.cursor + count)
        match walk.run:
            case Run.MIXED:
                dense, fresh = self._sift(dense, distinct=True)
                return Admitted(len(dense), len(fresh), dense, fresh, walk)
            case Run.USED:
                return Admitted(count, 0, dense, _NONE, walk)
            case Run.FRESH:
                dense = dense[: self._cap - self.unique]
                return Admitted(len(dense), len(dense), dense, _NONE, walk)

    def retraced(self, walk: Walk, count: int) -> Admitted:
        """As `ahead`, without working out which records they are unless each has to be looked up."""
        if walk is not self._live:
            self._settle()
        if walk.run is Run.MIXED:
            return self.ahead(walk, count)
        fresh = walk.run is Run.FRESH
        if fresh:
            count = min(count, self._cap - self.unique)
        return Admitted(count, count if fresh else 0, _NONE, _NONE, walk)

    def chosen(self, dense: Indices) -> Admitted:
        """The longest prefix of `dense`, which may repeat, that the cap allows."""
        self._settle()
        dense, fresh = self._sift(dense, distinct=False)
        return Admitted(len(dense), len(fresh), dense, fresh)

    def enter(self, split: int, admitted: Admitted) -> None:
        """Count what is handed over now, of the split with that code."""
        self._unique[split] += admitted.new
        self._include(admitted.fresh)
        if admitted.walk:
            admitted.walk.cursor += admitted.count

    def _sift(self, dense: Indices, distinct: bool) -> tuple[Indices, Indices]:
        """The longest prefix of `dense` whose new records fit under the cap, and those new records."""
        new = np.flatnonzero(~self._records.has(dense))
        if not distinct:
            _, first = np.unique(dense[new], return_index=True)
            new = new[np.sort(first)]
        room = self._cap - self.unique
        if len(new) > room:
            dense, new = dense[: new[room]], new[:room]
        return dense, dense[new]

    def _include(self, fresh: Indices) -> None:
        if len(fresh):
            self._records.add(fresh)
            self._of |= bitmap(self._patients[fresh])

    def _settle(self) -> None:
        """Enter the live walk into both sets; from here on it is looked up record by record."""
        walk, self._live = self._live, None
        if walk is None or walk.run is not Run.FRESH:
            return
        split, walk.run = walk.order.split, Run.MIXED
        if walk.cursor - walk.first == len(split):
            # The same records in the order in which they lie, which is faster.
            for chunk in Order(split, None).chunks(0, len(split)):
                self._records.add(chunk)
            self._of |= split.patients
            return
        for chunk in walk.order.chunks(walk.first, walk.cursor):
            self._include(chunk)
