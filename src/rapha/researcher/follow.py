"""Following a job: the client that appraises the node, signs its one-use ticket, and fetches results."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rapha.evidence import bundle, canonical, dsse, hpke
from rapha.evidence.keys import SigningKey, VerifyKey
from rapha.evidence.steps.case import AUDIENCE_ALL, AUDIENCE_NODE, CIPHER, PLAIN
from rapha.evidence.steps.parties import open_job
from rapha.researcher.client import CoordinatorClient
from rapha.researcher.signing import check_posture, sign_ticket
from rapha.researcher.tickets import Kept, Tickets
from rapha.spec.agreement import Agreement
from rapha.spec.attestation import Posture
from rapha.spec.job import Job
from rapha.spec.refusals import Refused
from rapha.spec.states import ENDED_WITH_CODE, State
from rapha.spec.trust import Trust

WAIT_S: Final = 20.0
_DONE: Final = {State.DELIVERED, State.ANCHORED, State.SETTLED} | ENDED_WITH_CODE


@dataclass(frozen=True, slots=True)
class Follower:
    """One researcher's view of one job.

    Attributes:
        agreement: the pinned agreement under which the node's keys are believed.
        trust: the researcher's own roots.
        tickets: those that were signed before, by any run of the client.
    """

    client: CoordinatorClient
    key: SigningKey
    trust: Trust
    agreement: Agreement
    job_envelope: dsse.EnvelopeDict
    tickets: Tickets

    def opened(self) -> tuple[Job, str]:
        """The signed job and its id."""
        statement = dsse.verify(
            self.job_envelope,
            [self.key.verify_key],
            kind="job",
            profile=self.trust.profile,
            audience=AUDIENCE_NODE,
        )
        return open_job(statement)

    def watch(self, tell: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
        """Follow until the job is delivered or ended; answers the node's evidence with a ticket.

        Returns the last event. Raises `Refused` (`posture.*`) if the evidence doesn't appraise, or is other
        than that for which a ticket of this job was signed; no ticket is signed then.
        """
        _, job_id = self.opened()
        after = 0
        while True:
            for event in self.client.events(job_id, after=after, wait=WAIT_S):
                after = event["seq"]
                tell(event)
                if event["state"] == State.LEASED:
                    self._admit(job_id)
                if event["state"] in _DONE:
                    return event

    def _admit(self, job_id: str) -> None:
        job, _ = self.opened()
        # The same for a client that was started again, and unknown to anybody else until it is sent.
        nonce = hashlib.sha256(self.key.sign(b"rapha-challenge-v1\x00" + bytes.fromhex(job_id))).hexdigest()
        self._put(job_id, "challenge", {"nonce": nonce})
        answer = self.client.get_exchange(job_id, "evidence", wait=WAIT_S)
        if answer is None:
            return  # the node ended the job, or is gone; the next event says which
        posture = Posture.parse(answer, "evidence")
        self._put(job_id, "ticket", self._ticket(job, job_id, nonce, posture))

    def _ticket(self, job: Job, job_id: str, nonce: str, posture: Posture) -> dsse.EnvelopeDict:
        """One ticket a job, whatever the coordinator says: the one that was signed, or the first."""
        evidence = canonical.digest(posture.dump())
        if self.tickets.get(job_id) is not None:
            return self.tickets.again(job_id, nonce, evidence)
        check_posture(
            posture,
            job=job,
            job_id=job_id,
            nonce=nonce,
            agreement=self.agreement,
            trust=self.trust,
            now=int(time.time()),
        )
        ticket = sign_ticket(posture, job_id, self.key, self.trust.profile)
        return self.tickets.keep(job_id, Kept(challenge=nonce, evidence=evidence, ticket=ticket))

    def _put(self, job_id: str, slot: str, message: Mapping[str, Any]) -> None:
        try:
            self.client.put_exchange(job_id, slot, message)
        except Refused as refused:
            # A client that was started again finds what it wrote before.
            if refused.code != "policy.conflict" or self.client.get_exchange(job_id, slot) != message:
                raise

    def fetch(self, results_key: X25519PrivateKey, folder: Path) -> bytes:
        """Download the bundle and every artifact, decrypt, and check each against the receipt.

        Nothing is written unless all of it is right. Returns the bundle's bytes.

        Raises:
            Refused: `image.digest_mismatch` if an artifact isn't the receipt's; `policy.*`.
        """
        _, job_id = self.opened()
        parts = self.client.bundle(job_id)
        data = bundle.assemble(parts["bundle"], parts["log"])
        subjects = self._subjects(parts["bundle"]["receipt"])
        plain: dict[str, bytes] = {}
        for name, digest in subjects.items():
            if name.startswith(PLAIN):
                plain[name.removeprefix(PLAIN)] = self._artifact(
                    job_id, name.removeprefix(PLAIN), digest, subjects, results_key
                )
        (folder / "artifacts").mkdir(parents=True, exist_ok=True)
        for name, content in plain.items():
            (folder / "artifacts" / name).write_bytes(content)
        (folder / "bundle.json").write_bytes(data)
        return data

    def _subjects(self, receipt: object) -> Mapping[str, str]:
        nodes = [VerifyKey.from_text(n.receipt_key) for n in self.agreement.nodes]
        return dsse.verify(
            receipt, nodes, kind="receipt", profile=self.trust.profile, audience=AUDIENCE_ALL
        ).subjects

    def _artifact(
        self, job_id: str, name: str, digest: str, subjects: Mapping[str, str], key: X25519PrivateKey
    ) -> bytes:
        if Path(name).name != name or name.startswith("."):
            raise Refused("schema.field_invalid", f"artifact name {name!r}")
        ciphertext = self.client.artifact(job_id, name)
        if hashlib.sha256(ciphertext).hexdigest() != subjects.get(CIPHER + name):
            raise Refused("image.digest_mismatch", f"artifact {name} is not the receipt's")
        content = hpke.open_sealed(ciphertext, key, bundle.artifact_info(job_id, name))
        if hashlib.sha256(content).hexdigest() != digest:
            raise Refused("image.digest_mismatch", f"artifact {name} is not the receipt's")
        return content
