from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapha.evidence import checkpoint
from rapha.evidence.checkpoint import Checkpoint
from rapha.evidence.keys import SigningKey, VerifyKey
from rapha.spec.refusals import Refused

KEY = SigningKey.generate()
HEAD = Checkpoint("log.example/rapha", 7, hashlib.sha256(b"root").digest())
NOTE = checkpoint.sign(HEAD, KEY)


def verify(text: str) -> Checkpoint:
    return checkpoint.verify(text, origin=HEAD.origin, key=KEY.verify_key)


def test_a_signed_checkpoint_reads_back() -> None:
    assert verify(NOTE) == HEAD
    lines = NOTE.split("\n")
    assert lines[:4] == [HEAD.origin, "7", base64.b64encode(HEAD.root).decode(), ""]
    assert lines[4].startswith(f"— {HEAD.origin} ")
    assert lines[5:] == [""]


def test_the_published_note_of_the_go_implementation_verifies() -> None:
    """The key of golang.org/x/mod/sumdb/note's documentation: its hash and its verifier text."""
    raw = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    spki = bytes.fromhex("302a300506032b6570032100") + raw[1:]
    key = VerifyKey(spki)
    assert checkpoint.key_hash("PeterNeumann", key).hex() == "c74f20a3"
    expected = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    assert checkpoint.verifier_text("PeterNeumann", key) == expected
    text = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n"
    )
    signature = base64.b64decode(
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    )
    assert signature[:4] == checkpoint.key_hash("PeterNeumann", key)
    assert key.verifies(signature[4:], text.encode())


@settings(max_examples=200)
@given(st.integers(0, len(NOTE.encode()) - 1), st.integers(1, 255))
def test_no_byte_is_free(at: int, flip: int) -> None:
    data = bytearray(NOTE.encode())
    data[at] ^= flip
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    with pytest.raises(Refused, match=r"policy\.log_invalid"):
        verify(text)


BODY, SIGNED = NOTE.split("\n\n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        BODY,
        NOTE[:-1],
        NOTE + "\n",
        NOTE.replace("\n", "\r\n"),
        NOTE.replace("\n7\n", "\n07\n"),
        NOTE.replace("\n7\n", "\n+7\n"),
        NOTE.replace("\n7\n", "\n٧\n"),
        NOTE.replace("\n7\n", "\n-7\n"),
        NOTE.replace("\n7\n", "\n99999999999999999\n"),
        f"{BODY}\nextension\n\n{SIGNED}",
        NOTE + SIGNED,
        f"{BODY}\n\n— other.example {SIGNED.split(' ')[2]}",
        f"{BODY}\n\n- {HEAD.origin} {SIGNED.split(' ')[2]}",
        f"{BODY}\n\n— {HEAD.origin} AAAA\n",
        f"{BODY}\n\n— {HEAD.origin} !!!!\n",
        NOTE.replace("=\n\n", "\n\n"),
        " " + NOTE,
        "x" * 2000,
    ],
    ids=range(19),
)
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(Refused, match=r"policy\.log_invalid"):
        verify(text)


def test_a_root_has_one_spelling() -> None:
    root = base64.b64encode(HEAD.root).decode()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    same = root[:-2] + alphabet[alphabet.index(root[-2]) ^ 1] + "="
    assert base64.b64decode(same) == HEAD.root
    with pytest.raises(Refused, match="canonical"):
        verify(NOTE.replace(root, same))


def test_another_log_or_key_is_refused() -> None:
    with pytest.raises(Refused, match=r"of 'log\.example/rapha'"):
        checkpoint.verify(NOTE, origin="log.example/other", key=KEY.verify_key)
    with pytest.raises(Refused, match="another key"):
        checkpoint.verify(NOTE, origin=HEAD.origin, key=SigningKey.generate().verify_key)


def test_the_key_hash_alone_proves_nothing() -> None:
    forged = checkpoint.sign(HEAD, SigningKey.generate())
    line = base64.b64decode(forged.split(" ")[-1])
    swapped = base64.b64encode(checkpoint.key_hash(HEAD.origin, KEY.verify_key) + line[4:]).decode()
    with pytest.raises(Refused, match="does not verify"):
        verify(f"{BODY}\n\n— {HEAD.origin} {swapped}\n")


@pytest.mark.parametrize("origin", ["", "a b", "a+b", "a\nb", "é", "x" * 201])
def test_an_origin_that_could_be_misread_is_refused(origin: str) -> None:
    with pytest.raises(Refused, match=r"schema\.field_invalid"):
        Checkpoint(origin, 0, b"\x00" * 32)


@pytest.mark.parametrize(("size", "root"), [(-1, b"x" * 32), (2**53, b"x" * 32), (0, b"x" * 31)])
def test_a_head_that_cannot_be_is_refused(size: int, root: bytes) -> None:
    with pytest.raises(Refused, match=r"schema\.field_invalid"):
        Checkpoint("log.example", size, root)


@given(st.integers(0, 2**53 - 1), st.binary(min_size=32, max_size=32))
def test_every_head_reads_back(size: int, root: bytes) -> None:
    head = Checkpoint("log.example", size, root)
    note = checkpoint.sign(head, KEY)
    assert checkpoint.verify(note, origin="log.example", key=KEY.verify_key) == head


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(Refused, match=r"policy\.log_invalid"):
        checkpoint.parse(text)
