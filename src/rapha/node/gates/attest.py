"""Gate 2: fresh evidence bound to this job and this node's keys, and the researcher's one-use ticket."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any, Final

from rapha.evidence import canonical, dsse, hpke
from rapha.evidence.attestation.appraise import Expected, appraise
from rapha.evidence.attestation.binding import report_data
from rapha.evidence.keys import VerifyKey
from rapha.node.gates.intake import Admitted
from rapha.node.node import Node
from rapha.spec.attestation import Appraisal, Posture, Ticket
from rapha.spec.job import RANK
from rapha.spec.refusals import Refused

SLICE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Attested:
    """Evidence that passed, and the permission that names it."""

    posture: Posture
    appraisal: Appraisal
    ticket: dsse.EnvelopeDict


def attest(node: Node, admitted: Admitted) -> Attested:
    """Answer the researcher's challenge, appraise ourselves, and wait for the ticket.

    Raises:
        Refused: `posture.*`.
    """
    challenge = _await(node, admitted.id, "challenge", node.config.waits.challenge_s)
    nonce = challenge.get("nonce") if challenge else None
    if challenge is None or set(challenge) != {"nonce"} or not isinstance(nonce, str) or len(nonce) != 64:
        raise Refused("posture.ticket_missing", "no challenge came from the researcher's client")
    posture = collect(node, admitted.id, nonce)
    appraisal = check(node, admitted, posture, admitted.id, nonce)
    node.exit.evidence(admitted.id, posture)
    envelope = _await(node, admitted.id, "ticket", node.config.waits.ticket_s)
    if envelope is None:
        raise Refused("posture.ticket_missing")
    _check_ticket(node, admitted, posture, envelope)
    return Attested(posture, appraisal, envelope)


def _await(node: Node, job: str, slot: str, timeout_s: float) -> dict[str, Any] | None:
    # In slices, so that a stop is heard.
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        value = node.exit.read_slot(job, slot, min(left, SLICE_S))
        if value is not None:
            return value
        if node.stop.is_set():
            raise Refused("node.stopped")
    return None


def collect(node: Node, subject: str, nonce: str | None = None) -> Posture:
    """Fresh evidence over `subject` (hex SHA-256); without a verifier's nonce, one of our own."""
    nonce = nonce or secrets.token_hex(32)
    signing = node.receipt_key.verify_key.to_text()
    hpke_key = hpke.public_text(node.hpke_key)
    data = report_data(
        nonce=nonce, signing_key=signing, hpke_key=hpke_key, subject=subject, policy=node.policy_digest
    )
    return Posture(
        node=node.config.node,
        nonce=nonce,
        subject=subject,
        policy=node.policy_digest,
        signing_key=signing,
        hpke_key=hpke_key,
        evidence=node.producer.collect(data),
    )


def check(node: Node, admitted: Admitted, posture: Posture, subject: str, nonce: str) -> Appraisal:
    """Appraise our own evidence as a stranger would.

    Raises:
        Refused: `posture.evidence_invalid`, `posture.assurance_low`.
    """
    terms = admitted.agreement.terms
    least = {admitted.job.assurance, terms.least_assurance, node.trust.least_assurance}
    return appraise(
        posture,
        Expected(
            node=node.config.node,
            nonce=nonce,
            subject=subject,
            policy=node.policy_digest,
            signing_key=node.receipt_key.verify_key.to_text(),
            measurements=terms.measurements,
            simulated_roots=[VerifyKey.from_text(k) for k in node.trust.simulated_tee],
            least_assurance=max(least, key=RANK.__getitem__),
            now=int(time.time()),
        ),
    )


def _check_ticket(node: Node, admitted: Admitted, posture: Posture, envelope: object) -> None:
    developers = [VerifyKey.from_text(p.key) for p in admitted.agreement.terms.developers]
    try:
        statement = dsse.verify(
            envelope, developers, kind="ticket", profile=node.config.profile, audience=node.config.node
        )
        ticket = Ticket.parse(statement.predicate, "ticket")
    except Refused as refused:
        raise Refused("posture.ticket_invalid", refused.detail) from None
    evidence = canonical.digest(posture.dump())
    if ticket != Ticket(job=admitted.id, node=node.config.node, evidence=evidence, nonce=posture.nonce):
        raise Refused("posture.ticket_invalid")
    if any(e.event == "ticket" and e.data.get("digest") == statement.digest for e in node.journal):
        raise Refused("posture.ticket_reused")
    node.journal.append("ticket", admitted.id, digest=statement.digest)
