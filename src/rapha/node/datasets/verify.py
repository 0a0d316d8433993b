"""Whether what a job committed to can be computed again, with the key that it used.

The node's log ties each job to a key and says what was asked and what was committed to. With the key, the
manifest, the records, the list of opt-outs and the meter's journal, all of it is computed again and compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field as Bounds
from pydantic import StringConstraints

from rapha.node.datasets import control
from rapha.node.datasets.client import DatasetProcess
from rapha.node.datasets.keys import KeyRing
from rapha.node.datasets.pseudonyms import HospitalKey
from rapha.node.journal import Entry
from rapha.spec.base import Model, Name, Sha256
from rapha.spec.cohort import Cohort
from rapha.spec.dataset import DatasetManifest
from rapha.spec.job import Kind, Purpose
from rapha.spec.refusals import Refused
from rapha.spec.transforms import Transforms

CONSENTED, COUNTED = "consented", "counted"
"""Events of the node's log: a job's `Commitments`, and its `used_root` once it was counted."""
Verdict = Literal["yes", "no", "unknown"]


class Commitments(Model):
    """What the node's log keeps of a job whose cohort was resolved.

    Attributes:
        key: id of the hospital's key that everything here is under.
        manifest, cohort, opt_out_version: as the job's receipt says.
    """

    key: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    dataset: Name
    manifest: Sha256
    cohort: Sha256
    opt_out_version: Sha256
    kind: Kind = "train"
    asked: Cohort
    transforms: Transforms
    organisation: Name
    purpose: Purpose
    max_records: Annotated[int, Bounds(ge=1, le=10**9)]

    @classmethod
    def of(cls, key_id: str, request: control.Resolve, resolved: control.Resolved) -> Self:
        """What `request`, under the key of that id, came to."""
        return cls(
            key=key_id,
            dataset=request.manifest.dataset,
            manifest=resolved.manifest,
            cohort=resolved.cohort,
            opt_out_version=resolved.opt_out_version,
            kind=request.kind,
            asked=request.cohort,
            transforms=request.transforms,
            organisation=request.organisation,
            purpose=request.purpose,
            max_records=request.max_records,
        )

    @classmethod
    def told(cls, entries: Iterable[Entry]) -> Self | None:
        """The commitments of one job by its entries; None where its cohort was never resolved.

        Raises:
            Refused: `schema.*` for an entry that another version wrote.
        """
        found = [entry.data for entry in entries if entry.event == CONSENTED]
        return cls.parse(found[-1], CONSENTED) if found else None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was computed again, whether it came out as committed to, and what was found."""

    id: str
    verdict: Verdict
    found: str


@dataclass(frozen=True, slots=True)
class Case:
    """What there is to compute a job's commitments from.

    Attributes:
        manifest, folder: the dataset as it is now.
        journal: the meter's.
        used_root: by the node's log; None where the job was never counted.
    """

    job: str
    told: Commitments
    ring: KeyRing
    manifest: DatasetManifest
    folder: Path
    means: control.Means
    journal: Path
    used_root: str | None


def verify(case: Case, data: DatasetProcess) -> list[Finding]:
    """Compute everything again. Nothing is changed, and no record is decoded.

    `unknown` where the key, the records or the journal are not there any more.
    """
    try:
        path = case.ring.path_of(case.told.key)
        key = HospitalKey.load(path)
    except Refused as refused:
        return [Finding("key", "unknown", f"{refused.code}: {refused.detail}")]
    told = case.told
    found = [Finding("key", "yes", told.key), _same("manifest", told.manifest, case.manifest.digest)]
    found += _resolved_again(case, path, data)
    if case.journal.exists():
        found.append(_counted_again(case, key))
    elif case.used_root is not None:
        found.append(Finding("used", "unknown", "the meter's journal is gone"))
    return found


def _resolved_again(case: Case, key: Path, data: DatasetProcess) -> list[Finding]:
    told = case.told
    request = control.Resolve(
        kind=told.kind,
        manifest=case.manifest,
        folder=str(case.folder.resolve()),
        means=case.means,
        transforms=told.transforms,
        cohort=told.asked,
        organisation=told.organisation,
        purpose=told.purpose,
        max_records=told.max_records,
        job_id=case.job,
        key_path=str(key),
        journal_path=str(case.journal.resolve()),
    )
    try:
        now = data.resolve(request)
    except Refused as refused:
        # A cohort that may not be used any more is another one than was committed to.
        verdict: Verdict = "no" if refused.code.startswith("privacy.") else "unknown"
        return [Finding("cohort", verdict, f"{refused.code}: {refused.detail}")]
    return [
        _same("opt-outs", told.opt_out_version, now.opt_out_version),
        _same("cohort", told.cohort, now.cohort),
    ]


def _counted_again(case: Case, key: HospitalKey) -> Finding:
    from rapha.runtime.broker.meter import Meter  # numpy and bitmaps, which a running node has no use for

    try:
        root, records = Meter.root_of(case.journal, key.derive("meter", case.job))
    except Refused as refused:
        verdict: Verdict = "no" if refused.code == "node.journal_invalid" else "unknown"
        return Finding("used", verdict, f"{refused.code}: {refused.detail}")
    if case.used_root is None:
        return Finding("used", "yes", f"{records} records, by a journal that verifies; nothing was issued")
    return _same("used", case.used_root, root)


def _same(name: str, told: str, now: str) -> Finding:
    if told == now:
        return Finding(name, "yes", now)
    return Finding(name, "no", f"{now}, not {told}")
