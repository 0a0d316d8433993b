from __future__ import annotations

import hashlib
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.node.datasets.manifest import load
from rapha.node.sources import parquet
from rapha.node.sources.filter import Column
from rapha.node.sources.interface import Quarantine, Surroundings
from rapha.node.sources.parquet import Locators, ParquetRecords, ParquetSource
from rapha.spec import cohort
from rapha.spec.dataset import DatasetManifest, Field, FolderSource, Provenance, Target
from rapha.spec.paths import SourceFile
from rapha.spec.refusals import Refused
from rapha.testing.hospital import write_table

CANARY = "CANARY-77"
FIELDS = (
    Field(name="age", dtype="int32"),
    Field(name="dose", dtype="float32"),
    Field(name="smoker", dtype="bool"),
    Field(name="code", dtype="string"),
    Field(name="label", dtype="float32", label=True),
)


def columns(**changes: Any) -> dict[str, Any]:
    return {
        "age": pa.array([50, 60, 70, None], pa.int32()),
        "dose": pa.array([17.99, float("nan"), float("inf"), 1.0], pa.float32()),
        "smoker": pa.array([True, False, True, False]),
        "code": pa.array(["C50", None, "C61", "C50"]),
        "label": pa.array([1, 0, 1, 0], pa.float32()),
        **changes,
    }


def write(root: Path, patients: Any = ("a", "b", "c", "d"), **changes: Any) -> DatasetManifest:
    root.mkdir(parents=True, exist_ok=True)
    return write_table(
        root,
        columns(**changes),
        patients,
        dataset="small",
        title="small",
        profile="tabular.small",
        modality="tabular",
        fields=FIELDS,
        target=Target(label="label"),
        provenance=Provenance(source="made for a test", licence="none"),
    )


def opened(root: Path) -> ParquetRecords:
    around = Surroundings(root, workers=1, tell=lambda stage, done, total: None)
    return ParquetSource().open(load(root / "manifest.json"), around)


def test_rows_are_judged_one_by_one(tmp_path: Path) -> None:
    write(tmp_path)
    records = opened(tmp_path)
    assert [Quarantine(int(q)).reason for q in records.index.quarantine] == [
        "record.none",
        "record.value_missing",
        "record.value_not_finite",
        "record.value_missing",
    ]
    assert records.index.patients == ["a", "b", "c", "d"]
    read: dict[str, Any] = dict(records.read(np.array([0, 3])))
    assert set(read) == {"age", "dose", "smoker", "label"}, "text is never served"
    assert read["dose"].dtype == np.float32 and read["dose"].tolist() == [np.float32(17.99), 1.0]
    assert records.index.locators[2].endswith(":2") and len(list(records.index.locators)) == 4
    records.close()


@pytest.mark.parametrize(
    ("patient", "reason"),
    [
        (None, Quarantine.PATIENT_MISSING),
        ("", Quarantine.PATIENT_MISSING),
        (" a", Quarantine.PATIENT_INVALID),
        ("a\n", Quarantine.PATIENT_INVALID),
        ("a\x00", Quarantine.PATIENT_INVALID),
        ("e\u0301", Quarantine.PATIENT_INVALID),
        ("x" * 129, Quarantine.PATIENT_INVALID),
        ("\u202ea", Quarantine.PATIENT_INVALID),
    ],
)
def test_a_record_of_nobody_is_quarantined(tmp_path: Path, patient: str | None, reason: Quarantine) -> None:
    write(tmp_path, patients=[patient, "b", "c", "d"])
    index = opened(tmp_path).index
    assert (index.quarantine[0], index.patients[0]) == (reason, "")


def test_one_long_identifier_costs_the_others_no_memory() -> None:
    words = ("x" * 128, *(f"p{i}" for i in range(20_000)))
    patients = Column(np.arange(len(words)), np.ones(len(words), dtype=np.bool_), words)
    tracemalloc.start()
    names, _ = parquet._identify(patients)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert names == list(words)
    assert most < 128 * len(words), "not 128 characters for each"


def test_integer_identifiers_are_text_here(tmp_path: Path) -> None:
    write(tmp_path, patients=pa.array([7, 8, 9, 7], pa.int64()))
    assert opened(tmp_path).index.patients == ["7", "8", "9", "7"]


SELECTED: list[tuple[dict[str, Any], list[int]]] = [
    ({"all": []}, [0, 1, 2, 3]),
    ({"field": "age", "gte": 60}, [1, 2]),
    ({"field": "age", "lt": 60.5}, [0, 1]),
    ({"field": "age", "ne": 50}, [1, 2]),
    ({"not": {"field": "age", "eq": 50}}, [1, 2, 3]),
    ({"field": "age", "present": False}, [3]),
    ({"field": "age", "in": [50, 70, 2**40]}, [0, 2]),
    ({"field": "age", "gt": -(2**50)}, [0, 1, 2]),
    ({"field": "dose", "eq": 17.99}, [0]),
    ({"field": "dose", "lte": 1e300}, [0, 2, 3]),
    ({"field": "dose", "present": True}, [0, 2, 3]),
    ({"field": "smoker", "eq": True}, [0, 2]),
    ({"field": "code", "in": ["C50", "C61"]}, [0, 2, 3]),
    ({"field": "code", "ne": "C50"}, [2]),
    ({"field": "code", "eq": ""}, []),
    ({"any": [{"field": "code", "eq": "C61"}, {"field": "age", "eq": 60}]}, [1, 2]),
    ({"all": [{"field": "smoker", "eq": True}, {"not": {"field": "age", "gt": 60}}]}, [0]),
]


@pytest.mark.parametrize(("text", "expected"), SELECTED, ids=[str(s[0])[:40] for s in SELECTED])
def test_cohorts_select(tmp_path: Path, text: dict[str, Any], expected: list[int]) -> None:
    write(tmp_path)
    parsed = cohort.parse(text)
    cohort.check(parsed, FIELDS)
    assert np.flatnonzero(opened(tmp_path).select(parsed)).tolist() == expected


def _refused(root: Path) -> Refused:
    with pytest.raises(Refused) as refused:
        opened(root)
    assert CANARY not in str(refused.value)
    return refused.value


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("NaN in a label", {"label": pa.array([1, float("nan"), 0, 0], pa.float32())}),
    ("null in a label", {"label": pa.array([1, None, 0, 0], pa.float32())}),
    ("infinite label", {"label": pa.array([1, float("inf"), 0, 0], pa.float32())}),
    ("another type", {"age": pa.array([1, 2, 3, 4], pa.int64())}),
    ("text for a number", {"dose": [CANARY] * 4}),
    ("number for a text", {"code": [1, 2, 3, 4]}),
    ("a list column", {"age": [[1], [2], [3], [4]]}),
    ("a float identifier", {"patient_id": pa.array([1.0, 2.0, 3.0, 4.0])}),
]


@pytest.mark.parametrize("changes", [w[1] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_file_that_does_not_fit_refuses(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path, **changes)
    assert _refused(tmp_path).code == "node.dataset_invalid"


def rewrite(root: Path, data: bytes) -> None:
    """Put other bytes in the place of the file, with a manifest that vouches for them."""
    folder, path = root / "records", root / "records" / "part-0.parquet"
    folder.chmod(0o755)
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o444)
    folder.chmod(0o555)
    file = SourceFile(name=path.name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    manifest = load(root / "manifest.json")
    source = FolderSource(kind="folder", format="parquet", path="records", files=(file,))
    text = manifest.model_copy(update={"source": source}).model_dump_json()
    (root / "manifest.json").write_text(text)


def _table(root: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    rewrite(root, sink.getvalue().to_pybytes())


@pytest.mark.parametrize("missing", ["age", "code", "label", "patient_id"])
def test_a_missing_column_refuses_and_is_named(tmp_path: Path, missing: str) -> None:
    write(tmp_path)
    table = pa.table({"patient_id": list("abcd"), **columns()}).drop_columns([missing])
    _table(tmp_path, table)
    refused = _refused(tmp_path)
    assert refused.code == "node.dataset_invalid" and missing in refused.detail


def test_a_column_twice_refuses(tmp_path: Path) -> None:
    write(tmp_path)
    table = pa.table({"patient_id": list("abcd"), **columns()})
    _table(tmp_path, table.append_column("age", table.column("age")))
    assert _refused(tmp_path).code == "node.dataset_invalid"


def test_no_rows_refuse(tmp_path: Path) -> None:
    write(tmp_path)
    _table(tmp_path, pa.table({"patient_id": list("abcd"), **columns()}).slice(0, 0))
    assert _refused(tmp_path).code == "node.dataset_invalid"


def test_columns_beyond_the_manifest_are_not_read(tmp_path: Path) -> None:
    write(tmp_path, name=[CANARY] * 4)
    assert "name" not in opened(tmp_path).read(np.array([0]))


def test_too_many_rows_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setattr("rapha.node.sources.parquet.MAX_ROWS", 3)
    assert _refused(tmp_path).code == "node.dataset_invalid"


def test_too_many_bytes_refuse_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setattr("rapha.node.sources.folder.MAX_TOTAL_BYTES", 3)
    assert _refused(tmp_path).code == "node.dataset_invalid"


@given(data=st.data())
def test_damaged_files_refuse_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = tmp_path_factory.mktemp("damaged")
    write(root)
    bytes_ = bytearray((root / "records" / "part-0.parquet").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        bytes_[data.draw(st.integers(0, len(bytes_) - 1))] = data.draw(st.integers(0, 255))
    rewrite(root, bytes(bytes_[: data.draw(st.integers(0, len(bytes_)))]))
    try:
        opened(root).close()
    except Refused as refused:
        assert refused.code == "node.dataset_invalid"


def _chmod_folder(root: Path) -> None:
    (root / "records").chmod(0o755)


def _chmod_file(root: Path) -> None:
    (root / "records" / "part-0.parquet").chmod(0o644)


def _group_writable(root: Path) -> None:
    (root / "records" / "part-0.parquet").chmod(0o464)


@pytest.mark.parametrize("change", [_chmod_folder, _chmod_file])
def test_what_the_node_can_write_refuses(tmp_path: Path, change: Callable[[Path], None]) -> None:
    write(tmp_path)
    change(tmp_path)
    assert _refused(tmp_path).code == "node.dataset_writable"


@pytest.mark.skipif(os.geteuid() != 0, reason="for root the mode bits decide")
def test_for_root_write_permission_of_anyone_refuses(tmp_path: Path) -> None:
    write(tmp_path)
    _group_writable(tmp_path)
    assert _refused(tmp_path).code == "node.dataset_writable"


def test_a_read_only_mount_passes_whatever_the_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    _chmod_folder(tmp_path)
    _chmod_file(tmp_path)
    real = os.fstatvfs

    def read_only(fd: int) -> os.statvfs_result:
        flags = list(real(fd))
        flags[8] |= os.ST_RDONLY
        return os.statvfs_result(flags)

    monkeypatch.setattr(os, "fstatvfs", read_only)
    opened(tmp_path).close()


def _gone(root: Path) -> None:
    (root / "records").rename(root / "away")


def _file_gone(root: Path) -> None:
    _swap(root, lambda path: None)


def _swap(root: Path, make: Callable[[Path], None]) -> None:
    folder, path = root / "records", root / "records" / "part-0.parquet"
    folder.chmod(0o755)
    path.rename(root / "away.parquet")
    make(path)
    folder.chmod(0o555)


def _linked_file(root: Path) -> None:
    _swap(root, lambda path: path.symlink_to(root / "away.parquet"))


def _fifo(root: Path) -> None:
    _swap(root, lambda path: os.mkfifo(path, 0o444))


def _folder_as_file(root: Path) -> None:
    _swap(root, lambda path: path.mkdir(mode=0o555))


def _linked_folder(root: Path) -> None:
    _gone(root)
    (root / "records").symlink_to(root / "away")


def _file_as_folder(root: Path) -> None:
    _gone(root)
    (root / "records").write_text("")


def _unlisted(root: Path) -> None:
    folder = root / "records"
    folder.chmod(0o755)
    (folder / "more.parquet").write_bytes(b"")
    folder.chmod(0o555)


def _other_bytes(root: Path) -> None:
    def make(path: Path) -> None:
        data = bytearray((root / "away.parquet").read_bytes())
        data[10] ^= 1
        path.write_bytes(data)
        path.chmod(0o444)

    _swap(root, make)


def _longer(root: Path) -> None:
    def make(path: Path) -> None:
        path.write_bytes((root / "away.parquet").read_bytes() + b"x")
        path.chmod(0o444)

    _swap(root, make)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_gone, "node.dataset_missing"),
        (_file_gone, "node.dataset_missing"),
        (_linked_file, "node.dataset_invalid"),
        (_fifo, "node.dataset_invalid"),
        (_folder_as_file, "node.dataset_invalid"),
        (_linked_folder, "node.dataset_invalid"),
        (_file_as_folder, "node.dataset_invalid"),
        (_unlisted, "node.dataset_invalid"),
        (_other_bytes, "node.dataset_invalid"),
        (_longer, "node.dataset_invalid"),
    ],
)
def test_hostile_folders_refuse(tmp_path: Path, change: Callable[[Path], None], code: str) -> None:
    write(tmp_path)
    change(tmp_path)
    assert _refused(tmp_path).code == code


def test_a_manifest_that_is_a_link_or_absent_refuses(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "link.json").symlink_to(tmp_path / "manifest.json")
    for name, code in (("link.json", "node.dataset_invalid"), ("none.json", "node.dataset_missing")):
        with pytest.raises(Refused) as refused:
            load(tmp_path / name)
        assert refused.value.code == code


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_locators_are_the_same_one_by_one_and_in_order(rows: list[int]) -> None:
    locators = Locators(tuple(f"{i:064x}" for i in range(len(rows))), tuple(rows))
    assert len(locators) == sum(rows) and [locators[i] for i in range(len(locators))] == list(locators)
    assert locators[1:3] == list(locators)[1:3]
    for beyond in (-1, len(locators)):
        with pytest.raises(IndexError):
            locators[beyond]
