"""The weights of a plan: noise, fewer bits, and what they cost."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rapha.evidence import canonical
from rapha.spec.policy import RequestedOutputs
from rapha.spec.refusals import Refused
from rapha.spec.reported import LARGEST_INTEGER
from rapha.spec.weights import WeightsPlan

TENSOR: dict[str, Any] = {"name": "w", "dtype": "F32", "shape": [10], "min": -1.0, "max": 1.0}
COUNTS: dict[str, Any] = {"name": "n", "dtype": "I64", "shape": [2], "min": 0, "max": 7}


def plan(*tensors: dict[str, Any], **fields: Any) -> WeightsPlan:
    value = {
        "file": "w.safetensors",
        "release_dtype": "int8",
        "tensors": list(tensors or (TENSOR,)),
        **fields,
    }
    return WeightsPlan.parse(value)


@pytest.mark.parametrize(("bits", "values"), [(None, 255), (8, 255), (7, 127), (4, 15), (3, 7), (2, 3)])
def test_int8_costs_the_values_that_it_leaves(bits: int | None, values: int) -> None:
    fewer = plan(TENSOR, COUNTS, **({} if bits is None else {"bits": bits}))
    assert fewer.levels == (values - 1) // 2
    assert fewer.bits() == pytest.approx(10 * math.log2(values) + 32 + 2 * 3)
    assert fewer.element_bits == (bits or 8)


@pytest.mark.parametrize(("release", "bits"), [("f32", 32), ("bf16", 16), ("f16", 16), ("int8", 8)])
def test_other_dtypes_cost_their_width(release: str, bits: int) -> None:
    assert plan(release_dtype=release).element_bits == bits


BAD: dict[str, dict[str, Any]] = {
    "one bit": {"bits": 1},
    "nine bits": {"bits": 9},
    "no bits": {"bits": 0},
    "bits as a float": {"bits": 4.0},
    "bits as text": {"bits": "4"},
    "bits as true": {"bits": True},
    "bits of bf16": {"release_dtype": "bf16", "bits": 4},
    "bits of f32": {"release_dtype": "f32", "bits": 8},
    "bits by its inner name": {"int8_bits": 4},
    "noise as a number": {"noise": 0.1},
    "noise without a deviation": {"noise": {}},
    "no noise": {"noise": {"std": 0}},
    "negative noise": {"noise": {"std": -1.0}},
    "infinite noise": {"noise": {"std": math.inf}},
    "noise that is no number": {"noise": {"std": math.nan}},
    "noise beyond F32": {"noise": {"std": 1e39}},
    "a seed": {"noise": {"std": 1.0, "seed": 7}},
    "noise for integers": {"tensors": [COUNTS], "noise": {"std": 1.0}},
    "an integer that JSON does not hold": {"tensors": [COUNTS | {"max": LARGEST_INTEGER + 1}]},
    "a bound that JSON does not hold": {"tensors": [TENSOR | {"max": 10**20}], "release_dtype": "f32"},
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_plan_may_not_say(name: str) -> None:
    with pytest.raises(Refused) as caught:
        plan(**BAD[name])
    assert caught.value.code.startswith("schema.")


def test_absent_means_none_and_the_plan_round_trips() -> None:
    plain = plan()
    assert (plain.int8_bits, plain.noise, plain.noise_std) == (None, None, 0.0)
    assert (plain.dump()["bits"], plain.dump()["noise"]) == (None, None)
    full = plan(bits=3, noise={"std": 0.5})
    assert WeightsPlan.parse(canonical.loads(canonical.dumps(full.dump()))) == full
    assert (full.dump()["bits"], full.dump()["noise"]) == (3, {"std": 0.5})


def test_every_bound_that_a_plan_may_have_can_be_signed() -> None:
    widest = plan(COUNTS | {"min": -LARGEST_INTEGER, "max": LARGEST_INTEGER})
    assert WeightsPlan.parse(canonical.loads(canonical.dumps(widest.dump()))) == widest


@pytest.mark.parametrize("wrong", [{"bits": 33}, {"bits": -1}, {"noise": -0.5}, {"noise": math.nan}])
def test_a_policy_is_told_both(wrong: dict[str, Any]) -> None:
    told = {"bytes": 1, "parameters": 1, "has_weights": True, "release_dtype": "int8", "trusted_metrics": ()}
    told |= {"subgroups": (), "self_reported": 0}
    fine = RequestedOutputs.parse(told | {"bits": 4, "noise": 0.5})
    assert (fine.bits, fine.noise) == (4, 0.5)
    with pytest.raises(Refused):
        RequestedOutputs.parse(told | {"bits": 4, "noise": 0.5} | wrong)
