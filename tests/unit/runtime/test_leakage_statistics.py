"""The statistics of check 8: against scipy, their definitions, and models that leak or don't."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from rapha.runtime.leakage import lira, rates
from rapha.runtime.leakage.binomial import beta_below, clopper_pearson
from rapha.runtime.leakage.rates import Rate

Floats = NDArray[np.float64]
SHADOWS = 16


@settings(max_examples=60, deadline=None)
@given(trials=st.integers(1, 200_000), share=st.floats(0, 1), level=st.sampled_from([0.9, 0.95, 0.999]))
def test_the_interval_is_scipys(trials: int, share: float, level: float) -> None:
    hits = round(share * trials)
    expected = stats.binomtest(hits, trials).proportion_ci(level, "exact")
    low, high = clopper_pearson(hits, trials, level)
    assert low == pytest.approx(expected.low, rel=1e-8, abs=1e-12)
    assert high == pytest.approx(expected.high, rel=1e-8, abs=1e-12)
    assert low <= hits / trials <= high


@settings(max_examples=100, deadline=None)
@given(x=st.floats(0, 1), a=st.floats(0.01, 1e5), b=st.floats(0.01, 1e5))
def test_the_beta_distribution_is_scipys(x: float, a: float, b: float) -> None:
    assert beta_below(x, a, b) == pytest.approx(stats.beta.cdf(x, a, b), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("hits", "trials", "level"), [(-1, 5, 0.95), (6, 5, 0.95), (0, 0, 0.95), (1, 5, 0.0), (1, 5, 1.0)]
)
def test_what_is_no_rate_has_no_interval(hits: int, trials: int, level: float) -> None:
    with pytest.raises(ValueError, match="is no rate"):
        clopper_pearson(hits, trials, level)


def test_the_interval_of_nothing_found_starts_at_zero_and_is_not_empty() -> None:
    low, high = Rate(0, 1000).interval
    assert low == 0 and high == pytest.approx(1 - 0.025 ** (1 / 1000))
    assert Rate(1000, 1000).interval[1] == 1


scores = st.lists(st.one_of(st.integers(-3, 3), st.floats(-1e6, 1e6)), min_size=1, max_size=400)


@settings(max_examples=150, deadline=None)
@given(values=scores, rate=st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5]))
def test_no_more_non_members_than_asked_for_are_above_the_threshold(values: list[float], rate: float) -> None:
    others = np.array(values, dtype=np.float64)
    above = rates.threshold(others, rate)
    assert np.count_nonzero(others > above) <= rate * len(others) + 1e-9
    assert above in others
    # And none lower would do: it lies at a non-member, and with them the rate would be exceeded.
    assert np.count_nonzero(others >= above) > rate * len(others) - 1e-9


def test_ties_give_nothing_away() -> None:
    # A model that is equally sure of everybody finds nobody; a random half of them would be a lie.
    assert rates.found(np.ones(500), rates.threshold(np.ones(2000))).hits == 0


@pytest.mark.parametrize(("others", "allowed"), [(999, 0), (1000, 1), (1999, 1), (2000, 2), (3000, 3)])
def test_how_many_false_positives_one_in_a_thousand_is(others: int, allowed: int) -> None:
    values = np.arange(others, dtype=np.float64)
    assert np.count_nonzero(values > rates.threshold(values)) == allowed


@settings(max_examples=80, deadline=None)
@given(members=scores, others=scores)
def test_the_area_is_that_of_mann_and_whitney(members: list[float], others: list[float]) -> None:
    m, n = np.array(members, dtype=np.float64), np.array(others, dtype=np.float64)
    expected = stats.mannwhitneyu(m, n).statistic / (len(m) * len(n))
    assert rates.auc(m, n) == pytest.approx(expected)
    assert rates.auc(m, n) + rates.auc(n, m) == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), shadows=st.integers(1, 40))
def test_moments_are_those_of_all_shadows_at_once(seed: int, shadows: int) -> None:
    generator = np.random.default_rng(seed)
    confidence = generator.normal(1e6, 1, (shadows, 7))  # far from zero, where naive sums cancel
    without = generator.random((shadows, 7)) < 0.5
    outs = lira.Outs(7)
    for row, mask in zip(confidence, without, strict=True):
        outs.add(mask, row)
    found = outs.scores(confidence[0])
    count = without.sum(axis=0)
    assert np.array_equal(outs.count, count)
    assert np.array_equal(np.isnan(found), count == 0)
    mean = np.array([confidence[without[:, p], p].mean() if count[p] else np.nan for p in range(7)])
    spread = sum(((confidence[without[:, p], p] - mean[p]) ** 2).sum() for p in range(7) if count[p])
    freedom = np.maximum(count - 1, 0).sum()
    if freedom and spread > 1e-6 and not np.any(count >= lira.OWN_VARIANCE):
        with np.errstate(divide="ignore"):
            expected = (confidence[0] - mean) / np.sqrt(spread / freedom * (1 + 1 / count))
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_own_variance_is_used_once_there_is_enough_of_it() -> None:
    generator = np.random.default_rng(1)
    outs = lira.Outs(2)
    for _ in range(lira.OWN_VARIANCE):
        outs.add(np.array([True, True]), generator.normal(0, [0.1, 10]))
    calm, wild = outs.scores(np.array([3.0, 3.0]))
    assert calm > 2 and abs(wild) < 1


def test_a_patient_whom_no_shadow_differs_on_gets_a_finite_score() -> None:
    outs = lira.Outs(3)
    for _ in range(lira.OWN_VARIANCE + 8):
        outs.add(np.ones(3, dtype=np.bool_), np.array([1.0, 1.0, 1.0]))
    assert np.isfinite(outs.scores(np.array([1.0, 2.0, -5.0]))).all()


def attack(strength: float, members: int = 3000, others: int = 3000) -> tuple[Floats, Floats]:
    """Scores where each patient has a difficulty of their own, and training on them adds `strength`."""
    generator = np.random.default_rng(5)
    count = members + others
    member = np.arange(count) < members
    difficulty = generator.normal(0, 3, count)
    outs = lira.Outs(count)
    for _ in range(SHADOWS):
        outs.add(generator.random(count) < 0.5, difficulty + generator.normal(0, 1, count))
    found = outs.scores(difficulty + strength * member + generator.normal(0, 1, count))
    return found[member & np.isfinite(found)], found[~member & np.isfinite(found)]


def test_a_model_that_learned_nothing_of_anybody_is_found_out_by_chance_alone() -> None:
    members, others = attack(0)
    rate = rates.found(members, rates.threshold(others))
    assert rate.value < 0.004
    assert rates.auc(members, others) == pytest.approx(0.5, abs=0.02)


def test_a_model_that_memorised_gives_its_members_away() -> None:
    members, others = attack(8)
    rate = rates.found(members, rates.threshold(others))
    assert rate.value > 0.95 and rate.interval[0] > 0.9
    assert rates.auc(members, others) > 0.99


def test_a_patient_who_is_easy_for_every_model_is_not_taken_for_a_member() -> None:
    # The point of a likelihood ratio: by confidence alone the easy ones would be found, member or not.
    members, others = attack(3)
    by_ratio = rates.found(members, rates.threshold(others)).value
    generator = np.random.default_rng(6)
    plain_members = generator.normal(0, 3, 3000) + 3 + generator.normal(0, 1, 3000)
    plain_others = generator.normal(0, 3, 3000) + generator.normal(0, 1, 3000)
    assert by_ratio > 3 * rates.found(plain_members, rates.threshold(plain_others)).value


def test_canaries_of_a_model_that_memorises_are_told_from_those_left_out() -> None:
    generator = np.random.default_rng(2)
    planted = generator.random((16, 400)) < 0.5
    noise = generator.normal(0, 1, planted.shape) + generator.normal(0, 5, 400)
    inside, outside = lira.canary_scores(noise + 9 * planted, planted)
    assert len(inside) + len(outside) == planted.size and len(outside) > 1000
    assert rates.found(inside, rates.threshold(outside)).value > 0.95
    inside, outside = lira.canary_scores(noise, planted)
    assert rates.found(inside, rates.threshold(outside)).value < 0.01


def test_a_canary_that_was_in_all_shadows_but_one_says_nothing_of_that_one() -> None:
    planted = np.array([[True, True], [True, True], [False, False], [True, False]])
    inside, outside = lira.canary_scores(np.zeros((4, 2)), planted)
    # The first canary's one shadow without it has no other to be compared with.
    assert (len(inside), len(outside)) == (5, 2)


def groups(count: int = 4000) -> tuple[dict[str, lira.Mask], Floats, lira.Mask]:
    generator = np.random.default_rng(3)
    member = np.arange(count) % 2 == 0
    group = np.arange(count) // 2 % 4
    leaking = generator.normal(0, 1, count) + 6 * (member & (group == 2))
    return {f"ward={n}": group == n for n in range(4)}, leaking, member


def test_the_worst_subgroup_is_named() -> None:
    named, leaking, member = groups()
    found = rates.worst(named, leaking, member, rates.threshold(leaking[~member]), 10)
    assert found is not None and found[0] == "ward=2" and found[1].value > 0.9


def test_subgroups_about_which_nothing_can_be_said_are_not_named() -> None:
    named, leaking, member = groups()
    few_members = {"few": named["ward=2"] & (np.arange(4000) < 700)}
    assert np.count_nonzero(few_members["few"] & member) < rates.LEAST_GROUP
    no_others = {"alone": named["ward=2"] & member}
    for unusable in ({}, few_members, no_others):
        assert rates.worst(unusable, leaking, member, 0.0, 10) is None
    assert rates.worst(named, leaking, member, 0.0, 501) is None  # a group smaller than the cell


def test_of_equal_rates_the_first_by_name_is_told() -> None:
    named, _, member = groups()
    found = rates.worst(named, np.zeros(4000), member, 0.0, 10)
    assert found == ("ward=0", Rate(0, 500))
    assert math.isclose(Rate(1, 4).value, 0.25)
