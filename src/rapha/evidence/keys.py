"""Ed25519 signing keys, named by the SHA-256 of their SubjectPublicKeyInfo, and their files."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from rapha.spec.refusals import Refused

MAX_KEY_FILE: Final = 65536
"""Most bytes of a key file that are read."""


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """A public Ed25519 key; equality and `keyid` are those of its SPKI bytes."""

    spki: bytes

    @property
    def keyid(self) -> str:
        """Hex SHA-256 of the SubjectPublicKeyInfo."""
        return hashlib.sha256(self.spki).hexdigest()

    @property
    def public(self) -> Ed25519PublicKey:
        """The parsed key.

        Raises:
            Refused: `schema.field_invalid` if the bytes are not an Ed25519 SPKI in its only DER form.
        """
        try:
            key = serialization.load_der_public_key(self.spki)
        except (ValueError, UnsupportedAlgorithm):
            raise Refused("schema.field_invalid", "not a SubjectPublicKeyInfo") from None
        if not isinstance(key, Ed25519PublicKey) or _spki(key) != self.spki:
            raise Refused("schema.field_invalid", "not an Ed25519 SubjectPublicKeyInfo")
        return key

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` is this key's over `message`."""
        try:
            self.public.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def to_text(self) -> str:
        """Base64 of the SPKI: the form in agreements and trust files."""
        return base64.b64encode(self.spki).decode()

    @classmethod
    def from_text(cls, text: str) -> VerifyKey:
        """Parse `to_text`'s form. Raises `Refused` (`schema.field_invalid`)."""
        key = cls(b64decode(text))
        _ = key.public
        return key


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private Ed25519 key. Its repr shows the key id only."""

    private: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"SigningKey({self.keyid[:16]}…)"

    @classmethod
    def generate(cls) -> SigningKey:
        """A new key from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate())

    @property
    def verify_key(self) -> VerifyKey:
        """The public half."""
        return VerifyKey(_spki(self.private.public_key()))

    @property
    def keyid(self) -> str:
        """Hex SHA-256 of the public half's SubjectPublicKeyInfo."""
        return self.verify_key.keyid

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature (RFC 8032)."""
        return self.private.sign(message)

    def save(self, path: Path) -> None:
        """Write PKCS #8 PEM, owner-only, never over an existing file; and `path`.pub beside it.

        Raises:
            FileExistsError: there is a file already.
        """
        pem = self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_private(path, pem)
        path.with_name(path.name + ".pub").write_text(self.verify_key.to_text() + "\n")

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read a key file that only its owner can read.

        Raises:
            Refused: `node.key_unsafe` if it is missing, not Ed25519, or open to others.
        """
        try:
            key = serialization.load_pem_private_key(read_private(path), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise Refused("node.key_unsafe", f"{path} is not a PKCS #8 PEM key") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise Refused("node.key_unsafe", f"{path} is not an Ed25519 key")
        return cls(key)


def write_private(path: Path, data: bytes) -> None:
    """Create `path` with mode 0600 and `data`, durably. Raises `FileExistsError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def read_private(path: Path) -> bytes:
    """Read a secret file. Raises `Refused` (`node.key_unsafe`) if it is missing or open to others."""
    try:
        # O_NONBLOCK: opening a FIFO must not wait for whoever may write to it.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Refused("node.key_unsafe", f"{path}: {error.strerror}") from None
    except ValueError:
        raise Refused("node.key_unsafe", "a path of a key holds a NUL") from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_mode & 0o077 or info.st_uid not in (os.geteuid(), 0):
            raise Refused(
                "node.key_unsafe", f"{path} must be a file that only its owner can read (chmod 600)"
            )
        return os.read(fd, MAX_KEY_FILE)
    finally:
        os.close(fd)


def b64decode(text: str) -> bytes:
    """Strict base64: standard alphabet, padded, and the one encoding of its bytes.

    Raises:
        Refused: `schema.field_invalid`.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise Refused("schema.field_invalid", "not base64") from None
    if base64.b64encode(data).decode() != text:
        raise Refused("schema.field_invalid", "not canonical base64")
    return data


def _spki(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
