"""Confidence in the truth: of classes, quantities and times; finite whatever a job predicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from rapha.runtime.leakage.confidence import Scale, Truth, confidences, midranks, scale_of
from rapha.spec.refusals import Refused

Predictions = NDArray[np.float32]


def column(*values: float) -> Predictions:
    return np.array(values, dtype=np.float32)[:, None]


PROBABILITIES = Scale(True)
CLASSES = Truth(np.array([0, 1, 1, 0]))


def test_one_column_is_the_probability_of_class_1() -> None:
    found = confidences(CLASSES, column(0.1, 0.9, 0.5, 0.8), PROBABILITIES)
    np.testing.assert_allclose(found, [np.log(9), np.log(9), 0, -np.log(4)], rtol=1e-5)


def test_two_columns_of_probabilities_say_the_same() -> None:
    one = column(0.1, 0.9, 0.5, 0.8)
    two = np.hstack([1 - one, one])
    assert scale_of(CLASSES, two).probabilities
    np.testing.assert_allclose(
        confidences(CLASSES, two, PROBABILITIES),
        confidences(CLASSES, one, PROBABILITIES),
        rtol=1e-5,
        atol=1e-6,
    )


def test_scores_that_are_no_probabilities_are_taken_as_log_odds() -> None:
    assert not scale_of(CLASSES, column(-2, 3, 0, 1)).probabilities
    np.testing.assert_allclose(confidences(CLASSES, column(-2, 3, 0, 1), Scale(False)), [2, 3, 0, -1])


def test_of_several_scores_the_margin_over_the_best_other_counts() -> None:
    truth = Truth(np.array([2, 0]))
    scores = np.array([[1, 5, 4], [7, 1, 2]], dtype=np.float32)
    assert not scale_of(truth, scores).probabilities
    np.testing.assert_allclose(confidences(truth, scores, Scale(False)), [-1, 5])


def test_columns_in_the_unit_interval_that_do_not_add_up_are_scores() -> None:
    assert not scale_of(CLASSES, np.full((4, 3), 0.9, dtype=np.float32)).probabilities


def test_a_shadow_beyond_the_unit_interval_is_held_to_the_models_scale() -> None:
    found = confidences(CLASSES, column(-7, 7, 0.5, 7), PROBABILITIES)
    assert np.isfinite(found).all() and found[0] == found[1] > 16 and found[3] == -found[0]


def test_the_log_odds_of_a_forest_do_not_hang_on_one_tree() -> None:
    trees = column(*(np.arange(61) / 60))
    truth = Truth(np.ones(61, dtype=np.int64))
    scale = scale_of(truth, trees)
    assert scale.probabilities and scale.doubt == pytest.approx(1 / 120)
    found = confidences(truth, trees, scale)
    steps = np.diff(found)
    assert (steps > 0).all() and steps.max() < 2 * steps[1]


@pytest.mark.parametrize(
    ("values", "doubt"),
    [
        ((0, 1, 0, 1), 0.25),
        ((0.5, 0.5, 0.5, 0.5), 0.25),
        ((0, 1e-12, 0.5, 1), 2.0**-24),
        ((0.25, 1, 1, 1), 0.125),
    ],
    ids=["all sure", "all undecided", "finer than a float32", "a quarter"],
)
def test_doubt_is_half_the_smallest_that_occurs(values: tuple[float, ...], doubt: float) -> None:
    assert scale_of(CLASSES, column(*values)).doubt == doubt


def test_quantities_are_measured_by_their_distance() -> None:
    truth = Truth(np.array([1.0, -2.0, 3.5]))
    assert confidences(truth, column(1, 1, 1), Scale(False)).tolist() == [0, -3, -2.5]


def test_times_are_measured_by_rank_and_censored_ones_are_a_lower_bound() -> None:
    truth = Truth(np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, True, False, False]))
    perfect = confidences(truth, column(40, 30, 20, 10), Scale(False))
    assert perfect.tolist() == [0, 0, 0, 0]
    turned = confidences(truth, column(10, 20, 30, 40), Scale(False))
    # The event at 1 ranks lowest instead of highest; who was still well at 4 ranks highest.
    assert turned.tolist() == [-0.75, -0.25, -0.25, -0.75]
    # Ranking below one's censored time is no error.
    assert confidences(truth, column(40, 30, 10, 20), Scale(False))[2] == 0


@pytest.mark.parametrize(
    ("target", "predictions"),
    [
        ([0, 2], np.zeros((2, 1), np.float32)),
        ([0, 2], np.zeros((2, 2), np.float32)),
        ([0, 3], np.zeros((2, 3), np.float32)),
        ([-1, 0], np.zeros((2, 3), np.float32)),
    ],
)
def test_predictions_that_do_not_cover_the_classes_are_refused(target: list[int], predictions: Any) -> None:
    with pytest.raises(Refused) as refused:
        confidences(Truth(np.array(target)), predictions, PROBABILITIES)
    assert refused.value.code == "job.outputs"


def test_another_number_of_rows_is_the_nodes_own_mistake() -> None:
    with pytest.raises(Refused) as refused:
        confidences(CLASSES, column(1, 2, 3), PROBABILITIES)
    assert refused.value.code == "node.internal"


finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(max_examples=120, deadline=None)
@given(data=st.data(), rows=st.integers(1, 20), columns=st.integers(1, 5), kind=st.sampled_from("cqt"))
def test_whatever_is_predicted_confidence_is_finite(
    data: st.DataObject, rows: int, columns: int, kind: str
) -> None:
    predictions = data.draw(arrays.arrays(np.float32, (rows, columns), elements=finite))
    if kind == "c":
        most = max(2, columns) - 1
        target: Any = data.draw(arrays.arrays(np.int64, rows, elements=st.integers(0, most)))
    else:
        target = data.draw(arrays.arrays(np.float32, rows, elements=finite))
    event = data.draw(arrays.arrays(np.bool_, rows)) if kind == "t" else None
    truth = Truth(target, event)
    assert truth.classes == (kind == "c")
    for scale in (Scale(True), Scale(False), scale_of(truth, predictions)):
        found = confidences(truth, predictions, scale)
        assert found.shape == (rows,) and np.isfinite(found).all()


@given(values=arrays.arrays(np.float64, st.integers(1, 50), elements=st.integers(-4, 4)))
def test_midranks_are_scipys(values: NDArray[np.float64]) -> None:
    assert np.array_equal(midranks(values), stats.rankdata(values))
