from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.node.datasets.consent import check_permission, match_opt_outs, read_opt_outs
from rapha.spec.dataset import DatasetManifest
from rapha.spec.refusals import Refused


def manifest(**changes: Any) -> DatasetManifest:
    return DatasetManifest.parse(
        {
            "dataset": "d",
            "title": "t",
            "profile": "tabular.d",
            "modality": "tabular",
            "fields": [{"name": "x", "dtype": "int64"}],
            "purposes": ["research/diagnosis"],
            "price_per_record": "0",
            "provenance": {"source": "s", "licence": "l"},
            "source": {
                "kind": "folder",
                "format": "parquet",
                "path": "r",
                "files": [{"name": "a", "sha256": "0" * 64, "size": 1}],
            },
            "patient_id": "patient_id",
            "organisations": ["demo-ai"],
            "consent_basis": "approved",
            "opt_outs": "opt-outs.txt",
            "salt": "5a" * 32,
            **changes,
        }
    )


def test_what_the_manifest_lists_is_permitted() -> None:
    check_permission(manifest(), "demo-ai", "research/diagnosis")


@pytest.mark.parametrize(
    ("changes", "organisation", "purpose", "code"),
    [
        ({"consent_basis": ""}, "demo-ai", "research/diagnosis", "consent.basis"),
        ({"consent_basis": "   "}, "demo-ai", "research/diagnosis", "consent.basis"),
        ({}, "demo-ai2", "research/diagnosis", "consent.organisation"),
        ({"organisations": []}, "demo-ai", "research/diagnosis", "consent.organisation"),
        ({}, "", "research/diagnosis", "consent.organisation"),
        ({}, "demo-ai", "research", "consent.purpose"),
        ({}, "demo-ai", "research/diagnosis/cancer", "consent.purpose"),
        ({}, "demo-ai", "marketing", "consent.purpose"),
        ({"purposes": []}, "demo-ai", "research/diagnosis", "consent.purpose"),
    ],
)
def test_all_else_refuses(changes: dict[str, Any], organisation: str, purpose: str, code: str) -> None:
    with pytest.raises(Refused) as refused:
        check_permission(manifest(**changes), organisation, purpose)
    assert refused.value.code == code


def _read(tmp_path: Path, data: bytes) -> frozenset[str]:
    (tmp_path / "opt-outs.txt").write_bytes(data)
    return read_opt_outs(manifest(), tmp_path)


@pytest.mark.parametrize(
    "data",
    [b"a\nb\n", b"a\r\nb", b"# who\n\n  a \n\tb\n", b"\xef\xbb\xbfa\nb", b"a\nb\na\n"],
)
def test_lists_as_systems_export_them(tmp_path: Path, data: bytes) -> None:
    assert _read(tmp_path, data) == {"a", "b"}


def test_an_empty_list_is_a_list(tmp_path: Path) -> None:
    assert _read(tmp_path, b"") == frozenset()


@pytest.mark.parametrize("data", [b"\xff\xfea\x00", b"a\x00b", b"x" * 129, b"a\rb"])
def test_what_is_no_list_refuses(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(Refused, match=r"node\.dataset_invalid"):
        _read(tmp_path, data)


def test_an_absent_linked_or_special_list_is_not_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "opt-outs.txt"
    with pytest.raises(Refused, match=r"node\.dataset_missing"):
        read_opt_outs(manifest(), tmp_path)
    os.mkfifo(path)
    with pytest.raises(Refused, match=r"node\.dataset_invalid"):
        read_opt_outs(manifest(), tmp_path)
    path.unlink()
    path.symlink_to("/dev/null")
    with pytest.raises(Refused, match=r"node\.dataset_invalid"):
        read_opt_outs(manifest(), tmp_path)


def test_a_list_may_name_people_who_are_not_here() -> None:
    assert match_opt_outs(frozenset({"a", "z"}), ["a", "b"]) == {"a"}


@pytest.mark.parametrize(
    ("listed", "patient"),
    [
        *[("mrn-7", "MRN-7"), ("007", "7"), ("7", "007"), ("MRN 7", "MRN-7"), ("ＭＲＮ7", "MRN-7")],
        *[("MRN007", "MRN7"), ("MRN-7", "MRN-0007"), ("٠٧", "7"), ("MRN7", "MRN۰۷")],
    ],
)
def test_a_withdrawal_that_would_silently_not_apply_refuses(listed: str, patient: str) -> None:
    with pytest.raises(Refused) as refused:
        match_opt_outs(frozenset({listed}), [patient, "other"])
    assert refused.value.code == "node.dataset_invalid"
    assert listed not in refused.value.detail and patient not in refused.value.detail.split()


def test_zeros_within_a_number_tell_patients_apart() -> None:
    assert match_opt_outs(frozenset({"MRN17"}), ["MRN107", "MRN170", "other"]) == frozenset()


def test_one_spelling_of_two_that_are_here_refuses_until_both_are_listed() -> None:
    with pytest.raises(Refused, match=r"node\.dataset_invalid"):
        match_opt_outs(frozenset({"A-1"}), ["A-1", "A1"])
    assert match_opt_outs(frozenset({"A-1", "A1"}), ["A-1", "A1", "A2"]) == {"A-1", "A1"}
    assert match_opt_outs(frozenset({"B"}), ["A-1", "A1", "B"]) == {"B"}, "twins whom nobody listed"


@given(
    st.text("abcXYZ0123456789", min_size=1, max_size=12).filter(lambda word: word.strip("0") != ""),
    st.sampled_from(["", "é", "ß"]),
    st.sampled_from("- ._/:#"),
    st.integers(0, 12),
)
def test_case_punctuation_and_zeros_never_hide_a_withdrawal(
    word: str, letter: str, mark: str, place: int
) -> None:
    patient = word + letter  # a letter beyond ASCII takes another way through the code
    listed = "00" + word[:place].swapcase() + mark + word[place:] + letter
    with pytest.raises(Refused, match=r"node\.dataset_invalid"):
        match_opt_outs(frozenset([listed]), [patient])
    assert match_opt_outs(frozenset([patient]), [patient]) == {patient}
