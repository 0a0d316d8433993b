"""What a dataset process holds of its one job between `Resolve` and `Close`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import compress

import numpy as np

from rapha.evidence.canonical import dumps
from rapha.node.datasets import control
from rapha.node.datasets.ledger.charge import Charge
from rapha.node.datasets.pseudonyms import HospitalKey, commit
from rapha.node.datasets.resolve import Selection
from rapha.node.sources.interface import Records
from rapha.spec import cohort as cohorts
from rapha.spec.refusals import Refused


@dataclass(frozen=True, slots=True)
class Job:
    """What one `Resolve` found. Nothing of its pixels is decoded before `Prepare`."""

    request: control.Resolve
    records: Records
    selection: Selection
    key: HospitalKey
    listed: frozenset[str]
    charge: Charge

    def demand_split(self, split: control.Split) -> None:
        """An evaluation has the held-out records alone. Raises `Refused` (`policy.conflict`)."""
        if self.request.kind == "evaluate" and split != "test":
            raise Refused("policy.conflict", "an evaluation reads the held-out records alone")

    def demand_read(self, used: int, rows: int) -> None:
        """An evaluation is of records that were read: a prediction of another would be of nothing.

        Raises:
            Refused: `job.outputs` unless all `rows` held-out records were used.
        """
        if self.request.kind == "evaluate" and used != rows:
            raise Refused("job.outputs", "not every held-out record was read")

    def derive(self, purpose: str) -> bytes:
        """A key of this job."""
        return self.key.derive(purpose, self.request.job_id)


def resolved(
    request: control.Resolve, records: Records, selection: Selection, key: HospitalKey, listed: frozenset[str]
) -> control.Resolved:
    """What may be told of it: commitments, and counts that stay in the hospital."""
    manifest = request.manifest
    used = selection.funnel.used
    opt_out_key = key.derive("opt-outs", manifest.dataset)
    return control.Resolved(
        manifest=manifest.digest,
        dataset=manifest.commitment,
        cohort=_commitment(request, records, selection, key),
        # Keyed, since a short list of guessable identifiers could be found again from a bare digest.
        opt_out_version=commit(opt_out_key, dumps(sorted(listed))),
        funnel=selection.funnel.published(manifest.minimum_cell, manifest.billing_bucket),
        records=used.records,
        patients=used.patients,
        test_records=len(selection.test),
    )


def _commitment(request: control.Resolve, records: Records, selection: Selection, key: HospitalKey) -> str:
    """Which records, under a key of this job: the same when resolved again, unlike that of any other job."""
    digest = hashlib.sha256()
    locators = records.index.locators
    for name, positions in (("train", selection.train), ("test", selection.test)):
        digest.update(f"{name}:{len(positions)}\n".encode())
        wanted = np.zeros(len(locators), dtype=np.bool_)
        wanted[positions] = True
        for locator in compress(locators, wanted):
            digest.update(f"{locator}\n".encode())
    about = {
        "cohort": cohorts.dump(request.cohort),
        "dataset": request.manifest.commitment,
        "records": digest.hexdigest(),
    }
    return commit(key.derive("cohort", request.job_id), dumps(about))
