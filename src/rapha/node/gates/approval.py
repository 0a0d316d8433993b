"""Gate 6: enough of the owners pinned in the agreement signed exactly this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rapha.evidence import canonical, dsse
from rapha.node.gates.attest import Attested
from rapha.node.gates.intake import Admitted
from rapha.node.node import Node
from rapha.spec.receipt import Approval
from rapha.spec.refusals import Refused


@dataclass(frozen=True, slots=True)
class Approved:
    """The owners' signatures and what they saw change since the last approved job."""

    envelopes: list[dsse.EnvelopeDict]
    scope: dict[str, Any]


def approve(
    node: Node,
    admitted: Admitted,
    attested: Attested,
    *,
    policy: str,
    cohort: str,
    patients: str,
    stopped: Callable[[], bool],
) -> Approved:
    """Ask, wait, and verify.

    Args:
        policy: digest of the policy section.
        cohort: commitment to the resolved cohort.
        patients: how many patients, in words (a bucket), for the people asked.
        stopped: whether the node is told to stop; raises if the job is over.

    Raises:
        Refused: `policy.approval_*`, `node.stopped`, `job.cancelled`.
    """
    terms = admitted.agreement.terms
    scope = describe_scope(node, admitted)
    changes = changed_since(node, admitted, scope)
    shown = {
        "company": terms.company.name,
        "dataset": admitted.manifest.title,
        "patients": patients,
        "assurance": attested.appraisal.assurance,
        "scope": scope,
        "changes": changes,
    }
    expected = Approval(
        job=admitted.id,
        verdict="approve",
        policy=policy,
        manifest=admitted.manifest.digest,
        cohort=cohort,
        measurement=attested.appraisal.measurement,
        changes=canonical.digest(changes),
        shown=canonical.digest(shown),
    )
    node.desk.ask(expected, shown)
    answers = node.desk.collect(
        expected,
        terms.approvers,
        terms.approvals_required,
        node.config.waits.approval_s,
        stopped,
        offered=("approve",),
    )
    if len(answers) < terms.approvals_required:
        raise Refused("policy.approval_missing")
    return Approved([answer.envelope for answer in answers], scope)


def describe_scope(node: Node, admitted: Admitted) -> dict[str, Any]:
    """What an owner says yes to, field by field: code, data, and what may leave."""
    job = admitted.job
    plan = job.outputs
    return {
        "kind": job.kind,
        "purpose": job.purpose,
        "image": job.image,
        "base_model": job.model.base or "none",
        "runs_on": _runs_on(node, admitted),
        "entrypoint": list(job.entrypoint),
        "predict": list(job.predict) if job.predict else "none",
        "cohort": job.dump()["dataset"]["cohort"],
        "transforms": job.dump()["dataset"]["transforms"],
        "fields_served": [f.name for f in admitted.manifest.fields if f.served],
        "max_records": job.dataset.max_records,
        "released_parameters": plan.parameters,
        "release_dtype": plan.weights.release_dtype if plan.weights else "none",
        "bits": plan.weights.element_bits if plan.weights else 0,
        "noise": plan.weights.noise_std if plan.weights else 0.0,
        "trusted_metrics": list(plan.trusted_metrics),
        "subgroups": list(plan.groups),
        "self_reported": [f.name for f in plan.self_reported.fields] if plan.self_reported else [],
        "max_bytes": plan.max_bytes,
        "private": job.private.dump() if job.private else "no: code of the company's own",
        "guarantee": admitted.private.guarantee.dump() if admitted.private else "none",
    }


def _runs_on(node: Node, admitted: Admitted) -> str:
    """The runtime below the code: nobody scans it, so a person should know which it is."""
    base = admitted.image.base
    names = [i.name for i in node.config.images if i.layers == base]
    return f"{names[0]}, a full image on {len(base)} layers" if names else f"{node.config.runtime_name}, ours"


def changed_since(node: Node, admitted: Admitted, scope: dict[str, Any]) -> dict[str, Any]:
    """Fields of `scope` that differ from the last job approved under this agreement, old and new."""
    agreement = admitted.agreement.digest
    approved = [e for e in node.journal if e.event == "approved" and e.data["agreement"] == agreement]
    if not approved:
        return {"first_job": True}
    last = approved[-1].data["scope"]
    return {name: {"was": last.get(name), "is": new} for name, new in scope.items() if last.get(name) != new}
