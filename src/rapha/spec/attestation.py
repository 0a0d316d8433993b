"""Attestation evidence as it travels, and what an appraisal of it concludes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import StringConstraints

from rapha.spec.agreement import PublicKey
from rapha.spec.base import Model, Name, Sha256

Nonce = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""32 random bytes chosen by the verifier, in hex."""
ReportData = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
"""64 bytes that the evidence signs, in hex."""


class SimulatedEvidence(Model):
    """A quote of the simulated TEE: it proves nothing, and everything it touches says so."""

    kind: Literal["simulated"]
    certificate: dict[str, Any]
    quote: dict[str, Any]


class SimulatedQuote(Model):
    """The claims inside `SimulatedEvidence.quote`."""

    measurement: Sha256
    report_data: ReportData
    tcb_status: Literal["UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "OutOfDate", "Revoked"]
    debug: bool
    issued: int


class Posture(Model):
    """Evidence with what it is bound to: keys, subject, policy and the verifier's nonce."""

    node: Name
    nonce: Nonce
    subject: Sha256
    policy: Sha256
    signing_key: PublicKey
    hpke_key: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{43}=$")]
    evidence: SimulatedEvidence


class Ticket(Model):
    """The researcher's one-use permission for one job on one node under one piece of evidence."""

    job: Sha256
    node: Name
    evidence: Sha256
    nonce: Nonce


class Appraisal(Model):
    """The verdict over evidence that passed."""

    kind: Literal["simulated"]
    assurance: Literal["simulated"]
    measurement: Sha256
    tcb_status: str
    issued: int
