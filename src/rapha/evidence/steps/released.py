"""Steps 14 to 16: what the guard rebuilt, what was told, and the verdict under which it left."""

from __future__ import annotations

from typing import Final

from rapha.evidence import canonical
from rapha.evidence.steps.case import CIPHER, PLAIN, Case
from rapha.evidence.steps.private import check_guarantee
from rapha.evidence.steps.signed import first_claim, signed_by
from rapha.spec.receipt import Review
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import METRICS_FILE, ReleasePlan
from rapha.spec.sections import GUARD_CHECKS, GuardSection
from rapha.spec.surface import Surface, check_planned
from rapha.spec.verdicts import narrowest, outgoing

OF_WEIGHTS: Final = range(2, 6)
"""The guard's checks of a file of weights."""
OF_NUMBERS: Final = 6
"""The guard's check of what the job states of itself."""


def step_guard(case: Case) -> str:
    """Step 14; see `rapha.evidence.verify`."""
    section = GuardSection.parse(case.bundle["guard"], "guard")
    _check_verdicts(case, section)
    released = {PLAIN + r.name: r.sha256 for r in section.released}
    plain = {name: d for name, d in case.subjects.items() if name.startswith(PLAIN)}
    cipher = {name for name in case.subjects if name.startswith(CIPHER)}
    if released != plain or cipher != {CIPHER + r.name for r in section.released}:
        raise Refused("job.outputs", "the receipt's artifacts are not those that the guard rebuilt")
    if len(plain) + len(cipher) != len(case.subjects):
        raise Refused("schema.field_invalid", "the receipt has other subjects than artifacts")
    plan = outgoing(case.job.outputs, case.receipt.released)
    _check_released(section, plan)
    bits = case.receipt.covert_bound_bits
    if not plan.released_bits() <= section.covert_bound_bits == bits:
        raise Refused(
            "job.outputs", "the covert bound is not the guard's, or less than the plan's outputs hold"
        )
    check_guarantee(case)
    case.proves.append(f"{_made(plan)}, and hold at most {bits} bits")
    return f"{len(section.released)} artifacts, covert bound {bits} bits"


def _made(plan: ReleasePlan) -> str:
    if plan.files:
        return "the released bytes were rebuilt from the release plan"
    return "the released bytes are the node's own numbers, none of them written by the job"


def _check_verdicts(case: Case, section: GuardSection) -> None:
    told = {c.n: c for c in section.checks}
    if len(told) != len(section.checks):
        raise Refused("job.outputs", "a guard check is told twice")
    if {n: c.id for n, c in told.items()} != dict(enumerate(GUARD_CHECKS, 1)):
        raise Refused("job.outputs", "not exactly the guard's checks, by number and name")
    for n, check in told.items():
        if check.verdict != _wanted(case, n):
            raise Refused("job.outputs", f"guard check {n} is not told as this job's plan has it")


def _wanted(case: Case, n: int) -> str:
    # Nothing of a trainer leaves an evaluation, of a plan without weights no tensor, and of one without
    # self-reported fields no number of the job's own: there was nothing to look at, and no check may say
    # there was. Files and tripwires are looked at in whatever a training left.
    plan = case.job.outputs
    part: object = True
    if n in OF_WEIGHTS:
        part = plan.weights
    elif n == OF_NUMBERS:
        part = plan.self_reported
    return "pass" if case.job.kind == "train" and part else "not_run"


def _check_released(section: GuardSection, plan: ReleasePlan) -> None:
    sizes = {r.name: r.bytes for r in section.released}
    if len(sizes) != len(section.released) or sizes.keys() != set(plan.released_files):
        raise Refused("job.outputs", "not exactly the files of the release plan that the receipt names")
    if plan.weights and sizes[plan.weights.file] != plan.weights.released_bytes:
        raise Refused("job.outputs", "the weights have another size than planned")
    if sum(sizes.values()) > plan.outgoing_bytes:
        raise Refused("job.outputs", "more bytes than the release plan")


def step_surface(case: Case) -> str:
    """Step 15; see `rapha.evidence.verify`."""
    surface, usage = Surface.parse(case.bundle["surface"], "surface"), case.receipt.usage
    if surface.outcome != "success" or surface.job_id != case.job_id:
        raise Refused("schema.field_invalid", "the surface is not of this job's success")
    sizes = {r.name: r.bytes for r in GuardSection.parse(case.bundle["guard"], "guard").released}
    subjects = {PLAIN + a.name: a.sha256 for a in surface.artifacts} | {
        CIPHER + a.name: a.cipher_sha256 for a in surface.artifacts
    }
    if subjects != dict(case.subjects) or {a.name: a.bytes for a in surface.artifacts} != sizes:
        raise Refused("schema.field_invalid", "the surface names other artifacts than the receipt")
    if (surface.records_bucket, surface.patients_bucket) != (usage.records, usage.patients):
        raise Refused("schema.field_invalid", "the surface states other counts than the receipt")
    plan = outgoing(case.job.outputs, case.receipt.released)
    try:
        check_planned(plan, surface.artifacts, surface.metrics, surface.self_reported)
    except Refused as refused:
        raise Refused("schema.field_invalid", refused.detail) from None
    if plan.trusted_metrics and _metrics_digest(surface) != case.subjects[PLAIN + METRICS_FILE]:
        raise Refused("schema.field_invalid", "the surface states other metrics than the released file")
    return f"{len(surface.metrics)} trusted numbers, {len(surface.self_reported)} self-reported, all planned"


def _metrics_digest(surface: Surface) -> str:
    return canonical.digest({"trusted": surface.metrics, "self_reported": surface.self_reported})


def step_review(case: Case) -> str:
    """Step 16; see `rapha.evidence.verify`."""
    section = GuardSection.parse(case.bundle["guard"], "guard")
    shown = first_claim(case.bundle["reviews"], "shown")
    expected = Review(job=case.job_id, verdict="release", report=section.report, shown=shown)
    agreement = case.agreement
    signed = signed_by(case, "reviews", agreement.reviewers, agreement.reviews_required, expected)
    # Not "no more than": a node that keeps back what its reviewers released has not done what they said.
    if narrowest(review.verdict for review in signed) != case.receipt.released:
        raise Refused("policy.approval_invalid", "something else was released than the narrowest verdict")
    what = "all that was planned" if case.receipt.released == "all" else "the trusted metrics alone"
    case.proves.append(f"{len(signed)} output reviewer(s) signed the disclosure report and released {what}")
    needed = agreement.reviews_required
    return f"{len(signed)} reviewers (of {len(agreement.reviewers)}, {needed} needed) released {what}"
