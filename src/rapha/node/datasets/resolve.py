"""From a cohort to the records of a job: matched → readable → consented → used.

1. opt-outs: records of patients who opted out are dropped before anything is matched or counted
2. match: the cohort's filter
3. quarantine: records that can't be read fall out with a reason
4. cells: patients in the cohort ≥ minimum cell; patients with a record outside it 0 or ≥ minimum cell,
   else "everyone but one" and "everyone" would differ by a person
5. split: train and test by the dataset's fixed patient-level split, each ≥ minimum cell
6. cap: where the cohort is larger than `max_records`, a sample of that size is drawn with a key of the job,
   test and train in proportion, each still ≥ minimum cell; so trusted metrics fit under the cap too, and
   two caps that differ by one don't differ by one person

Whoever asks learns one code and no number from 4, 5 and 6 (gates, "The surface").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rapha.node.datasets.consent import match_opt_outs
from rapha.node.datasets.pseudonyms import held_out
from rapha.node.sources.interface import Array, Index, Mask, Quarantine, Records
from rapha.spec.cohort import Node
from rapha.spec.dataset import DatasetManifest
from rapha.spec.refusals import Refused

OPTED_OUT = "consent.opted_out"


@dataclass(frozen=True, slots=True)
class Cell:
    """A count of records and of the patients they belong to."""

    records: int
    patients: int


@dataclass(frozen=True, slots=True)
class Funnel:
    """Exact counts, for use inside the dataset process only; `published` is what may leave it.

    `matched` = `readable` + the quarantine reasons. Opt-outs are counted over the whole dataset and not
    over the cohort, since they were dropped before it was matched.
    """

    matched: Cell
    readable: Cell
    consented: Cell
    used: Cell
    reasons: Mapping[str, Cell]

    def published(self, cell: int, bucket: int) -> dict[str, int | str]:
        """Records by stage and reason, floored to `bucket`; `"<cell>"` where fewer patients than that.

        Zero is suppressed like any small count, and every reason is always listed, so that neither tells
        "nobody" from "somebody".
        """
        stages = {"matched": self.matched, "readable": self.readable}
        stages |= {"consented": self.consented, "used": self.used, **self.reasons}
        return {name: _publish(count, cell, bucket) for name, count in stages.items()}


@dataclass(frozen=True, slots=True)
class Selection:
    """The records of one job, as positions in the source, in ascending order.

    Attributes:
        train, test: positions, int64.
        patient_of: length n of the source; a dense patient number, −1 where the identifier is unusable.
    """

    train: Array
    test: Array
    patient_of: Array
    funnel: Funnel


def resolve(
    records: Records,
    manifest: DatasetManifest,
    cohort: Node,
    listed: frozenset[str],
    *,
    max_records: int,
    seed: int,
) -> Selection:
    """Steps 1 to 6. Precondition: the cohort passed `rapha.spec.cohort.check`.

    Args:
        listed: the opt-outs as the hospital lists them.
        seed: secret of the job, for the sample of step 6.

    Raises:
        Refused: `privacy.cohort_refused`, always with the same words; `node.dataset_invalid` where the
            list of opt-outs nearly names a patient.
    """
    index = records.index
    names, patient_of = _number(index)
    # 1. opt-outs
    gone = match_opt_outs(listed, names)
    opted_out = _per_record([name in gone for name in names], patient_of)
    # 2. match
    matched = records.select(cohort) & ~opted_out
    # 3. quarantine
    readable = index.quarantine == Quarantine.NONE
    chosen, outside = matched & readable, readable & ~opted_out & ~matched
    # 4. cells
    cell, complement = manifest.minimum_cell, _patients(outside, patient_of)
    _demand(_patients(chosen, patient_of) >= cell)
    _demand(complement == 0 or complement >= cell)
    # 5. split
    held = held_out(manifest.salt, manifest.dataset, names, manifest.test_fraction)
    in_test = _per_record(held, patient_of)
    train, test = np.flatnonzero(chosen & ~in_test), np.flatnonzero(chosen & in_test)
    # 6. cap
    train, test = _sample(train, test, max_records, seed)
    for split in (train, test):
        _demand(len(np.unique(patient_of[split])) >= cell)
    used = np.zeros(len(patient_of), dtype=np.bool_)
    used[train] = used[test] = True
    return Selection(train, test, patient_of, _funnel(index, matched, used, opted_out, patient_of))


def usable_cell(index: Index, listed: frozenset[str]) -> Cell:
    """Readable records of patients who did not opt out. Raises as step 1 of `resolve`."""
    names, patient_of = _number(index)
    gone = match_opt_outs(listed, names)
    opted_out = _per_record([name in gone for name in names], patient_of)
    return _cell((index.quarantine == Quarantine.NONE) & ~opted_out, patient_of)


def _sample(train: Array, test: Array, max_records: int, seed: int) -> tuple[Array, Array]:
    total = len(train) + len(test)
    if total <= max_records:
        return train, test
    for_test = max_records * len(test) // total
    generator = np.random.Generator(np.random.PCG64(seed))
    return (
        np.sort(generator.permutation(train)[: max_records - for_test]),
        np.sort(generator.permutation(test)[:for_test]),
    )


def _demand(holds: bool) -> None:
    # One refusal for every cause: which rule it was would be an answer about the records.
    if not holds:
        raise Refused("privacy.cohort_refused")


def _number(index: Index) -> tuple[list[str], Array]:
    """Distinct usable patients in order of appearance, and each record's number among them."""
    numbers: dict[str, int] = {}
    patient_of = [numbers.setdefault(name, len(numbers)) if name else -1 for name in index.patients]
    return list(numbers), np.array(patient_of, dtype=np.int64)


def _per_record(per_patient: list[bool], patient_of: Array) -> Mask:
    """Spread a verdict on patients over their records; records of nobody get false."""
    return np.array([*per_patient, False], dtype=np.bool_)[patient_of]  # -1 finds the appended one


def _patients(chosen: Mask, patient_of: Array) -> int:
    return len(np.unique(patient_of[chosen & (patient_of >= 0)]))


def _cell(chosen: Mask, patient_of: Array) -> Cell:
    return Cell(int(np.count_nonzero(chosen)), _patients(chosen, patient_of))


def _funnel(index: Index, matched: Mask, used: Mask, opted_out: Mask, patient_of: Array) -> Funnel:
    reasons = {
        kind.reason: _cell(matched & (index.quarantine == kind), patient_of)
        for kind in Quarantine
        if kind != Quarantine.NONE
    }
    reasons[OPTED_OUT] = _cell(opted_out, patient_of)
    # This source has no consent of its own a record, so what is readable is consented to.
    readable = _cell(matched & (index.quarantine == Quarantine.NONE), patient_of)
    return Funnel(_cell(matched, patient_of), readable, readable, _cell(used, patient_of), reasons)


def _publish(count: Cell, cell: int, bucket: int) -> int | str:
    if count.patients < cell:
        return f"<{cell}"
    return count.records - count.records % bucket
