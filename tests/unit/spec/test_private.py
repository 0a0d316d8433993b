"""What a private job may declare, and what it may not: from the text alone, before any record."""

from __future__ import annotations

import copy
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapha.spec.declared import norm_groups
from rapha.spec.job import JobFile, parse_job_file
from rapha.spec.private import PREDICT, TRAIN, PrivateTraining, planned
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import ReleasePlan
from rapha.spec.yaml import load

TEMPLATE = (files("rapha.researcher") / "templates" / "private" / "job.yaml").read_text(encoding="utf-8")
WRITTEN: dict[str, Any] = load(TEMPLATE)
PIXELS = {"field": "pixels", "shape": [32, 32], "range": [0.0, 1.0]}
LINEAR: dict[str, Any] = WRITTEN["private"]
MLP = LINEAR | {"model": {"kind": "mlp", "hidden": [16, 8]}}
CNN = LINEAR | {"model": {"kind": "cnn", "channels": [8, 12]}, "inputs": [PIXELS]}
HEAD = LINEAR | {"model": {"kind": "head", "backbone": CNN["model"]}, "inputs": [PIXELS]}
KINDS = {"linear": LINEAR, "mlp": MLP, "cnn": CNN, "head": HEAD}


def job(private: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """The template with another declaration, and the plan that goes with it."""
    made = copy.deepcopy(WRITTEN) | {"private": private}
    made["outputs"]["weights"]["tensors"] = list(planned(PrivateTraining.parse(private)))
    return made | changed


def signed(written: dict[str, Any]) -> Any:
    return JobFile.parse(written).to_job(image_digest="sha256:" + "ab" * 32, recipient="A" * 43 + "=")


def code(written: dict[str, Any]) -> str:
    with pytest.raises(Refused) as caught:
        signed(written)
    return caught.value.code


def test_the_template_is_a_private_job_and_writes_no_command() -> None:
    assert "entrypoint" not in WRITTEN
    assert "predict" not in WRITTEN
    file = parse_job_file(TEMPLATE)
    assert (file.entrypoint, file.predict) == (TRAIN, PREDICT)
    assert signed(WRITTEN).private == file.private


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_model_has_a_plan_that_is_accepted(kind: str) -> None:
    written = job(KINDS[kind])
    if kind == "head":
        written["model"]["base"] = "ab" * 32
    private = signed(written).private
    assert private is not None
    assert [t.name for t in private.trained][-2:] == ["head.weight", "head.bias"]
    assert bool(private.frozen) == (kind == "head")
    assert private.records_at_once(4 << 30) > 100


BAD_PRIVATE: dict[str, dict[str, Any]] = {
    "an unknown field": {"seed": 7},
    "a seed of the noise": {"noise_seed": 7},
    "a noise of one's own": {"noise_multiplier": 0.1},
    "no epsilon": {"epsilon": None},
    "epsilon of nothing": {"epsilon": 0.0},
    "an epsilon that says nothing": {"epsilon": 100.0},
    "an infinite epsilon": {"epsilon": float("inf")},
    "an epsilon that is no number": {"epsilon": float("nan")},
    "an epsilon in words": {"epsilon": "3"},
    "an epsilon that is true": {"epsilon": True},
    "a delta of a half": {"delta": 0.5},
    "no delta": {"delta": 0.0},
    "a negative delta": {"delta": -1e-6},
    "no clip": {"clip": 0.0},
    "an endless clip": {"clip": float("inf")},
    "nobody in a step": {"sample_rate": 0.0},
    "more than everybody": {"sample_rate": 1.5},
    "a batch of nobody": {"expected_batch": 0},
    "no steps": {"steps": 0},
    "a billion steps": {"steps": 10**9},
    "half a step": {"steps": 1.5},
    "no learning": {"learning_rate": 0.0},
    "learning backwards": {"learning_rate": -0.1},
    "an optimizer of one's own": {"optimizer": "lbfgs"},
    "momentum for adam": {"optimizer": "adam", "momentum": 0.9},
    "endless momentum": {"momentum": 1.0},
    "another model": {"model": {"kind": "transformer"}},
    "a model that is a path": {"model": "model.pt"},
    "batch norm": {"model": {"kind": "cnn", "channels": [8], "norm": "batch"}, "inputs": [PIXELS]},
    "a huge layer": {"model": {"kind": "mlp", "hidden": [10**9]}},
    "many large layers": {"model": {"kind": "mlp", "hidden": [8192] * 8}},
    "an empty layer": {"model": {"kind": "mlp", "hidden": [0]}},
    "no layers": {"model": {"kind": "mlp", "hidden": []}},
    "a deep network": {"model": {"kind": "mlp", "hidden": [4] * 100}},
    "a cnn over numbers": {"model": {"kind": "cnn", "channels": [8]}},
    "a cnn over too small an image": {
        "model": {"kind": "cnn", "channels": [8, 8]},
        "inputs": [PIXELS | {"shape": [3, 64]}],
    },
    "a cnn over two images": {
        "model": {"kind": "cnn", "channels": [8]},
        "inputs": [PIXELS, PIXELS | {"field": "more"}],
    },
    "a head on a head": {"model": {"kind": "head", "backbone": {"kind": "head", "backbone": MLP["model"]}}},
    "no inputs": {"inputs": []},
    "an input twice": {"inputs": [LINEAR["inputs"][0], LINEAR["inputs"][0]]},
    "the label as an input": {"inputs": [{"field": "died_within_5y"}]},
    "an input of one value too many": {"inputs": [{"field": "x", "shape": [65536, 65536]}]},
    "a shape with a hole": {"inputs": [{"field": "x", "shape": [0]}]},
    "a mean without a spread": {"inputs": [{"field": "x", "mean": 1.0}]},
    "a mean and a range": {"inputs": [{"field": "x", "mean": 1.0, "std": 1.0, "range": [0.0, 1.0]}]},
    "no spread": {"inputs": [{"field": "x", "mean": 1.0, "std": 0.0}]},
    "a range of a point": {"inputs": [{"field": "x", "range": [1.0, 1.0]}]},
    "a range backwards": {"inputs": [{"field": "x", "range": [1.0, 0.0]}]},
    "a mean from the records": {"inputs": [{"field": "x", "mean": "auto", "std": "auto"}]},
    "a mean that is no number": {"inputs": [{"field": "x", "mean": float("nan"), "std": 1.0}]},
    "a field that is a path": {"inputs": [{"field": "../x"}]},
    "a loss of a quantity for a class": {"loss": "mse"},
    "a loss of one's own": {"loss": "lambda"},
    "too many classes": {"target": {"label": "y", "task": "multiclass", "classes": 1000}},
    "classes that nobody counts": {"target": {"label": "y", "task": "multiclass"}},
    "classes of a quantity": {
        "target": {"label": "y", "task": "regression", "mean": 0.0, "std": 1.0, "classes": 3},
        "loss": "mse",
    },
    "a quantity without a scale": {"target": {"label": "y", "task": "regression"}, "loss": "mse"},
    "a binary label with classes": {"target": {"label": "y", "task": "binary", "classes": 2}},
}


@pytest.mark.parametrize("what", BAD_PRIVATE)
def test_a_bad_declaration_refuses(what: str) -> None:
    with pytest.raises(Refused, match=r"^schema\.field_"):
        PrivateTraining.parse(LINEAR | BAD_PRIVATE[what])


BAD_JOB: dict[str, tuple[dict[str, Any], str]] = {
    "a command of one's own": ({"entrypoint": ["python3", "train.py"]}, "schema.field_invalid"),
    "a predict of one's own": ({"predict": ["python3", "predict.py"]}, "schema.field_invalid"),
    "an evaluation": ({"kind": "evaluate", "model": {"architecture": "x", "base": "ab" * 32}}, "schema."),
    "a base without a backbone": (
        {"model": {"architecture": "x", "base": "ab" * 32}},
        "schema.field_invalid",
    ),
    "too little memory": (
        {"compute": WRITTEN["compute"] | {"memory": "512MiB"}},
        "schema.field_invalid",
    ),
    "a delta near one patient's share": (
        {"dataset": WRITTEN["dataset"] | {"max_records": 10**6}},
        "policy.private",
    ),
}


@pytest.mark.parametrize("what", BAD_JOB)
def test_a_job_that_contradicts_its_declaration_refuses(what: str) -> None:
    changed, expected = BAD_JOB[what]
    assert code(job(LINEAR, **copy.deepcopy(changed))).startswith(expected)


def test_a_frozen_backbone_needs_its_weights() -> None:
    assert code(job(HEAD)) == "schema.field_invalid"


def test_the_hospitals_trainer_runs_for_private_jobs_alone() -> None:
    written = copy.deepcopy(WRITTEN)
    del written["private"]
    for name, command in (("entrypoint", TRAIN), ("predict", PREDICT)):
        own = written | {"entrypoint": ["python3", "a.py"], "predict": ["python3", "b.py"]} | {name: command}
        assert code(own) == "schema.field_invalid"


def plan(tensors: list[dict[str, Any]], **changed: Any) -> dict[str, Any]:
    outputs: dict[str, Any] = copy.deepcopy(WRITTEN["outputs"]) | changed
    if outputs["weights"] is not None:
        outputs["weights"]["tensors"] = tensors
    return outputs


GOOD = list(planned(PrivateTraining.parse(LINEAR)))
LOSS = {
    "file": "loss.json",
    "fields": [{"name": "loss", "type": "number", "min": 0, "max": 9, "decimals": 3}],
}
BAD_PLANS: dict[str, dict[str, Any]] = {
    "a tensor more": plan([*GOOD, GOOD[0] | {"name": "extra", "shape": [4]}]),
    "a tensor less": plan(GOOD[:1]),
    "another shape": plan([GOOD[0] | {"shape": [9, 1]}, GOOD[1]]),
    "another name": plan([GOOD[0] | {"name": "fc.weight"}, GOOD[1]]),
    "another dtype": plan([GOOD[0] | {"dtype": "F64"}, GOOD[1]]),
    "the trainer's own words": plan(GOOD, self_reported=LOSS),
    "no weights": plan([], weights=None),
}


@pytest.mark.parametrize("what", BAD_PLANS)
def test_a_plan_of_other_tensors_than_the_models_refuses(what: str) -> None:
    refused = code(copy.deepcopy(WRITTEN) | {"outputs": BAD_PLANS[what]})
    # Metrics without weights are refused by the format itself, for any job.
    assert refused == "schema.plan_invalid" or what == "no weights"


def test_the_order_of_the_plan_is_the_researchers_own() -> None:
    signed(copy.deepcopy(WRITTEN) | {"outputs": plan(GOOD[::-1])})


def test_a_plan_without_metrics_needs_weights_too() -> None:
    outputs = plan([], weights=None, self_reported=LOSS, trusted_metrics=[])
    assert code(copy.deepcopy(WRITTEN) | {"outputs": outputs}) == "schema.plan_invalid"


def test_a_derived_plan_is_a_plan() -> None:
    derived = list(planned(PrivateTraining.parse(CNN), largest=8.0))
    ReleasePlan.parse(plan(derived))
    assert {t["max"] for t in derived} == {8.0}


@given(st.integers(1, 512))
def test_groups_of_a_norm_divide_the_channels(channels: int) -> None:
    assert channels % norm_groups(channels) == 0
    assert 1 <= norm_groups(channels) <= 8


@given(st.integers(2**20, 2**42), st.lists(st.integers(1, 1024), min_size=1, max_size=3))
def test_more_memory_never_holds_fewer_records(memory: int, hidden: list[int]) -> None:
    private = PrivateTraining.parse(LINEAR | {"model": {"kind": "mlp", "hidden": hidden}})
    assert 0 <= private.records_at_once(memory) <= private.records_at_once(2 * memory)


@settings(max_examples=200)
@given(
    st.sampled_from(sorted(LINEAR)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    ),
)
def test_any_json_in_any_field_is_read_or_refused(field: str, value: Any) -> None:
    try:
        found = PrivateTraining.parse(LINEAR | {field: value})
    except Refused as refused:
        assert refused.code.startswith("schema.")
    else:
        assert found.parameters >= 1
