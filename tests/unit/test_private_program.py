"""`rapha_trainer.private` as the node starts it: files in, weights and predictions out, for each model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rapha.runtime.guard.inspection import inspect
from rapha.spec.private import PrivateTraining, planned
from rapha.spec.release_plan import ReleasePlan
from rapha_trainer.private.__main__ import main
from rapha_trainer.private.models import build
from rapha_trainer.private.settings import Settings

TABLE = [{"field": "age", "mean": 60.0, "std": 10.0}, {"field": "labs", "shape": [3], "range": [0.0, 2.0]}]
IMAGE = [{"field": "pixels", "shape": [2, 8, 8], "range": [0.0, 1.0]}]
MODELS: dict[str, dict[str, Any]] = {
    "linear": {"model": {"kind": "linear"}, "inputs": TABLE},
    "mlp": {"model": {"kind": "mlp", "hidden": [5, 4], "activation": "gelu"}, "inputs": TABLE},
    "cnn": {"model": {"kind": "cnn", "channels": [4, 6]}, "inputs": IMAGE},
    "head": {
        "model": {"kind": "head", "backbone": {"kind": "cnn", "channels": [4, 6]}},
        "inputs": IMAGE,
    },
    "classes": {
        "model": {"kind": "linear"},
        "inputs": TABLE,
        "target": {"label": "kind", "task": "multiclass", "classes": 3},
    },
    "quantity": {
        "model": {"kind": "mlp", "hidden": [4]},
        "inputs": TABLE,
        "target": {"label": "days", "task": "regression", "mean": 100.0, "std": 50.0},
        "loss": "huber",
    },
}
RECORDS, HELD_OUT = 60, 12
BASE = {
    "target": {"label": "died", "task": "binary"},
    "loss": "cross-entropy",
    "epsilon": 3.0,
    "delta": 1e-6,
    "clip": 1.0,
    "sample_rate": 0.3,
    "expected_batch": 15,
    "steps": 4,
    "learning_rate": 0.1,
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job's folders, and records at home; some values are none."""
    generator = np.random.default_rng(3)
    labs = generator.random((RECORDS, 3)).astype(np.float32)
    labs[4, 1] = np.nan
    np.savez(
        tmp_path / "home.npz",
        age=generator.normal(60, 10, RECORDS).astype(np.float32),
        labs=labs,
        pixels=generator.random((RECORDS, 2, 8, 8)).astype(np.float32),
        died=(generator.random(RECORDS) < 0.5).astype(np.float32),
        kind=generator.integers(0, 3, RECORDS).astype(np.int32),
        days=np.where(np.arange(RECORDS) == 7, np.nan, 100).astype(np.float32),
        __labels__=np.array(["died", "kind", "days"]),
        __test__=np.arange(RECORDS - HELD_OUT, RECORDS),
    )
    for name, folder in (("RAPHA_IN", "in"), ("RAPHA_OUT", "out")):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("RAPHA_HOME_DATA", str(tmp_path / "home.npz"))
    monkeypatch.delenv("RAPHA_BROKER_FD", raising=False)
    return tmp_path


def prepared(place: Path, kind: str, dtype: str = "bf16") -> tuple[PrivateTraining, ReleasePlan]:
    """What the node puts there for the declaration `kind`."""
    private = PrivateTraining.parse(BASE | MODELS[kind])
    tensors = list(planned(private))
    weights = {"file": "w.safetensors", "release_dtype": dtype, "tensors": tensors}
    plan = ReleasePlan.parse({"version": 1, "weights": weights, "max_bytes": 65536})
    told = {
        "private": private.dump(),
        "affine": [list(i.affine) for i in private.inputs],
        "noise_multiplier": 0.5,
        "at_once": 7,
        "weights_file": "w.safetensors",
    }
    (place / "in" / "private.json").write_text(json.dumps(told))
    (place / "in" / "plan.json").write_text(json.dumps(plan.dump()))
    groups = np.repeat(np.arange((RECORDS - HELD_OUT) // 2), 2).astype("<i4")
    (place / "in" / "groups.i32").write_bytes(groups.tobytes())
    if kind == "head":
        body = build(Settings.of(told)).body.state_dict()
        save_file({f"body.{name}": t for name, t in body.items()}, place / "in" / "base.safetensors")
    return private, plan


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("kind", MODELS)
def test_what_it_leaves_is_what_the_guard_expects_and_predicts(kind: str, dtype: str, place: Path) -> None:
    private, plan = prepared(place, kind, dtype)
    assert main(["train"]) == 0
    assert [path.name for path in (place / "out").iterdir()] == ["w.safetensors"]
    found = load_file(place / "out" / "w.safetensors")
    assert {name: tuple(t.shape) for name, t in found.items()} == dict(private.trained)
    released = place / "in" / "released"
    released.mkdir()
    report = inspect(place / "out", plan, released)
    assert report.ok, report.checks
    (place / "out" / "w.safetensors").unlink()
    assert main(["predict"]) == 0
    rows = np.fromfile(place / "out" / "predictions.f32", "<f4").reshape(HELD_OUT, private.target.outputs)
    assert np.isfinite(rows).all()
    if private.target.task == "multiclass":
        np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-5)
    if private.target.task == "binary":
        assert ((rows > 0) & (rows < 1)).all()


@pytest.mark.parametrize("kind", MODELS)
def test_the_plan_and_the_model_have_the_same_tensors(kind: str, place: Path) -> None:
    private, _ = prepared(place, kind)
    model = build(Settings.read())
    trained = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    assert trained == dict(private.trained)
    frozen = {name: tuple(p.shape) for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == dict(private.frozen)


SPOILT: dict[str, Callable[[Path], object]] = {
    "fewer groups": lambda place: (place / "in" / "groups.i32").write_bytes(b"\0" * 16),
    "groups with a gap": lambda place: (place / "in" / "groups.i32").write_bytes(
        np.arange(1, RECORDS - HELD_OUT + 1, dtype="<i4").tobytes()
    ),
    "a base of another model": lambda place: save_file(
        {"body.0.weight": torch.zeros(2)}, place / "in" / "base.safetensors"
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_files_that_contradict_one_another_end_it_before_a_record_is_read(what: str, place: Path) -> None:
    prepared(place, "head")
    SPOILT[what](place)
    with pytest.raises(ValueError, match=r"groups|declared model"):
        main(["train"])
    assert not list((place / "out").iterdir())


def test_other_words_are_a_wrong_call(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(place, "linear")
    assert main([]) == main(["train", "predict"]) == main(["shell"]) == 2
    assert "usage" in capsys.readouterr().err
