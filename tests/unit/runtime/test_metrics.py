"""Trusted metrics against scikit-learn and plain counting, and what they refuse or leave out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from rapha.runtime import metrics
from rapha.runtime.metrics import Labels, evaluate, parse_predictions, published
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import TRUSTED_METRICS, TrustedMetric, metric_keys

Array = npt.NDArray[Any]
BINARY: tuple[TrustedMetric, ...] = ("auroc", "auprc", "accuracy", "brier")


def binary(seed: int, rows: int, decimals: int) -> tuple[Array, Array]:
    """Labels and scores with ties."""
    draw = np.random.default_rng(seed)
    target = draw.integers(0, 2, rows)
    score = np.clip(0.3 * target + 0.35 + 0.3 * draw.standard_normal(rows), 0, 1).round(decimals)
    return target, score.astype("<f4")[:, None]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), rows=st.integers(60, 200), decimals=st.integers(0, 4))
def test_binary_metrics_agree_with_sklearn(seed: int, rows: int, decimals: int) -> None:
    target, score = binary(seed, rows, decimals)
    got = evaluate(BINARY, Labels(target), score, seed=1)
    flat = score[:, 0].astype(float)
    expected = {
        "auroc": oracle.roc_auc_score(target, flat),
        "auprc": oracle.average_precision_score(target, flat),
        "accuracy": oracle.accuracy_score(target, flat >= 0.5),
        "brier": oracle.brier_score_loss(target, flat),
    }
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=0.000501)
        assert got[f"{name}.low"] <= got[name] <= got[f"{name}.high"]


def test_many_classes_agree_with_sklearn() -> None:
    draw = np.random.default_rng(2)
    target = draw.integers(0, 4, 400)
    score = draw.random((400, 4)) + np.eye(4)[target] * 0.3
    score /= score.sum(axis=1, keepdims=True)
    got = evaluate(BINARY, Labels(target), score.astype("<f4"), seed=1)
    assert got["auroc"] == pytest.approx(oracle.roc_auc_score(target, score, multi_class="ovr"), abs=0.001)
    assert got["auprc"] == pytest.approx(oracle.average_precision_score(np.eye(4)[target], score), abs=0.001)
    assert got["accuracy"] == pytest.approx(oracle.accuracy_score(target, score.argmax(axis=1)), abs=0.001)
    assert got["brier"] == pytest.approx(((score - np.eye(4)[target]) ** 2).sum(axis=1).mean() / 2, abs=0.001)


def test_two_columns_are_two_classes() -> None:
    target, score = binary(5, 100, 3)
    both = np.hstack([1 - score, score])
    assert evaluate(BINARY, Labels(target), both, seed=1) == evaluate(BINARY, Labels(target), score, seed=1)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), rows=st.integers(40, 90), horizon=st.integers(3, 60))
def test_concordance_agrees_with_counting_pairs(seed: int, rows: int, horizon: int) -> None:
    draw = np.random.default_rng(seed)
    time, event = draw.integers(1, horizon, rows), draw.random(rows) < 0.6
    risk = (-time / horizon + draw.standard_normal(rows)).round(1).astype("<f4")
    got = evaluate(["concordance"], Labels(time, event), risk[:, None], seed=1)
    won = pairs = 0.0
    for i, j in itertools.permutations(range(rows), 2):
        if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
            pairs += 1
            won += 1 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0
    assert got["concordance"] == pytest.approx(won / pairs, abs=0.000501)


def test_rmse() -> None:
    draw = np.random.default_rng(0)
    target = draw.standard_normal(200)
    guess = (target + draw.standard_normal(200)).astype("<f4")
    got = evaluate(["rmse"], Labels(target), guess[:, None], seed=1)
    assert got["rmse"] == pytest.approx(oracle.root_mean_squared_error(target, guess), abs=0.001)
    huge = evaluate(["rmse"], Labels(target), np.full((200, 1), 3e38, "<f4"), seed=1)
    assert huge["rmse"] == 1e6


def test_curves_are_binned_and_agree_with_sklearn() -> None:
    target, score = binary(1, 4000, 6)
    got = evaluate(["roc", "calibration"], Labels(target), score, seed=1)
    false, true, _ = oracle.roc_curve(target, score[:, 0], drop_intermediate=False)
    for n in range(1, 10):
        assert got[f"roc.{n}"] == pytest.approx(np.interp(n / 10, false, true), abs=0.002)
    middle = (score[:, 0] >= 0.4) & (score[:, 0] < 0.5)
    assert got["calibration.5"] == pytest.approx(target[middle].mean(), abs=0.001)


def test_perfect_and_reversed_scores() -> None:
    target = np.repeat([0, 1], 20)
    perfect = target.astype("<f4")[:, None]
    assert evaluate(["auroc"], Labels(target), perfect, seed=1)["auroc"] == 1.0
    assert evaluate(["auroc"], Labels(target), 1 - perfect, seed=1)["auroc"] == 0.0
    assert evaluate(["auroc"], Labels(target), perfect * 0, seed=1)["auroc"] == 0.5


def test_the_interval_is_seeded() -> None:
    target, score = binary(3, 120, 3)
    one, same, other = (evaluate(["auroc"], Labels(target), score, seed=s) for s in (1, 1, 2))
    assert one == same
    assert one["auroc"] == other["auroc"]
    assert one != other


def test_patients_are_resampled_whole() -> None:
    """Ten copies of each row are no more evidence than one."""
    target, score = binary(4, 60, 3)
    patients = np.arange(60)
    once = evaluate(["auroc"], Labels(target, patient=patients), score, seed=1)
    copies = Labels(np.tile(target, 10), patient=np.tile(patients, 10))
    assert evaluate(["auroc"], copies, np.tile(score, (10, 1)), seed=1) == once


@pytest.mark.parametrize("name", sorted(TRUSTED_METRICS))
def test_only_priced_keys_on_the_priced_grid_leave(name: Any) -> None:
    target, score = binary(6, 300, 2)
    got = evaluate([name], Labels(target, target == 0), score, seed=1)
    low, high = TRUSTED_METRICS[name]
    assert got
    assert set(got) <= set(metric_keys(name))
    assert all(low <= value <= high and round(value, 3) == value for value in got.values())


def test_small_cells_are_left_out() -> None:
    target = np.r_[np.ones(9, int), np.zeros(200, int)]
    score = np.linspace(0, 1, 209, dtype="<f4")[:, None]
    got = evaluate(["auroc", "auprc", "roc", "accuracy"], Labels(target), score, seed=1)
    assert set(got) == {"accuracy", "accuracy.low", "accuracy.high"}
    assert evaluate(BINARY, Labels(target[:9]), score[:9], seed=1) == {}
    one_patient = Labels(target, patient=np.zeros(209))
    assert evaluate(BINARY, one_patient, score, seed=1) == {}
    few_events = Labels(np.arange(209), np.arange(209) < 9)
    assert evaluate(["concordance"], few_events, score, seed=1) == {}


def test_a_bin_with_few_patients_is_left_out() -> None:
    target = np.tile([0, 1], 100)
    score = np.full((200, 1), 0.55, "<f4")
    score[:9] = 0.05
    assert set(evaluate(["calibration"], Labels(target), score, seed=1)) == {"calibration.6"}


def test_a_class_that_the_split_lacks_leaves_no_average() -> None:
    target = np.tile([0, 1], 50)
    assert evaluate(["auroc"], Labels(target), np.full((100, 3), 0.1, "<f4"), seed=1) == {}


def test_published_values_have_no_negative_zero() -> None:
    assert str(published("auroc", -0.0)) == "0.0"


BAD_PREDICTIONS: dict[str, tuple[bytes, int, int]] = {
    "short": (bytes(4), 2, 1),
    "long": (bytes(12), 2, 1),
    "odd": (bytes(7), 2, 1),
    "empty": (b"", 0, 1),
    "no columns": (b"", 2, 0),
    "negative": (bytes(4), -1, -1),
    "NaN": (np.array([0, np.nan], "<f4").tobytes(), 2, 1),
    "infinity": (np.array([0, np.inf], "<f4").tobytes(), 1, 2),
}


@pytest.mark.parametrize("name", BAD_PREDICTIONS)
def test_predictions_that_do_not_fit_refuse(name: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_predictions(*BAD_PREDICTIONS[name])
    assert refused.value.code == "job.outputs"


def test_predictions_are_read_in_order() -> None:
    values = np.arange(6, dtype="<f4").reshape(3, 2)
    assert (parse_predictions(values.tobytes(), 3, 2) == values).all()


@pytest.mark.parametrize(
    ("name", "target", "score"),
    [
        ("accuracy", np.zeros(20), np.zeros((19, 1))),
        ("accuracy", np.zeros(20), np.zeros(20)),
        ("accuracy", np.zeros(20), np.full((20, 1), np.nan)),
        ("brier", np.tile([0, 1], 20), np.full((40, 1), 1.5)),
        ("calibration", np.tile([0, 1], 20), np.full((40, 1), -0.5)),
        ("auroc", np.tile([0, 1, 2], 20), np.zeros((60, 1))),
        ("auroc", np.tile([0, 1, 2, 3], 20), np.zeros((80, 3))),
        ("roc", np.tile([0, 1, 2], 20), np.zeros((60, 1))),
    ],
)
def test_predictions_that_the_metric_cannot_take_refuse(name: Any, target: Array, score: Array) -> None:
    with pytest.raises(Refused) as refused:
        evaluate([name], Labels(target), score, seed=1)
    assert refused.value.code == "job.outputs"


def test_concordance_without_censoring_is_the_nodes_mistake() -> None:
    with pytest.raises(Refused) as refused:
        evaluate(["concordance"], Labels(np.arange(50)), np.zeros((50, 1), "<f4"), seed=1)
    assert refused.value.code == "node.config"


def test_classes_that_nobody_has_cost_no_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[npt.NDArray[np.float64]] = []

    def resamples(patients: npt.NDArray[np.intp], seed: int) -> Iterator[npt.NDArray[np.float64]]:
        drawn.append(np.ones((1, len(patients))))
        yield drawn[-1]

    monkeypatch.setattr(metrics, "_resamples", resamples)
    target = np.arange(60) % 2
    scores = np.random.default_rng(0).random((60, 1024)).astype("<f4")
    assert evaluate(("auroc", "auprc"), Labels(target), scores, seed=1) == {}
    assert not drawn
