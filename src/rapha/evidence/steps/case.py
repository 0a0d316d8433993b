"""What the steps of a verification share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from rapha.evidence import bundle as bundles
from rapha.evidence.keys import VerifyKey
from rapha.spec.agreement import Agreement, Person
from rapha.spec.attestation import Appraisal
from rapha.spec.job import Job
from rapha.spec.receipt import Receipt
from rapha.spec.trust import Trust

AUDIENCE_NODE: Final = "rapha-node"
AUDIENCE_ALL: Final = "rapha"
PLAIN, CIPHER = "artifact:", "ciphertext:"


@dataclass(slots=True)
class Case:
    """What earlier steps established; later ones read only what has been verified."""

    data: bytes
    trust: Trust
    now: datetime
    bundle: bundles.Bundle = field(init=False)
    agreement: Agreement = field(init=False)
    agreement_digest: str = field(init=False)
    job: Job = field(init=False)
    job_id: str = field(init=False)
    receipt: Receipt = field(init=False)
    receipt_digest: str = field(init=False)
    subjects: Mapping[str, str] = field(init=False)
    admission: Appraisal = field(init=False)
    proves: list[str] = field(default_factory=list)


def keys_of(texts: tuple[str, ...]) -> list[VerifyKey]:
    """Parsed keys of a trust file or agreement."""
    return [VerifyKey.from_text(t) for t in texts]


def people_keys(people: tuple[Person, ...]) -> list[VerifyKey]:
    """The keys of people that an agreement names."""
    return [VerifyKey.from_text(p.key) for p in people]
