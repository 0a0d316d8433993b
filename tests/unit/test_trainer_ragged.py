"""Fields of variable length at home: Arrow lists that share memory, jagged tensors, and files that lie."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch

from rapha_trainer import Field, RaphaDataLoader, batch
from rapha_trainer.source import Ragged

LISTS = [[1.0], [], [2.0, 3.0, 4.0], [5.0, 6.0], []]
VALUES = np.array([value for one in LISTS for value in one], dtype="f4")
OFFSETS = np.cumsum([0, *(len(one) for one in LISTS)])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home.npz"
    monkeypatch.delenv("RAPHA_BROKER_FD", raising=False)
    monkeypatch.setenv("RAPHA_HOME_DATA", str(path))
    np.savez(path, id=np.arange(5), labs=VALUES, labs__offsets=OFFSETS)
    return path


def test_lists_come_as_arrow() -> None:
    loader = RaphaDataLoader(2, copy=True)
    assert loader.fields[1] == Field("labs", "float32", (), False, ragged=True)
    batches = list(loader)
    assert [type(b["labs"]) for b in batches] == [pyarrow.ListArray] * 3
    assert [b["labs"].to_pylist() for b in batches] == [LISTS[:2], LISTS[2:4], LISTS[4:]]
    assert batches[0]["labs"].type == pyarrow.list_(pyarrow.float32())


@pytest.mark.parametrize(
    "kwargs", [{"shuffle": True, "seed": 4}, {"indices": [3, 2, 2, 1, 0]}, {"drop_last": True}, {}]
)
def test_lists_stay_with_their_record(kwargs: dict[str, Any]) -> None:
    for one in RaphaDataLoader(2, epochs=3, **kwargs):
        assert one["labs"].to_pylist() == [LISTS[i] for i in one["id"]]


def test_lists_come_as_jagged_tensors() -> None:
    for one in RaphaDataLoader(2, as_torch=True, shuffle=True):
        labs = one["labs"]
        assert labs.is_nested
        assert labs.layout == torch.jagged
        assert [t.tolist() for t in labs.unbind()] == [LISTS[i] for i in one["id"]]


def test_values_with_a_shape_are_fixed_size_lists(home: Path) -> None:
    values = np.arange(36, dtype="i2").reshape(6, 2, 3)
    np.savez(home, id=np.arange(5), boxes=values, boxes__offsets=OFFSETS)
    for one in RaphaDataLoader(3):
        rows = [values[OFFSETS[i] : OFFSETS[i + 1]].tolist() for i in one["id"]]
        assert one["boxes"].to_pylist() == rows
        inner = pyarrow.list_(pyarrow.list_(pyarrow.int16(), 3), 2)
        assert one["boxes"].type == pyarrow.list_(inner)
    tensors = next(iter(RaphaDataLoader(3, as_torch=True)))["boxes"]
    assert [tuple(t.shape) for t in tensors.unbind()] == [(1, 2, 3), (0, 2, 3), (3, 2, 3)]


@pytest.mark.parametrize(
    "dtype",
    ["bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"],
)
def test_every_dtype_comes_through(home: Path, dtype: str) -> None:
    values = VALUES.astype(dtype)
    np.savez(home, labs=values, labs__offsets=OFFSETS)
    expected = [values[a:b].tolist() for a, b in itertools.pairwise(OFFSETS)]
    (arrow,) = RaphaDataLoader()
    assert arrow["labs"].to_pylist() == expected
    (tensors,) = RaphaDataLoader(as_torch=True)
    assert [t.tolist() for t in tensors["labs"].unbind()] == expected


def test_a_list_is_a_view_and_a_copy_is_not() -> None:
    column = Ragged(VALUES.copy(), OFFSETS.astype("i4"))
    view = batch.as_arrow({"labs": column}, {"labs": "labs"})["labs"]
    own = batch.as_arrow(batch.copied({"labs": column}), {"labs": "labs"})["labs"]
    column.values[0] = 99
    assert view[0].as_py() == [99.0]
    assert own[0].as_py() == [1.0]
    assert view.values.buffers()[1].address == column.values.ctypes.data
    assert view.offsets.buffers()[1].address == column.offsets.ctypes.data


def test_values_at_home_are_read_only_as_on_the_node() -> None:
    assert not next(iter(RaphaDataLoader()))["labs"].values.buffers()[1].is_mutable


def test_without_pyarrow_it_says_what_to_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(batch, "find_spec", lambda name: None if name == "pyarrow" else there(name))
    with pytest.raises(ImportError, match=r"labs: .* as_torch=True"):
        RaphaDataLoader()
    RaphaDataLoader(as_torch=True)
    np.savez(home, id=np.arange(5))
    RaphaDataLoader()


def test_without_torch_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs torch"):
        RaphaDataLoader(as_torch=True)


WRONG: dict[str, Any] = {
    "not from 0": [1, 1, 2, 3, 4, 6],
    "not to the end": [0, 1, 1, 4, 6, 5],
    "beyond the end": [0, 1, 1, 4, 6, 7],
    "falling": [0, 4, 1, 4, 6, 6],
    "fractions": [0.0, 1.0, 1.0, 4.0, 6.0, 6.0],
    "none": np.zeros(0, "i8"),
    "nested": [[0, 6]],
    "huge": np.array([0, 2**64 - 1, 1, 4, 6, 6], dtype="u8"),
    "other length": [0, 1, 6],
}


@pytest.mark.parametrize("offsets", WRONG.values(), ids=WRONG.keys())
def test_offsets_that_lie_are_refused(home: Path, offsets: Any) -> None:
    np.savez(home, id=np.arange(5), labs=VALUES, labs__offsets=np.asarray(offsets))
    with pytest.raises(ValueError, match=r"must be|must rise|same length"):
        RaphaDataLoader()


def test_offsets_without_values_are_refused(home: Path) -> None:
    np.savez(home, id=np.arange(5), labs__offsets=OFFSETS)
    with pytest.raises(ValueError, match="'labs' must be there"):
        RaphaDataLoader()


@pytest.mark.parametrize(
    "column", [np.array(["a"] * 5), np.arange(5).astype(">i4"), np.zeros(5, "c8"), np.zeros(5, "M8[s]")]
)
def test_what_a_node_would_not_serve_is_refused(home: Path, column: Any) -> None:
    np.savez(home, id=np.arange(5), x=column)
    with pytest.raises(ValueError, match="plain numbers"):
        RaphaDataLoader()
