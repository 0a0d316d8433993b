"""Identifiers: pseudonyms per job under the hospital's key, and the fixed test split.

Pseudonyms are HMAC-SHA256 (RFC 2104) under a key derived per job by HKDF (RFC 5869), so those of two jobs
don't link. They remain personal data in law: whoever holds the hospital's key can recompute them.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from rapha.evidence.keys import read_private, write_private
from rapha.spec.refusals import Refused

KEY_BYTES: Final = 32
_LEAST_DISTINCT: Final = 8
# 32 random bytes hold fewer than 8 distinct values about once in 10^37 keys; all-zero, all-0xFF and
# repeated patterns do always.


@dataclass(frozen=True, slots=True)
class HospitalKey:
    """The 32-byte PHI key that the hospital holds. Its repr shows nothing of it."""

    secret: bytes

    def __repr__(self) -> str:
        return "HospitalKey(…)"

    @classmethod
    def create(cls, path: Path) -> HospitalKey:
        """Write a new random key, owner-only. Raises `FileExistsError`."""
        key = cls(secrets.token_bytes(KEY_BYTES))
        write_private(path, key.secret)
        return key

    @classmethod
    def load(cls, path: Path) -> HospitalKey:
        """Read the key file.

        Raises:
            Refused: `node.key_unsafe` if it is missing, a link, open to others, not 32 bytes, or a
                pattern such as all zeros.
        """
        secret = read_private(path)
        if len(secret) != KEY_BYTES:
            raise Refused("node.key_unsafe", f"{path} must hold exactly {KEY_BYTES} bytes")
        if len(set(secret)) < _LEAST_DISTINCT:
            raise Refused("node.key_unsafe", f"{path} holds a pattern, not {KEY_BYTES} random bytes")
        return cls(secret)

    def derive(self, purpose: str, context: str) -> bytes:
        """32 bytes for one purpose in one context (a job id, a dataset id), by HKDF-SHA256."""
        info = _frame(b"rapha/v1", purpose.encode(), context.encode())
        return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(self.secret)

    def pseudonyms(self, job_id: str, identifiers: Iterable[str]) -> list[bytes]:
        """One 32-byte pseudonym an identifier, in order, good for this job only."""
        key = self.derive("pseudonym", job_id)
        return [hmac.digest(key, identifier.encode(), "sha256") for identifier in identifiers]


def held_out(salt: str, dataset: str, patients: Iterable[str], fraction: float) -> list[bool]:
    """For each patient, whether all their records are in the test split.

    A function of (salt, dataset, patient) alone: the same for every job, cohort, order and revision of
    the data, so that no job trains on what another was scored on (gates, "Output guard", 6). It is keyed
    by the manifest's `salt` (hex), which outlives rotations of the hospital's key.
    """
    key = bytes.fromhex(salt)
    limit = int(fraction * 2**64)
    prefix = _frame(b"rapha/v1/test-split", dataset.encode())
    return [
        int.from_bytes(hmac.digest(key, prefix + patient.encode(), "sha256")[:8]) < limit
        for patient in patients
    ]


def _frame(*parts: bytes) -> bytes:
    """Length-prefixed parts, so that no two lists of parts give the same bytes."""
    return b"".join(len(part).to_bytes(4) + part for part in parts)


def commit(key: bytes, data: bytes) -> str:
    """Hex HMAC-SHA256: a commitment that hides `data` from whoever lacks `key`."""
    return hmac.new(key, data, hashlib.sha256).hexdigest()
