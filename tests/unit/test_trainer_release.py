"""What a job writes is what the plan says, and a mistake is named before the node sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from rapha_trainer import release, tensors

PLAN: dict[str, Any] = {
    "version": 1,
    "weights": {
        "file": "model.safetensors",
        "release_dtype": "bf16",
        "tensors": [
            {"name": "fc.weight", "dtype": "F32", "shape": [2, 3], "min": -16, "max": 16},
            {"name": "fc.bias", "dtype": "BF16", "shape": [2], "min": -16, "max": 16},
            {"name": "steps", "dtype": "I32", "shape": [], "min": 0, "max": 1000},
            {"name": "mask", "dtype": "BOOL", "shape": [3], "min": 0, "max": 1},
        ],
    },
    "self_reported": {
        "file": "metrics.json",
        "fields": [
            {"name": "loss", "type": "number", "min": 0, "max": 100, "decimals": 3},
            {"name": "epochs", "type": "integer", "min": 0, "max": 100},
            {"name": "converged", "type": "boolean"},
            {"name": "optimiser", "type": "enum", "options": ["adam", "sgd"]},
        ],
    },
    "max_bytes": 100000,
}


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "in").mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "in" / "plan.json").write_text(json.dumps(PLAN))
    monkeypatch.setenv("RAPHA_IN", str(tmp_path / "in"))
    monkeypatch.setenv("RAPHA_OUT", str(out))
    return out


def values() -> dict[str, Any]:
    return {
        "mask": [True, False, True],
        "fc.bias": torch.tensor([0.1, -2.5], dtype=torch.bfloat16),
        "fc.weight": torch.nn.Parameter(torch.arange(6.0).reshape(3, 2).T),
        "steps": np.int64(12),
    }


def test_weights_are_read_by_the_reference_library(folders: Path) -> None:
    path = release.weights(values())
    assert path == folders / "model.safetensors"
    read = safetensors.torch.load(path.read_bytes())
    assert read["fc.weight"].tolist() == [[0, 2, 4], [1, 3, 5]]
    assert read["fc.bias"].tolist() == torch.tensor([0.1, -2.5]).bfloat16().tolist()
    assert read["steps"].item() == 12
    assert read["mask"].tolist() == [True, False, True]


def test_the_file_is_in_plan_order_with_no_free_byte(folders: Path) -> None:
    data = release.weights(values()).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert list(header) == ["fc.weight", "fc.bias", "steps", "mask"]
    assert [entry["data_offsets"] for entry in header.values()] == [[0, 24], [24, 28], [28, 32], [32, 35]]
    assert len(data) == 8 + size + 35
    assert size % 8 == 0
    assert [p.name for p in folders.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("fc.weight", None, "missing tensors: fc.weight"),
        ("fc.extra", np.zeros(1), r"not in the release plan: fc\.extra"),
        ("fc.weight", np.zeros((3, 2)), "the shape is"),
        ("fc.weight", np.full((2, 3), 1e300), "too large"),
        ("fc.bias", np.full(2, 3.4e38, np.float32), "too large"),
        ("fc.weight", np.full((2, 3), "a"), "not a numeric dtype"),
        ("fc.weight", np.full((2, 3), 1j), "not a numeric dtype"),
        ("steps", 1.5, "not exact"),
        ("steps", 2**40, "not exact"),
        ("mask", [0, 1, 2], "not exact"),
    ],
)
def test_wrong_weights_are_named(folders: Path, name: str, value: Any, words: str) -> None:
    wrong = {**values(), name: value}
    if value is None:
        del wrong[name]
    with pytest.raises(ValueError, match=words):
        release.weights(wrong)
    assert not list(folders.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["fc.weight", "fc.bias"])
def test_what_is_not_finite_is_kept_for_the_guard_to_refuse(folders: Path, name: str, value: float) -> None:
    wrong = {**values(), name: np.full(np.shape(values()[name]), value)}
    with pytest.warns(RuntimeWarning, match="NaN or infinity"):
        path = release.weights(wrong)
    read = safetensors.torch.load(path.read_bytes())[name]
    assert not torch.isfinite(read.float()).any()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False, max_value=2.0**127), min_size=1))
def test_bfloat16_rounds_as_the_reference_does(numbers: list[float]) -> None:
    array = np.maximum(np.array(numbers, dtype=np.float32), np.float32(-(2.0**127)))
    bits = tensors.cast("t", array, "BF16", array.shape)
    assert (bits == array.astype(ml_dtypes.bfloat16).view(np.uint16)).all()


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "I64", "I32", "I16", "I8", "U8", "BOOL"])
def test_every_dtype_is_read_back(tmp_path: Path, dtype: str) -> None:
    array = tensors.cast("t", np.array([[0, 1], [1, 0]]), dtype, (2, 2))
    tensors.write(tmp_path / "t", {"t": array}, {"t": dtype})
    with safetensors.safe_open(tmp_path / "t", "np") as file:
        assert (file.get_tensor("t") == np.array([[0, 1], [1, 0]])).all()


def test_metrics_add_up_in_one_file(folders: Path) -> None:
    release.metric("loss", torch.tensor(0.5))
    release.metric("epochs", np.float32(3))
    release.metric("converged", np.bool_(True))
    release.metric("optimiser", "adam")
    path = release.metric("loss", 0.25)
    said = {"loss": 0.25, "epochs": 3, "converged": True, "optimiser": "adam"}
    assert json.loads(path.read_text()) == said
    assert [p.name for p in folders.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("auroc", 0.5),
        ("loss", float("nan")),
        ("loss", float("inf")),
        ("loss", "0.5"),
        ("loss", True),
        ("loss", [1, 2]),
        ("loss", None),
        ("epochs", 1.5),
        ("converged", 1),
        ("optimiser", "rmsprop"),
    ],
)
def test_wrong_metrics_are_named(folders: Path, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        release.metric(name, value)
    assert not list(folders.iterdir())


def test_predictions_are_appended_as_float32(folders: Path) -> None:
    release.predictions(torch.arange(4.0, requires_grad=True).reshape(2, 2).T)
    release.predictions([[9, 8]])
    path = release.predictions(np.zeros((0, 2)))
    assert np.frombuffer(path.read_bytes(), "<f4").tolist() == [0, 2, 1, 3, 9, 8]


def test_a_new_process_starts_predictions_over(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release.predictions([1.0])
    monkeypatch.setattr(release, "_started", set())
    assert release.predictions([2.0]).stat().st_size == 4


@pytest.mark.parametrize("value", [[float("nan")], [1e300], ["a"], [1j]])
def test_wrong_predictions_are_refused(folders: Path, value: Any) -> None:
    with pytest.raises(ValueError, match="predictions must be"):
        release.predictions(value)
    assert not list(folders.iterdir())


def test_without_a_plan_it_says_what_to_set(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = folders.parent / "in" / "plan.json"
    plan.write_text(json.dumps({"version": 1, "trusted_metrics": ["auroc"], "max_bytes": 1}))
    with pytest.raises(RuntimeError, match="no 'weights'"):
        release.weights({})
    with pytest.raises(RuntimeError, match="no 'self_reported'"):
        release.metric("loss", 1)
    plan.write_text("{")
    with pytest.raises(RuntimeError, match="RAPHA_IN"):
        release.weights({})
    monkeypatch.setenv("RAPHA_IN", "/nowhere")
    with pytest.raises(RuntimeError, match="RAPHA_IN"):
        release.metric("loss", 1)
