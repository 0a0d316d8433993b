from __future__ import annotations

import base64
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from rapha.evidence import hpke
from rapha.evidence.keys import SigningKey, write_private
from rapha.spec.refusals import Refused

PRIVATE = X25519PrivateKey.generate()
RECIPIENT = hpke.public_text(PRIVATE)


def text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


@given(st.binary(max_size=200), st.binary(max_size=64))
def test_only_the_recipient_opens_and_only_with_the_same_info(plain: bytes, info: bytes) -> None:
    sealed = hpke.seal(plain, RECIPIENT, info)
    assert hpke.open_sealed(sealed, PRIVATE, info) == plain
    for private, other in ((X25519PrivateKey.generate(), info), (PRIVATE, info + b"x")):
        with pytest.raises(Refused) as caught:
            hpke.open_sealed(sealed, private, other)
        assert caught.value.code == "policy.signature_invalid"


def test_every_flipped_or_missing_byte_is_noticed() -> None:
    sealed = hpke.seal(b"weights", RECIPIENT, b"job")
    changed = [sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1 :] for i in range(len(sealed))]
    for bad in [*changed, *(sealed[:i] for i in range(len(sealed))), sealed + b"\x00"]:
        with pytest.raises(Refused) as caught:
            hpke.open_sealed(bad, PRIVATE, b"job")
        assert caught.value.code == "policy.signature_invalid"


def test_sealing_twice_gives_two_ciphertexts() -> None:
    assert hpke.seal(b"x", RECIPIENT, b"") != hpke.seal(b"x", RECIPIENT, b"")


# Points of order 1, 2, 4 and 8, and their forms beyond the prime (RFC 7748, section 6.1; RFC 9180, 7.1.4).
P = 2**255 - 19
ORDER_8 = 325606250916557431795983626356110631294008115727848805560023387167927233504
SMALL = [0, 1, ORDER_8, P - 1, P, P + 1]


@pytest.mark.parametrize("point", SMALL)
def test_a_point_of_small_order_refuses_before_anything_is_sealed(point: int) -> None:
    recipient = text(point.to_bytes(32, "little"))
    for call in (lambda: hpke.parse_public(recipient), lambda: hpke.seal(b"x", recipient, b"")):
        with pytest.raises(Refused) as caught:
            call()
        assert caught.value.code == "schema.field_invalid"


BAD = {
    "empty": "",
    "31 bytes": text(bytes(range(31))),
    "33 bytes": text(bytes(range(33))),
    "free bits": RECIPIENT[:-2] + chr(ord(RECIPIENT[-2]) + 1) + "=",
    "newline": RECIPIENT + "\n",
    "an Ed25519 key": SigningKey.generate().verify_key.to_text(),
    "hexadecimal": "ab" * 32,
}


@pytest.mark.parametrize("recipient", BAD.values(), ids=BAD.keys())
def test_what_is_no_public_key_refuses(recipient: str) -> None:
    with pytest.raises(Refused) as caught:
        hpke.parse_public(recipient)
    assert caught.value.code == "schema.field_invalid"


def test_a_key_file_is_owner_only_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "results.hpke"
    public = hpke.generate(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert hpke.public_text(hpke.load(path)) == public == (tmp_path / "results.hpke.pub").read_text().strip()
    assert hpke.spki(hpke.load(path).public_key())[-32:] == base64.b64decode(public)
    with pytest.raises(FileExistsError):
        hpke.generate(path)


def _open_to_others(path: Path) -> None:
    hpke.generate(path)
    path.chmod(0o604)


UNSAFE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": lambda path: write_private(path, b""),
    "short": lambda path: write_private(path, text(bytes(31)).encode()),
    "binary": lambda path: write_private(path, bytes(range(128, 160))),
    "PEM": lambda path: SigningKey.generate().save(path),
    "readable by others": _open_to_others,
    "directory": lambda path: path.mkdir(),
    "FIFO": lambda path: os.mkfifo(path, 0o600),
}


@pytest.mark.parametrize("make", UNSAFE.values(), ids=UNSAFE.keys())
def test_an_unsafe_key_file_refuses(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "key"
    make(path)
    with pytest.raises(Refused) as caught:
        hpke.load(path)
    assert caught.value.code == "node.key_unsafe"
