"""Canaries: members whose records the shadow models are served with a wrong label.

Nothing else says what a canary's label is, so a model that knows it has memorised the record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rapha.runtime.broker.store import Field, RecordStore
from rapha.spec.dataset import Target

Indices = NDArray[np.int64]
SHARE: Final = 50
"""At most one member in so many is a canary, so that a shadow still learns what the model learned."""


@dataclass(frozen=True, slots=True)
class Canaries:
    """Who is a canary, and the label that shadows are told.

    Attributes:
        patients: numbers of the canaries among the patients of an attack, rising.
        records: their records' positions in the attack's list.
        labels: the wrong label of each of those records, as the dataset stores labels.
    """

    patients: Indices
    records: Indices
    labels: NDArray[Any]

    def planted(self, labels: NDArray[Any]) -> NDArray[Any]:
        """A copy of `labels`, one for each record of the attack's list, with the canaries' wrong ones."""
        wrong = labels.copy()
        wrong[self.records] = self.labels
        return wrong


def choose(
    members: Indices,
    patient: Indices,
    labels: NDArray[Any],
    target: Target,
    count: int,
    generator: np.random.Generator,
) -> Canaries:
    """At most `count` members, and wrong labels for all of their records.

    A member with a record of which no wrong label is known is none: its own would be no canary's.

    Args:
        members: patient numbers.
        patient: the number of each record of the attack's list.
        labels: of each of those records, as stored.
    """
    wrong = wrong_labels(labels, target)
    if wrong is None:
        return Canaries(members[:0], members[:0], labels[:0])
    able = np.setdiff1d(members, patient[wrong == labels])
    chosen = np.sort(generator.permutation(able)[: min(count, len(members) // SHARE)])
    records = np.flatnonzero(np.isin(patient, chosen))
    return Canaries(chosen, records, wrong[records])


def wrong_labels(labels: NDArray[Any], target: Target) -> NDArray[Any] | None:
    """A label for each record, from among those that occur; None where there is but one.

    For two classes the other one, for more the next; for a quantity or a time, that of the opposite rank,
    which in the middle and of equal ones may be the record's own.
    """
    values, counts = np.unique(labels, return_counts=True)
    if target.event is None and target.positive is not None:
        positive = values == target.positive
        if positive.all() or not positive.any():
            return None
        usual = values[~positive][np.argmax(counts[~positive])]
        other: NDArray[Any] = np.where(labels == target.positive, usual, values[positive][0])
        return other.astype(labels.dtype)
    if len(values) < 2:
        return None
    if target.event is None and labels.dtype.kind in "biu":
        following: NDArray[Any] = values[(np.searchsorted(values, labels) + 1) % len(values)]
        return following
    opposite = np.empty_like(labels)
    order = np.argsort(labels, kind="stable")
    opposite[order] = labels[order[::-1]]
    return opposite


class Relabelled:
    """A `RecordStore` in which some records have another label; all else is that of `store`.

    Args:
        label: the name of the field.
        dense: int64[k], distinct indices of those records.
        labels: [k], of the field's dtype.
    """

    def __init__(self, store: RecordStore, label: str, dense: Indices, labels: NDArray[Any]) -> None:
        order = np.argsort(dense)
        self._store, self._label, self._dense, self._labels = store, label, dense[order], labels[order]

    @property
    def fields(self) -> tuple[Field, ...]:
        """As `RecordStore.fields`."""
        return self._store.fields

    @property
    def patients(self) -> Indices:
        """As `RecordStore.patients`."""
        return self._store.patients

    def __len__(self) -> int:
        return len(self._store)

    def gather(self, field: str, indices: Indices, out: NDArray[Any]) -> None:
        """As `RecordStore.gather`."""
        self._store.gather(field, indices, out)
        if field == self._label and len(self._dense):
            place = np.minimum(np.searchsorted(self._dense, indices), len(self._dense) - 1)
            wrong = self._dense[place] == indices
            out[wrong] = self._labels[place[wrong]]

    def lengths(self, field: str, indices: Indices) -> Indices:
        """As `RecordStore.lengths`."""
        return self._store.lengths(field, indices)

    def gather_values(self, field: str, indices: Indices, out: NDArray[Any]) -> None:
        """As `RecordStore.gather_values`."""
        self._store.gather_values(field, indices, out)
