from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rapha.node.sources.imaging import labels
from rapha.spec.dataset import DatasetManifest, Field
from rapha.spec.imaging import LabelTable
from rapha.spec.paths import SourceFile
from rapha.spec.refusals import Refused
from rapha.testing import dicoms

LABEL = Field(name="outcome", path="outcome", dtype="float32", label=True)
CODED = Field(name="stage", path="stage", dtype="int8", label=True, codes={"I": 1, "II": 2})
OUTCOME = pa.array([1, 0, None], pa.float32())
COLUMNS = {"PatientID": ["P1", "P2", "P3"], "outcome": OUTCOME, "stage": ["I", "IV", "II"]}


def write(root: Path, **columns: Any) -> DatasetManifest:
    sink = io.BytesIO()
    pq.write_table(pa.table({name: column for name, column in columns.items() if column is not None}), sink)
    return put(root, sink.getvalue())


def put(root: Path, data: bytes) -> DatasetManifest:
    path = root / "labels" / "l.parquet"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o444)
    file = SourceFile(name="l.parquet", sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    table = LabelTable(path="labels", file=file, key="PatientID")
    return dicoms.manifest(dicoms.pixels(), LABEL, CODED, labels=table)


def read(manifest: DatasetManifest, root: Path) -> labels.Labels:
    found = labels.read(manifest, (LABEL, CODED), root)
    assert found is not None
    return found


def test_each_key_has_its_labels(tmp_path: Path) -> None:
    manifest = write(tmp_path, **COLUMNS)
    assert labels.columns_of(manifest, tmp_path) == {"outcome", "stage"}
    found = read(manifest, tmp_path)
    assert found.key == "PatientID" and found.of["outcome"] == {"P1": 1.0, "P2": 0.0}
    assert found.of["stage"] == {"P1": 1, "P3": 2}, "a text that is not listed is no label"


def test_without_a_table_there_are_no_labels(tmp_path: Path) -> None:
    assert labels.columns_of(dicoms.manifest(), tmp_path) == frozenset()
    assert labels.read(dicoms.manifest(), (), tmp_path) is None


def test_keys_may_be_integers_or_come_from_a_dictionary(tmp_path: Path) -> None:
    numbers = write(tmp_path, **{**COLUMNS, "PatientID": pa.array([7, 8, 9], pa.int64())})
    assert read(numbers, tmp_path).of["outcome"] == {"7": 1.0, "8": 0.0}
    (tmp_path / "labels" / "l.parquet").unlink()
    encoded = {name: pa.array(COLUMNS[name]).dictionary_encode() for name in ("PatientID", "stage")}
    assert read(write(tmp_path, **{**COLUMNS, **encoded}), tmp_path).of["stage"] == {"P1": 1, "P3": 2}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"PatientID": ["P1", "P1", "P3"]}, "missing or named twice"),
        ({"PatientID": ["P1", None, "P3"]}, "missing or named twice"),
        ({"PatientID": ["P1", "", "P3"]}, "missing or named twice"),
        ({"PatientID": [1.0, 2.0, 3.0]}, "not text or an integer"),
        ({"PatientID": None}, "has not one column PatientID"),
        ({"outcome": None}, "has not one column outcome"),
        ({"outcome": [1.0, 0.0, 1.0]}, "outcome is not of type float32"),
        ({"outcome": ["1", "0", "1"]}, "outcome is not of type float32"),
        ({"stage": pa.array([1, 2, 3], pa.int8())}, "stage is not text"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    manifest = write(tmp_path, **{**COLUMNS, **changes})
    with pytest.raises(Refused, match=says) as refused:
        read(manifest, tmp_path)
    assert refused.value.code == "node.dataset_invalid" and "P1" not in str(refused.value.detail)


def test_an_integer_that_a_column_can_not_hold_is_refused(tmp_path: Path) -> None:
    whole = Field(name="outcome", path="outcome", dtype="int64", label=True)
    for number, fits in ((2**53, True), (-(2**53) - 1, False)):
        outcome = pa.array([number, None, 0], pa.int64())
        manifest = write(tmp_path, **{**COLUMNS, "outcome": outcome})
        if fits:
            found = labels.read(manifest, (whole,), tmp_path)
            assert found is not None and found.of["outcome"] == {"P1": number, "P3": 0}
        else:
            with pytest.raises(Refused, match="past 2\\^53"):
                labels.read(manifest, (whole,), tmp_path)
        (tmp_path / "labels" / "l.parquet").unlink()


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"not a table"])
def test_what_is_no_parquet_is_refused(tmp_path: Path, data: bytes) -> None:
    manifest = put(tmp_path, data)
    for ask in (lambda: labels.columns_of(manifest, tmp_path), lambda: read(manifest, tmp_path)):
        with pytest.raises(Refused, match="not a readable Parquet file"):
            ask()


def test_another_file_than_the_manifests_is_refused(tmp_path: Path) -> None:
    manifest = write(tmp_path, **COLUMNS)
    path = tmp_path / "labels" / "l.parquet"
    path.chmod(0o644)
    with pytest.raises(Refused) as refused:
        read(manifest, tmp_path)
    assert refused.value.code == "node.dataset_writable"
    path.write_bytes(path.read_bytes()[::-1])
    path.chmod(0o444)
    with pytest.raises(Refused, match="digest"):
        read(manifest, tmp_path)
    path.unlink()
    with pytest.raises(Refused) as refused:
        read(manifest, tmp_path)
    assert refused.value.code == "node.dataset_missing"
