"""Gate 11: the receipt, a second quote over it, and the outbox that holds all that leaves."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rapha.evidence import bundle, canonical, dsse, hpke
from rapha.evidence.steps.case import AUDIENCE_ALL, CIPHER, PLAIN
from rapha.node.gates import outcome
from rapha.node.gates.attest import check, collect
from rapha.node.gates.intake import Admitted
from rapha.node.gates.passed import Passed
from rapha.node.node import Node
from rapha.node.recover import LEDGER_TOLD
from rapha.spec.receipt import DatasetUse, JobReference, Receipt, Sandbox, Times, Usage
from rapha.spec.refusals import Refused
from rapha.spec.surface import Surface, encode
from rapha.spec.units import format_time


@dataclass(frozen=True, slots=True)
class Artifact:
    """A released file, sealed to the key inside the signed job."""

    name: str
    sha256: str
    size: int
    ciphertext: bytes

    @property
    def cipher_sha256(self) -> str:
        """Hex SHA-256 of the ciphertext, by which the coordinator stores it."""
        return hashlib.sha256(self.ciphertext).hexdigest()


def issue(node: Node, passed: Passed, outbox: Path, clock: outcome.Clock) -> tuple[str, Surface]:
    """Build, sign and quote the receipt, and write the outbox; returns the receipt's digest.

    Nothing leaves here: the outbox is sent once the journal says `committed`.

    Raises:
        Refused: `posture.evidence_invalid`; `node.internal` for a job that was not charged.
    """
    admitted = passed.admitted
    artifacts = [seal_artifact(admitted, name, data) for name, data in sorted(passed.guarded.files.items())]
    surface = outcome.success(passed, artifacts, clock)
    sections: dict[str, Any] = {
        "job": passed.lease.job_envelope,
        "image": admitted.image_envelope,
        "agreement": admitted.agreement.envelope,
        "ticket": passed.attested.ticket,
        "admission": passed.attested.posture.dump(),
        "seal": passed.sealed.posture.dump(),
        "policy": passed.allowed.section.dump(),
        "scan": passed.scanned.section().dump(),
        "guard": passed.guarded.section(passed.covert_bound_bits).dump(),
        "approvals": passed.approved.envelopes,
        "reviews": passed.reviews,
        "surface": surface.dump(),
    }
    receipt = build_receipt(node, passed, sections, clock)
    core, digest = sign_receipt(node, admitted, receipt, artifacts, sections)
    write_outbox(outbox, encode(surface), core, artifacts)
    return digest, surface


def build_receipt(node: Node, passed: Passed, sections: Mapping[str, Any], clock: outcome.Clock) -> Receipt:
    """The predicate: names, digests, buckets and commitments; no exact count, no record."""
    admitted, job, terms = passed.admitted, passed.admitted.job, passed.admitted.agreement.terms
    resolved = passed.consented.resolved
    admitted_at = datetime.fromtimestamp(passed.admitted_at, UTC)
    return Receipt(
        job=JobReference(
            id=admitted.id,
            name=job.name,
            kind=job.kind,
            purpose=job.purpose,
            company=terms.company.id,
            hospital=terms.hospital.id,
        ),
        node=node.config.node,
        image=job.image,
        runtime=node.runtime.digest,
        sections={name: canonical.digest(section) for name, section in sections.items()},
        dataset=DatasetUse(
            id=admitted.manifest.dataset,
            profile=admitted.manifest.profile,
            manifest=resolved.manifest,
            cohort=resolved.cohort,
            opt_out_version=resolved.opt_out_version,
            funnel=passed.sealed.prepared.funnel,
            content=passed.sealed.prepared.content,
            confinement=passed.sealed.prepared.confinement,
            ledger=_ledger(node, passed),
        ),
        usage=_usage(node, passed),
        sandbox=Sandbox(driver=node.sandbox.name, walls=dict(passed.trained.outcome.walls)),
        airgap=passed.airgap,
        outcome="success",
        released=passed.released,
        guarantee=passed.guarded.guarantee,
        covert_bound_bits=passed.covert_bound_bits,
        assurance=passed.attested.appraisal.assurance,
        nonce=secrets.token_hex(32),
        times=Times(admitted=format_time(admitted_at), finished=format_time(clock.boundary())),
        previous=node.previous_receipt(),
    )


def _usage(node: Node, passed: Passed) -> Usage:
    used = passed.consented.data.usage()
    bucket, cap = passed.admitted.manifest.billing_bucket, passed.admitted.job.dataset.max_records
    records = outcome.at_most(used.unique_records, bucket, cap)
    salts = secrets.token_hex(32), secrets.token_hex(32)
    # The openings stay in the hospital's log; payer and attestors get them when money is due.
    node.journal.append(
        "counted",
        passed.admitted.id,
        records=used.unique_records,
        patients=used.unique_patients,
        records_salt=salts[0],
        patients_salt=salts[1],
        used_root=used.used_root,
    )
    return Usage(
        records=records,
        patients=min(outcome.at_most(used.unique_patients, bucket, cap), records),
        bucket=bucket,
        cap=cap,
        records_commitment=commit_count(used.unique_records, salts[0]),
        patients_commitment=commit_count(used.unique_patients, salts[1]),
        used_root=used.used_root,
        transcript=used.transcript,
        counts="hospital-asserted",
    )


def _ledger(node: Node, passed: Passed) -> str:
    balance, salt = passed.guarded.balance, secrets.token_hex(32)
    if balance is None:
        raise Refused("node.internal", "no receipt is issued over what no ledger was charged for")
    # The opening stays in the hospital's log, for whoever has to tell that the ledger only ever grew.
    node.journal.append(
        LEDGER_TOLD, passed.admitted.id, entries=balance.entries, head=balance.head, salt=salt
    )
    return commit_ledger(balance.entries, balance.head, salt)


def commit_ledger(entries: int, head: str, salt: str) -> str:
    """Salted commitment to a ledger's entries: SHA-256(salt ‖ how many, 8 bytes big-endian ‖ head), hex."""
    opening = bytes.fromhex(salt) + entries.to_bytes(8, "big") + bytes.fromhex(head)
    return hashlib.sha256(opening).hexdigest()


def commit_count(count: int, salt: str) -> str:
    """Salted commitment to a count: SHA-256(salt ‖ count as 8 bytes, big-endian), hex."""
    return hashlib.sha256(bytes.fromhex(salt) + count.to_bytes(8, "big")).hexdigest()


def seal_artifact(admitted: Admitted, name: str, data: bytes) -> Artifact:
    """Encrypt to the job's recipient (RFC 9180), bound to job and name."""
    info = bundle.artifact_info(admitted.id, name)
    sealed = hpke.seal(data, admitted.job.recipient, info)
    return Artifact(name, hashlib.sha256(data).hexdigest(), len(data), sealed)


def sign_receipt(
    node: Node,
    admitted: Admitted,
    receipt: Receipt,
    artifacts: list[Artifact],
    sections: Mapping[str, Any],
) -> tuple[dict[str, Any], str]:
    """Sign, quote the signature's statement, and build the bundle's core; its receipt digest too.

    Raises:
        Refused: `posture.evidence_invalid` if the second quote doesn't appraise.
    """
    subjects = {PLAIN + a.name: a.sha256 for a in artifacts} | {
        CIPHER + a.name: a.cipher_sha256 for a in artifacts
    }
    envelope = dsse.sign(
        "receipt",
        subjects,
        receipt.dump(),
        profile=node.config.profile,
        audience=AUDIENCE_ALL,
        keys=[node.receipt_key],
    )
    statement = dsse.verify(
        envelope,
        [node.receipt_key.verify_key],
        kind="receipt",
        profile=node.config.profile,
        audience=AUDIENCE_ALL,
    )
    quoted = collect(node, statement.digest, receipt.nonce)
    check(node, admitted, quoted, statement.digest, receipt.nonce)
    salt = secrets.token_hex(32)
    core = {
        "version": bundle.VERSION,
        "profile": node.config.profile,
        "receipt": envelope,
        "attestation": quoted.dump(),
        "log_salt": salt,
        "log_leaf": bundle.leaf(statement.digest, salt),
        **sections,
    }
    return core, statement.digest


def write_outbox(folder: Path, surface: bytes, core: Mapping[str, Any], artifacts: list[Artifact]) -> None:
    """Write everything that will leave, durably; nothing is sent before the journal says `committed`."""
    if folder.exists():
        shutil.rmtree(folder)
    (folder / "artifacts").mkdir(parents=True, mode=0o700)
    _write(folder / "surface.json", surface)
    _write(folder / "core.json", canonical.dumps(dict(core)))
    for artifact in artifacts:
        _write(folder / "artifacts" / artifact.name, artifact.ciphertext)
    for path in (folder / "artifacts", folder):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
