"""Trusted metrics of subgroups: which may be told, and that no difference of two is a few patients."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.runtime.metrics import Labels, evaluate
from rapha.runtime.metrics.case import Case
from rapha.runtime.metrics.groups import Groups
from rapha.spec.release_plan import ReleasePlan, TrustedMetric, metric_of

Array = npt.NDArray[Any]
NAMES: tuple[TrustedMetric, ...] = ("auroc", "accuracy", "brier", "roc", "calibration")


def held_out(rows: int = 600) -> tuple[Labels, Array, Array]:
    draw = np.random.default_rng(0)
    target, sex = draw.integers(0, 2, rows), draw.integers(0, 2, rows)
    score = np.clip(0.3 * target + 0.35 + 0.3 * draw.standard_normal(rows), 0, 1)
    return Labels(target), score.astype("<f4")[:, None], sex


def test_a_subgroup_has_its_own_numbers_and_no_curve() -> None:
    labels, scores, sex = held_out()
    groups = {"sex=0": sex == 0, "sex=1": sex == 1}
    got = evaluate(NAMES, labels, scores, seed=1, groups=groups)
    plan = ReleasePlan.parse(
        {
            "version": 1,
            "trusted_metrics": list(NAMES),
            "subgroups": [{"field": "sex", "values": [0, 1]}],
            "max_bytes": 4096,
        }
    )
    assert set(got) <= set(plan.metric_keys)
    assert {"auroc@sex=0", "auroc@sex=0.low", "brier@sex=1.high"} <= got.keys()
    assert not any("@" in key and metric_of(key) in ("roc", "calibration") for key in got)
    alone = np.mean((scores[:, 0] >= 0.5)[sex == 1] == labels.target[sex == 1])
    assert got["accuracy@sex=1"] == pytest.approx(alone, abs=0.01)
    everybody = evaluate(NAMES, labels, scores, seed=1)
    assert {key: value for key, value in got.items() if "@" not in key} == everybody


SIZES: dict[str, tuple[list[int], list[bool]]] = {
    "small, and then its complement": ([9, 591], [False, False]),
    "small complement": ([591, 9], [False, False]),
    "all": ([600], [True]),
    "nobody": ([0, 600], [False, True]),
    "few left over": ([300, 295], [True, False]),
    "enough left over": ([300, 290], [True, True]),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_small_subgroup_or_a_small_rest_is_left_out(name: str) -> None:
    labels, scores, _ = held_out()
    sizes, expected = SIZES[name]
    values = np.repeat([*range(len(sizes)), 99], [*sizes, 600 - sum(sizes)])
    groups = {f"f={n}": values == n for n in range(len(sizes))}
    got = evaluate(["accuracy", "brier"], labels, scores, seed=1, groups=groups)
    told = [f"brier@f={n}" in got for n in range(len(sizes))]
    assert told == expected


def test_a_subgroup_without_a_cell_of_each_class_has_no_auroc() -> None:
    labels, scores, _ = held_out()
    few = np.flatnonzero(labels.target == 1)[:9]
    inside = labels.target == 0
    inside[few] = True
    inside[np.flatnonzero(labels.target == 0)[:50]] = False
    got = evaluate(["auroc", "brier"], labels, scores, seed=1, groups={"f=1": inside})
    assert "auroc" in got and "auroc@f=1" not in got


def test_two_fields_that_differ_by_a_few_are_told_once() -> None:
    labels, scores, sex = held_out()
    other = sex == 1
    other[np.flatnonzero(other)[:3]] = False
    got = evaluate(["brier"], labels, scores, seed=1, groups={"sex=1": sex == 1, "gender=1": other})
    assert "brier@sex=1" in got and "brier@gender=1" not in got


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 29), st.integers(0, 3), st.integers(0, 2)), min_size=30, max_size=90
    )
)
def test_no_difference_of_told_sets_is_a_few_patients(rows: list[tuple[int, int, int]]) -> None:
    patient, *fields = (np.array(column) for column in zip(*rows, strict=True))
    case = Case.of(Labels(np.zeros(len(rows)), patient=patient), np.zeros((len(rows), 1)))
    groups = Groups(case, 5)
    everybody = set(patient.tolist())
    told = [everybody]
    for name, field in zip("ab", fields, strict=True):
        left = np.ones(len(rows), np.bool_)
        for value in range(4):
            if groups.admits(name, field == value):
                left &= field != value
                told += [set(patient[field == value].tolist()), set(patient[left].tolist())]
    for one, other in itertools.permutations(told, 2):
        assert not 0 < len(one - other) < 5
