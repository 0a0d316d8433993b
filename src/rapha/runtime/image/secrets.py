"""What looks like a private key or an access token, by its form and not by a word about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Secret:
    """Where one was seen (1-based line) and what it looks like; never the secret itself."""

    line: int
    kind: str


_FREE: Final = rb"(?<![A-Za-z0-9_/+-])"
_END: Final = rb"(?![A-Za-z0-9/+])"
# PEM (RFC 7468) and OpenSSH, with real line ends or escaped ones; a header without a body is only a mention.
_PEM: Final = (
    rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    rb"(?:[\s\\nrt\"',+]|(?:Proc-Type|DEK-Info|Version|Comment): [^\n\\]{0,100}){1,200}"
    rb"[A-Za-z0-9+/=]{24}"
)
# Each form has a literal that must occur, so that large files are passed over at memory speed.
_FORMS: Final[tuple[tuple[str, bytes, re.Pattern[bytes]], ...]] = tuple(
    (kind, anchor, re.compile(pattern))
    for kind, anchor, pattern in (
        ("a private key", b"PRIVATE KEY", _PEM),
        ("a PuTTY private key", b"PuTTY-User", rb"PuTTY-User-Key-File-[23]: .{1,60}\r?\nEncryption: "),
        ("an age secret key", b"AGE-SECRET-KEY-1", rb"AGE-SECRET-KEY-1[0-9A-Z]{58}"),
        ("an AWS access key", b"AKIA", _FREE + rb"AKIA(?![A-Z0-9]{9}EXAMPLE)[A-Z2-7]{16}" + _END),
        ("an AWS access key", b"ASIA", _FREE + rb"ASIA(?![A-Z0-9]{9}EXAMPLE)[A-Z2-7]{16}" + _END),
        ("a GitHub token", b"gh", _FREE + rb"gh[pousr]_[A-Za-z0-9]{36}"),
        ("a GitHub token", b"github_pat_", rb"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"),
        ("a GitLab token", b"glpat-", _FREE + rb"glpat-[A-Za-z0-9_-]{20}"),
        ("a Hugging Face token", b"hf_", _FREE + rb"hf_[A-Za-z]{34}" + _END),
        ("a Google API key", b"AIza", _FREE + rb"AIza[A-Za-z0-9_-]{35}" + _END),
        ("a Slack token", b"xox", _FREE + rb"xox[abposr]-[0-9]{6,}-[A-Za-z0-9-]{10,}"),
        ("a Stripe key", b"k_live_", _FREE + rb"[sr]k_live_[A-Za-z0-9]{20,}"),
        ("an npm token", b"npm_", _FREE + rb"npm_[A-Za-z0-9]{36}" + _END),
        ("a PyPI token", b"pypi-AgE", rb"pypi-AgE[A-Za-z0-9_-]{50,}"),
        ("a model provider's key", b"sk-", _FREE + rb"sk-(?:proj-|ant-[a-z0-9]+-)[A-Za-z0-9_-]{32,}"),
    )
)
# A raw 32-byte key in Base64 and nothing else is how the product writes its own private keys.
_RAW_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{43}=\s?\Z")
_KEY_STORES: Final = (".p12", ".pfx", ".jks", ".keystore", ".kdbx")


def find(path: str, data: bytes) -> Iterator[Secret]:
    """Yield what `data`, the contents of the file at `path`, gives away."""
    for kind, anchor, pattern in _FORMS:
        if anchor in data:
            for match in pattern.finditer(data):
                yield Secret(data.count(b"\n", 0, match.start()) + 1, kind)
                break
    if len(data) <= 46 and _RAW_KEY.match(data) and not path.endswith(".pub"):
        yield Secret(1, "a raw private key")
    if path.lower().endswith(_KEY_STORES):
        yield Secret(1, "a key store")
