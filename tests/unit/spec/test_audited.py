"""What check 8 asks of a job and a dataset, before anything runs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import ValidationError

from rapha.spec.audited import check_testable, demanded, longest_s, untestable
from rapha.spec.disclosure import LEAST_SHADOWS, Caps, Leakage, LeakageTest
from rapha.spec.price import PriceContext, timing_bits
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import ReleasePlan
from rapha.spec.surface import Quanta

ASKED = LeakageTest(shadows=8, limit_s=600)
DEMANDED = LeakageTest(shadows=8, limit_s=600, most_tpr=0.01)
PLAN = SimpleNamespace(weights=object(), trusted_metrics=("auroc",))


def job(**changes: Any) -> Any:
    compute = SimpleNamespace(wall_clock_s=1200)
    return SimpleNamespace(
        **{
            "kind": "train",
            "private": None,
            "predict": ("p",),
            "outputs": PLAN,
            "compute": compute,
            **changes,
        }
    )


def manifest(test: LeakageTest, target: object = "label") -> Any:
    return SimpleNamespace(disclosure=Caps(leakage=test), target=target)


NO_METRICS = SimpleNamespace(weights=object(), trusted_metrics=())


def test_a_job_that_plans_what_the_test_needs_passes() -> None:
    for test in (ASKED, DEMANDED, LeakageTest()):
        check_testable(job(), manifest(test))
        assert untestable(job(), manifest(test)) == ""


def test_where_it_is_demanded_a_job_without_metrics_is_refused_before_it_runs() -> None:
    with pytest.raises(Refused) as refused:
        check_testable(job(outputs=NO_METRICS), manifest(DEMANDED))
    assert refused.value.code == "policy.leakage"
    check_testable(job(outputs=NO_METRICS), manifest(ASKED))


def test_it_is_demanded_of_numbers_that_the_code_reports_too() -> None:
    reported = job(outputs=SimpleNamespace(weights=None, self_reported=object(), trusted_metrics=()))
    assert demanded(reported, manifest(DEMANDED))
    with pytest.raises(Refused) as refused:
        check_testable(reported, manifest(DEMANDED))
    assert refused.value.code == "policy.leakage"


def test_a_dataset_without_a_target_can_demand_nothing() -> None:
    with pytest.raises(Refused) as refused:
        check_testable(job(), manifest(DEMANDED, target=None))
    assert refused.value.code == "node.config"
    assert "target" in untestable(job(), manifest(ASKED, target=None))


def test_an_evaluation_trains_nothing_and_is_not_refused() -> None:
    evaluation = job(kind="evaluate", outputs=SimpleNamespace(weights=None, trusted_metrics=("auroc",)))
    assert not demanded(evaluation, manifest(DEMANDED))
    check_testable(evaluation, manifest(DEMANDED))
    assert longest_s(evaluation, manifest(DEMANDED)) == 0


def test_private_training_is_tested_and_its_release_never_depends_on_what_is_found() -> None:
    private = job(private=object())
    assert untestable(private, manifest(DEMANDED)) == "" and not demanded(private, manifest(DEMANDED))
    assert longest_s(private, manifest(DEMANDED)) == 1800


def test_the_time_it_may_take_is_that_of_one_prediction_and_all_shadows() -> None:
    assert longest_s(job(), manifest(ASKED)) == 1200 + 600
    assert longest_s(job(), manifest(LeakageTest())) == 0
    assert longest_s(job(outputs=NO_METRICS), manifest(ASKED)) == 0


def test_a_longer_job_can_say_more_by_when_it_ends() -> None:
    plan = ReleasePlan(version=1, trusted_metrics=("auroc",), max_bytes=1000)
    without = PriceContext(plan, 1000, 10, 1200, 2400, 2**32, Quanta(), moments=2)
    audited = replace(without, audit_s=longest_s(job(), manifest(ASKED)))
    shortest = 2 ** (timing_bits(without) / 2)
    longest = 2 ** (timing_bits(audited) / 2)
    assert longest - shortest == pytest.approx((1200 + 600) / without.quanta.duration_s, abs=1)


def test_a_limit_that_chance_would_break_is_none() -> None:
    with pytest.raises(ValidationError, match="most_tpr"):
        LeakageTest(shadows=8, most_tpr=0.009)


def test_a_limit_that_no_shadow_is_trained_for_is_none() -> None:
    with pytest.raises(ValidationError, match="most_tpr"):
        LeakageTest(most_tpr=0.02)


@pytest.mark.parametrize("shadows", range(1, LEAST_SHADOWS))
def test_a_test_that_could_never_be_measured_is_no_test(shadows: int) -> None:
    with pytest.raises(ValidationError, match="shadows"):
        LeakageTest(shadows=shadows)


@pytest.mark.parametrize(
    "wrong",
    [
        {"verdict": "not_run", "tpr": 0.1},
        {"verdict": "not_resolvable", "non_members": 999, "canaries": 0.0},
        {"verdict": "measured", "non_members": 1000},
        {"verdict": "measured", "non_members": 999, "tpr": 0.1},
        {"verdict": "measured", "non_members": 1000, "tpr": float("nan")},
    ],
)
def test_a_rate_is_told_only_where_it_was_measured(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Leakage(**cast(Any, wrong))
