"""Appraisal of attestation evidence: bytes, roots and one clock reading in; a verdict out.

Order (each step can only refuse): 1 type and shape; 2 signature chain to a pinned root; 3 measurement on
the allow-list; 4 report data; 5 TCB and debug; 6 validity in time; 7 the least assurance asked for.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from rapha.evidence import dsse
from rapha.evidence.attestation.binding import expected_report_data
from rapha.evidence.keys import VerifyKey
from rapha.spec.attestation import Appraisal, Posture, SimulatedEvidence, SimulatedQuote
from rapha.spec.job import RANK
from rapha.spec.refusals import Refused

AUDIENCE: Final = "rapha-attestation"
CERTIFICATE_KIND: Final = "simulated-attestation-key"
QUOTE_KIND: Final = "simulated-quote"
LIFETIME_S: Final = 300
"""A nonce, and so the evidence over it, lives five minutes."""
SKEW_S: Final = 60


@dataclass(frozen=True, slots=True)
class Expected:
    """What the verifier demands of evidence.

    Attributes:
        node, nonce, subject, policy, signing_key: must equal what the evidence is bound to.
        measurements: accepted node builds; empty refuses.
        simulated_roots: keys of simulated TEEs; empty outside the demo profile.
        least_assurance: the weakest level that passes.
        now: Unix seconds, read once by the caller.
    """

    node: str
    nonce: str
    subject: str
    policy: str
    signing_key: str
    measurements: Iterable[str]
    simulated_roots: Iterable[VerifyKey]
    least_assurance: str
    now: int


def appraise(posture: Posture, expected: Expected) -> Appraisal:
    """Judge `posture`.

    Raises:
        Refused: `posture.evidence_invalid`, or `posture.assurance_low`.
    """
    try:
        quote = _open_simulated(posture.evidence, list(expected.simulated_roots))
        bound = expected_report_data(posture)
    except Refused as refused:
        raise _invalid(refused.detail) from None
    if quote.measurement not in set(expected.measurements):
        raise _invalid(f"measurement {quote.measurement[:16]}… is not on the allow-list")
    _check_binding(posture, expected)
    if not hmac.compare_digest(quote.report_data, bound):
        raise _invalid("report data is not that of these keys, nonce, subject and policy")
    if quote.tcb_status != "UpToDate" or quote.debug:
        raise _invalid(f"TCB status is {quote.tcb_status}{', debug on' if quote.debug else ''}")
    if not quote.issued - SKEW_S <= expected.now <= quote.issued + LIFETIME_S:
        raise _invalid("the evidence is not fresh")
    if RANK["simulated"] < RANK[expected.least_assurance]:
        raise Refused(
            "posture.assurance_low", f"simulated, and {expected.least_assurance} is the least accepted"
        )
    return Appraisal(
        kind="simulated",
        assurance="simulated",
        measurement=quote.measurement,
        tcb_status=quote.tcb_status,
        issued=quote.issued,
    )


def _open_simulated(evidence: SimulatedEvidence, roots: list[VerifyKey]) -> SimulatedQuote:
    certificate = dsse.verify(
        evidence.certificate, roots, kind=CERTIFICATE_KIND, profile="demo", audience=AUDIENCE
    )
    key = certificate.predicate.get("key")
    if set(certificate.predicate) != {"key"} or not isinstance(key, str):
        raise Refused("schema.envelope", "the attestation key's certificate is malformed")
    quote = dsse.verify(
        evidence.quote, [VerifyKey.from_text(key)], kind=QUOTE_KIND, profile="demo", audience=AUDIENCE
    )
    return SimulatedQuote.parse(quote.predicate, "quote")


def _check_binding(posture: Posture, expected: Expected) -> None:
    found = (posture.node, posture.nonce, posture.subject, posture.policy, posture.signing_key)
    wanted = (expected.node, expected.nonce, expected.subject, expected.policy, expected.signing_key)
    names = ("node", "nonce", "subject", "policy", "signing key")
    wrong = [n for n, f, w in zip(names, found, wanted, strict=True) if not hmac.compare_digest(f, w)]
    if wrong:
        raise _invalid(f"bound to another {wrong[0]}")


def _invalid(detail: str) -> Refused:
    return Refused("posture.evidence_invalid", detail)
