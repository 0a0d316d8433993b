"""Concordance in O(n log n) against counting pairs, and against scikit-survival."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapha.runtime.metrics import Labels, evaluate
from rapha.runtime.metrics.case import Case
from rapha.runtime.metrics.pairs import Concordance

Array = npt.NDArray[Any]
ROWS = st.integers(2, 40)


def drawn(seed: int, rows: int, horizon: int, decimals: int) -> tuple[Array, Array, Array]:
    """Times, events and risks, with ties in all."""
    draw = np.random.default_rng(seed)
    time, event = draw.integers(1, 1 + horizon, rows), draw.random(rows) < 0.6
    risk = (-time / horizon + draw.standard_normal(rows)).round(decimals)
    return time, event, risk


def counted(time: Array, event: Array, risk: Array, weights: Array) -> tuple[float, float]:
    won = pairs = 0.0
    for i, j in itertools.permutations(range(len(time)), 2):
        if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
            both = weights[i] * weights[j]
            pairs += both
            won += both * (1 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0)
    return won, pairs


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), rows=ROWS, horizon=st.integers(1, 60), decimals=st.integers(0, 4))
def test_it_agrees_with_counting_weighted_pairs(seed: int, rows: int, horizon: int, decimals: int) -> None:
    time, event, risk = drawn(seed, rows, horizon, decimals)
    weights = np.random.default_rng(seed).integers(0, 4, (3, rows)).astype(float)
    got = Concordance.of(Case.of(Labels(time, event), risk[:, None])).values(weights)
    for value, row in zip(got, weights, strict=True):
        won, pairs = counted(time, event, risk, row)
        assert (value == pytest.approx(won / pairs)) if pairs else not np.isfinite(value)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(5, 30), horizon=st.integers(1, 30))
def test_moves_are_what_is_left_without_a_row_or_its_pairs_of_one_kind(
    seed: int, rows: int, horizon: int
) -> None:
    time, event, risk = drawn(seed, rows, horizon, 1)
    ones = np.ones(rows)
    won, pairs = counted(time, event, risk, ones)
    if not pairs:
        return
    metric = Concordance.of(Case.of(Labels(time, event), risk[:, None]))
    assert (metric.won.sum(), metric.met.sum()) == (won, pairs)
    assert (metric.won_by.sum(), metric.met_by.sum()) == (won, pairs)
    for i in range(rows):
        without = counted(time, event, risk, np.where(np.arange(rows) == i, 0, ones))
        assert won - metric.won[i] - metric.won_by[i] == pytest.approx(without[0])
        assert pairs - metric.met[i] - metric.met_by[i] == pytest.approx(without[1])
        if without[1]:
            alone = abs(without[0] / without[1] - won / pairs)
            assert not abs(metric.moves()[0][i]) < alone - 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_it_agrees_with_scikit_survival(seed: int) -> None:
    oracle = pytest.importorskip("sksurv.metrics")
    time, event, risk = drawn(seed, 400, 50, 2)
    expected = oracle.concordance_index_censored(event, time.astype(float), risk)[0]
    metric = Concordance.of(Case.of(Labels(time, event), risk[:, None]))
    assert metric.values(np.ones((1, 400)))[0] == pytest.approx(expected)
    got = evaluate(["concordance"], Labels(time, event), risk[:, None].astype("<f4"), seed=1)
    assert got["concordance"] == pytest.approx(expected, abs=0.02)
    assert got["concordance.low"] < got["concordance"] < got["concordance.high"]


def test_it_takes_a_hundred_thousand_rows() -> None:
    """All pairs would be 10^10."""
    time, event, risk = drawn(1, 100_000, 10**6, 6)
    metric = Concordance.of(Case.of(Labels(time, event), risk[:, None]))
    assert 0.5 < metric.values(np.ones((1, 100_000)))[0] < 1
