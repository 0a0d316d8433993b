"""Gate 1: is this a job that somebody we have an agreement with signed for this node, and never ran?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rapha.evidence import canonical, dsse, hpke
from rapha.evidence.keys import VerifyKey
from rapha.evidence.steps.case import AUDIENCE_NODE
from rapha.evidence.steps.parties import check_image, open_job
from rapha.node.gates.base import base_of
from rapha.node.node import Node, SignedAgreement
from rapha.node.private.admit import PrivateRun, admit
from rapha.node.uplink import Lease
from rapha.runtime.image import AllowList, Image, Runtime
from rapha.runtime.image import read as read_image
from rapha.spec.base import Profile
from rapha.spec.dataset import DatasetManifest
from rapha.spec.job import Job
from rapha.spec.refusals import Refused
from rapha.spec.units import parse_time


@dataclass(frozen=True, slots=True)
class Admitted:
    """A job whose words are believed from here on.

    Attributes:
        image: unpacked below `work`; a full image's `tree` is the root that its code runs in.
        image_envelope: the statement about the image that verified, from the lease or from the layout.
        archive: the image as it was received.
        app: the submitter's files, which the sandbox shows at /app.
        base: the model that the job brings, a file of the image; None where it names none.
        private: what the hospital's own trainer does in place of the job's code; None for a job with code.
    """

    id: str
    job: Job
    agreement: SignedAgreement
    manifest: DatasetManifest
    folder: Path
    image: Image
    image_envelope: dsse.EnvelopeDict
    archive: Path
    app: Path
    base: Path | None = None
    private: PrivateRun | None = None


def intake(node: Node, lease: Lease, work: Path, now: datetime) -> Admitted:
    """Verify envelope, agreement, profile, expiry, node, image statement and every blob.

    Raises:
        Refused: `schema.*`, `policy.*`, `image.*`, `node.dataset_missing`.
    """
    job, job_id, agreement = _verified(node, lease, now)
    if job_id != lease.job:
        raise Refused("schema.envelope", "the coordinator names the job by another id")
    if now > parse_time(job.not_after):
        raise Refused("policy.job_expired", f"not_after was {job.not_after}")
    hpke.parse_public(job.recipient)
    if job.nodes != "any" and node.config.node not in job.nodes:
        raise Refused("policy.node_not_eligible", f"this node is {node.config.node}")
    if lease.image_envelope is not None:  # before anything is fetched
        check_image(lease.image_envelope, job, _developers(agreement), node.config.profile)
    manifest, folder = node.dataset(job.dataset.profile)
    if manifest.billing_bucket != agreement.terms.billing_bucket:
        raise Refused("policy.agreement", "the dataset counts in other buckets than the agreement says")
    archive = work / "image.tar"
    node.exit.fetch_image(job_id, lease.image_blob, archive, node.config.max_image_bytes)
    image = read_image(archive, work / "image", allow_list(node))
    if image.digest != job.image:
        raise Refused("image.digest_mismatch", f"signed {job.image[:23]}…, received {image.digest[:23]}…")
    envelope = lease.image_envelope
    if envelope is None:
        envelope = attached(image.referrers, job, _developers(agreement), node.config.profile)
    if image.entrypoint != job.entrypoint or image.predict != job.predict:
        raise Refused("image.entrypoint_missing", "the image's entrypoint or predict is not the job's")
    app = image.tree / "app"
    if app.is_symlink() or (image.kind == "slim" and not app.is_dir()):  # a link here leads into this host
        raise Refused("image.entrypoint_missing", "the image has no folder /app")
    base = base_of(job, image)
    private = admit(job, manifest, node.runtime, work)
    return Admitted(job_id, job, agreement, manifest, folder, image, envelope, archive, app, base, private)


def allow_list(node: Node) -> AllowList:
    """The bases that this node's configuration lets full images stand on."""
    return AllowList(runtimes=tuple(Runtime(name=i.name, layers=i.layers) for i in node.config.images))


def attached(
    referrers: Sequence[bytes], job: Job, developers: list[VerifyKey], profile: Profile
) -> dsse.EnvelopeDict:
    """The statement that came inside the image's layout, checked as one in a lease is.

    Others may be there too, such as another profile's: the first that verifies counts.

    Raises:
        Refused: `image.unsigned` where there is none, or what the last one was refused for.
    """
    refusal = Refused("image.unsigned")
    for data in referrers:
        try:
            envelope = canonical.loads(data)
            check_image(envelope, job, developers, profile)
        except Refused as refused:
            refusal = Refused("image.signature_invalid", refused.detail)
        else:
            return dict(envelope)
    raise refusal


def _verified(node: Node, lease: Lease, now: datetime) -> tuple[Job, str, SignedAgreement]:
    if not node.agreements:
        raise Refused("policy.agreement", "this node has no agreement")
    signers = {s["keyid"] for s in _signatures(lease.job_envelope)}
    candidates = [a for a in node.agreements if signers & {k.keyid for k in _developers(a)}]
    if not candidates:
        raise Refused("policy.signature_invalid", "not signed by a developer of any agreement here")
    keys = [k for a in candidates for k in _developers(a)]
    statement = dsse.verify(
        lease.job_envelope, keys, kind="job", profile=node.config.profile, audience=AUDIENCE_NODE
    )
    job, job_id = open_job(statement)
    manifest, _ = node.dataset(job.dataset.profile)
    for candidate in candidates:
        terms = candidate.terms
        in_force = parse_time(terms.not_before) <= now <= parse_time(terms.not_after)
        if in_force and manifest.dataset in terms.datasets and _has_node(node, candidate):
            return job, job_id, candidate
    raise Refused("policy.agreement", "no agreement in force covers this dataset on this node")


def _signatures(envelope: object) -> list[dict[str, str]]:
    dsse.unverified_predicate(envelope)
    assert isinstance(envelope, dict)  # noqa: S101  the line above refused everything else
    return list(envelope["signatures"])


def _developers(agreement: SignedAgreement) -> list[VerifyKey]:
    return [VerifyKey.from_text(p.key) for p in agreement.terms.developers]


def _has_node(node: Node, agreement: SignedAgreement) -> bool:
    own = node.receipt_key.verify_key.to_text()
    return any(n.id == node.config.node and n.receipt_key == own for n in agreement.terms.nodes)
