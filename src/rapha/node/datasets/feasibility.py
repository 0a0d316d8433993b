"""How many patients and records a cohort has: enough to plan with, too little to learn about a person.

1. opt-outs leave, and records that can't be read
2. noise of a discrete Laplace distribution is added to each count: to patients at the scale of one patient,
   to records at that of the patient who has most in the whole dataset
3. a cohort whose patients, or those it leaves out, might be fewer than the minimum cell gets one answer: too
   few. It is decided on noised counts that are never above the true ones
4. what is told is rounded down to the billing bucket
5. the disclosure ledger counts the answer before it is told

The noise is drawn from the manifest's salt, and the set of patients (or records) that match, not from the
question nor from the hospital's key, which rotates. So asking again, in other words, in another order or in
another year, gets the same answer, and no second draw to average. In the same words, it is not counted a
second time. Counts of different cohorts can be compared: how many may be told is one of the dataset's caps.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Final

import numpy as np

from rapha.node.datasets import consent, control
from rapha.node.datasets.ledger.charge import asked, now
from rapha.node.datasets.ledger.ledger import opened
from rapha.node.datasets.ledger.tokens import question
from rapha.node.datasets.resolve import numbered, opted_out_records, readable_records
from rapha.node.sources.interface import Array, Mask, Records
from rapha.spec import cohort as cohorts
from rapha.spec.cohort import Node
from rapha.spec.dataset import DatasetManifest

EPSILON: Final = 1.0
"""For one patient more or less, the odds of any told count change by at most a factor of e; but for the ends
of the noise, which are drawn once in 200."""
CUT: Final = 5
"""Noise of a patient count goes from -CUT to CUT; of a record count, CUT times its scale."""


@dataclass(frozen=True, slots=True)
class Feasible:
    """What may be told of a cohort: counts in steps of the bucket, or `<cell` for both."""

    patients: int | str
    records: int | str


def feasibility(
    records: Records,
    manifest: DatasetManifest,
    cohort: Node,
    listed: frozenset[str],
) -> Feasible:
    """Steps 1 to 4. Precondition: the cohort passed `rapha.spec.cohort.check`.

    Args:
        listed: the opt-outs as the hospital lists them.

    Raises:
        Refused: `node.dataset_invalid` where the list of opt-outs nearly names a patient.
    """
    # 1. opt-outs
    names, patient_of = numbered(records.index)
    usable = readable_records(records.index, patient_of) & ~opted_out_records(listed, names, patient_of)
    chosen = records.select(cohort) & usable
    inside, outside = (np.unique(patient_of[part]) for part in (chosen, usable & ~chosen))
    # 2. noise
    who = _set_of(names[number] for number in inside.tolist())
    which = _set_of(_locators(records, chosen))
    noise = _noise(manifest, "patients", who)
    others = _noise(manifest, "outside", _set_of(names[number] for number in outside.tolist()))
    # 3. cells
    few, cell = f"<{manifest.minimum_cell}", manifest.minimum_cell
    if len(inside) + noise - CUT < cell or (len(outside) and len(outside) + others - CUT < cell):
        return Feasible(few, few)
    # 4. buckets
    count, scale = int(np.count_nonzero(chosen)), _most(patient_of, usable)
    # Where each patient has one record, both counts are the same: two draws would tell more of it than one.
    drawn = noise if scale == 1 else scale * _noise(manifest, "records", which)
    bucket = manifest.billing_bucket
    return Feasible(_floor(len(inside) + noise, bucket), _floor(max(count + drawn, 0), bucket))


def estimate(
    open_source: Callable[[DatasetManifest, Path, control.Means], Records], request: control.Estimate
) -> control.Estimated:
    """Answer a request, opening the dataset for it.

    Raises:
        Refused: `schema.cohort_field`, `schema.field_invalid`, `node.dataset_*`, `node.ledger_invalid`;
            `budget.disclosure` once as many answers were told as the dataset's caps allow.
    """
    manifest, folder = request.manifest, Path(request.folder)
    cohorts.check(request.cohort, manifest.fields)
    listed = consent.read_opt_outs(manifest, folder)
    records = open_source(manifest, folder, request.means)
    try:
        found = feasibility(records, manifest, request.cohort, listed)
    finally:
        records.close()
    # 5. ledger
    with opened(Path(request.ledger), manifest, request.seen) as ledger:
        ledger.answer(asked(manifest, listed, request.cohort), now())
    return control.Estimated(records=found.records, patients=found.patients)


def _set_of(members: Iterable[str]) -> bytes:
    """Digest of a set, in whatever order it comes."""
    digest = hashlib.sha256()
    for member in sorted(members):
        digest.update(hashlib.sha256(member.encode("utf-8", "surrogatepass")).digest())
    return digest.digest()


def _noise(manifest: DatasetManifest, about: str, members: bytes) -> int:
    """From -CUT to CUT, the same for the same set: discrete Laplace, what lies beyond counted at the ends."""
    drawn = bytes.fromhex(question(manifest.salt, manifest.dataset, b"noise", about.encode(), members))
    return _laplace(int.from_bytes(drawn[:8]) / 2**64)


def _laplace(uniform: float) -> int:
    """The value at which the distribution P(k) ~ e^(-EPSILON |k|), summed from below, passes `uniform`."""
    step = math.exp(-EPSILON)
    total = 0.0
    for value in range(-CUT, CUT):
        total += (1 - step) / (1 + step) * step ** abs(value)
        if value == -CUT:
            total += step ** (CUT + 1) / (1 + step)  # everything below
        if uniform < total:
            return value
    return CUT


def _most(patient_of: Array, usable: Mask) -> int:
    """Records of the patient who has most, over the whole dataset: no cohort changes it."""
    return int(np.bincount(patient_of[usable]).max())


def _locators(records: Records, chosen: Mask) -> Iterable[str]:
    return compress(records.index.locators, chosen.tolist())


def _floor(count: int, bucket: int) -> int:
    return count - count % bucket
