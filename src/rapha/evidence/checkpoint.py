"""Checkpoints: a log's signed head (C2SP tlog-checkpoint over C2SP signed-note).

    <origin>
    <size>
    <base64 root>

    — <origin> <base64 of key hash ‖ Ed25519 signature>

The format allows extension lines and foreign signatures; this one accepts neither, so that no byte of a
checkpoint is free.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import serialization

from rapha.evidence.keys import SigningKey, VerifyKey, b64decode
from rapha.evidence.merkle import HASH_BYTES, MAX_SIZE
from rapha.spec.refusals import Refused

MAX_TEXT: Final = 1024
_ED25519: Final = b"\x01"
"""Signature type of C2SP signed-note for Ed25519."""
_KEY_HASH_BYTES: Final = 4
_ORIGIN: Final = r"[!-*,-~]{1,200}"
"""Printable ASCII without spaces and plus, which signed-note forbids in key names."""
_NOTE: Final = re.compile(
    rf"(?P<body>(?P<origin>{_ORIGIN})\n(?P<size>0|[1-9][0-9]{{0,15}})\n(?P<root>[A-Za-z0-9+/]{{43}}=)\n)"
    rf"\n— (?P<name>{_ORIGIN}) (?P<signature>[A-Za-z0-9+/]+={{0,2}})\n"
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's head: `size` leaves with the 32-byte Merkle `root`, in the log called `origin`."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        check_origin(self.origin)
        if not 0 <= self.size <= MAX_SIZE or len(self.root) != HASH_BYTES:
            raise Refused("schema.field_invalid", "a checkpoint has a size and a root of 32 bytes")

    def body(self) -> bytes:
        """The signed text."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n".encode()


def check_origin(origin: str) -> str:
    """`origin` if it can name a log. Raises `Refused` (`schema.field_invalid`)."""
    if re.fullmatch(_ORIGIN, origin) is None:
        raise Refused("schema.field_invalid", f"{origin[:64]!r} is not an origin: ASCII, no space, no plus")
    return origin


def sign(checkpoint: Checkpoint, key: SigningKey) -> str:
    """The signed note."""
    signature = key_hash(checkpoint.origin, key.verify_key) + key.sign(checkpoint.body())
    line = f"— {checkpoint.origin} {base64.b64encode(signature).decode()}\n"
    return checkpoint.body().decode() + "\n" + line


def parse(text: str) -> tuple[Checkpoint, bytes]:
    """Read a signed note without judging its signature (4-byte key hash ‖ 64 bytes).

    Raises:
        Refused: `policy.log_invalid` unless it is the one canonical form.
    """
    match = _NOTE.fullmatch(text) if len(text) <= MAX_TEXT else None
    if match is None or match["name"] != match["origin"]:
        raise Refused("policy.log_invalid", "not a checkpoint of one log with its own signature only")
    try:
        found = Checkpoint(match["origin"], int(match["size"]), b64decode(match["root"]))
        signature = b64decode(match["signature"])
    except Refused as refused:
        raise Refused("policy.log_invalid", f"checkpoint: {refused.detail}") from None
    if len(signature) != _KEY_HASH_BYTES + 64:
        raise Refused("policy.log_invalid", "a checkpoint's signature has 68 bytes")
    return found, signature


def verify(text: str, *, origin: str, key: VerifyKey) -> Checkpoint:
    """The checkpoint in `text`, signed by `key` for the log `origin`; both come from the caller's trust.

    Raises:
        Refused: `policy.log_invalid`.
    """
    found, signature = parse(text)
    if found.origin != origin:
        raise Refused("policy.log_invalid", f"the checkpoint is of {found.origin!r}, not of {origin!r}")
    if not hmac.compare_digest(signature[:_KEY_HASH_BYTES], key_hash(origin, key)):
        raise Refused("policy.log_invalid", "the checkpoint is signed by another key")
    if not key.verifies(signature[_KEY_HASH_BYTES:], found.body()):
        raise Refused("policy.log_invalid", "the checkpoint's signature does not verify")
    return found


def key_hash(name: str, key: VerifyKey) -> bytes:
    """First 4 bytes of SHA-256(name ‖ LF ‖ type ‖ public key), as signed-note defines key ids."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + _raw(key)).digest()[:_KEY_HASH_BYTES]


def verifier_text(name: str, key: VerifyKey) -> str:
    """The log's key as other signed-note tools take it: `<name>+<hash>+<base64>`."""
    return f"{name}+{key_hash(name, key).hex()}+{base64.b64encode(_ED25519 + _raw(key)).decode()}"


def _raw(key: VerifyKey) -> bytes:
    return key.public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
