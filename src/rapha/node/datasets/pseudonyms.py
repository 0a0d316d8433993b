"""Identifiers: pseudonyms per job under the hospital's key, and the fixed test split.

Pseudonyms are HMAC-SHA256 (RFC 2104) under a key derived per job and kind by HKDF (RFC 5869), so those of
two jobs don't link, nor do a patient and a study that happen to have the same number. They remain personal
data in law: whoever holds the hospital's key can recompute them.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from rapha.evidence.keys import read_private, write_private
from rapha.spec.dataset import PSEUDONYM_BYTES
from rapha.spec.refusals import Refused

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KEY_BYTES: Final = 32
ID_BYTES: Final = 16
_SAMPLE: Final = 512
_LEAST_DISTINCT: Final = 16
_MOST_OF_ONE: Final = 9
# 32 random bytes hold fewer than 16 distinct values, or one value more than 9 times, or printable text alone,
# about once in 10^14 keys each: a key that fails these tests was typed, repeated or padded.


@dataclass(frozen=True, slots=True)
class HospitalKey:
    """The 32-byte PHI key that the hospital holds. Its repr shows nothing of it."""

    secret: bytes

    def __repr__(self) -> str:
        return "HospitalKey(…)"

    @classmethod
    def generate(cls) -> HospitalKey:
        """A new key from the operating system's generator."""
        secret = secrets.token_bytes(KEY_BYTES)
        while _weakness(secret):  # about once in 10^14 keys: `load` would refuse it
            secret = secrets.token_bytes(KEY_BYTES)
        return cls(secret)

    @classmethod
    def create(cls, path: Path) -> HospitalKey:
        """Write a new random key, owner-only. Raises `FileExistsError`."""
        key = cls.generate()
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
        if weakness := _weakness(secret):
            raise Refused("node.key_unsafe", f"{path} holds {weakness}, not {KEY_BYTES} random bytes")
        return cls(secret)

    @property
    def id(self) -> str:
        """32 hex digits that name the key in files and logs of the hospital.

        Derived by HKDF, so it is no step towards any other key derived from the same secret. Like all that
        is derived, it confirms a guess: what makes guessing hopeless are the 256 random bits, and `load`
        refuses keys that visibly lack them.
        """
        return self.derive("key-id")[:ID_BYTES].hex()

    def derive(self, purpose: str, *context: str) -> bytes:
        """32 bytes for one purpose in one context (a job id, a dataset id), by HKDF-SHA256."""
        info = _frame(b"rapha/v1", purpose.encode(), *(part.encode() for part in context))
        return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(self.secret)

    def pseudonyms(self, job_id: str, kind: str, identifiers: Sequence[str]) -> NDArray[np.uint8]:
        """One pseudonym an identifier, in order, good for this job and this kind of identifier only.

        Args:
            kind: where the identifiers come from, such as `PatientID` or a table's column.
            identifiers: length n; an empty one, which is no identifier, gives 16 zero bytes.

        Returns:
            uint8 [n, 16]: HMAC-SHA256, its first 128 bits.
        """
        import numpy as np

        distinct = dict.fromkeys(identifiers) if _repeats(identifiers) else identifiers
        digests = np.frombuffer(self._digests(job_id, kind, distinct), dtype=np.uint8)
        found = digests.reshape(-1, hashes.SHA256.digest_size)[:, :PSEUDONYM_BYTES].copy()
        if isinstance(distinct, dict):
            numbers = {identifier: number for number, identifier in enumerate(distinct)}
            order = np.fromiter(map(numbers.__getitem__, identifiers), np.int64, len(identifiers))
            found = found[order]
        if "" in identifiers:
            found[[number for number, identifier in enumerate(identifiers) if not identifier]] = 0
        return found

    def _digests(self, job_id: str, kind: str, identifiers: Iterable[str]) -> bytes:
        # Copying a keyed state is what makes this 2.5 times as fast as the standard library's hmac.
        keyed = HMAC(self.derive("pseudonym", job_id, kind), hashes.SHA256())
        digests: list[bytes] = []
        copy, add = keyed.copy, digests.append
        for identifier in identifiers:
            state = copy()
            # surrogatepass: broken text is an identifier too, and must neither fail nor meet another.
            state.update(identifier.encode("utf-8", "surrogatepass"))
            add(state.finalize())
        return b"".join(digests)


def held_out(salt: str, dataset: str, patients: Iterable[str], fraction: float) -> list[bool]:
    """For each patient, whether all their records are in the test split.

    A function of (salt, dataset, patient) alone: the same for every job, cohort, order and revision of
    the data, so that no job trains on what another was scored on (gates, "Output guard", 6). It is keyed
    by the manifest's `salt` (hex), which outlives rotations of the hospital's key.
    """
    limit = int(fraction * 2**64)
    keyed = HMAC(bytes.fromhex(salt), hashes.SHA256())
    keyed.update(_frame(b"rapha/v1/test-split", dataset.encode()))
    held = []
    for patient in patients:
        state = keyed.copy()
        state.update(patient.encode("utf-8", "surrogatepass"))
        held.append(int.from_bytes(state.finalize()[:8]) < limit)
    return held


def commit(key: bytes, data: bytes) -> str:
    """Hex HMAC-SHA256: a commitment that hides `data` from whoever lacks `key`."""
    return hmac.new(key, data, hashlib.sha256).hexdigest()


def _frame(*parts: bytes) -> bytes:
    """Length-prefixed parts, so that no two lists of parts give the same bytes."""
    return b"".join(len(part).to_bytes(4) + part for part in parts)


def _repeats(identifiers: Sequence[str]) -> bool:
    """Whether some identifier seems to come again, by neighbours and by a sample: a guess that saves work."""
    spread = identifiers[_SAMPLE :: max(1, len(identifiers) // _SAMPLE)]
    sample = [*identifiers[:_SAMPLE], *spread]
    return len(set(sample)) < len(sample)


def _weakness(secret: bytes) -> str | None:
    """What is visibly wrong with a key, or None."""
    most = max(secret.count(byte) for byte in set(secret))
    steps = {(b - a) % 256 for a, b in pairwise(secret)}
    if len(set(secret)) < _LEAST_DISTINCT or most > _MOST_OF_ONE or len(steps) < _LEAST_DISTINCT // 2:
        return "a pattern"
    if secret[: KEY_BYTES // 2] == secret[KEY_BYTES // 2 :]:
        return "one half twice"
    if secret.isascii() and secret.decode().isprintable():
        return "text"
    return None
