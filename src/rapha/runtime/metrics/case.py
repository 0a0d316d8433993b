"""What trusted metrics are computed from: labels that the node kept, and predictions that a job left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from rapha.spec.refusals import Refused
from rapha.spec.release_plan import MAX_COLUMNS

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]
TENTHS: Final = 10
"""Bins of predicted probability."""


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
    event: Mask | None = None
    patient: npt.NDArray[Any] | None = None

    def take(self, order: npt.NDArray[np.int64]) -> Labels:
        """The same rows in another order."""
        event = None if self.event is None else self.event[order]
        return Labels(self.target[order], event, None if self.patient is None else self.patient[order])


def parse_predictions(data: bytes, rows: int, columns: int) -> npt.NDArray[np.float32]:
    """Little-endian float32 in C order, shape (rows, columns).

    Raises:
        Refused: `job.outputs` for a wrong count, more than `MAX_COLUMNS`, or a value that is not finite.
    """
    if rows < 1 or not 1 <= columns <= MAX_COLUMNS or len(data) != 4 * rows * columns:
        raise Refused("job.outputs", f"predictions: {len(data)} bytes for {rows} × {columns} float32")
    values = np.frombuffer(data, "<f4").reshape(rows, columns)
    if not np.isfinite(values).all():
        raise Refused("job.outputs", "predictions: a value is not finite")
    return values


@dataclass(frozen=True, slots=True)
class Case:
    """Labels and predictions of the same rows.

    Attributes:
        target, event: as in `Labels`.
        scores: shape (rows, columns), finite.
        who: shape (rows,), dense number of each row's patient, from 0.
    """

    target: npt.NDArray[Any]
    event: Mask | None
    scores: Floats
    who: Indices

    @classmethod
    def of(cls, labels: Labels, predictions: npt.NDArray[Any]) -> Self:
        """Raises `Refused` (`job.outputs`) where predictions don't fit the labels."""
        scores, rows = np.asarray(predictions, np.float64), len(labels.target)
        if scores.ndim != 2 or len(scores) != rows or not np.isfinite(scores).all():
            raise Refused("job.outputs", f"predictions: expected {rows} finite rows")
        if not 1 <= scores.shape[1] <= MAX_COLUMNS:
            raise Refused("job.outputs", f"predictions: expected 1 to {MAX_COLUMNS} columns")
        who = np.arange(rows) if labels.patient is None else np.unique(labels.patient, return_inverse=True)[1]
        return cls(labels.target, labels.event, scores, who)

    def part(self, rows: Mask) -> Case:
        """The rows of a subgroup, whose patients are numbered anew."""
        event = None if self.event is None else self.event[rows]
        who = np.unique(self.who[rows], return_inverse=True)[1]
        return Case(self.target[rows], event, self.scores[rows], who)

    def drawn(self, generator: np.random.Generator) -> Case:
        """The same predictions with the same labels in random order."""
        order = generator.permutation(self.rows)
        event = None if self.event is None else self.event[order]
        return Case(self.target[order], event, self.scores, self.who)

    @property
    def rows(self) -> int:
        """Predictions."""
        return len(self.target)

    @property
    def patients(self) -> int:
        """Whose predictions they are."""
        return int(self.who.max()) + 1 if self.rows else 0

    def count(self, rows: Mask) -> int:
        """Patients among `rows`."""
        return int(np.count_nonzero(np.bincount(self.who[rows])))

    @property
    def is_binary(self) -> bool:
        """Whether no row is of another class than 0 and 1."""
        return bool(((self.target == 0) | (self.target == 1)).all())

    def binary(self) -> Mask:
        """Which rows are of class 1. Raises `Refused` (`job.outputs`) where there are other classes."""
        if not self.is_binary:
            raise Refused("job.outputs", "predictions: one score a row, and the labels have more classes")
        positive: Mask = self.target == 1
        return positive

    def questions(self) -> list[tuple[Mask, Floats]]:
        """(is positive, score) of each one-against-rest question: one for two classes.

        Raises:
            Refused: `job.outputs` where the labels have a class without a column.
        """
        columns = self.scores.shape[1]
        if columns <= 2:
            return [(self.binary(), self.scores[:, -1])]
        if self.target.max() >= columns:
            raise Refused("job.outputs", f"predictions: {columns} columns do not cover the classes")
        return [(self.target == c, self.scores[:, c]) for c in range(columns)]

    def probabilities(self) -> Floats:
        """The scores, all in [0, 1]. Raises `Refused` (`job.outputs`)."""
        if self.scores.min() < 0 or self.scores.max() > 1:
            raise Refused("job.outputs", "predictions: the metric needs probabilities in [0, 1]")
        return self.scores

    def tenths(self) -> Indices:
        """Which tenth, from 0, each row's probability of class 1 is in."""
        return np.minimum((self.probabilities()[:, -1] * TENTHS).astype(np.intp), TENTHS - 1)


def ratio(part: Floats, whole: Floats) -> Floats:
    """`part / whole`, not finite where a resample has nothing to divide by."""
    with np.errstate(invalid="ignore", divide="ignore"):
        quotient: Floats = part / whole
    return quotient
