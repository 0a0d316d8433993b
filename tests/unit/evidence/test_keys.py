from __future__ import annotations

import base64
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from rapha.evidence.keys import SigningKey, VerifyKey, b64decode, read_private, write_private
from rapha.spec.refusals import Refused

DER = serialization.Encoding.DER
DESCRIPTORS = Path("/proc/self/fd")
PEM = serialization.Encoding.PEM
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
PKCS8 = serialization.PrivateFormat.PKCS8
# RFC 8032, section 7.1, test 2.
SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def code(call: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value.code


def test_signs_and_verifies_the_vector_of_rfc_8032() -> None:
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(SECRET))
    assert key.sign(b"\x72") == SIGNATURE
    assert key.verify_key.verifies(SIGNATURE, b"\x72")
    assert not key.verify_key.verifies(SIGNATURE, b"\x73")
    assert not key.verify_key.verifies(b"", b"\x72")


def test_every_flipped_bit_of_a_signature_is_noticed() -> None:
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(SECRET)).verify_key
    for i in range(64 * 8):
        bad = bytearray(SIGNATURE)
        bad[i // 8] ^= 1 << i % 8
        assert not key.verifies(bytes(bad), b"\x72")


def test_a_signature_with_the_group_order_added_is_refused() -> None:
    order = 2**252 + 27742317777372353535851937790883648493
    s = int.from_bytes(SIGNATURE[32:], "little") + order
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(SECRET)).verify_key
    assert not key.verifies(SIGNATURE[:32] + s.to_bytes(32, "little"), b"\x72")


def test_a_key_is_saved_owner_only_and_loaded_again(tmp_path: Path) -> None:
    key = SigningKey.generate()
    path = tmp_path / "new" / "key.pem"
    key.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path).keyid == key.keyid
    public = path.with_name("key.pem.pub").read_text()
    assert VerifyKey.from_text(public.strip()) == key.verify_key
    with pytest.raises(FileExistsError):
        SigningKey.generate().save(path)
    assert SigningKey.load(path).keyid == key.keyid


def test_the_private_key_is_not_in_the_repr() -> None:
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(SECRET))
    assert repr(key) == f"SigningKey({key.keyid[:16]}…)"


def _open_to_others(path: Path) -> None:
    SigningKey.generate().save(path)
    path.chmod(0o640)


def _link(path: Path) -> None:
    SigningKey.generate().save(path.with_name("real.pem"))
    path.symlink_to(path.with_name("real.pem"))


def _truncated(path: Path) -> None:
    SigningKey.generate().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _pem(path: Path, key: x25519.X25519PrivateKey | ec.EllipticCurvePrivateKey) -> None:
    write_private(path, key.private_bytes(PEM, PKCS8, serialization.NoEncryption()))


def _encrypted(path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    write_private(path, key.private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"x")))


def _public(path: Path) -> None:
    write_private(path, Ed25519PrivateKey.generate().public_key().public_bytes(PEM, SPKI))


UNSAFE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "readable by the group": _open_to_others,
    "symbolic link": _link,
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "directory": lambda path: path.mkdir(mode=0o700),
    "FIFO": lambda path: os.mkfifo(path, 0o600),
    "empty": lambda path: write_private(path, b""),
    "random bytes": lambda path: write_private(path, bytes(range(256))),
    "truncated PEM": _truncated,
    "X25519": lambda path: _pem(path, x25519.X25519PrivateKey.generate()),
    "P-256": lambda path: _pem(path, ec.generate_private_key(ec.SECP256R1())),
    "encrypted PEM": _encrypted,
    "public key": _public,
    "larger than any key": lambda path: write_private(path, b"-" * 100_000),
}


@pytest.mark.parametrize("make", UNSAFE.values(), ids=UNSAFE.keys())
def test_an_unsafe_key_file_refuses_and_never_blocks(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "key.pem"
    make(path)
    before = set(DESCRIPTORS.iterdir())
    assert code(lambda: SigningKey.load(path)) == "node.key_unsafe"
    assert len(set(DESCRIPTORS.iterdir()) - before) <= 1  # the one that iterdir itself had open


def test_an_rsa_key_refuses(tmp_path: Path, rsa_key: rsa.RSAPrivateKey) -> None:
    path = tmp_path / "key.pem"
    write_private(path, rsa_key.private_bytes(PEM, PKCS8, serialization.NoEncryption()))
    assert code(lambda: SigningKey.load(path)) == "node.key_unsafe"
    spki = rsa_key.public_key().public_bytes(DER, SPKI)
    assert code(lambda: VerifyKey.from_text(base64.b64encode(spki).decode())) == "schema.field_invalid"


def test_a_path_with_a_nul_refuses() -> None:
    assert code(lambda: read_private(Path("a\x00b"))) == "node.key_unsafe"


def test_a_secret_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "link", b"secret")
    assert not (tmp_path / "target").exists()


GOOD = SigningKey(Ed25519PrivateKey.from_private_bytes(SECRET)).verify_key
BAD_SPKI: dict[str, bytes] = {
    "empty": b"",
    "raw key": GOOD.spki[-32:],
    "trailing byte": GOOD.spki + b"\x00",
    "short": GOOD.spki[:-1],
    "X25519": x25519.X25519PrivateKey.generate().public_key().public_bytes(DER, SPKI),
    "P-256": ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(DER, SPKI),
    "long-form length": b"\x30\x81" + GOOD.spki[1:],
    "parameters present": b"\x30\x2c\x30\x07\x06\x03\x2b\x65\x70\x05\x00" + GOOD.spki[9:],
}


@pytest.mark.parametrize("spki", BAD_SPKI.values(), ids=BAD_SPKI.keys())
def test_only_the_one_der_form_of_an_ed25519_key_is_a_key(spki: bytes) -> None:
    text = base64.b64encode(spki).decode()
    assert code(lambda: VerifyKey.from_text(text)) == "schema.field_invalid"


BAD_BASE64 = {
    "no padding": "YQ",
    "free bits": "YR==",
    "newline": "YQ==\n",
    "space": " YQ==",
    "inside space": "YQ ==",
    "url alphabet": "-_-_",
    "too much padding": "YQ====",
    "text after padding": "YQ==YQ==",
    "other script": "ÿÿÿÿ",
    "surrogate": "\ud800AAA",
    "NUL": "YQ=\x00",
}


@pytest.mark.parametrize("text", BAD_BASE64.values(), ids=BAD_BASE64.keys())
def test_base64_has_one_form(text: str) -> None:
    assert code(lambda: b64decode(text)) == "schema.field_invalid"


@given(st.binary(max_size=80))
def test_base64_round_trips(data: bytes) -> None:
    assert b64decode(base64.b64encode(data).decode()) == data


@given(st.text(max_size=12))
def test_any_text_is_the_one_base64_of_its_bytes_or_refuses(text: str) -> None:
    try:
        data = b64decode(text)
    except Refused as refused:
        assert refused.code == "schema.field_invalid"
        return
    assert base64.b64encode(data).decode() == text
