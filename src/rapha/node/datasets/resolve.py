"""From a cohort to the records of a job: matched → readable → consented → used.

1. opt-outs: records of patients who opted out are dropped before anything is matched or counted
2. match: the cohort's filter
3. quarantine: records that can't be read fall out with a reason
4. cells: patients in the cohort ≥ minimum cell; patients with a record outside it 0 or ≥ minimum cell,
   else "everyone but one" and "everyone" would differ by a person
5. split: train and test by the dataset's fixed patient-level split, each ≥ minimum cell. An evaluation has
   no train; it measures the test alone, so of the test the patients outside must be 0 or ≥ minimum cell too,
   and its funnel counts nobody else: the ledger compares no others, so no count may tell of them
6. cap: where the cohort is larger than `max_records`, a sample of that size is drawn with a key of the job,
   test and train in proportion, each still ≥ minimum cell; so trusted metrics fit under the cap too, and
   two caps that differ by one don't differ by one person
7. preparation: decoding shows that some of those records can't be used after all; they leave their split,
   and each split still has ≥ minimum cell

Whoever asks learns one code and no number from 4 to 7 (gates, "The surface").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from rapha.node.datasets.consent import match_opt_outs
from rapha.node.datasets.pseudonyms import held_out
from rapha.node.sources.interface import Array, Index, Mask, Quarantine, Records
from rapha.spec.cohort import Node
from rapha.spec.dataset import DatasetManifest
from rapha.spec.job import Kind
from rapha.spec.refusals import Refused

OPTED_OUT: Final = "consent.opted_out"
_OF_TABLES: Final = (
    Quarantine.PATIENT_MISSING,
    Quarantine.PATIENT_INVALID,
    Quarantine.VALUE_MISSING,
    Quarantine.VALUE_NOT_FINITE,
    Quarantine.SHAPE,
)
_ANY: Final = tuple(kind for kind in Quarantine if kind != Quarantine.NONE)


@dataclass(frozen=True, slots=True)
class Cell:
    """A count of records and of the patients they belong to."""

    records: int
    patients: int


@dataclass(frozen=True, slots=True)
class Funnel:
    """Exact counts, for use inside the dataset process only; `published` is what may leave it.

    `matched` are the cohort's records that could be read when the source was opened, the same that the ledger
    compares; `matched` = `readable` + what decoding showed to be unusable. A reason counts those, and what
    could not be read to begin with, in the whole dataset (without opt-outs) and not in the cohort: a cohort
    that leaves out one such record differs from the whole by nobody for the ledger, so no count may tell of
    it. Opt-outs are counted over the whole dataset too. Of a cohort larger than the cap, only the sample is
    decoded: what the others would have shown, nobody knows, and they count as readable.
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
        kind: of the job; `train` is empty where it is an evaluation.
        train, test: positions, int64.
        patient_of: length n of the source; a dense patient number, −1 where the identifier is unusable.
        matched: length n of the source; what steps 1 to 3 left of the cohort, of an evaluation in the test
            split alone.
        opted_out: length n of the source.
        quarantine: length n of the source, uint8 of `Quarantine`.
        held: usable patients of the whole dataset's held-out split, in the cohort or not.
    """

    train: Array
    test: Array
    patient_of: Array
    matched: Mask
    opted_out: Mask
    quarantine: Array
    funnel: Funnel
    kind: Kind = "train"
    held: int = 0


def resolve(
    records: Records,
    manifest: DatasetManifest,
    cohort: Node,
    listed: frozenset[str],
    *,
    max_records: int,
    seed: int,
    kind: Kind = "train",
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
    names, patient_of = numbered(index)
    readable = readable_records(index, patient_of)
    # 1. opt-outs
    opted_out = opted_out_records(listed, names, patient_of)
    # 2. match, 3. quarantine
    usable = readable & ~opted_out
    chosen = records.select(cohort) & usable
    outside = usable & ~chosen
    # 4. cells
    cell, complement = manifest.minimum_cell, _patients(outside, patient_of)
    _demand(_patients(chosen, patient_of) >= cell)
    _demand(complement == 0 or complement >= cell)
    # 5. split
    held = held_out(manifest.salt, manifest.dataset, names, manifest.test_fraction)
    in_test = _per_record(held, patient_of)
    train, test = np.flatnonzero(chosen & ~in_test), np.flatnonzero(chosen & in_test)
    if kind == "evaluate":
        train, chosen = train[:0], chosen & in_test
        held_outside = _patients(outside & in_test, patient_of)
        _demand(held_outside == 0 or held_outside >= cell)
    # 6. cap
    train, test = _sample(train, test, max_records, seed)
    found = _selection(manifest, kind, train, test, patient_of, chosen, opted_out, index.quarantine)
    return replace(found, held=_patients(usable & in_test, patient_of))


def after_preparation(
    selection: Selection, positions: Array, quarantine: Array, manifest: DatasetManifest
) -> Selection:
    """Step 7: what is left of `selection` once its records were decoded.

    Args:
        positions: of the source; the records that were to be decoded, in any order.
        quarantine: uint8 of `Quarantine` for each of them.

    Raises:
        Refused: `privacy.cohort_refused` when a split has too few patients left; `node.internal` where the
            verdicts don't fit the records.
    """
    if len(positions) != len(quarantine):
        raise Refused("node.internal", "there is not one verdict for each record")
    verdicts = selection.quarantine.copy()
    fallen = quarantine != Quarantine.NONE
    verdicts[positions[fallen]] = quarantine[fallen]
    left = verdicts == Quarantine.NONE
    found = _selection(
        manifest,
        selection.kind,
        selection.train[left[selection.train]],
        selection.test[left[selection.test]],
        selection.patient_of,
        selection.matched,
        selection.opted_out,
        verdicts,
    )
    lost = _distinct(selection.patient_of[selection.test]) - _distinct(selection.patient_of[found.test])
    return replace(found, held=selection.held - lost)


def _selection(
    manifest: DatasetManifest,
    kind: Kind,
    train: Array,
    test: Array,
    patient_of: Array,
    matched: Mask,
    opted_out: Mask,
    quarantine: Array,
) -> Selection:
    """Check the cell of each split that the job has, and count."""
    used = np.zeros(len(patient_of), dtype=np.bool_)
    for split in (train, test) if kind == "train" else (test,):
        used[split] = True
        _demand(_distinct(patient_of[split]) >= manifest.minimum_cell)
    listed = _OF_TABLES if manifest.source.kind == "folder" else _ANY
    funnel = _funnel(listed, matched, used, opted_out, quarantine, patient_of)
    return Selection(train, test, patient_of, matched, opted_out, quarantine, funnel, kind)


def usable_cell(index: Index, listed: frozenset[str]) -> Cell:
    """Readable records of patients who did not opt out. Raises as step 1 of `resolve`."""
    names, patient_of = numbered(index)
    opted_out = opted_out_records(listed, names, patient_of)
    return _cell(readable_records(index, patient_of) & ~opted_out, patient_of)


def numbered(index: Index) -> tuple[list[str], Array]:
    """Distinct usable patients in order of appearance, and each record's number among them."""
    names = dict.fromkeys(index.patients)
    names.pop("", None)
    numbers = {name: number for number, name in enumerate(names)} | {"": -1}
    patient_of = np.fromiter(map(numbers.__getitem__, index.patients), np.int64, len(index.patients))
    return list(names), patient_of


def readable_records(index: Index, patient_of: Array) -> Mask:
    """Step 3, before anything is decoded. Raises `Refused` (`node.internal`) for one that nobody owns."""
    readable = np.asarray(index.quarantine == Quarantine.NONE)
    if np.any(readable & (patient_of < 0)):  # nobody could opt it out, and no cell would count it
        raise Refused("node.internal", "the source calls a record of nobody readable")
    return readable


def opted_out_records(listed: frozenset[str], names: list[str], patient_of: Array) -> Mask:
    """Step 1. Raises `Refused` (`node.dataset_invalid`), as `match_opt_outs`."""
    gone = match_opt_outs(listed, names)
    return _per_record([name in gone for name in names], patient_of)


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


def _per_record(per_patient: list[bool], patient_of: Array) -> Mask:
    """Spread a verdict on patients over their records; records of nobody get false."""
    return np.array([*per_patient, False], dtype=np.bool_)[patient_of]  # -1 finds the appended one


def _patients(chosen: Mask, patient_of: Array) -> int:
    return _distinct(patient_of[chosen & (patient_of >= 0)])


def _distinct(numbers: Array) -> int:
    """How many different numbers from 0 up; no sorting, since a funnel asks for this 25 times."""
    return int(np.count_nonzero(np.bincount(numbers)))


def _cell(chosen: Mask, patient_of: Array) -> Cell:
    return Cell(int(np.count_nonzero(chosen)), _patients(chosen, patient_of))


def _funnel(
    listed: tuple[Quarantine, ...],
    matched: Mask,
    used: Mask,
    opted_out: Mask,
    quarantine: Array,
    patient_of: Array,
) -> Funnel:
    """Count. `listed` are all reasons that this kind of source has, whether or not they occur here."""
    # What has a reason and isn't in the cohort could not be read to begin with, and has it in any cohort.
    fallen = ~opted_out & (quarantine != Quarantine.NONE)
    reasons = {kind.reason: _cell(fallen & (quarantine == kind), patient_of) for kind in listed}
    readable = _cell(matched & ~fallen, patient_of)
    if sum(cell.records for cell in reasons.values()) != np.count_nonzero(fallen):
        raise Refused("node.internal", "the source gave a reason that its kind does not have")
    reasons[OPTED_OUT] = _cell(opted_out, patient_of)
    # No source has a consent of its own for a record, so what is readable is consented to.
    return Funnel(_cell(matched, patient_of), readable, readable, _cell(used, patient_of), reasons)


def _publish(count: Cell, cell: int, bucket: int) -> int | str:
    if count.patients < cell:
        return f"<{cell}"
    return count.records - count.records % bucket
