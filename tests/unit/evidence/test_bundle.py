from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.evidence import bundle, canonical
from rapha.spec.receipt import SECTIONS
from rapha.spec.refusals import Refused

LOG: dict[str, Any] = {"checkpoint": "", "index": 0, "size": 1, "proof": []}
PARTS: dict[str, Any] = {
    **{name: {} for name in SECTIONS},
    **{"version": 1, "profile": "demo", "receipt": {}, "attestation": {}, "log_salt": "", "log_leaf": ""},
}


def code(data: bytes) -> str:
    with pytest.raises(Refused) as caught:
        bundle.read(data)
    return caught.value.code


def test_a_bundle_is_read_back() -> None:
    data = bundle.assemble(PARTS, LOG)
    read = bundle.read(data)
    assert read["log"] == LOG
    assert canonical.dumps(dict(read.parts)) == data
    assert read.section_digest("job") == hashlib.sha256(b"{}").hexdigest()


@pytest.mark.parametrize("name", sorted(bundle.CORE | {"log"}))
def test_any_section_missing_refuses(name: str) -> None:
    value = {**PARTS, "log": LOG}
    del value[name]
    assert code(canonical.dumps(value)) == "schema.field_missing"


@pytest.mark.parametrize("name", sorted(bundle.LOG))
def test_any_part_of_the_log_missing_refuses(name: str) -> None:
    log = {k: v for k, v in LOG.items() if k != name}
    assert code(bundle.assemble(PARTS, log)) == "schema.field_missing"


@pytest.mark.parametrize("name", ["keys", "trust", "Receipt", "receipt ", "__proto__", ""])
def test_any_other_section_refuses(name: str) -> None:
    assert code(bundle.assemble({**PARTS, name: {}}, LOG)) == "schema.field_unknown"
    assert code(bundle.assemble(PARTS, {**LOG, name: 1})) == "schema.field_unknown"


@pytest.mark.parametrize("version", [0, 2, -1, True, "1", None, [1], 1.5, 2**52])
def test_another_version_refuses(version: object) -> None:
    assert code(bundle.assemble({**PARTS, "version": version}, LOG)) == "schema.field_invalid"


@pytest.mark.parametrize("log", [None, [], "x", 1, ["checkpoint", "index", "size", "proof"]])
def test_a_log_that_is_no_object_refuses(log: object) -> None:
    assert code(canonical.dumps({**PARTS, "log": log})) == "schema.field_invalid"


GOOD = bundle.assemble(PARTS, LOG)
BYTES = {
    "empty": b"",
    "trailing newline": GOOD + b"\n",
    "leading space": b" " + GOOD,
    "cut": GOOD[:-1],
    "twice": GOOD + GOOD,
    "BOM": b"\xef\xbb\xbf" + GOOD,
    "duplicate section": GOOD[:-1] + b',"version":1}',
    "PDF": b"%PDF-1.7",
    "gzip": b"\x1f\x8b\x08",
}


@pytest.mark.parametrize("data", BYTES.values(), ids=BYTES.keys())
def test_bytes_that_are_not_the_one_form_refuse(data: bytes) -> None:
    assert code(data) == "schema.json"


@pytest.mark.parametrize("data", [b"[]", b"1", b'"x"', b"null", b"true"])
def test_json_that_is_no_object_refuses(data: bytes) -> None:
    assert code(data) == "schema.field_invalid"


def test_a_larger_file_refuses_unread() -> None:
    assert code(bytes(bundle.MAX_BYTES + 1)) == "schema.too_large"


def test_artifacts_of_two_jobs_or_names_have_their_own_context() -> None:
    infos = {bundle.artifact_info(job * 32, name) for job in ("11", "22") for name in ("a", "b", "")}
    assert len(infos) == 6


def test_the_log_learns_nothing_without_the_salt() -> None:
    leaves = {bundle.leaf(digest * 32, salt * 32) for digest in ("11", "22") for salt in ("33", "44")}
    assert len(leaves) == 4
    expected = hashlib.sha256(b"rapha-log-leaf-v1\x00" + b"\x33" * 32 + b"\x11" * 32).hexdigest()
    assert bundle.leaf("11" * 32, "33" * 32) == expected


@given(st.binary(max_size=64))
def test_any_bytes_refuse_and_never_crash(data: bytes) -> None:
    with pytest.raises(Refused):
        bundle.read(data)
