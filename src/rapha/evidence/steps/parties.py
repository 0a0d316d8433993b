"""Steps 1 to 7: the file, the parties, the job, and the receipt that binds the rest."""

from __future__ import annotations

from rapha.evidence import bundle as bundles
from rapha.evidence import canonical, dsse
from rapha.evidence.agreement import open_agreement
from rapha.evidence.keys import VerifyKey
from rapha.evidence.steps.case import AUDIENCE_ALL, AUDIENCE_NODE, Case, people_keys
from rapha.spec.base import Profile
from rapha.spec.job import RANK, Job
from rapha.spec.receipt import SECTIONS, Receipt
from rapha.spec.refusals import Refused
from rapha.spec.units import parse_time


def step_format(case: Case) -> str:
    """Step 1; see `rapha.evidence.verify`."""
    case.bundle = bundles.read(case.data)
    return f"{len(case.data)} canonical bytes, every section there"


def step_profile(case: Case) -> str:
    """Step 2; see `rapha.evidence.verify`."""
    if case.bundle["profile"] != case.trust.profile:
        raise Refused("policy.profile_mismatch", "the bundle is of another profile than the trust file")
    return case.trust.profile


def step_agreement(case: Case) -> str:
    """Step 3; see `rapha.evidence.verify`."""
    opened = open_agreement(case.bundle["agreement"], case.trust)
    agreement = opened.terms
    case.agreement, case.agreement_digest = agreement, opened.digest
    case.proves.append(
        f"{agreement.hospital.name} and {agreement.company.name} signed agreement {agreement.id!r}"
    )
    return f"{agreement.id}: {agreement.hospital.name} and {agreement.company.name}"


def step_job(case: Case) -> str:
    """Step 4; see `rapha.evidence.verify`."""
    statement = dsse.verify(
        case.bundle["job"],
        people_keys(case.agreement.developers),
        kind="job",
        profile=case.trust.profile,
        audience=AUDIENCE_NODE,
    )
    case.job, case.job_id = open_job(statement)
    case.proves.append("a developer named in the agreement signed this job before any record was opened")
    if case.job.kind == "evaluate":
        case.proves.append(
            f"the job that was signed names the model to measure: SHA-256 {case.job.model.base}; the metrics "
            "are those of the image with it inside"
        )
    return f"{case.job.name} {case.job_id[:16]}…"


def open_job(statement: dsse.Statement) -> tuple[Job, str]:
    """The job inside a verified `job` statement, and its id.

    Raises:
        Refused: `schema.*` where it is malformed or its id is not the digest of what was signed.
    """
    claims = dict(statement.predicate)
    nonce = claims.get("nonce")
    if set(claims) != {"job", "nonce"} or not isinstance(nonce, str) or len(nonce) != 64:
        raise Refused("schema.envelope", "a job statement holds `job` and a 32-byte `nonce`")
    job = Job.parse(claims["job"], "job")
    job_id = canonical.digest({"job": claims["job"], "nonce": nonce})
    if dict(statement.subjects) != {"job": job_id, "image": job.image.removeprefix("sha256:")}:
        raise Refused("schema.envelope", "the subjects are not this job and its image")
    return job, job_id


def step_image(case: Case) -> str:
    """Step 5; see `rapha.evidence.verify`."""
    check_image(case.bundle["image"], case.job, people_keys(case.agreement.developers), case.trust.profile)
    return case.job.image[:23] + "…"


def check_image(envelope: object, job: Job, developers: list[VerifyKey], profile: Profile) -> None:
    """The image statement names the job's image. Raises `Refused` (`image.signature_invalid`)."""
    try:
        statement = dsse.verify(envelope, developers, kind="image", profile=profile, audience=AUDIENCE_NODE)
    except Refused as refused:
        raise Refused("image.signature_invalid", refused.detail) from None
    if dict(statement.subjects) != {"image": job.image.removeprefix("sha256:")} or statement.predicate:
        raise Refused("image.signature_invalid", "the statement is about another image")


def step_receipt(case: Case) -> str:
    """Step 6; see `rapha.evidence.verify`."""
    agreement = case.agreement
    nodes = [VerifyKey.from_text(n.receipt_key) for n in agreement.nodes]
    statement = dsse.verify(
        case.bundle["receipt"], nodes, kind="receipt", profile=case.trust.profile, audience=AUDIENCE_ALL
    )
    receipt = Receipt.parse(statement.predicate, "receipt")
    keyids = {VerifyKey.from_text(n.receipt_key).keyid for n in agreement.nodes if n.id == receipt.node}
    if set(statement.keyids) != keyids:
        raise Refused("policy.signature_invalid", "the receipt is not signed by the node it names")
    _same_job(case, receipt)
    admitted, finished = parse_time(receipt.times.admitted), parse_time(receipt.times.finished)
    if not parse_time(agreement.not_before) <= admitted <= finished <= parse_time(agreement.not_after):
        raise Refused("policy.agreement", "the agreement was not in force")
    if admitted > parse_time(case.job.not_after):
        raise Refused("policy.job_expired", "admitted after the job's not_after")
    if finished > case.now:
        raise Refused("policy.agreement", "the receipt is from the future")
    if RANK[receipt.assurance] < max(
        RANK[case.job.assurance], RANK[agreement.least_assurance], RANK[case.trust.least_assurance]
    ):
        raise Refused("posture.assurance_low", f"{receipt.assurance} is less than was asked for")
    case.receipt, case.receipt_digest, case.subjects = receipt, statement.digest, statement.subjects
    return f"node {receipt.node}, finished {receipt.times.finished}"


def _same_job(case: Case, receipt: Receipt) -> None:
    agreement, job = case.agreement, case.job
    expected = {
        "id": case.job_id,
        "name": job.name,
        "kind": job.kind,
        "purpose": job.purpose,
        "company": agreement.company.id,
        "hospital": agreement.hospital.id,
    }
    if receipt.job.dump() != expected or receipt.image != job.image:
        raise Refused("schema.field_invalid", "the receipt is about another job")
    if job.nodes != "any" and receipt.node not in job.nodes:
        raise Refused("policy.node_not_eligible", "the job did not name this node")
    if job.purpose not in agreement.purposes or receipt.dataset.id not in agreement.datasets:
        raise Refused("policy.agreement", "purpose or dataset is outside the agreement")
    if receipt.dataset.profile != job.dataset.profile:
        raise Refused("schema.field_invalid", "the receipt is about another dataset profile")


def step_sections(case: Case) -> str:
    """Step 7; see `rapha.evidence.verify`."""
    bound = dict(case.receipt.sections)
    if bound != {name: case.bundle.section_digest(name) for name in SECTIONS}:
        raise Refused("schema.field_invalid", "a section is not the one that the receipt binds")
    return f"{len(bound)} sections"
