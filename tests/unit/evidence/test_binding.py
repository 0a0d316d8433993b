from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rapha.evidence import hpke
from rapha.evidence.attestation import binding
from rapha.evidence.keys import SigningKey
from rapha.spec.refusals import Refused

KEY = SigningKey.generate().verify_key
RECIPIENT = hpke.public_text(X25519PrivateKey.generate())
PARTS: dict[str, str] = {
    "nonce": "11" * 32,
    "signing_key": KEY.to_text(),
    "hpke_key": RECIPIENT,
    "subject": "22" * 32,
    "policy": "33" * 32,
}


def test_report_data_is_what_the_design_says() -> None:
    expected = hashlib.sha512(
        b"rapha-attest-v1\x00"
        + b"\x11" * 32
        + hashlib.sha256(KEY.spki).digest()
        + hashlib.sha256(base64.b64decode(RECIPIENT)).digest()
        + b"\x22" * 32
        + b"\x33" * 32
    ).hexdigest()
    assert binding.report_data(**PARTS) == expected


OTHERS = {
    "nonce": "12" * 32,
    "signing_key": SigningKey.generate().verify_key.to_text(),
    "hpke_key": hpke.public_text(X25519PrivateKey.generate()),
    "subject": binding.NO_SUBJECT,
    "policy": "22" * 32,
}


@pytest.mark.parametrize(("part", "other"), OTHERS.items())
def test_every_part_counts(part: str, other: str) -> None:
    assert binding.report_data(**{**PARTS, part: other}) != binding.report_data(**PARTS)


def test_subject_and_policy_do_not_change_places() -> None:
    swapped = {**PARTS, "subject": PARTS["policy"], "policy": PARTS["subject"]}
    assert binding.report_data(**swapped) != binding.report_data(**PARTS)


HEX: list[Any] = ["", "11", "11" * 31, "11" * 33, "AA" * 32, "1 " * 32, "11 " * 21 + "1", "zz" * 32, "é" * 64]


@pytest.mark.parametrize("part", ["nonce", "subject", "policy"])
@pytest.mark.parametrize("value", HEX)
def test_a_part_of_another_length_refuses(part: str, value: str) -> None:
    with pytest.raises(Refused) as caught:
        binding.report_data(**{**PARTS, part: value})
    assert caught.value.code == "schema.field_invalid"


@pytest.mark.parametrize("part", ["signing_key", "hpke_key"])
@pytest.mark.parametrize("value", ["", "AAAA", "A" * 60, base64.b64encode(bytes(32)).decode(), "é"])
def test_a_key_that_is_none_refuses(part: str, value: str) -> None:
    with pytest.raises(Refused) as caught:
        binding.report_data(**{**PARTS, part: value})
    assert caught.value.code == "schema.field_invalid"
