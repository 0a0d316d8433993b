"""Trusted metrics against scikit-learn and plain counting, and what they refuse or leave out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from rapha.runtime.metrics import (
    Labels,
    averages,
    bootstrap,
    curves,
    evaluate,
    parse_predictions,
    published,
    ranking,
)
from rapha.runtime.metrics.case import Case
from rapha.runtime.metrics.interface import Metric
from rapha.runtime.metrics.rounding import coarse, widened
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import MAX_COLUMNS, TRUSTED_METRICS, TrustedMetric, metric_keys

Array = npt.NDArray[Any]
BINARY: tuple[TrustedMetric, ...] = ("auroc", "auprc", "accuracy", "brier")
MADE: dict[str, Callable[[Case], Metric]] = {
    "auroc": ranking.Auroc.of,
    "auprc": ranking.Auprc.of,
    "accuracy": averages.Accuracy.of,
    "brier": averages.Brier.of,
    "calibration_error": averages.CalibrationError.of,
    "sensitivity_at_90": lambda case: ranking.SensitivityAt.of(case, 0.9),
    "sensitivity_at_70": lambda case: ranking.SensitivityAt.of(case, 0.7),
}


def binary(seed: int, rows: int, decimals: int) -> tuple[Array, Array]:
    """Labels and scores with ties."""
    draw = np.random.default_rng(seed)
    target = draw.integers(0, 2, rows)
    score = np.clip(0.3 * target + 0.35 + 0.3 * draw.standard_normal(rows), 0, 1).round(decimals)
    return target, score.astype("<f4")[:, None]


def value(name: str, target: Array, score: Array, weights: Array | None = None) -> float:
    drawn = np.ones(len(target)) if weights is None else weights
    return float(MADE[name](Case.of(Labels(target), score)).values(drawn[None].astype(float))[0])


def expected_calibration_error(target: Array, flat: Array, weights: Array) -> float:
    tenth = np.minimum((flat * 10).astype(int), 9)
    gaps = [abs((weights * (target - flat))[tenth == n].sum()) for n in range(10)]
    return float(sum(gaps) / weights.sum())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999), rows=st.integers(60, 200), decimals=st.integers(0, 4), weighted=st.booleans()
)
def test_binary_metrics_agree_with_sklearn(seed: int, rows: int, decimals: int, weighted: bool) -> None:
    target, score = binary(seed, rows, decimals)
    flat = score[:, 0].astype(float)
    weights = np.random.default_rng(seed).integers(0, 4, rows) if weighted else np.ones(rows, int)
    false, true, _ = oracle.roc_curve(target, flat, sample_weight=weights, drop_intermediate=False)
    expected = {
        "auroc": oracle.roc_auc_score(target, flat, sample_weight=weights),
        "auprc": oracle.average_precision_score(target, flat, sample_weight=weights),
        "accuracy": oracle.accuracy_score(target, flat >= 0.5, sample_weight=weights),
        "brier": oracle.brier_score_loss(target, flat, sample_weight=weights),
        "calibration_error": expected_calibration_error(target, flat, weights),
        "sensitivity_at_90": true[false <= 0.1 + 1e-9].max(),
    }
    for name, wanted in expected.items():
        assert value(name, target, score, weights) == pytest.approx(wanted, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), rows=st.integers(8, 40), decimals=st.integers(0, 3))
def test_moves_are_what_another_label_makes_of_a_number(seed: int, rows: int, decimals: int) -> None:
    target, score = binary(seed, rows, decimals)
    target[:4] = 0, 0, 1, 1
    for name, make in MADE.items():
        moves = make(Case.of(Labels(target), score)).moves()
        turned = [value(name, np.where(np.arange(rows) == i, 1 - target, target), score) for i in range(rows)]
        assert np.array(turned) - value(name, target, score) == pytest.approx(moves[0], abs=1e-9), name
    points = {p.key: p for p in curves.roc(Case.of(Labels(target), score))}
    for i in range(rows):
        other = np.where(np.arange(rows) == i, 1 - target, target)
        for p in curves.roc(Case.of(Labels(other), score)):
            assert p.value - points[p.key].value == pytest.approx(points[p.key].moves[i], abs=1e-9)


def test_many_classes_agree_with_sklearn() -> None:
    draw = np.random.default_rng(2)
    target = draw.integers(0, 4, 400)
    score = draw.random((400, 4)) + np.eye(4)[target] * 0.3
    score /= score.sum(axis=1, keepdims=True)
    wanted = {
        "auroc": oracle.roc_auc_score(target, score, multi_class="ovr"),
        "auprc": oracle.average_precision_score(np.eye(4)[target], score),
        "accuracy": oracle.accuracy_score(target, score.argmax(axis=1)),
        "brier": ((score - np.eye(4)[target]) ** 2).sum(axis=1).mean() / 2,
    }
    got = evaluate(BINARY, Labels(target), score.astype("<f4"), seed=1)
    for name, expected in wanted.items():
        assert value(name, target, score) == pytest.approx(expected, abs=1e-9)
        assert got[name] == pytest.approx(expected, abs=0.02)


def test_two_columns_are_two_classes() -> None:
    target, score = binary(5, 100, 3)
    both = np.hstack([1 - score, score])
    assert evaluate(BINARY, Labels(target), both, seed=1) == evaluate(BINARY, Labels(target), score, seed=1)


def test_a_label_that_moves_between_classes_moves_brier_by_no_more() -> None:
    draw = np.random.default_rng(3)
    target, score = draw.integers(0, 3, 30), draw.dirichlet([1, 1, 1], 30)
    moves = averages.Brier.of(Case.of(Labels(target), score)).moves()[0]
    for i in range(30):
        turned = [
            value("brier", np.where(np.arange(30) == i, c, target), score) - value("brier", target, score)
            for c in range(3)
        ]
        assert max(turned, key=abs) == pytest.approx(moves[i])


def test_rmse() -> None:
    draw = np.random.default_rng(0)
    target = draw.standard_normal(2000)
    guess = (target + draw.standard_normal(2000)).astype("<f4")
    got = evaluate(["rmse"], Labels(target), guess[:, None], seed=1)
    assert got["rmse"] == pytest.approx(oracle.root_mean_squared_error(target, guess), abs=0.01)
    assert got["rmse.low"] < got["rmse"] < got["rmse.high"]
    huge = evaluate(["rmse"], Labels(target), np.full((2000, 1), 3e38, "<f4"), seed=1)
    assert huge.get("rmse", 1e6) == 1e6


def test_curves_are_binned_and_agree_with_sklearn() -> None:
    target, score = binary(1, 20000, 6)
    got = evaluate(["roc", "calibration"], Labels(target), score, seed=1)
    false, true, _ = oracle.roc_curve(target, score[:, 0], drop_intermediate=False)
    for n in range(1, 10):
        assert got[f"roc.{n}"] == pytest.approx(np.interp(n / 10, false, true), abs=0.002)
    middle = (score[:, 0] >= 0.4) & (score[:, 0] < 0.5)
    assert got["calibration.5"] == pytest.approx(target[middle].mean(), abs=0.002)


def test_perfect_and_reversed_scores() -> None:
    target = np.repeat([0, 1], 50)
    perfect = target.astype("<f4")[:, None]
    assert evaluate(["auroc"], Labels(target), perfect, seed=1)["auroc"] == 1.0
    assert evaluate(["auroc"], Labels(target), 1 - perfect, seed=1)["auroc"] == 0.0
    assert evaluate(["auroc"], Labels(target), perfect * 0, seed=1)["auroc"] == 0.5


def test_what_is_told_is_seeded() -> None:
    target, score = binary(3, 120, 3)
    one, same, other = (evaluate(["auroc"], Labels(target), score, seed=s) for s in (1, 1, 4))
    assert one == same
    assert one != other


def test_patients_are_resampled_whole() -> None:
    """Ten copies of each row are no more evidence than one."""
    target, score = binary(4, 400, 6)
    patients = np.arange(400)
    once = evaluate(["auroc"], Labels(target, patient=patients), score, seed=1)
    copies = Labels(np.tile(target, 10), patient=np.tile(patients, 10))
    ten = evaluate(["auroc"], copies, np.tile(score, (10, 1)), seed=1)
    width, rows = (got["auroc.high"] - got["auroc.low"] for got in (once, ten))
    assert rows == pytest.approx(width, abs=0.02)
    apart = evaluate(["auroc"], Labels(np.tile(target, 10)), np.tile(score, (10, 1)), seed=1)
    assert apart["auroc.high"] - apart["auroc.low"] < width / 2


@pytest.mark.parametrize("name", sorted(TRUSTED_METRICS))
def test_only_priced_keys_on_the_priced_grid_leave(name: Any) -> None:
    target, score = binary(6, 2000, 2)
    got = evaluate([name], Labels(target, target == 0), score, seed=1)
    low, high = TRUSTED_METRICS[name]
    assert got
    assert set(got) <= set(metric_keys(name))
    assert all(low <= number <= high and round(number, 3) == number for number in got.values())


def test_small_cells_are_left_out() -> None:
    target = np.r_[np.ones(9, int), np.zeros(200, int)]
    score = np.linspace(0, 1, 209, dtype="<f4")[:, None]
    got = evaluate(["auroc", "auprc", "roc", "accuracy", "sensitivity_at_90"], Labels(target), score, seed=1)
    assert set(got) == {"accuracy", "accuracy.low", "accuracy.high"}
    assert evaluate(BINARY, Labels(target[:9]), score[:9], seed=1) == {}
    one_patient = Labels(target, patient=np.zeros(209))
    assert evaluate(BINARY, one_patient, score, seed=1) == {}
    few_events = Labels(np.arange(209), np.arange(209) < 9)
    assert evaluate(["concordance"], few_events, score, seed=1) == {}


def test_sensitivity_needs_a_cell_of_negatives_beyond_the_threshold() -> None:
    target, score = binary(7, 360, 6)
    assert "sensitivity_at_90" in evaluate(["sensitivity_at_90"], Labels(target), score, seed=1)
    assert evaluate(["sensitivity_at_95"], Labels(target), score, seed=1) == {}


def test_a_bin_with_few_patients_is_left_out() -> None:
    target = np.tile([0, 1], 100)
    score = np.full((200, 1), 0.55, "<f4")
    score[:9] = 0.05
    assert set(evaluate(["calibration"], Labels(target), score, seed=1)) == {"calibration.6"}


def test_a_predicted_class_with_few_patients_leaves_no_accuracy() -> None:
    target = np.tile([0, 1], 100)
    score = np.full((200, 1), 0.2, "<f4")
    assert evaluate(["accuracy"], Labels(target), score, seed=1)
    score[:9] = 0.8
    assert evaluate(["accuracy"], Labels(target), score, seed=1) == {}
    score[:10] = 0.8
    assert evaluate(["accuracy"], Labels(target), score, seed=1)


def test_a_class_that_the_split_lacks_leaves_no_average_and_costs_no_resample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(case: Case, generator: np.random.Generator) -> Any:
        raise AssertionError

    monkeypatch.setattr(bootstrap, "_weights", never)
    scores = np.random.default_rng(0).random((60, MAX_COLUMNS)).astype("<f4")
    assert evaluate(("auroc", "auprc"), Labels(np.arange(60) % 2), scores, seed=1) == {}


def test_published_values_have_no_negative_zero() -> None:
    assert str(published("auroc", -0.0)) == "0.0"


def rounding(seed: int) -> Callable[[float], float]:
    draw = np.random.default_rng(seed)
    return lambda step: float(draw.random())


@given(share=st.floats(0, 1), grain=st.floats(0.001, 1), seed=st.integers(0, 99))
def test_a_value_is_told_within_a_step_that_is_no_finer_than_its_grain(
    share: float, grain: float, seed: int
) -> None:
    told = coarse("auroc", share, grain, rounding(seed))
    assert told.step >= grain * (1 - 1e-6) and (1 / told.step) == pytest.approx(round(1 / told.step))
    assert abs(told.value - share) <= told.step + 1e-9
    assert told.value / told.step == pytest.approx(round(told.value / told.step))
    amount = coarse("rmse", 1000 * share, 30 * grain, rounding(seed))
    assert abs(amount.value - 1000 * share) <= amount.step <= 30 * grain * 2.5 + 1e-9


def test_values_are_right_on_average() -> None:
    chance = rounding(0)
    told = [coarse("accuracy", 0.8731, 0.01, chance).value for _ in range(20000)]
    assert set(np.round(told, 3)) == {0.87, 0.88}
    assert np.mean(told) == pytest.approx(0.8731, abs=0.0003)


@pytest.mark.parametrize(
    ("name", "distance", "step", "wanted"),
    [
        ("auroc", 0.0123, 0.001, 0.02),
        ("auroc", 0.02, 0.001, 0.02),
        ("auroc", -0.1, 0.001, 0.01),
        ("auroc", 0.0, 0.025, 0.03),
        ("auroc", 0.07, 0.04, 0.08),
        ("rmse", 12.31, 0.1, 13.0),
        ("rmse", 12.31, 5.0, 15.0),
        ("rmse", 0.0, 0.001, 0.001),
        ("rmse", 3e30, 1.0, 1e6),
    ],
)
def test_ends_of_an_interval_are_told_in_steps(
    name: TrustedMetric, distance: float, step: float, wanted: float
) -> None:
    assert widened(name, distance, step) == pytest.approx(wanted)


BAD_PREDICTIONS: dict[str, tuple[bytes, int, int]] = {
    "short": (bytes(4), 2, 1),
    "long": (bytes(12), 2, 1),
    "odd": (bytes(7), 2, 1),
    "empty": (b"", 0, 1),
    "no columns": (b"", 2, 0),
    "negative": (bytes(4), -1, -1),
    "too many columns": (bytes(4 * 2 * (MAX_COLUMNS + 1)), 2, MAX_COLUMNS + 1),
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
        ("accuracy", np.zeros(20), np.zeros((20, MAX_COLUMNS + 1))),
        ("accuracy", np.zeros(20), np.full((20, 1), np.nan)),
        ("brier", np.tile([0, 1], 20), np.full((40, 1), 1.5)),
        ("calibration", np.tile([0, 1], 20), np.full((40, 1), -0.5)),
        ("calibration_error", np.tile([0, 1], 20), np.full((40, 1), 1.5)),
        ("calibration_error", np.tile([0, 1, 2], 20), np.zeros((60, 1))),
        ("sensitivity_at_90", np.tile([0, 1, 2], 20), np.zeros((60, 1))),
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


EXTREME = {
    "denormal": np.full(60, 1e-45),
    "huge": np.linspace(-3.4e38, 3.4e38, 60),
    "constant": np.full(60, 0.5),
    "two values": np.tile([0.0, 1.0], 30),
    "one apart": np.r_[3.4e38, np.zeros(59)],
}


@pytest.mark.parametrize("kind", EXTREME)
@pytest.mark.parametrize("one_class", [False, True])
def test_any_finite_predictions_give_finite_numbers_or_a_refusal(kind: str, one_class: bool) -> None:
    target = np.zeros(60, int) if one_class else np.arange(60) % 2
    labels = Labels(target, np.arange(60) % 3 > 0)
    for name in TRUSTED_METRICS:
        try:
            got = evaluate([name], labels, EXTREME[kind].astype("<f4")[:, None], seed=1)  # type: ignore[list-item]
        except Refused as refused:
            assert refused.code == "job.outputs"
        else:
            assert np.isfinite(list(got.values())).all()


def test_many_rows_have_fewer_resamples_in_smaller_blocks() -> None:
    def case(rows: int, columns: int) -> Case:
        return Case(np.zeros(rows), None, np.zeros((rows, columns)), np.arange(rows))

    assert bootstrap.resamples(case(50_000, 1)) == bootstrap.RESAMPLES
    assert bootstrap.resamples(case(100_000, 1)) == 100
    assert bootstrap.resamples(case(100_000, 16)) == bootstrap.LEAST_RESAMPLES
    block = next(bootstrap._weights(case(1_500_000, 1), np.random.default_rng(0)))
    assert block.shape == (1, 1_500_000)
