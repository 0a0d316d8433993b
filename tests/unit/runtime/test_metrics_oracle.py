"""A job that chooses its predictions so that trusted metrics become an oracle of labels.

The attacks are judged by what they get: how often an attacker who holds everything that was told, and has
seen as many told results as it likes of labels that it knows, guesses one patient's label right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from rapha.runtime.metrics import Labels, bootstrap, evaluate
from rapha.runtime.metrics.dominance import Dominance
from rapha.spec.release_plan import TrustedMetric

Array = npt.NDArray[Any]
PATIENTS = 114
POSITIVE = 0.4
ALL: tuple[TrustedMetric, ...] = (
    *("auroc", "auprc", "accuracy", "brier", "roc", "calibration"),
    *("calibration_error", "sensitivity_at_90", "sensitivity_at_95"),
)


def column(scores: Array) -> Array:
    return scores.astype("<f4")[:, None]


def others_at(value: float, probe: float) -> Array:
    return column(np.r_[probe, np.full(PATIENTS - 1, value)])


def truth(seed: int, first: int | None = None) -> Array:
    labels = (np.random.default_rng(seed).random(PATIENTS) < POSITIVE).astype(int)
    if first is not None:
        labels[0] = first
    return labels


PROBES: dict[str, tuple[TrustedMetric, Array]] = {
    "auroc": ("auroc", others_at(0.3, 0.9)),
    "auroc below": ("auroc", others_at(0.3, 0.1)),
    "accuracy": ("accuracy", others_at(0.3, 0.9)),
    "brier of a coin but for one": ("brier", others_at(0.5, 0.9)),
    "brier of nearly a coin": ("brier", others_at(0.499, 0.0)),
    "roc": ("roc", others_at(0.3, 0.9)),
    "calibration": ("calibration", column(np.r_[0.95, np.full(9, 0.5), np.full(PATIENTS - 10, 0.35)])),
    "sensitivity": ("sensitivity_at_90", others_at(0.3, 0.9)),
}


@pytest.mark.parametrize("name", PROBES)
def test_a_number_about_one_patient_is_left_out(name: str) -> None:
    metric, scores = PROBES[name]
    for seed in range(5):
        for label in (0, 1):
            told = evaluate([metric], Labels(truth(seed, label)), scores, seed=seed)
            assert set(told) <= {"calibration.4"}


def test_a_value_about_one_patient_is_left_out() -> None:
    draw = np.random.default_rng(0)
    target = draw.normal(50, 10, PATIENTS)
    assert evaluate(["rmse"], Labels(target), others_at(50, 60), seed=1)
    assert evaluate(["rmse"], Labels(target), others_at(50, 1e6), seed=1) == {}
    events = Labels(draw.exponential(10, PATIENTS), draw.random(PATIENTS) < 0.5)
    assert evaluate(["concordance"], events, others_at(0, 1), seed=1) == {}


def test_a_patient_with_most_rows_is_left_out_of_every_number() -> None:
    """One who has half of the images would be half of the accuracy."""
    patient = np.r_[np.zeros(100, int), np.arange(1, 101)]
    labels = Labels(np.arange(200) % 2, patient=patient)
    assert evaluate(["accuracy", "brier", "auroc"], labels, column(np.linspace(0, 1, 200)), seed=1) == {}


def test_numbers_that_are_about_one_patient_together_are_left_out() -> None:
    """Calibration tells every tenth's positives; Brier then tells what its patient of another score has."""
    orders: list[tuple[TrustedMetric, ...]] = [("brier", "calibration"), ("calibration", "brier")]
    for order in orders:
        for seed in range(3):
            told = evaluate(order, Labels(truth(seed)), others_at(0.25, 0.85), seed=seed)
            assert told and not {"brier", "calibration.3"} <= told.keys()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["probe", "places", "falling", "few", "random"]))
def test_what_is_left_out_tells_no_label(seed: int, kind: str) -> None:
    """Another label of one patient changes which numbers there are only where it changes a class by one."""
    draw = np.random.default_rng(seed)
    scores = {
        "probe": np.r_[0.9, np.full(PATIENTS - 1, 0.3)],
        "places": (np.arange(PATIENTS) + 0.5) / PATIENTS,
        "falling": 0.5 + 2.0 ** -np.arange(1, PATIENTS + 1),
        "few": draw.choice([0.1, 0.4, 0.6, 0.9], PATIENTS),
        "random": draw.random(PATIENTS),
    }[kind]
    labels = truth(seed)
    labels[0], labels[1] = 0, 1
    swapped = labels.copy()
    swapped[0], swapped[1] = 1, 0
    names: list[TrustedMetric] = ["accuracy", "brier", "calibration"]
    one, other = (evaluate(names, Labels(y), column(scores), seed=seed) for y in (labels, swapped))
    assert one.keys() == other.keys()


def guessed(scores: Array, names: tuple[TrustedMetric, ...], draws: int) -> float:
    """How often the first patient's label, at even odds, is guessed right from everything told."""
    told = [
        evaluate(names, Labels(truth(seed, seed % 2)), scores, seed=10**6 + seed) for seed in range(draws)
    ]
    keys = sorted({key for one in told for key in one})
    if not keys:
        return 0.5
    seen = np.array([[one.get(key, -1.0) for key in keys] for one in told])
    attacker = make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))
    return float(cross_val_score(attacker, seen, np.arange(draws) % 2, cv=5).mean())


def falling(patients: int) -> Array:
    return 0.5 + 2.0 ** -np.arange(1, patients + 1)


ATTACKS: dict[str, Array] = {
    "one probe": others_at(0.3, 0.9),
    "places and curve": column((np.arange(PATIENTS) + 0.5) / PATIENTS),
    "binary weights": column(falling(PATIENTS)),
    "residual of a tenth": column(np.r_[0.19, np.repeat([0.15, 0.35, 0.55, 0.75], 30)[: PATIENTS - 1]]),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_one_job_tells_little_of_one_label(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 50)
    # 0.69 is what rule 1 allows a single number; sampling error of 160 draws is 0.04.
    assert guessed(ATTACKS[name], ALL, 160) < 0.69 + 3 * 0.04


def test_an_interval_tells_no_more_than_its_value() -> None:
    """Ends are whole steps behind the value: they carry its own rounding along, and a width."""
    widths: dict[int, set[float]] = {0: set(), 1: set()}
    for seed in range(60):
        for label in (0, 1):
            told = evaluate(["brier"], Labels(truth(seed, label)), others_at(0.3, 0.4), seed=seed)
            widths[label].add(round(told["brier.high"] - told["brier"], 3))
            assert (told["brier"] - told["brier.low"]) / 0.01 == pytest.approx(
                round((told["brier"] - told["brier.low"]) / 0.01), abs=1e-6
            )
    assert len(widths[0] | widths[1]) <= 3


def rebuilt(queries: int, seed: int) -> float:
    """Share of labels that least squares over accuracies of random halves finds (Dinur and Nissim, 2003)."""
    draw, labels = np.random.default_rng(seed), truth(10**4 + seed)
    halves, told = [], []
    for query in range(queries):
        half = draw.random(PATIENTS) < 0.5
        accuracy = evaluate(
            ["accuracy"], Labels(labels), column(half.astype(float)), seed=1000 * seed + query
        )
        halves.append(2.0 * half - 1)
        told.append(PATIENTS * accuracy["accuracy"] - np.count_nonzero(~half))
    found = Ridge(alpha=1.0).fit(np.array(halves), np.array(told)).coef_
    cut = np.sort(found)[-int(labels.sum())]
    return float(np.mean((found >= cut) == labels))


@pytest.mark.slow
def test_many_jobs_do_find_labels_and_few_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cap on evaluations is for: no rule about one job holds against as many jobs as patients."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 2)
    monkeypatch.setattr(bootstrap, "LEAST_RESAMPLES", 2)
    base = POSITIVE**2 + (1 - POSITIVE) ** 2
    few, many = (float(np.mean([rebuilt(q, seed) for seed in range(4)])) for q in (5, 300))
    assert few < base + 0.15
    assert many > 0.9


HONEST: dict[str, Callable[[], Any]] = {
    "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
    "tree": lambda: DecisionTreeClassifier(max_leaf_nodes=4, random_state=0),
    "deep tree": lambda: DecisionTreeClassifier(random_state=0),
}


@pytest.mark.parametrize("kind", HONEST)
def test_honest_models_keep_their_numbers(kind: str) -> None:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    for seed in range(4):
        held = np.random.default_rng(seed).random(len(data.target)) < 0.2
        model = HONEST[kind]().fit(data.data[~held], 1 - data.target[~held])
        labels, scores = 1 - data.target[held], model.predict_proba(data.data[held])[:, 1]
        told = evaluate(["auroc", "accuracy", "brier"], Labels(labels), column(scores), seed=seed)
        assert {"auroc", "accuracy", "brier"} <= told.keys()
        assert told["accuracy"] == pytest.approx(np.mean((scores >= 0.5) == labels), abs=0.011)


def test_a_demo_with_few_patients_keeps_its_numbers() -> None:
    patient = np.repeat(np.arange(6), [1, 3, 1, 3, 2, 1])
    target = np.isin(patient, (0, 4, 5)).astype(int)
    scores = column(np.where(target == 1, 0.8, 0.2) + np.linspace(-0.1, 0.1, 11))
    for seed in range(10):
        told = evaluate(
            ["auroc", "accuracy", "brier"], Labels(target, patient=patient), scores, seed=seed, min_cell=3
        )
        assert told["accuracy"] == told["auroc"] == 1 and "brier" in told


def test_moves_that_are_not_finite_or_too_many_to_remember_admit_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    who = np.arange(50)
    rules = Dominance(50, 10)
    assert rules.grain([np.r_[np.inf, np.ones(49)]], who) is None
    assert rules.grain([np.r_[np.nan, np.ones(49)]], who) is None
    assert rules.grain([np.zeros(50)], who) == 0.001
    monkeypatch.setattr("rapha.runtime.metrics.dominance._CAPACITY", 50)
    assert rules.grain([np.full(50, 0.02)], who) is None


@given(st.lists(st.floats(-1, 1), min_size=12, max_size=40))
def test_an_admitted_number_is_never_about_one_patient(moves: list[float]) -> None:
    """Rules 1 and 2 by their definition."""
    size = np.abs(moves)
    grain = Dominance(len(moves), 10).grain([np.array(moves)], np.arange(len(moves)))
    if grain is not None and size.max() > 1e-12:
        assert size.sum() * (1 + 1e-6) >= 10 * size.max()
        assert 2 * (size**2).sum() * (1 + 1e-6) >= 10 * size.max() ** 2
        assert grain >= size.max() and math.isfinite(grain)


def guessed_from(told: list[dict[str, float]]) -> float:
    """As `guessed`, of results whose first patient's label is 0 and 1 in turn."""
    keys = sorted({key for one in told for key in one})
    seen = np.array([[one.get(key, -1.0) for key in keys] for one in told])
    attacker = make_pipeline(StandardScaler(), LogisticRegression(C=1e4, max_iter=3000))
    return float(cross_val_score(attacker, seen, np.arange(len(told)) % 2, cv=5).mean())


@pytest.mark.parametrize(
    "sizes",
    [(20, 20), *(pytest.param(s, marks=pytest.mark.slow) for s in ((20, 20, 20), (10,) * 5, (25, 24)))],
)
def test_groups_that_are_others_and_one_patient_are_left_out(
    sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every difference of two sets has a minimum cell; the last less all others is one patient."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 2)
    monkeypatch.setattr(bootstrap, "LEAST_RESAMPLES", 2)
    place = np.arange(PATIENTS)
    ends = np.cumsum(sizes)
    groups = {f"f{n}=1": (place > ends[n] - sizes[n]) & (place <= ends[n]) for n in range(len(sizes))}
    groups["h=1"] = place <= ends[-1]
    told = [
        evaluate(["accuracy"], Labels(truth(seed, seed % 2)), others_at(0.3, 0.3), seed=seed, groups=groups)
        for seed in range(100)
    ]
    assert all("accuracy@f0=1" in one and "accuracy@h=1" not in one for one in told)
    assert guessed_from(told) < 0.69 + 3 * 0.05


def test_what_is_asked_again_is_told_again() -> None:
    """Another plan, order of it, scale of the scores or name of a group gives nobody a second draw."""
    draw, labels = np.random.default_rng(3), truth(3)
    scores = np.clip(0.4 * labels + 0.6 * draw.random(PATIENTS), 0, 1)
    everybody = np.ones(PATIENTS, np.bool_)
    first = evaluate(["auroc", "accuracy"], Labels(labels), column(scores), seed=1)
    again = evaluate(
        ["brier", "accuracy", "auroc"], Labels(labels), column(scores), seed=1, groups={"f=1": everybody}
    )
    assert first.items() <= again.items()
    assert all(again[key.replace("auroc", "auroc@f=1")] == again[key] for key in first if "auroc" in key)
    squared = evaluate(["auroc"], Labels(labels), column(scores**2), seed=1)
    assert squared.items() <= first.items()
    others = {evaluate(["auroc"], Labels(labels), column(scores), seed=s)["auroc"] for s in range(40)}
    assert len(others) > 1, "another dataset rounds otherwise"
