from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.node.datasets.pseudonyms import HospitalKey, commit, held_out
from rapha.spec.refusals import Refused

KEY = HospitalKey(bytes(range(32)))
SALT = "5a" * 32


def _write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("data", "mode"),
    [
        (b"", 0o600),
        (os.urandom(31), 0o600),
        (os.urandom(33), 0o600),
        (os.urandom(64), 0o600),
        (bytes(32), 0o600),
        (b"\xff" * 32, 0o600),
        (b"password" * 4, 0o600),
        (bytes(range(32)), 0o644),
        (bytes(range(32)), 0o640),
        (bytes(range(32)), 0o602),
    ],
)
def test_an_unsafe_key_refuses(tmp_path: Path, data: bytes, mode: int) -> None:
    path = _write(tmp_path / "key", data, mode)
    with pytest.raises(Refused) as refused:
        HospitalKey.load(path)
    assert refused.value.code == "node.key_unsafe"


def test_a_missing_or_linked_key_refuses(tmp_path: Path) -> None:
    real = _write(tmp_path / "real", bytes(range(32)))
    (tmp_path / "link").symlink_to(real)
    for name in ("absent", "link"):
        with pytest.raises(Refused, match=r"node\.key_unsafe"):
            HospitalKey.load(tmp_path / name)


def test_a_created_key_loads_and_is_never_shown(tmp_path: Path) -> None:
    made = HospitalKey.create(tmp_path / "key")
    assert HospitalKey.load(tmp_path / "key") == made
    assert repr(made.secret)[2:-1] not in repr(made) and made.secret.hex() not in repr(made)
    with pytest.raises(FileExistsError):
        HospitalKey.create(tmp_path / "key")


def test_pseudonyms_are_stable_in_a_job_and_do_not_link_across_jobs_or_keys() -> None:
    one = KEY.pseudonyms("job-1", ["a", "b"])
    assert one == KEY.pseudonyms("job-1", ["a", "b"]) and len(set(one)) == 2
    assert not set(one) & set(KEY.pseudonyms("job-2", ["a", "b"]))
    assert not set(one) & set(HospitalKey(bytes(range(1, 33))).pseudonyms("job-1", ["a", "b"]))


def test_derived_keys_are_framed() -> None:
    assert KEY.derive("ab", "c") != KEY.derive("a", "bc")
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
