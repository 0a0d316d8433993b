"""The loader at home, its arguments, and that it says clearly what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rapha_trainer.home
import rapha_trainer.session
from rapha.runtime.broker import splits, wire
from rapha_trainer import Field, RaphaDataLoader

X = np.arange(60, dtype=np.float32).reshape(20, 3)
Y = np.arange(20)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home.npz"
    np.savez(path, x=X, y=Y, __labels__=np.array(["y"]), __test__=np.array([3, 4, 19]))
    monkeypatch.delenv("RAPHA_BROKER_FD", raising=False)
    monkeypatch.setenv("RAPHA_HOME_DATA", str(path))
    return path


def test_batches_are_in_order_and_complete() -> None:
    loader = RaphaDataLoader(batch_size=4, epochs=2, copy=True)
    batches = list(loader)
    assert len(batches) == len(loader) == 10
    train = np.setdiff1d(Y, [3, 4, 19])
    assert np.concatenate([b["y"] for b in batches]).tolist() == [*train, *train]
    assert all((b["x"] == X[b["y"]]).all() for b in batches)
    assert loader.fields == (Field("x", "float32", (3,), False), Field("y", "int64", (), True))


def test_shuffles_differ_by_epoch_and_repeat_by_seed() -> None:
    def order(seed: int) -> list[int]:
        return [int(y) for b in RaphaDataLoader(8, True, seed, epochs=2) for y in b["y"]]

    assert order(1) == order(1) != order(2)
    assert order(1)[:17] != order(1)[17:]
    assert sorted(order(1)[:17]) == sorted(order(1)[17:])


def test_the_test_split_has_no_labels() -> None:
    loader = RaphaDataLoader(split="test")
    assert [f.name for f in loader.fields] == ["x"]
    (batch,) = loader
    assert set(batch) == {"x"}
    assert (batch["x"] == X[[3, 4, 19]]).all()


def test_drop_last_and_indices() -> None:
    assert len(RaphaDataLoader(5, drop_last=True)) == 3
    assert [len(b["x"]) for b in RaphaDataLoader(5, drop_last=True)] == [5, 5, 5]
    chosen = [16, 0, 0, 2]
    batches = list(RaphaDataLoader(3, indices=chosen, copy=True))
    assert np.concatenate([b["y"] for b in batches]).tolist() == [18, 0, 0, 2]


def test_views_are_read_only_and_copies_are_not() -> None:
    with pytest.raises(ValueError, match="read-only"):
        next(iter(RaphaDataLoader()))["x"][0] = 1
    next(iter(RaphaDataLoader(copy=True)))["x"][0] = 1


def test_a_view_that_is_kept_too_long_shows_no_record(home: Path) -> None:
    """On a node it would show another one, and nothing would say so."""
    records = 6
    columns: dict[str, Any] = {
        kind: np.ones(records, kind) for kind in ("f2", "f4", "f8", "i1", "i8", "u1", "u2", "?")
    }
    np.savez(home, **columns, labs=np.ones(records), labs__offsets=np.arange(records + 1))
    first, second, last = RaphaDataLoader(2)
    for batch in (first, second):
        assert all(np.isnan(batch[kind]).all() for kind in ("f2", "f4", "f8"))
        assert (batch["i1"] == -128).all()
        assert (batch["i8"] == -(2**63)).all()
        assert (batch["u1"] == 255).all()
        assert (batch["u2"] == 65535).all()
        assert batch["?"].all()
        assert np.isnan(batch["labs"].flatten().to_numpy()).all()
        assert not any(batch[kind].flags.writeable for kind in columns)
    assert all((last[kind] == 1).all() for kind in columns)
    for kept in (RaphaDataLoader(2, copy=True), RaphaDataLoader(2, as_torch=True)):
        assert all((batch[kind] == 1).all() for batch in list(kept) for kind in columns if kind != "u2")


def test_the_next_epoch_ends_the_time_of_the_last_batch_too() -> None:
    one, two = RaphaDataLoader(17, epochs=2)
    assert np.isnan(one["x"]).all()
    assert not np.isnan(two["x"]).any()


def test_batches_are_contiguous_however_the_file_was_written(home: Path) -> None:
    np.savez(home, x=np.asfortranarray(np.arange(24.0).reshape(4, 3, 2)))
    for batch in RaphaDataLoader(3):
        assert batch["x"].flags.c_contiguous


@pytest.mark.parametrize("copy", [None, True, False])
def test_tensors(copy: bool | None) -> None:
    batch = next(iter(RaphaDataLoader(as_torch=True, copy=copy)))
    assert isinstance(batch["x"], torch.Tensor)
    assert batch["x"].dtype == torch.float32
    if copy is not False:
        batch["x"] -= batch["x"].mean()


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"batch_size": True},
        {"batch_size": 2**31},
        {"seed": -1},
        {"seed": 2**64},
        {"epochs": -1},
        {"prefetch": -1},
        {"prefetch": 0.0},
        {"prefetch": False},
        {"prefetch": ""},
        {"rename": [("x", "image")]},
        {"rename": 1},
        {"rename": ()},
        {"rename": {1: "x", None: "y"}},
        {"split": "dev"},
        {"split": "test", "shuffle": True},
        {"split": "test", "indices": [0]},
        {"shuffle": True, "indices": [0]},
        {"indices": [17]},
        {"indices": [-1]},
        {"indices": [0.5]},
        {"indices": [[0]]},
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|fixed order|either"):
        RaphaDataLoader(**wrong)


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": X, "y": Y[:-1]},
        {"x": np.array(1.0)},
        {},
        {"x": X, "__labels__": np.array(["y"])},
        {"x": X, "__test__": np.array([20])},
        {"x": X, "__test__": np.array([0.5])},
    ],
)
def test_a_wrong_file_is_refused(home: Path, arrays: dict[str, Any]) -> None:
    np.savez(home, **arrays)
    with pytest.raises(ValueError, match=r"same length|not there|record indices"):
        RaphaDataLoader()


def test_a_file_without_test_records_serves_all_in_both(home: Path) -> None:
    np.savez(home, x=X)
    assert RaphaDataLoader().records == RaphaDataLoader(split="test").records == 20


def test_without_any_source_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAPHA_HOME_DATA")
    with pytest.raises(RuntimeError, match="RAPHA_HOME_DATA"):
        RaphaDataLoader()


def test_both_ends_speak_the_same_protocol() -> None:
    job = rapha_trainer.session
    assert (job.VERSION, job.STRUCT.format, job.NO_SLOT) == (wire.VERSION, wire.STRUCT.format, wire.NO_SLOT)
    assert tuple(wire.Op) == (job.HELLO, job.EPOCH, job.NEXT, job.INDICES, job.COUNT)
    assert tuple(wire.Kind) == (job.HELLO, job.STARTED, job.BATCH, job.END, job.FAULT)
    assert (job.SHUFFLE, job.DROP_LAST) == (wire.SHUFFLE, wire.DROP_LAST)
    assert (job.END_CAP, job.END_LIMIT) == (wire.End.CAP, wire.End.LIMIT)
    assert ("", *(code.name for code in wire.FaultCode)) == job.FAULTS
    assert (job.SPLITS, job.MAX_INDICES) == (splits.NAMES, wire.MAX_INDICES)
