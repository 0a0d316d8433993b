"""Gate 5: the manifest allows this organisation and purpose, the cohort may be used, the ledger has room."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rapha.node.datasets.client import DatasetProcess, means
from rapha.node.datasets.control import Prepared, Resolve, Resolved
from rapha.node.datasets.memory import check_swap
from rapha.node.datasets.verify import CONSENTED, Commitments
from rapha.node.gates.cost import worst
from rapha.node.gates.intake import Admitted
from rapha.node.gates.quantum import whole_quanta
from rapha.node.node import Node
from rapha.node.private.admit import demand_uncapped
from rapha.node.recover import seen
from rapha.spec.audited import check_testable
from rapha.spec.dataset import DatasetManifest
from rapha.spec.job import Job
from rapha.spec.refusals import Refused


@dataclass(frozen=True, slots=True)
class Consented:
    """The dataset process, holding exactly the records that were consented to.

    Attributes:
        data: the only process that opens records.
        request: what was resolved, so that it can be resolved again.
        resolved: commitments and the funnel; exact counts in it stay in the hospital.
        plan_file: the release plan as the job reads it.
    """

    data: DatasetProcess
    request: Resolve
    resolved: Resolved
    plan_file: Path

    def recheck(self) -> Prepared:
        """Resolve again, since consent may have been withdrawn while people were deciding; then decode.

        Raises:
            Refused: `privacy.cohort_refused` if the outcome is another one than was approved, or too few
                patients are left once what can't be decoded fell out.
        """
        if self.data.resolve(self.request) != self.resolved:
            raise Refused("privacy.cohort_refused", "consent or data changed since it was approved")
        return self.data.prepare()


def consent(node: Node, admitted: Admitted, data: DatasetProcess, work: Path) -> Consented:
    """Resolve the cohort inside the manifest.

    Raises:
        Refused: `consent.*`, `privacy.cohort_refused`, `budget.disclosure`, `schema.cohort_field`,
            `schema.field_invalid`, `schema.transform`, `node.dataset_*`, `node.swap_on`, `policy.leakage`.
    """
    check_swap(node.config.profile)
    job = admitted.job
    check_testable(job, admitted.manifest)
    check_measurable(job, admitted.manifest)
    # This key is the job's to its end, also when another becomes current while people decide.
    key_id, key_path = node.phi.enlist()
    request = Resolve(
        kind=job.kind,
        manifest=admitted.manifest,
        folder=str(admitted.folder),
        means=means(node.config.preparation, work.resolve() / "shards"),
        transforms=job.dataset.transforms,
        cohort=job.dataset.cohort,
        subgroups=job.outputs.subgroups,
        organisation=admitted.agreement.terms.company.id,
        purpose=job.purpose,
        max_records=job.dataset.max_records,
        job_id=admitted.id,
        key_path=str(key_path),
        journal_path=str(_meter_journal(node, admitted.id)),
        ledger=str(node.state.resolve() / "ledger"),
        seen=seen(node.journal, admitted.manifest.dataset),
        price=worst(node, admitted),
    )
    with whole_quanta(node):
        resolved = data.resolve(request)
        if job.private is not None:
            demand_uncapped(job, resolved.records)
    commitments = Commitments.of(key_id, request, resolved)
    node.journal.append(CONSENTED, admitted.id, **commitments.dump())
    plan_file = work / "plan.json"
    plan_file.write_text(json.dumps(job.outputs.dump()))
    plan_file.chmod(0o444)
    return Consented(data, request, resolved, plan_file)


def check_measurable(job: Job, manifest: DatasetManifest) -> None:
    """Trusted metrics need labels to compare with: said now, and not when the records were read and billed.

    Raises:
        Refused: `schema.field_invalid`.
    """
    if job.outputs.trusted_metrics and manifest.target is None:
        raise Refused(
            "schema.field_invalid", "outputs.trusted_metrics: the dataset names no target to measure against"
        )


def _meter_journal(node: Node, job: str) -> Path:
    # Outside the job's working folder: counts outlive a crash that destroys everything else.
    folder = node.state.resolve() / "meters"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder / f"{job}.journal"
