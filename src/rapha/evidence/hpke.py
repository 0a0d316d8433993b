"""HPKE (RFC 9180), base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from rapha.evidence.keys import b64decode, read_private, write_private
from rapha.spec.refusals import Refused

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def generate(path: Path) -> str:
    """Write a new private key (raw, 0600) and `path`.pub; return the public key's text."""
    private = X25519PrivateKey.generate()
    write_private(path, base64.b64encode(private.private_bytes_raw()) + b"\n")
    text = base64.b64encode(private.public_key().public_bytes_raw()).decode()
    path.with_name(path.name + ".pub").write_text(text + "\n")
    return text


def load(path: Path) -> X25519PrivateKey:
    """Read a private key file. Raises `Refused` (`node.key_unsafe`)."""
    try:
        return X25519PrivateKey.from_private_bytes(b64decode(read_private(path).decode().strip()))
    except (ValueError, Refused):
        raise Refused("node.key_unsafe", f"{path} is not an X25519 key file") from None


def public_text(private: X25519PrivateKey) -> str:
    """Base64 of the raw public key."""
    return base64.b64encode(private.public_key().public_bytes_raw()).decode()


def parse_public(text: str) -> X25519PublicKey:
    """Parse `public_text`'s form.

    A point of small order refuses: every exchange with it ends in zeros (RFC 7748, section 6.1), so that
    encryption to it would fail only once there are results.

    Raises:
        Refused: `schema.field_invalid`.
    """
    raw = b64decode(text)
    if len(raw) != 32:
        raise Refused("schema.field_invalid", "an X25519 public key has 32 bytes")
    public = X25519PublicKey.from_public_bytes(raw)
    try:
        X25519PrivateKey.generate().exchange(public)
    except ValueError:
        raise Refused("schema.field_invalid", "the X25519 public key is a point of small order") from None
    return public


def seal(plaintext: bytes, recipient: str, info: bytes) -> bytes:
    """Encrypt to `recipient` (base64 X25519), bound to `info`; enc ‖ ciphertext."""
    return _SUITE.encrypt(plaintext, parse_public(recipient), info=info)


def open_sealed(ciphertext: bytes, private: X25519PrivateKey, info: bytes) -> bytes:
    """Decrypt `seal`'s output. Raises `Refused` (`policy.signature_invalid`) if it was altered."""
    try:
        return _SUITE.decrypt(ciphertext, private, info=info)
    except (InvalidTag, ValueError):
        raise Refused(
            "policy.signature_invalid", "the ciphertext does not open: altered, or for another key or job"
        ) from None


def spki(public: X25519PublicKey) -> bytes:
    """SubjectPublicKeyInfo, as attestation binds it."""
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
