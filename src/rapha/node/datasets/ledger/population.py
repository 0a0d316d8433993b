"""Who can be used now, and which of them a job asks for: what the ledger compares with what it knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from rapha.node.datasets.ledger.tokens import Tokens, of_records, ranks, tokens_of
from rapha.node.datasets.pseudonyms import held_out
from rapha.node.datasets.resolve import Selection
from rapha.node.sources.interface import Array, Index, Mask
from rapha.spec.dataset import DatasetManifest


@dataclass(frozen=True, slots=True)
class Population:
    """Everybody with a record that can be used now: k patients, n records.

    Attributes:
        patients: tokens, uint64 [k, 2].
        held: bool [k]; whether all of a patient's records are in the test split.
        patient_of: int64 [n]; 0 … k-1.
        rank: int64 [n]; among all records of the patient, readable or not.
        chosen: bool [n]; what the job asks for, before any sample of it is drawn.
        groups: by name, bool [n]; what of it would be measured apart.
    """

    patients: Tokens
    held: Mask
    patient_of: Array
    rank: Array
    chosen: Mask
    groups: Mapping[str, Mask] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        manifest: DatasetManifest,
        index: Index,
        selection: Selection,
        usable: Mask,
        groups: Mapping[str, Mask],
    ) -> Self:
        """Everybody of a source, and what `selection` asks for.

        Args:
            usable: bool, length of the source; readable, and not opted out.
            groups: by name, bool, length of the source; what subgroups there are to measure apart.
        """
        patient_of = selection.patient_of
        rank = np.zeros(len(patient_of), dtype=np.int64)
        owned = np.flatnonzero(patient_of >= 0)
        rank[owned] = ranks(patient_of[owned])
        numbers, among = np.unique(patient_of[usable], return_inverse=True)
        every = list(dict.fromkeys(name for name in index.patients if name))
        names = [every[number] for number in numbers.tolist()]
        held = np.array(
            held_out(manifest.salt, manifest.dataset, names, manifest.test_fraction), dtype=np.bool_
        )
        chosen = selection.matched[usable]
        tested = chosen & held[among]
        return cls(
            patients=tokens_of(manifest.salt, manifest.dataset, names),
            held=held,
            patient_of=among,
            rank=rank[usable],
            chosen=tested if selection.kind == "evaluate" else chosen,
            groups={name: tested & rows[usable] for name, rows in groups.items()},
        )

    @property
    def several(self) -> bool:
        """Whether some record isn't its patient's only one, so that records say more than patients."""
        return bool(self.rank.any())

    @property
    def records(self) -> Tokens:
        """Tokens of the records, uint64 [n, 2]."""
        return of_records(self.patients, self.patient_of, self.rank)

    @property
    def chosen_patients(self) -> Mask:
        """Who has a record in the job, bool [k]."""
        found = np.zeros(len(self.patients), dtype=np.bool_)
        found[self.patient_of[self.chosen]] = True
        return found

    def tokens_to_keep(self) -> Tokens:
        """Tokens of everybody and everything in the job."""
        return np.concatenate([self.patients[self.chosen_patients], self.records[self.chosen]])

    def group(self, name: str) -> Self:
        """As of a job that asked for this subgroup alone."""
        return replace(self, chosen=self.groups[name], groups={})

    def telling(self, names: Iterable[str]) -> Self:
        """With these subgroups, and no other."""
        return replace(self, groups={name: self.groups[name] for name in names})

    def without(self, fallen: Mask) -> Self:
        """Less records that turned out to be unusable, bool [n]; who has none left is gone."""
        numbers, among = np.unique(self.patient_of[~fallen], return_inverse=True)
        return replace(
            self,
            patients=self.patients[numbers],
            held=self.held[numbers],
            patient_of=among,
            rank=self.rank[~fallen],
            chosen=self.chosen[~fallen],
            groups={name: rows[~fallen] for name, rows in self.groups.items()},
        )
