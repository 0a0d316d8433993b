"""The bundle: one canonical JSON file that holds everything a verifier needs except its roots."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rapha.evidence import canonical
from rapha.spec.receipt import SECTIONS
from rapha.spec.refusals import Refused

VERSION: Final = 1
MAX_BYTES: Final = 16 * 1024 * 1024
CORE: Final = frozenset({"version", "profile", "receipt", "attestation", "log_salt", "log_leaf", *SECTIONS})
"""What the node makes. The log adds `log`; nothing else may be there, and nothing may be missing."""
LOG: Final = frozenset({"checkpoint", "index", "size", "proof"})
_ARTIFACT_CONTEXT: Final = b"rapha-artifact-v1\x00"
_LEAF_CONTEXT: Final = b"rapha-log-leaf-v1\x00"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose shape was checked and nothing else."""

    parts: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.parts[name]

    def section_digest(self, name: str) -> str:
        """Hex SHA-256 of a section's canonical form, as the receipt binds it."""
        return canonical.digest(self.parts[name])


def artifact_info(job: str, name: str) -> bytes:
    """HPKE `info` of a released artifact: its ciphertext opens only as this file of this job."""
    return _ARTIFACT_CONTEXT + bytes.fromhex(job) + name.encode()


def leaf(receipt_digest: str, salt: str) -> str:
    """Log entry of a receipt: a salted commitment, so that the log tells nothing of the receipt.

    Args:
        receipt_digest: hex SHA-256 of the receipt statement.
        salt: 32 bytes, hex.
    """
    return hashlib.sha256(_LEAF_CONTEXT + bytes.fromhex(salt) + bytes.fromhex(receipt_digest)).hexdigest()


def assemble(core: Mapping[str, Any], log: Mapping[str, Any]) -> bytes:
    """The bundle's bytes: canonical JSON of `core` with the log's section."""
    return canonical.dumps({**core, "log": dict(log)})


def read(data: bytes) -> Bundle:
    """Check that the bytes are canonical and that exactly the required sections are there.

    Raises:
        Refused: `schema.json`, `schema.too_large`, `schema.field_missing`, `schema.field_unknown` or
            `schema.field_invalid`.
    """
    value = canonical.loads_canonical(data, limit=MAX_BYTES)
    if not isinstance(value, dict):
        raise Refused("schema.field_invalid", "a bundle is one JSON object")
    _exactly(set(value), CORE | {"log"}, "")
    if not isinstance(value["log"], dict):
        raise Refused("schema.field_invalid", "log: expected an object")
    _exactly(set(value["log"]), LOG, "log.")
    if value["version"] != VERSION or isinstance(value["version"], bool):
        raise Refused("schema.field_invalid", f"version: this verifier reads version {VERSION}")
    return Bundle(value)


def _exactly(found: set[str], wanted: frozenset[str], prefix: str) -> None:
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing:
        raise Refused("schema.field_missing", f"{prefix}{missing[0]} is missing")
    if extra:
        raise Refused("schema.field_unknown", f"{prefix}{extra[0]} is not part of a bundle")
