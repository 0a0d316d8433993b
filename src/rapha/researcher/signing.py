"""What the researcher signs: the image, the job, and one ticket a job."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from rapha.evidence import canonical, dsse
from rapha.evidence.attestation.appraise import Expected, appraise
from rapha.evidence.keys import SigningKey, VerifyKey
from rapha.evidence.steps.case import AUDIENCE_NODE
from rapha.evidence.steps.gates import policy_digest
from rapha.spec.agreement import Agreement
from rapha.spec.attestation import Appraisal, Posture, Ticket
from rapha.spec.base import Profile
from rapha.spec.job import RANK, Job
from rapha.spec.refusals import Refused
from rapha.spec.trust import Trust


@dataclass(frozen=True, slots=True)
class SignedJob:
    """What `rapha job sign` writes and `submit` sends."""

    id: str
    job: dsse.EnvelopeDict
    image: dsse.EnvelopeDict

    @property
    def image_bytes(self) -> bytes:
        """The statement about the image, as it travels inside the image's layout."""
        return canonical.dumps(self.image)

    def dump(self) -> dict[str, Any]:
        """JSON form."""
        return {"id": self.id, "job": self.job, "image": self.image}


def sign_job(job: Job, key: SigningKey, profile: Profile) -> SignedJob:
    """Sign `job` and its image with a fresh nonce, so that every signing is a new job."""
    body = {"job": job.dump(), "nonce": secrets.token_hex(32)}
    job_id = canonical.digest(body)
    image = job.image.removeprefix("sha256:")
    return SignedJob(
        job_id,
        dsse.sign(
            "job", {"job": job_id, "image": image}, body, profile=profile, audience=AUDIENCE_NODE, keys=[key]
        ),
        dsse.sign("image", {"image": image}, {}, profile=profile, audience=AUDIENCE_NODE, keys=[key]),
    )


def check_posture(
    posture: Posture, *, job: Job, job_id: str, nonce: str, agreement: Agreement, trust: Trust, now: int
) -> Appraisal:
    """Appraise a node's evidence on the researcher's own roots before permitting it to run the job.

    Raises:
        Refused: `posture.evidence_invalid`, `posture.assurance_low`, or `policy.node_not_eligible`.
    """
    keys = [n.receipt_key for n in agreement.nodes if n.id == posture.node]
    if len(keys) != 1 or (job.nodes != "any" and posture.node not in job.nodes):
        raise Refused(
            "policy.node_not_eligible", f"{posture.node} is not a node of the agreement and the job"
        )
    least = {job.assurance, agreement.least_assurance, trust.least_assurance}
    return appraise(
        posture,
        Expected(
            node=posture.node,
            nonce=nonce,
            subject=job_id,
            policy=policy_digest(trust.policy_bundles),
            signing_key=keys[0],
            measurements=agreement.measurements,
            simulated_roots=[VerifyKey.from_text(k) for k in trust.simulated_tee],
            least_assurance=max(least, key=RANK.__getitem__),
            now=now,
        ),
    )


def sign_ticket(posture: Posture, job_id: str, key: SigningKey, profile: Profile) -> dsse.EnvelopeDict:
    """The one-use ticket naming job, node and evidence; only for evidence that `check_posture` passed."""
    ticket = Ticket(
        job=job_id, node=posture.node, evidence=canonical.digest(posture.dump()), nonce=posture.nonce
    )
    return dsse.sign(
        "ticket", {"job": job_id}, ticket.dump(), profile=profile, audience=posture.node, keys=[key]
    )
