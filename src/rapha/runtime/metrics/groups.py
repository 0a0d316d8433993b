"""Which subgroups may be told apart: none that leaves a few patients over, in any difference."""

from __future__ import annotations

import numpy as np

from rapha.runtime.metrics.case import Case, Mask


class Groups:
    """The sets of held-out patients that numbers were told of.

    Args:
        case: all held-out rows.
        cell: the dataset's minimum cell.
    """

    def __init__(self, case: Case, cell: int) -> None:
        self._case, self._cell = case, cell
        everybody = np.ones(case.patients, np.bool_)
        self._told = [everybody]
        self._left: dict[str, Mask] = {}

    def admits(self, field: str, rows: Mask) -> bool:
        """Whether the subgroup `rows` of `field` may be told of; if so, it counts as told.

        The subgroup has a minimum cell of patients; so has its difference with each set that was told of, and
        what is left of the field once its values are taken away, or it is empty.
        """
        inside = self._patients(rows)
        left = self._left.get(field, np.ones(self._case.rows, np.bool_)) & ~rows
        sets = [inside, self._patients(left)]
        if np.count_nonzero(inside) < self._cell:
            return False
        if not all(self._apart(one, told) for one in sets for told in self._told):
            return False
        self._left[field] = left
        self._told += sets
        return True

    def _patients(self, rows: Mask) -> Mask:
        return np.bincount(self._case.who[rows], minlength=self._case.patients) > 0

    def _apart(self, one: Mask, other: Mask) -> bool:
        return not any(
            0 < np.count_nonzero(difference) < self._cell for difference in (one & ~other, other & ~one)
        )
