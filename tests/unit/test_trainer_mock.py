"""Synthetic files: the schema is kept, the seed decides, and a file says what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapha_trainer import Field, RaphaDataLoader, mock

SCHEMA = [
    Field("pixels", "int16", (20, 24), label=False),
    Field("colour", "uint8", (8, 8, 3), label=False),
    Field("volume", "float32", (4, 8, 8), label=False),
    Field("mask", "bool", (9, 9), label=False),
    Field("signal", "float64", (50,), label=False),
    Field("age", "uint8", (), label=False),
    Field("flag", "bool", (), label=False),
    Field("labs", "float32", (), label=False, ragged=True),
    Field("boxes", "int16", (2, 2), label=False, ragged=True),
    Field("file", "int64", (), label=False),
    Field("y", "int64", (), label=True),
    Field("time", "float32", (), label=True),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home.npz"
    monkeypatch.delenv("RAPHA_BROKER_FD", raising=False)
    monkeypatch.setenv("RAPHA_HOME_DATA", str(path))
    return path


def drawn(records: int = 50, seed: int = 1) -> mock.Columns:
    return mock.draw(SCHEMA, records, seed)


def test_a_loader_sees_the_schema(home: Path) -> None:
    mock.write(home, drawn(), ["y", "time"])
    train, test = RaphaDataLoader(), RaphaDataLoader(split="test")
    assert list(train.fields) == SCHEMA
    assert list(test.fields) == SCHEMA[:-2]
    assert (train.records, test.records) == (40, 10)
    assert set(next(iter(train))) == {field.name for field in SCHEMA}


def test_values_are_in_the_range_of_their_kind() -> None:
    columns: Any = drawn(400)
    assert -1024 <= columns["pixels"].min() < -500 < 500 < columns["pixels"].max() <= 3071
    assert columns["pixels"].std(axis=(1, 2)).min() > 0
    assert columns["colour"].max() > 100
    assert 0 <= columns["volume"].min() < columns["volume"].max() <= 1
    assert 0 < columns["mask"].mean() < 1
    assert set(columns["y"].tolist()) == {0, 1}
    assert columns["time"].min() >= 0
    counts = np.diff(columns["labs"].offsets)
    assert counts.min() < 3
    assert counts.max() > 9


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("shape", [(), (5,), (6, 7)])
def test_every_integer_holds_its_values(kind: str, shape: tuple[int, ...]) -> None:
    column: Any = mock.column(Field("x", kind, shape, label=False), 40, mock.generator(0, "x"))
    assert (column.dtype.name, column.shape) == (kind, (40, *shape))
    assert np.ptp(column) > 0


def test_the_seed_decides_each_field_by_itself(home: Path) -> None:
    mock.write(home, drawn(), ["y"])
    first = home.read_bytes()
    mock.write(home, drawn(), ["y"])
    assert home.read_bytes() == first
    mock.write(home, drawn(seed=2), ["y"])
    assert home.read_bytes() != first
    alone: Any = mock.draw(SCHEMA[:1], 50, 1)["pixels"]
    assert (alone == drawn()["pixels"]).all()


def test_the_file_says_that_it_is_synthetic(home: Path) -> None:
    mock.write(home, drawn(), [])
    with np.load(home) as file:
        assert str(file["__synthetic__"]) == mock.NOTE


def test_no_record_leaves_no_file_behind(home: Path) -> None:
    mock.write(home, drawn(0), ["y"])
    assert RaphaDataLoader().records == 0
    assert [path.name for path in home.parent.iterdir()] == ["home.npz"]


def test_a_file_that_can_not_be_put_in_place_is_not_left_beside_it(home: Path) -> None:
    home.mkdir()
    with pytest.raises(IsADirectoryError):
        mock.write(home, drawn(), [])
    assert [path.name for path in home.parent.iterdir()] == ["home.npz"]


def test_a_field_may_have_any_name_that_a_schema_allows(home: Path) -> None:
    names = ["file", "self", "x__offset", "allow_pickle", "a" * 64]
    mock.write(home, {name: np.arange(3) for name in names}, ["file"], test=0)
    assert [field.name for field in RaphaDataLoader().fields] == names


@pytest.mark.parametrize("name", ["labs__offsets", "__labels__", "__test__"])
def test_a_name_that_the_file_needs_is_refused(home: Path, name: str) -> None:
    with pytest.raises(ValueError, match="keeps such names"):
        mock.write(home, {name: np.arange(3)}, [])
    assert not home.exists()


@pytest.mark.parametrize("dtype", ["str", "object", "datetime64[s]", "complex64"])
def test_only_numbers_are_drawn(dtype: str) -> None:
    with pytest.raises(ValueError, match="plain number"):
        mock.draw([Field("x", dtype, (), label=False)], 3, 0)
