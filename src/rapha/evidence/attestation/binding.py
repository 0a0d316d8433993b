"""What a quote's report data commits to."""

from __future__ import annotations

import hashlib
from typing import Final

from rapha.evidence import hpke
from rapha.evidence.keys import VerifyKey
from rapha.spec.attestation import Posture
from rapha.spec.refusals import Refused

CONTEXT: Final = b"rapha-attest-v1\x00"
NO_SUBJECT: Final = "00" * 32
"""The subject at enrolment, before there is a job."""


def report_data(*, nonce: str, signing_key: str, hpke_key: str, subject: str, policy: str) -> str:
    """SHA-512 over fixed-length parts, in hex.

    Args:
        nonce: the verifier's 32 bytes, hex.
        signing_key: base64 SubjectPublicKeyInfo of the node's receipt key.
        hpke_key: base64 raw X25519 public key.
        subject: hex SHA-256 of the job, or of the receipt after it; `NO_SUBJECT` at enrolment.
        policy: hex SHA-256 over the policy bundles in force.

    Raises:
        Refused: `schema.field_invalid` where a part is malformed; a part of another length would move the
            bounds between parts.
    """
    parts = (
        CONTEXT,
        _bytes32(nonce, "nonce"),
        hashlib.sha256(VerifyKey.from_text(signing_key).spki).digest(),
        hashlib.sha256(hpke.parse_public(hpke_key).public_bytes_raw()).digest(),
        _bytes32(subject, "subject"),
        _bytes32(policy, "policy"),
    )
    return hashlib.sha512(b"".join(parts)).hexdigest()


def _bytes32(text: str, name: str) -> bytes:
    if len(text) != 64 or text.strip("0123456789abcdef"):
        raise Refused("schema.field_invalid", f"{name}: expected 32 bytes in lower-case hex")
    return bytes.fromhex(text)


def expected_report_data(posture: Posture) -> str:
    """`report_data` of what `posture` says it is bound to."""
    return report_data(
        nonce=posture.nonce,
        signing_key=posture.signing_key,
        hpke_key=posture.hpke_key,
        subject=posture.subject,
        policy=posture.policy,
    )
