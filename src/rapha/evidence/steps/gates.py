"""Steps 8 to 13: what the node's gates left behind up to the end of training."""

from __future__ import annotations

from rapha.evidence import canonical, dsse
from rapha.evidence.attestation.appraise import LIFETIME_S, SKEW_S, Expected, appraise
from rapha.evidence.steps.case import Case, keys_of, people_keys
from rapha.evidence.steps.signed import first_claim, signed_by
from rapha.spec.attestation import Appraisal, Posture, Ticket
from rapha.spec.receipt import PROBES, SEVERED_PROBES, WALLS, Approval
from rapha.spec.refusals import Refused
from rapha.spec.sections import PolicySection, ScanSection
from rapha.spec.units import parse_time


def step_posture(case: Case) -> str:
    """Step 8; see `rapha.evidence.verify`."""
    posture = Posture.parse(case.bundle["admission"], "admission")
    admitted = int(parse_time(case.receipt.times.admitted).timestamp())
    case.admission = appraise_within(case, posture, case.job_id, posture.nonce, admitted, SKEW_S)
    statement = dsse.verify(
        case.bundle["ticket"],
        people_keys(case.agreement.developers),
        kind="ticket",
        profile=case.trust.profile,
        audience=case.receipt.node,
    )
    expected = Ticket(
        job=case.job_id,
        node=case.receipt.node,
        evidence=case.receipt.sections["admission"],
        nonce=posture.nonce,
    )
    if Ticket.parse(statement.predicate, "ticket") != expected:
        raise Refused("posture.ticket_invalid", "the ticket names another job, node or evidence")
    return f"{case.admission.kind}, measurement {case.admission.measurement[:16]}…, ticket matches"


def appraise_within(
    case: Case, posture: Posture, subject: str, nonce: str, earliest: int, skew: int
) -> Appraisal:
    # Evidence was fresh when it was used; the receipt's times, not today's, are what it is held against.
    issued = _issued(posture)
    finished = int(parse_time(case.receipt.times.finished).timestamp())
    if not earliest - LIFETIME_S - skew <= issued <= finished + SKEW_S:
        raise Refused("posture.evidence_invalid", "the evidence is not of the time of this job")
    node = next(n for n in case.agreement.nodes if n.id == case.receipt.node)
    return appraise(
        posture,
        Expected(
            node=case.receipt.node,
            nonce=nonce,
            subject=subject,
            policy=policy_digest(case.trust.policy_bundles),
            signing_key=node.receipt_key,
            measurements=case.agreement.measurements,
            simulated_roots=keys_of(case.trust.simulated_tee),
            least_assurance=case.receipt.assurance,
            now=issued,
        ),
    )


def _issued(posture: Posture) -> int:
    # Read before it is verified, only to choose the moment at which `appraise` then verifies it.
    issued = dsse.unverified_predicate(posture.evidence.quote).get("issued")
    if not isinstance(issued, int) or isinstance(issued, bool):
        raise Refused("posture.evidence_invalid", "the quote has no time")
    return issued


def policy_digest(bundle_digests: tuple[str, ...]) -> str:
    """What attestation binds as the policy in force: the digest of the sorted bundle digests."""
    return canonical.digest(sorted(bundle_digests))


def step_scan(case: Case) -> str:
    """Step 9; see `rapha.evidence.verify`."""
    scan = ScanSection.parse(case.bundle["scan"], "scan")
    if scan.image != case.job.image:
        raise Refused("image.digest_mismatch", "another image was scanned")
    below = f"; {len(scan.base)} layers below are the hospital's to vouch for" if scan.base else ""
    return f"{scan.scanner}: no refusal, {scan.warnings} warnings{below}"


def step_policy(case: Case) -> str:
    """Step 10; see `rapha.evidence.verify`."""
    section = PolicySection.parse(case.bundle["policy"], "policy")
    if sorted(section.bundles) != sorted(case.trust.policy_bundles):
        raise Refused("policy.undefined", "decided by other policy bundles than the pinned ones")
    case.proves.append("exactly the pinned policy bundles allowed it")
    return f"allowed by {len(section.bundles)} pinned bundle(s), engine {section.engine}"


def step_approval(case: Case) -> str:
    """Step 11; see `rapha.evidence.verify`."""
    expected = Approval(
        job=case.job_id,
        verdict="approve",
        policy=case.receipt.sections["policy"],
        manifest=case.receipt.dataset.manifest,
        cohort=case.receipt.dataset.cohort,
        measurement=case.admission.measurement,
        changes=first_claim(case.bundle["approvals"], "changes"),
        shown=first_claim(case.bundle["approvals"], "shown"),
    )
    agreement = case.agreement
    signed = signed_by(case, "approvals", agreement.approvers, agreement.approvals_required, expected)
    if any(approval.verdict != "approve" for approval in signed):
        raise Refused("policy.approval_refused")
    n = len(signed)
    case.proves.append(f"{n} of the hospital's owners approved this job on this data")
    return f"{n} owners (of {len(agreement.approvers)}, {agreement.approvals_required} needed)"


def step_seal(case: Case) -> str:
    """Step 12; see `rapha.evidence.verify`."""
    posture = Posture.parse(case.bundle["seal"], "seal")
    admitted = int(parse_time(case.receipt.times.admitted).timestamp())
    appraisal = appraise_within(case, posture, case.job_id, posture.nonce, admitted, SKEW_S)
    first = Posture.parse(case.bundle["admission"], "admission")
    if posture.nonce == first.nonce or appraisal.issued < case.admission.issued:
        raise Refused("posture.seal_failed", "the second evidence is not fresh")
    if appraisal.measurement != case.admission.measurement or posture.hpke_key != first.hpke_key:
        raise Refused("posture.seal_failed", "the node changed between admission and seal")
    _check_walls(case)
    gap = case.receipt.airgap
    but = f" but for {', '.join(gap.lan)}" if gap.lan else ""
    severed = f"{gap.interface} severed ({gap.mode}){but}" if gap.interface else "WAN not severed (waiver)"
    return f"{severed}, {len(gap.probes)} probes unreachable, by the host's word"


def _check_walls(case: Case) -> None:
    gap, sandbox = case.receipt.airgap, case.receipt.sandbox
    if gap.probes.keys() != (SEVERED_PROBES if gap.interface else PROBES):
        raise Refused("posture.seal_failed", "not exactly the required probes were made")
    walls = WALLS.get(sandbox.driver)
    if walls is None or not walls <= {name for name, found in sandbox.walls.items() if found}:
        raise Refused("posture.seal_failed", "not every wall of a known sandbox was reported")
    if sandbox.walls["driver"] != sandbox.driver:
        raise Refused("posture.seal_failed", "the walls are those of another sandbox")


def step_metering(case: Case) -> str:
    """Step 13; see `rapha.evidence.verify`."""
    usage, cap = case.receipt.usage, case.job.dataset.max_records
    if usage.cap != cap or not 1 <= usage.patients <= usage.records <= cap:
        raise Refused("budget.max", "not 1 to the job's cap of records, or more patients than records")
    if usage.bucket != case.agreement.billing_bucket:
        raise Refused("policy.agreement", "counted in other buckets than the agreement says")
    if any(count % usage.bucket and count != cap for count in (usage.records, usage.patients)):
        raise Refused("schema.field_invalid", "a count is not in buckets")
    if usage.counts != (
        "hospital-asserted" if case.receipt.assurance in ("simulated", "tpm") else "attested"
    ):
        raise Refused("schema.field_invalid", "the counts' label does not follow from the assurance")
    case.proves.append(f"the node's meter counted at most {usage.records} unique records ({usage.counts})")
    return f"at most {usage.records} unique records, {usage.counts}"
