"""Columns of lists, dates, codes and identifiers, through real Parquet files."""

from __future__ import annotations

import hashlib
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.node.sources import columns, parquet_file
from rapha.node.sources.interface import Quarantine, Surroundings
from rapha.node.sources.parquet import ParquetRecords, ParquetSource
from rapha.runtime.broker.store import Ragged, TableStore
from rapha.spec import cohort
from rapha.spec.dataset import DatasetManifest, Field, Provenance
from rapha.spec.refusals import Refused
from rapha.testing.hospital import write_table

if TYPE_CHECKING:
    from rapha.node.sources.interface import Sink

CANARY = "CANARY-77"
NONE, MISSING, NOT_FINITE, SHAPE = (
    Quarantine.NONE,
    Quarantine.VALUE_MISSING,
    Quarantine.VALUE_NOT_FINITE,
    Quarantine.SHAPE,
)
X = Field(name="x", dtype="float32")


def written(
    root: Path, table: dict[str, Any], *fields: Field, patients: Any = None
) -> tuple[DatasetManifest, Path]:
    root.mkdir(parents=True, exist_ok=True)
    rows = len(next(iter(table.values())))
    manifest = write_table(
        root,
        {"x": pa.array([1.0] * rows, pa.float32()), **table},
        patients or [f"p{i}" for i in range(rows)],
        dataset="small",
        title="small",
        profile="tabular.small",
        modality="tabular",
        fields=(X, *fields),
        provenance=Provenance(source="made for a test", licence="none"),
    )
    return manifest, root


def opened(root: Path, table: dict[str, Any], *fields: Field, patients: Any = None) -> ParquetRecords:
    manifest, _ = written(root, table, *fields, patients=patients)
    return ParquetSource().open(manifest, Surroundings(root, 1, lambda stage, done, total: None))


def everything(records: ParquetRecords) -> dict[str, Any]:
    return dict(records.read(np.arange(len(records.index.patients))))


def verdicts(records: ParquetRecords) -> list[Quarantine]:
    return [Quarantine(q) for q in records.index.quarantine.tolist()]


def lists(ragged: Any) -> list[list[Any]]:
    assert isinstance(ragged, Ragged) and ragged.values.flags.c_contiguous
    assert ragged.offsets.dtype == np.int64 and ragged.offsets[-1] == len(ragged.values)
    return [part.tolist() for part in np.split(ragged.values, ragged.offsets[1:-1])]


@pytest.mark.parametrize("kind", ["list_", "large_list"])
def test_lists_of_any_length(tmp_path: Path, kind: str) -> None:
    rows = [[1.0, 2.0], [], None, [3.0, None], [float("inf")], [float("nan"), 1.0], [4.0]]
    column = pa.array(rows, getattr(pa, kind)(pa.float32()))
    records = opened(tmp_path, {"labs": column}, Field(name="labs", dtype="float32", ragged=True))
    assert verdicts(records) == [NONE, NONE, MISSING, MISSING, NOT_FINITE, MISSING, NONE]
    read = records.read(np.array([6, 1, 0, 6]))
    assert lists(read["labs"]) == [[4.0], [], [1.0, 2.0], [4.0]]
    assert len(TableStore(dict(read), np.arange(4))) == 4, "what the broker serves from takes it"


def test_lists_of_lists(tmp_path: Path) -> None:
    """Points in space: any number of them, three coordinates each."""
    rows = [[[1, 2, 3], [4, 5, 6]], [[1, 2]], [], [None], [[7, 8, 9]], [[7, 8, None]]]
    column = pa.array(rows, pa.list_(pa.list_(pa.int16())))
    records = opened(tmp_path, {"p": column}, Field(name="p", dtype="int16", shape=(3,), ragged=True))
    assert verdicts(records) == [NONE, SHAPE, NONE, MISSING, NONE, MISSING]
    assert lists(records.read(np.array([0, 2, 4]))["p"]) == [[[1, 2, 3], [4, 5, 6]], [], [[7, 8, 9]]]


@pytest.mark.parametrize("fixed", [True, False])
def test_lists_of_one_shape(tmp_path: Path, fixed: bool) -> None:
    rows: list[Any] = [[[1, 2, 3], [4, 5, 6]], None, [[7, 8, 9], [0, 1, 2]]]
    inner = pa.list_(pa.uint16(), 3) if fixed else pa.list_(pa.uint16())
    kind = pa.list_(inner, 2) if fixed else pa.large_list(inner)
    if not fixed:
        rows += [[[1, 2, 3]], [[1, 2, 3], [1, 2]], [[1, 2, 3], None], [[1, 2, 3], [1, None, 3]], []]
    records = opened(tmp_path, {"m": pa.array(rows, kind)}, Field(name="m", dtype="uint16", shape=(2, 3)))
    expected = [NONE, MISSING, NONE, SHAPE, SHAPE, MISSING, MISSING, SHAPE]
    assert verdicts(records) == expected[: len(rows)]
    read = records.read(np.array([2, 0]))["m"]
    assert isinstance(read, np.ndarray) and read.dtype == np.uint16 and read.shape == (2, 2, 3)
    assert read.tolist() == [rows[2], rows[0]]


@pytest.mark.parametrize("dtype", ["float16", "uint16", "bool", "int8", "float64"])
@pytest.mark.parametrize("form", ["plain", "shape", "ragged"])
def test_every_dtype_in_every_form(tmp_path: Path, dtype: str, form: str) -> None:
    values = np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype)
    kind = pa.from_numpy_dtype(values.dtype)
    flat = {
        "plain": list(values[:, 0]),
        "shape": [list(v) for v in values],
        "ragged": [list(v) for v in values],
    }
    column = pa.array(flat[form] + [None], kind if form == "plain" else pa.list_(kind))
    shape, ragged = ((2,), False) if form == "shape" else ((), form == "ragged")
    field = Field.parse({"name": "v", "dtype": dtype, "shape": shape, "ragged": ragged})
    records = opened(tmp_path, {"v": column}, field)
    assert verdicts(records) == [NONE, NONE, NONE, MISSING]
    read = records.read(np.arange(3))["v"]
    found = read.values.reshape(3, 2) if isinstance(read, Ragged) else read
    assert found.dtype == dtype
    assert np.array_equal(found, values[:, 0] if form == "plain" else values)


def test_a_field_of_several_values_is_there_or_not(tmp_path: Path) -> None:
    column = pa.array([[1.0], None, []], pa.list_(pa.float32()))
    records = opened(tmp_path, {"labs": column}, Field(name="labs", dtype="float32", ragged=True))
    assert records.select(cohort.parse({"field": "labs", "present": True})).tolist() == [True, False, True]


DAY0 = date(2024, 2, 28)
STORED: list[tuple[str, Any]] = [
    ("date32", pa.array([DAY0, date(2024, 3, 1), None, DAY0], pa.date32())),
    ("milliseconds", pa.array([DAY0, date(2024, 3, 1), None, DAY0]).cast(pa.timestamp("ms"))),
    ("nanoseconds", pa.array([DAY0, date(2024, 3, 1), None, DAY0]).cast(pa.timestamp("ns"))),
    ("ISO text", pa.array(["2024-02-28", "2024-03-01T23:59:59", None, "2024-02-28"])),
    ("a dictionary of text", pa.array(["2024-02-28", "2024-03-01", None, "2024-02-28"]).dictionary_encode()),
    (
        "timestamps at their own place",
        pa.array(
            [datetime(2024, 2, 27, 23, 30, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC), None,
             datetime(2024, 2, 28, 12, tzinfo=UTC)],
            pa.timestamp("us", "Europe/Berlin"),
        ),
    ),
]  # fmt: skip
STUDY = Field(name="study_day", dtype="date", path="Study Date")
SINCE = Field(name="since", dtype="int32", path="Study Date")


@pytest.mark.parametrize("column", [s[1] for s in STORED], ids=[s[0] for s in STORED])
def test_dates_are_filtered_on_and_served_as_distances(tmp_path: Path, column: Any) -> None:
    records = opened(tmp_path, {"Study Date": column}, STUDY, SINCE, patients=["a", "a", "b", "b"])
    assert verdicts(records) == [NONE, NONE, MISSING, NONE]
    read = everything(records)
    assert set(read) == {"x", "since"} and read["since"].dtype == np.int32
    assert read["since"][[0, 1, 3]].tolist() == [0, 2, 0], "days from the patient's first, not anybody's"
    asked = cohort.parse({"field": "study_day", "eq": "2024-02-28"})
    assert records.select(asked).tolist() == [True, False, False, True]
    asked = cohort.parse({"field": "since", "gt": 1})
    assert records.select(asked).tolist() == [False, True, False, False]


def test_the_first_date_is_that_of_the_whole_table(tmp_path: Path) -> None:
    """Not of the cohort, or a job would learn dates by asking with different windows."""
    column = pa.array([date(2024, 1, day) for day in (9, 3, 5, 1)])
    records = opened(tmp_path, {"Study Date": column}, STUDY, SINCE, patients=["a", "a", "a", "b"])
    assert records.read(np.array([2, 0]))["since"].tolist() == [2, 6]  # type: ignore[union-attr]


def test_days_that_are_none_are_missing(tmp_path: Path) -> None:
    words = [
        "2023-02-29",
        "20240131",
        "",
        "soon",
        "2024-01-31 25:00",
        "0000-01-01",
        "2024-01-31",
        "2024-01-31T",
    ]
    records = opened(tmp_path, {"Study Date": words}, STUDY, SINCE, patients=["a"] * len(words))
    assert [v is NONE for v in verdicts(records)] == [False] * 6 + [True, False]
    absurd = pa.array([2**62, -(2**62), 10**12, 0], pa.timestamp("ms"))
    records = opened(tmp_path / "seconds", {"Study Date": absurd}, STUDY, SINCE)
    assert verdicts(records) == [MISSING, MISSING, NONE, NONE]
    zoned = pa.array([2**62, -(2**62), 10**12, 0], pa.timestamp("ms", "Asia/Tokyo"))
    assert verdicts(opened(tmp_path / "zoned", {"Study Date": zoned}, STUDY, SINCE)) == [
        MISSING,
        MISSING,
        NONE,
        NONE,
    ]


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float16", "bool"])
def test_a_distance_needs_a_dtype_that_holds_it(tmp_path: Path, dtype: Any) -> None:
    with pytest.raises(Refused) as refused:
        opened(tmp_path, {"d": pa.array([DAY0])}, Field(name="d", dtype=dtype))
    assert refused.value.code == "node.dataset_invalid"


def test_text_is_no_date_unless_the_manifest_says_so(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"node\.dataset_invalid"):
        opened(tmp_path, {"d": ["2024-02-28"]}, Field(name="d", dtype="int32"))


SEX = Field(name="sex", dtype="uint8", path="Sex Code", codes={"F": 0, "M": 1, "O": 2})
WORDS = Field(name="sex_text", dtype="string", path="Sex Code")


def test_codes_stand_for_texts(tmp_path: Path) -> None:
    records = opened(tmp_path, {"Sex Code": ["M", "F", "unknown", None, "O", ""]}, SEX, WORDS)
    assert verdicts(records) == [NONE, NONE, MISSING, MISSING, NONE, MISSING]
    read = records.read(np.array([0, 1, 4]))
    assert set(read) == {"x", "sex"} and read["sex"].tolist() == [1, 0, 2]  # type: ignore[union-attr]
    assert records.select(cohort.parse({"field": "sex", "gte": 1})).tolist() == [
        True,
        False,
        False,
        False,
        True,
        False,
    ]
    assert records.select(cohort.parse({"field": "sex_text", "eq": "unknown"})).tolist().index(True) == 2


@pytest.mark.parametrize(
    ("dtype", "codes"),
    [("int8", {"a": 128}), ("uint8", {"a": 1, "b": 256}), ("bool", {"a": 2}), ("float16", {"a": 2049})],
)
def test_codes_that_do_not_fit_refuse(tmp_path: Path, dtype: Any, codes: dict[str, int]) -> None:
    with pytest.raises(Refused, match=r"node\.dataset_invalid.*code"):
        opened(tmp_path, {"c": ["a"]}, Field(name="c", dtype=dtype, codes=codes))


def test_a_coded_label_that_is_not_listed_refuses(tmp_path: Path) -> None:
    label = Field(name="y", dtype="uint8", label=True, codes={"no": 0, "yes": 1})
    assert everything(opened(tmp_path / "good", {"y": ["no", "yes"]}, label))["y"].tolist() == [0, 1]
    with pytest.raises(Refused) as refused:
        opened(tmp_path / "bad", {"y": ["no", CANARY]}, label)
    assert refused.value.code == "node.dataset_invalid" and CANARY not in str(refused.value)


@pytest.mark.parametrize(
    "column", [["s1", "s2", "s1", None, ""], pa.array([7, 8, 7, None, None], pa.int64())]
)
def test_identifiers_are_told_as_text_for_pseudonyms(tmp_path: Path, column: Any) -> None:
    study = Field(name="study", dtype="pseudonym", path="accession")
    records = opened(tmp_path, {"accession": column}, study)
    assert verdicts(records) == [NONE, NONE, NONE, MISSING, MISSING]
    read = records.read(np.array([1, 0, 2]))["study"]
    assert isinstance(read, np.ndarray) and read.dtype == object
    assert [str(c) for c in column][:2] == [read[1], read[0]] and read[1] == read[2]


def test_a_pseudonym_may_stand_for_the_patient(tmp_path: Path) -> None:
    field = Field(name="patient", dtype="pseudonym", path="patient_id")
    records = opened(tmp_path, {"y": pa.array([1, 2, 3], pa.int8())}, field, patients=["a", None, "a"])
    assert records.index.patients == ["a", "", "a"]
    assert records.read(np.array([0, 2]))["patient"].tolist() == ["a", "a"]  # type: ignore[union-attr]


def test_a_dictionary_with_a_word_twice_is_one_patient(tmp_path: Path) -> None:
    twice = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int32()), pa.array(["a", "a", "b"]))
    found = columns.text(pa.chunked_array([twice]))
    assert found.words == ("a", "b") and found.values.tolist() == [0, 0, 1]


WRONG: list[tuple[str, Any, dict[str, Any]]] = [
    ("a number where lists belong", pa.array([1.0], pa.float32()), {"ragged": True}),
    ("lists where a number belongs", pa.array([[1.0]], pa.list_(pa.float32())), {}),
    ("lists of another dtype", pa.array([[1.0]], pa.list_(pa.float64())), {"ragged": True}),
    ("lists too deep", pa.array([[[1.0]]], pa.list_(pa.list_(pa.float32()))), {"ragged": True}),
    ("lists not deep enough", pa.array([[1.0]], pa.list_(pa.float32())), {"shape": (1, 1)}),
    ("lists of text", pa.array([[CANARY]]), {"ragged": True}),
    ("a struct", pa.array([{"a": 1.0}]), {}),
    ("lists of structs", pa.array([[{"a": 1.0}]]), {"ragged": True}),
    ("a map", pa.array([[("a", 1.0)]], pa.map_(pa.string(), pa.float32())), {"ragged": True}),
    ("bytes", pa.array([b"\x00"]), {}),
    ("a decimal", pa.array([1]).cast(pa.decimal128(20)), {}),
    ("a time of day", pa.array([1], pa.time32("s")), {}),
    ("a duration", pa.array([1], pa.duration("s")), {}),
    ("axes that differ", pa.array([[1.0]], pa.list_(pa.float32())), {"shape": (0,)}),
    ("text for a coded field that is a number", pa.array([1.0], pa.float32()), {"codes": {"a": 1}}),
]


@pytest.mark.parametrize(("column", "form"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_column_that_does_not_fit_refuses(tmp_path: Path, column: Any, form: dict[str, Any]) -> None:
    field = Field.parse({"name": "v", "dtype": "float32", **form})
    with pytest.raises(Refused) as refused:
        opened(tmp_path, {"v": column}, field)
    assert refused.value.code == "node.dataset_invalid" and CANARY not in str(refused.value)


@pytest.mark.parametrize("dtype", ["string", "date", "pseudonym"])
def test_a_field_that_is_no_number_takes_no_list(tmp_path: Path, dtype: Any) -> None:
    with pytest.raises(Refused, match=r"node\.dataset_invalid"):
        opened(tmp_path, {"v": pa.array([["a"]])}, Field(name="v", dtype=dtype))


def test_an_unknown_time_zone_refuses_without_its_words(tmp_path: Path) -> None:
    column = pa.array([0], pa.timestamp("s", f"{CANARY}/City"))
    with pytest.raises(Refused) as refused:
        opened(tmp_path, {"Study Date": column}, STUDY)
    assert refused.value.code == "node.dataset_invalid" and CANARY not in str(refused.value)


def test_shapes_and_lists_count_towards_the_limit_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = Field(name="v", dtype="float64", shape=(65536, 65536))
    with pytest.raises(Refused, match=r"node\.dataset_invalid.*decodes"):
        opened(tmp_path / "shape", {"v": pa.array([[[1.0]]], pa.list_(pa.list_(pa.float64())))}, huge)
    many = pa.array([[0] * 10_000] * 100, pa.list_(pa.int32()))
    opened(tmp_path / "fits", {"v": many}, Field(name="v", dtype="int32", ragged=True)).close()
    monkeypatch.setattr(parquet_file, "MAX_DECODED_BYTES", 2**20)
    with pytest.raises(Refused, match=r"node\.dataset_invalid.*decodes"):
        opened(tmp_path / "ragged", {"v": many}, Field(name="v", dtype="int32", ragged=True))
    monkeypatch.setattr(parquet_file, "_told_bytes", lambda file, layout: 0)  # a footer that lies
    with pytest.raises(Refused, match=r"node\.dataset_invalid.*decodes"):
        opened(tmp_path / "lies", {"v": many}, Field(name="v", dtype="int32", ragged=True))


def test_many_batches_and_row_groups_are_one_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_file, "_ROWS_AT_ONCE", 7)
    rows = [list(range(i % 5)) for i in range(100)]
    column = pa.array(rows, pa.list_(pa.int32()))
    real = pq.write_table
    monkeypatch.setattr(pq, "write_table", lambda table, path: real(table, path, row_group_size=13))
    records = opened(
        tmp_path,
        {"v": column, "Study Date": [f"2024-01-{1 + i % 28:02d}" for i in range(100)]},
        Field(name="v", dtype="int32", ragged=True),
        STUDY,
        SINCE,
        patients=["p"] * 100,
    )
    read = everything(records)
    assert lists(read["v"]) == rows and read["since"].tolist() == [i % 28 for i in range(100)]


def test_long_texts_count_towards_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_file, "MAX_DECODED_BYTES", 2**20)
    texts = [f"{i}" * 20_000 for i in range(100)]
    with pytest.raises(Refused, match=r"node\.dataset_invalid.*decodes"):
        opened(tmp_path, {"t": texts}, Field(name="t", dtype="string"))


def test_a_column_whose_name_has_dots_is_that_column(tmp_path: Path) -> None:
    field = Field(name="v", dtype="int32", ragged=True, path="a.b")
    table = {"a.b": pa.array([[1], [2, 3]], pa.list_(pa.int32())), "a": pa.array([{"b": CANARY}] * 2)}
    assert lists(everything(opened(tmp_path, table, field))["v"]) == [[1], [2, 3]]
    file = pq.ParquetFile(tmp_path / "records" / "part-0.parquet")
    with file:
        layout = parquet_file.Layout("patient_id", (field,), frozenset())
        assert parquet_file._told_bytes(file, layout) >= 12


@pytest.mark.parametrize("dtype", ["int64", "string"])
def test_the_patient_is_served_and_filtered_on_by_no_other_name(tmp_path: Path, dtype: Any) -> None:
    with pytest.raises(ValueError, match="patient_id"):
        opened(tmp_path, {"y": [1]}, Field(name="who", dtype=dtype, path="patient_id"))


def test_an_identifier_behind_a_pseudonym_is_no_other_field(tmp_path: Path) -> None:
    fields = (Field(name="s", dtype="pseudonym", path="acc"), Field(name="t", dtype="string", path="acc"))
    with pytest.raises(ValueError, match="pseudonym"):
        opened(tmp_path, {"acc": ["a"]}, *fields)


def test_files_with_other_columns_refuse(tmp_path: Path) -> None:
    manifest, root = written(tmp_path, {"d": pa.array([DAY0])}, Field(name="d", dtype="date"))
    folder = root / "records"
    folder.chmod(0o755)
    pq.write_table(
        pa.table({"patient_id": ["p"], "x": pa.array([1], pa.float32()), "d": ["2024-01-01"]}),
        folder / "part-1.parquet",
    )
    files = []
    for path in sorted(folder.iterdir()):
        path.chmod(0o444)
        data = path.read_bytes()
        files.append({"name": path.name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)})
    folder.chmod(0o555)
    told: list[tuple[str, int, int]] = []
    source = {"kind": "folder", "format": "parquet", "path": "records", "files": files}
    both = DatasetManifest.parse({**manifest.dump(), "source": source})
    with pytest.raises(Refused, match=r"node\.dataset_invalid.*same columns"):
        ParquetSource().open(both, Surroundings(root, 1, lambda *progress: told.append(progress)))
    assert told == [("index", 0, 2), ("index", 1, 2), ("index", 2, 2)]


def test_a_table_renders_nothing_and_is_no_image(tmp_path: Path) -> None:
    records = opened(tmp_path, {"y": pa.array([1], pa.int8())})
    assert (
        records.rendered == () and records.render(np.zeros(0, np.int64), (), cast("Sink", None)).content == []
    )
    images = DatasetManifest.parse(
        {**written(tmp_path / "other", {"y": [1]})[0].dump(), "source": {"kind": "dicom", "path": "/mnt"}}
    )
    with pytest.raises(Refused, match=r"node\.internal"):
        ParquetSource().open(images, Surroundings(tmp_path, 1, lambda *_: None))


VALUE = st.none() | st.integers(-5, 5)
ROW = st.none() | st.lists(VALUE, max_size=4)


@given(st.lists(ROW, min_size=1, max_size=30), st.data())
def test_ragged_columns_are_what_python_says(rows: list[Any], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    array = pa.array([[99], *rows], pa.list_(pa.int16()))[1:]  # a slice: offsets don't begin at 0
    chunks = [array[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    found = columns.ragged(pa.chunked_array(chunks, pa.list_(pa.int16())), ())
    good = [row is not None and None not in row for row in rows]
    assert (found.verdict == 0).tolist() == good
    assert isinstance(found.values, Ragged)
    picked = data.draw(st.lists(st.sampled_from([i for i, g in enumerate(good) if g] or [0]), max_size=9))
    if all(good[i] for i in picked):
        taken = columns.take(found.values, np.array(picked, dtype=np.int64))
        assert (lists(taken) if picked else []) == [rows[i] for i in picked]


@given(
    st.lists(
        st.none() | st.lists(st.none() | st.lists(VALUE, max_size=3), max_size=3), min_size=1, max_size=20
    )
)
def test_shaped_columns_are_what_python_says(rows: list[Any]) -> None:
    array = pa.array(rows, pa.list_(pa.list_(pa.int8())))
    found = columns.dense(pa.chunked_array([array]), (2, 2))
    for row, values, verdict in zip(rows, np.asarray(found.values), found.verdict, strict=True):
        fits = row is not None and len(row) == 2 and all(r is not None and len(r) == 2 for r in row)
        whole = fits and all(v is not None for r in row for v in r)
        assert (verdict == NONE) == whole
        if whole:
            assert values.tolist() == row


def test_damaged_lists_refuse_or_read(tmp_path: Path) -> None:
    sink = pa.BufferOutputStream()
    column = pa.array([[1.0, 2.0], [3.0], []] * 5, pa.list_(pa.float32()))
    pq.write_table(pa.table({"patient_id": ["p"] * 15, "labs": column}), sink)
    good = sink.getvalue().to_pybytes()
    layout = parquet_file.Layout(
        "patient_id", (Field(name="labs", dtype="float32", ragged=True),), frozenset()
    )
    assert parquet_file.parse(good, "f", layout, 100).num_rows == 15
    generator = np.random.default_rng(7)
    for _ in range(300):
        data = bytearray(good)
        for place in generator.integers(0, len(data), 3):
            data[place] = generator.integers(0, 256)
        try:
            table = parquet_file.parse(bytes(data), "f", layout, 100)
            columns.ragged(table.column("labs"), ())
        except Refused as refused:
            assert refused.code == "node.dataset_invalid"
