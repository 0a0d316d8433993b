from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.node.datasets.pseudonyms import HospitalKey, commit, held_out
from rapha.spec.dataset import PSEUDONYM_BYTES
from rapha.spec.refusals import Refused

KEY = HospitalKey(bytes(range(32)))
OTHER = HospitalKey(bytes(range(1, 33)))
SALT = "5a" * 32
GOOD = bytes.fromhex("b1946ac92492d2347c6235b4d2611184e3c0af9f6a1d27c05e8b7fd95a13c846")


def _write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


UNSAFE: list[tuple[str, bytes, int]] = [
    ("empty", b"", 0o600),
    ("short", os.urandom(31), 0o600),
    ("long", os.urandom(33), 0o600),
    ("two keys", os.urandom(64), 0o600),
    ("zeros", bytes(32), 0o600),
    ("ones", b"\xff" * 32, 0o600),
    ("a word again and again", b"password" * 4, 0o600),
    ("two words", b"a password that a person thought", 0o600),
    ("hexadecimal text of half a key", GOOD[:16].hex().encode(), 0o600),
    ("base64 text", b"sZRqySSS0jR8YjW00mERhOPAr59qHSfA", 0o600),
    ("counting", bytes(range(32)), 0o600),
    ("counting down in sevens", bytes(-7 * i % 256 for i in range(32)), 0o600),
    ("eight values", bytes(range(0, 256, 32)) * 4, 0o600),
    ("sixteen bytes twice", GOOD[:16] * 2, 0o600),
    ("sixteen different bytes twice", bytes(i * i * 7 % 251 for i in range(1, 17)) * 2, 0o600),
    ("half zeros", GOOD[:16] + bytes(16), 0o600),
    ("read by others", GOOD, 0o644),
    ("read by the group", GOOD, 0o640),
    ("written by others", GOOD, 0o602),
]


@pytest.mark.parametrize(("data", "mode"), [u[1:] for u in UNSAFE], ids=[u[0] for u in UNSAFE])
def test_an_unsafe_key_refuses(tmp_path: Path, data: bytes, mode: int) -> None:
    path = _write(tmp_path / "key", data, mode)
    with pytest.raises(Refused) as refused:
        HospitalKey.load(path)
    assert refused.value.code == "node.key_unsafe"
    assert not data or (data.hex() not in str(refused.value) and repr(data) not in str(refused.value))


def test_a_missing_linked_or_special_key_refuses(tmp_path: Path) -> None:
    real = _write(tmp_path / "real", GOOD)
    assert HospitalKey.load(real).secret == GOOD
    (tmp_path / "link").symlink_to(real)
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "folder").mkdir()
    for name in ("absent", "link", "fifo", "folder"):
        with pytest.raises(Refused, match=r"node\.key_unsafe"):
            HospitalKey.load(tmp_path / name)


def test_a_created_key_loads_and_is_never_shown(tmp_path: Path) -> None:
    made = HospitalKey.create(tmp_path / "key")
    assert HospitalKey.load(tmp_path / "key") == made
    assert repr(made.secret)[2:-1] not in repr(made) and made.secret.hex() not in repr(made)
    with pytest.raises(FileExistsError):
        HospitalKey.create(tmp_path / "key")


def test_an_id_names_a_key_and_is_no_part_of_what_it_derives() -> None:
    assert len(KEY.id) == 32 and len({KEY.id, OTHER.id, HospitalKey(GOOD).id}) == 3
    assert KEY.id == HospitalKey(bytes(range(32))).id
    assert KEY.id not in KEY.secret.hex() and KEY.id not in hashlib.sha256(KEY.secret).hexdigest()
    assert KEY.derive("key-id").hex()[:32] == KEY.id, "one derivation, so no other purpose may be called so"


def of(
    identifiers: list[str], job: str = "job-1", kind: str = "PatientID", key: HospitalKey = KEY
) -> list[bytes]:
    found = key.pseudonyms(job, kind, identifiers)
    assert found.dtype == np.uint8 and found.shape == (len(identifiers), PSEUDONYM_BYTES)
    assert found.flags.c_contiguous
    return [bytes(row) for row in found]


def test_pseudonyms_are_stable_in_a_job_and_do_not_link_across_jobs_kinds_or_keys() -> None:
    names = ["a", "b", "1.2.840.113619.2.55.3"]
    one = of(names)
    assert one == of(names) and len(set(one)) == 3
    others = (of(names, job="job-2"), of(names, kind="StudyInstanceUID"), of(names, key=OTHER))
    for other in others:
        assert not set(one) & set(other)


def test_pseudonyms_are_the_first_half_of_hmac_sha256() -> None:
    derived = KEY.derive("pseudonym", "job-1", "PatientID")
    wanted = hmac.digest(derived, b"\xc3\xa9-7", "sha256")[:PSEUDONYM_BYTES]
    assert of(["é-7"]) == [wanted]
    assert wanted.hex() == "6d0de252b1561abd6d5e117577c897d6"


def test_job_and_kind_are_framed() -> None:
    assert of(["a"], job="j", kind="kx") != of(["a"], job="jk", kind="x")
    assert of(["ab"], kind="k") != of(["b"], kind="ka")


@given(
    st.lists(st.text(st.characters(), max_size=4) | st.sampled_from(["", "a", "\ud800", "\x00"]), max_size=40)
)
def test_what_is_remembered_is_what_is_computed(identifiers: list[str]) -> None:
    alone = [of([identifier])[0] for identifier in identifiers]
    assert of(identifiers) == alone
    assert len(set(alone)) == len(set(identifiers)), "different identifiers stay different"
    assert all(
        (row == bytes(PSEUDONYM_BYTES)) == (not word) for row, word in zip(alone, identifiers, strict=True)
    )


@pytest.mark.parametrize("each", [1, 2, 700])
@pytest.mark.parametrize("blank", [False, True])
def test_long_lists_with_and_without_repeats_come_out_alike(each: int, blank: bool) -> None:
    names = [f"p{i // each}" for i in range(2000)]
    names += [""] * blank + names[-1:]
    wanted = {name: of([name])[0] for name in set(names)}
    assert of(names) == [wanted[name] for name in names]


def test_nothing_gives_nothing() -> None:
    assert of([]) == []


def test_derived_keys_are_framed() -> None:
    assert KEY.derive("ab", "c") != KEY.derive("a", "bc")
    assert KEY.derive("a", "b", "c") != KEY.derive("a", "bc") and KEY.derive("a") != KEY.derive("a", "")
    assert commit(KEY.derive("a", "b"), b"x") != commit(KEY.derive("a", "c"), b"x")


@given(st.lists(st.text(max_size=8), max_size=30), st.randoms())
def test_the_split_of_a_patient_depends_on_nothing_else(patients: list[str], random: object) -> None:
    alone = [held_out(SALT, "d", [patient], 0.2)[0] for patient in patients]
    assert held_out(SALT, "d", patients, 0.2) == alone
    assert held_out(SALT, "d", patients[::-1], 0.2) == alone[::-1]


def test_the_split_has_about_its_fraction_and_grows_with_it() -> None:
    patients = [f"p{i}" for i in range(10_000)]
    small, large = held_out(SALT, "d", patients, 0.2), held_out(SALT, "d", patients, 0.3)
    assert 1_800 < sum(small) < 2_200
    assert all(b for a, b in zip(small, large, strict=True) if a)


def test_datasets_and_salts_split_independently() -> None:
    patients = [f"p{i}" for i in range(200)]
    one = held_out(SALT, "d", patients, 0.5)
    assert one != held_out(SALT, "e", patients, 0.5)
    assert one != held_out("a5" * 32, "d", patients, 0.5)


def test_a_known_vector_pins_the_split() -> None:
    # A change here would let a later job train on an earlier job's test labels.
    held = held_out(SALT, "breast-fna", [f"fna-{i:03d}" for i in range(24)], 0.2)
    assert [i for i, h in enumerate(held) if h] == VECTOR


VECTOR = [0, 3, 7, 11, 15, 16, 17, 19]
