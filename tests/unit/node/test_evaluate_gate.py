"""Gates 8 and 9 of an evaluation, and the model that a job brings."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from rapha.node.gates import evaluate
from rapha.node.gates.base import as_released, base_of
from rapha.node.gates.consent import check_measurable
from rapha.node.gates.evaluate import nothing_left, score
from rapha.node.gates.train import Trained
from rapha.runtime.image.model import File
from rapha.spec.price import PriceContext, covert_bound_bits, timing_bits
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import ReleasePlan
from rapha.spec.surface import Quanta

PLAN = ReleasePlan.parse({"version": 1, "trusted_metrics": ["auroc", "brier"], "max_bytes": 4096})
MODEL = save({"w": np.zeros(4, np.float32)})
DIGEST = hashlib.sha256(MODEL).hexdigest()


def admitted(**changes: Any) -> Any:
    job = SimpleNamespace(kind="evaluate", outputs=PLAN)
    return SimpleNamespace(**{"job": job, "manifest": None, "base": None, **changes})


def image(tmp_path: Path, *names: str) -> Any:
    files = {}
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(MODEL)
        path.chmod(0o444)
        files[name] = File(path, len(MODEL))
    return SimpleNamespace(files=files)


def brings(base: str | None) -> Any:
    return SimpleNamespace(model=SimpleNamespace(base=base))


def test_a_job_without_a_base_has_none(tmp_path: Path) -> None:
    assert base_of(brings(None), image(tmp_path, "app/m.safetensors")) is None


@pytest.mark.parametrize("name", ["app/m.safetensors", "app/deep/er/x y.safetensors"])
def test_it_may_lie_anywhere_below_app(name: str, tmp_path: Path) -> None:
    assert base_of(brings(DIGEST), image(tmp_path, name, "usr/m.safetensors")) == tmp_path / name


@pytest.mark.parametrize("name", ["usr/m.safetensors", "apple/m.safetensors", "app/m.bin"])
def test_what_lies_elsewhere_does_not_count(name: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"image\.base_missing"):
        base_of(brings(DIGEST), image(tmp_path, name))


def test_predict_finds_it_where_released_weights_are(tmp_path: Path) -> None:
    base = base_of(brings(DIGEST), image(tmp_path, "image/app/m.safetensors".removeprefix("image/")))
    assert base is not None
    shown = as_released(base, tmp_path)
    (only,) = shown.iterdir()
    assert only.name == "model.safetensors"
    assert only.samefile(base)
    assert only.stat().st_mode & 0o777 == 0o444


def test_without_a_base_nothing_is_evaluated(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"node\.internal"):
        evaluate.evaluate(SimpleNamespace(), admitted(), SimpleNamespace(), tmp_path)  # type: ignore[arg-type]


def test_no_check_claims_to_have_run() -> None:
    report = nothing_left(PLAN)
    assert report.ok and report.decided and not report.released
    assert [check.n for check in report.checks] == list(range(1, len(report.checks) + 1))
    assert {(check.verdict, check.reason) for check in report.checks} == {("not_run", evaluate.NOTHING_LEFT)}
    assert report.covert_bound_bits == PLAN.released_bits()


def test_what_leaves_is_the_numbers_and_the_predictions_are_destroyed(tmp_path: Path) -> None:
    out = tmp_path / "predictions"
    out.mkdir()
    (out / "predictions.f32").write_bytes(bytes(8))
    asked: list[Any] = []

    def scored(predictions: Path, metrics: Any) -> dict[str, float]:
        asked.append((predictions.read_bytes(), metrics))
        return {"auroc": 0.75, "brier": 0.125}

    consented: Any = SimpleNamespace(data=SimpleNamespace(score=scored))
    trained = Trained(out, SimpleNamespace())  # type: ignore[arg-type]
    guarded = score(SimpleNamespace(), admitted(), consented, trained, tmp_path)  # type: ignore[arg-type]
    assert asked == [(bytes(8), ("auroc", "brier"))]
    assert not out.exists()
    assert list(guarded.files) == ["metrics.json"]
    expected = {"trusted": {"auroc": 0.75, "brier": 0.125}, "self_reported": {}}
    assert json.loads(guarded.files["metrics.json"]) == expected
    section = guarded.section(1000)
    assert {check.verdict for check in section.checks} == {"not_run"}
    assert guarded.leakage.verdict == "not_run" and guarded.leakage.reason == "nothing was trained here"


@pytest.mark.parametrize("kind", ["evaluate", "train"])
def test_a_dataset_without_a_target_takes_no_job_with_metrics(kind: str) -> None:
    job: Any = SimpleNamespace(kind=kind, outputs=PLAN)
    weights: Any = SimpleNamespace(kind="train", outputs=SimpleNamespace(trusted_metrics=()))
    nothing: Any = SimpleNamespace(target=None)
    check_measurable(job, SimpleNamespace(target="died"))  # type: ignore[arg-type]
    check_measurable(weights, nothing)
    with pytest.raises(Refused, match=r"schema\.field_invalid.*no target"):
        check_measurable(job, nothing)


def test_one_run_can_say_less_by_when_it_ends_than_two() -> None:
    def context(trains: bool) -> PriceContext:
        return PriceContext(PLAN, 1000, 10, 1200, 2400, 2**32, Quanta(), trains=trains)

    assert timing_bits(context(False)) < timing_bits(context(True))
    assert covert_bound_bits(context(False)) <= covert_bound_bits(context(True))
