"""What each metric can say of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rapha.runtime.metrics.case import Floats


class Metric(Protocol):
    """One number over some rows, ready to be computed for many resamples of the patients."""

    def values(self, weights: Floats) -> Floats:
        """The number for each resample; not finite where one lacks what it takes.

        Args:
            weights: shape (resamples, rows), how often each row was drawn.
        """
        ...

    def moves(self) -> list[Floats]:
        """How far the number moves if the label of one row were another; shape (rows,).

        Several where the number is a mean over one-against-rest questions: one array a question.
        """
        ...

    def cells(self) -> list[float]:
        """Patients in each group that the number divides the rows into."""
        ...


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a binned curve; `value`, `moves` and `cells` as of a `Metric`."""

    key: str
    value: float
    moves: Floats
    cells: list[float]
