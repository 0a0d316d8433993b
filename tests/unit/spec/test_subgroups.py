"""Subgroups of a plan: how they are written, priced and checked against a dataset's fields."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from rapha.spec.cohort import Condition
from rapha.spec.dataset import Field
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import TRUSTED_METRICS, ReleasePlan, metric_bits, metric_of
from rapha.spec.subgroups import MAX_SUBGROUPS, Subgroup, check
from rapha.spec.surface import Artifact, MetricName, Surface, Usage, encode

FIELDS = (
    Field(name="sex", dtype="float32"),
    Field(name="smoker", dtype="bool"),
    Field(name="age_band", dtype="string"),
    Field(name="scanner", dtype="uint8", codes={"A": 1, "B": 2}),
    Field(name="seen", dtype="date"),
    Field(name="pixels", dtype="float32", shape=(0, 0)),
    Field(name="who", dtype="pseudonym"),
    Field(name="died", dtype="float32", label=True),
)


def plan(**changes: Any) -> ReleasePlan:
    base = {"version": 1, "trusted_metrics": ["auroc", "roc"], "max_bytes": 4096}
    return ReleasePlan.parse({**base, **changes})


def subgroup(field: str, *values: Any) -> Subgroup:
    return Subgroup.parse({"field": field, "values": values})


GOOD: dict[str, tuple[Subgroup, list[str]]] = {
    "numbers": (subgroup("sex", 0, 1), ["sex=0", "sex=1"]),
    "negative": (subgroup("sex", -1), ["sex=-1"]),
    "truth values": (subgroup("smoker", True, False), ["smoker=true", "smoker=false"]),
    "text": (subgroup("age_band", "60-69", "90+"), ["age_band=60-69", "age_band=90+"]),
    "codes": (subgroup("scanner", 2), ["scanner=2"]),
    "day": (subgroup("seen", "2026-01-31"), ["seen=2026-01-31"]),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_subgroup_is_a_condition_that_a_cohort_could_be(name: str) -> None:
    asked, names = GOOD[name]
    check([asked], FIELDS)
    assert list(asked.groups) == names
    assert list(asked.groups.values()) == [Condition(asked.field, "eq", value) for value in asked.values]


REFUSED: dict[str, tuple[Subgroup, str]] = {
    "no such field": (subgroup("height", 1), "schema.cohort_field"),
    "label": (subgroup("died", 1), "schema.cohort_field"),
    "pseudonym": (subgroup("who", 1), "schema.cohort_field"),
    "pixels": (subgroup("pixels", 1), "schema.cohort_field"),
    "number of a text": (subgroup("age_band", 60), "schema.field_invalid"),
    "text of a number": (subgroup("sex", "f"), "schema.field_invalid"),
    "truth value of a number": (subgroup("sex", True), "schema.field_invalid"),
    "no day": (subgroup("seen", "2026-02-30"), "schema.field_invalid"),
    "no code": (subgroup("scanner", 3), "schema.plan_invalid"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_subgroup_that_the_dataset_has_not_refuses(name: str) -> None:
    asked, code = REFUSED[name]
    with pytest.raises(Refused) as refused:
        check([asked], FIELDS)
    assert refused.value.code == code


INVALID: dict[str, dict[str, Any]] = {
    "twice": {"subgroups": [{"field": "sex", "values": [1, 1]}]},
    "twice as text": {"subgroups": [{"field": "sex", "values": [True, "true"]}]},
    "field twice": {"subgroups": [{"field": "sex", "values": [1]}, {"field": "sex", "values": [0]}]},
    "too many": {"subgroups": [{"field": f"f{n}", "values": [0, 1]} for n in range(MAX_SUBGROUPS)]},
    "too many of one": {"subgroups": [{"field": "sex", "values": list(range(MAX_SUBGROUPS + 1))}]},
    "no value": {"subgroups": [{"field": "sex", "values": []}]},
    "fraction": {"subgroups": [{"field": "sex", "values": [0.5]}]},
    "dot": {"subgroups": [{"field": "sex", "values": ["1.low"]}]},
    "space": {"subgroups": [{"field": "sex", "values": ["a b"]}]},
    "escape": {"subgroups": [{"field": "sex", "values": ["\n"]}]},
    "long": {"subgroups": [{"field": "sex", "values": ["a" * 33]}]},
    "field name": {"subgroups": [{"field": "Sex", "values": [1]}]},
    "only curves": {"trusted_metrics": ["roc"], "subgroups": [{"field": "sex", "values": [1]}]},
    "no metric": {
        "trusted_metrics": [],
        "self_reported": {
            "file": "r.json",
            "fields": [{"name": "x", "type": "number", "min": 0, "max": 1, "decimals": 1}],
        },
        "subgroups": [{"field": "sex", "values": [1]}],
    },
}


@pytest.mark.parametrize("name", INVALID)
def test_a_plan_with_subgroups_that_contradict_refuses(name: str) -> None:
    with pytest.raises(Refused, match=r"^schema\."):
        plan(**INVALID[name])


def test_each_subgroup_is_priced_and_has_room_in_the_file() -> None:
    without, with_two = plan(), plan(subgroups=[{"field": "sex", "values": [0, 1]}])
    assert with_two.metric_bits() == pytest.approx(without.metric_bits() + 2 * metric_bits("auroc"))
    assert with_two.metrics_bytes > without.metrics_bytes
    added = [key for key in with_two.metric_keys if key not in without.metric_keys]
    assert added == [f"auroc@sex={n}{part}" for n in (0, 1) for part in ("", ".low", ".high")]


def test_every_key_of_a_plan_may_leave_and_names_its_metric() -> None:
    every = plan(
        trusted_metrics=list(TRUSTED_METRICS),
        max_bytes=2**16,
        subgroups=[
            {"field": "f" * 64, "values": ["A_+-9" * 6, -5, False]},
            {"field": "b", "values": [-(10**9)]},
        ],
    )
    name = TypeAdapter(MetricName)
    for key in every.metric_keys:
        assert name.validate_python(key) == key
        assert metric_of(key) in TRUSTED_METRICS and re.fullmatch(r"[ -~]+", key)


@pytest.mark.parametrize(
    "key", ["auroc@", "auroc@sex", "auroc@sex=", "auroc@sex=1@b=2", "auroc.low@sex=1", "Auroc"]
)
def test_other_keys_may_not_leave(key: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(MetricName).validate_python(key)


def test_the_surface_carries_planned_subgroups_and_no_others() -> None:
    asked = plan(subgroups=[{"field": "sex", "values": [1]}])

    def success(key: str, value: float) -> Surface:
        digest = "ab" * 32
        return Surface.success(
            digest,
            asked,
            artifacts=(Artifact(name="metrics.json", sha256=digest, cipher_sha256=digest, bytes=1),),
            metrics={key: value},
            self_reported={},
            records_bucket=10,
            patients_bucket=10,
            usage=Usage(),
        )

    assert b"auroc@sex=1.low" in encode(success("auroc@sex=1.low", 0.75))
    for key in ("auroc@sex=2", "auroc@age=1", "brier@sex=1", "roc@sex=1.3"):
        with pytest.raises(Refused):
            success(key, 0.5)
    for value in (1.5, 0.1234):
        with pytest.raises(ValidationError):
            success("auroc@sex=1", value)
