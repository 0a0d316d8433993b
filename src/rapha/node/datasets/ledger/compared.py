"""A job's people beside what all cohorts before it say of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from rapha.node.datasets.ledger.cohorts import Cohort, ordinals
from rapha.node.datasets.ledger.partition import Units
from rapha.node.datasets.ledger.population import Population
from rapha.node.sources.interface import Array

WORD: Final = 64
"""Cohorts that one column of signatures tells of."""


@dataclass(frozen=True, slots=True)
class History:
    """What the cohorts so far say about ordinals 0 … u-1.

    Attributes:
        signature: uint64 [u, w]; bit j is set where the record was in cohort j.
        patients: the same of patients, at the ordinal of their record of rank 0.
        uses: jobs that the patient of that ordinal was in, int64 [u].
        cohorts: how many there are.
    """

    signature: Array
    patients: Array
    uses: Array
    cohorts: int

    def also(self, cohort: Cohort, count: int) -> History:
        """With one cohort more, which nobody was used for, over ordinals 0 … `count` - 1."""
        records, patients = (
            _marked(known, members, count, self.cohorts)
            for known, members in (
                (self.signature, ordinals(cohort.records)),
                (self.patients, ordinals(cohort.patients)),
            )
        )
        return History(records, patients, self.uses, self.cohorts + 1)


@dataclass(frozen=True, slots=True)
class Compared:
    """A job's people by ordinals, −1 where the ledger does not know them, beside what it knows of all."""

    people: Population
    patients: Array
    records: Array
    history: History

    def subgroup(self, name: str, history: History) -> Compared:
        """The same people, where one subgroup alone is asked for after what `history` tells."""
        return replace(self, people=self.people.group(name), history=history)

    def units(self) -> Iterator[Units]:
        """What is compared: patients, and records where they say more."""
        people, everyone = self.people, np.arange(len(self.patients))
        yield Units(
            known_at(self.history.patients, self.patients), people.held, people.chosen_patients, everyone
        )
        if people.several:
            known = known_at(self.history.signature, self.records)
            yield Units(known, people.held[people.patient_of], people.chosen, people.patient_of)

    def cohort(self) -> Cohort:
        """What would be written down; whom the ledger doesn't know isn't in it."""
        patients, records = self.patients[self.people.chosen_patients], self.records[self.people.chosen]
        return Cohort.of(patients[patients >= 0], records[records >= 0])

    def departed(self) -> int:
        """Patients of earlier cohorts who can't be used now."""
        gone = self.history.uses > 0
        gone[self.patients[(self.patients >= 0) & (self.patients < len(gone))]] = False
        return int(np.count_nonzero(gone))


def _marked(known: Array, members: Array, count: int, number: int) -> Array:
    word, bit = divmod(number, WORD)
    wider = np.zeros((count, max(word + 1, known.shape[1])), dtype=known.dtype)
    wider[: len(known), : known.shape[1]] = known
    wider[members, word] |= np.uint64(1 << bit)
    return wider


def known_at(of_ordinals: Array, found: Array) -> Array:
    """Values at ordinals; zeros where there is none, or where it is newer than the values."""
    known = (found >= 0) & (found < len(of_ordinals))
    values = np.zeros((len(found), *of_ordinals.shape[1:]), dtype=of_ordinals.dtype)
    values[known] = of_ordinals[found[known]]
    return values
