from __future__ import annotations

from typing import Any

import pytest

from rapha.spec.base import Model
from rapha.spec.refusals import Refused
from rapha.spec.sections import GuardSection, PolicySection, ScanSection

SHA = "aa" * 32
POLICY: dict[str, Any] = {"allow": True, "engine": "regopy 1.2", "bundles": [SHA], "input": SHA}
SCAN: dict[str, Any] = {
    **{"image": "sha256:" + SHA, "scanner": "rapha 1.0", "report": SHA, "base": []},
    **{"refusals": 0, "warnings": 3},
}
GUARD: dict[str, Any] = {
    "checks": [{"n": n, "id": f"check {n}", "verdict": "pass"} for n in range(1, 8)],
    "released": [{"name": "model.safetensors", "sha256": SHA, "bytes": 10}],
    "covert_bound_bits": 2**40,
    "report": SHA,
}
GOOD: list[tuple[type[Model], dict[str, Any]]] = [
    (PolicySection, POLICY),
    (ScanSection, SCAN),
    (GuardSection, GUARD),
]


@pytest.mark.parametrize(("model", "value"), GOOD)
def test_sections_round_trip_and_are_closed(model: type[Model], value: dict[str, Any]) -> None:
    assert model.parse(value).dump() == value
    with pytest.raises(Refused) as caught:
        model.parse({**value, "extra": 1})
    assert caught.value.code == "schema.field_unknown"
    for name in value:
        with pytest.raises(Refused) as caught:
            model.parse({k: v for k, v in value.items() if k != name})
        assert caught.value.code == "schema.field_missing"


def released(**changed: Any) -> dict[str, Any]:
    return {"released": [{**GUARD["released"][0], **changed}]}


def check(**changed: Any) -> dict[str, Any]:
    return {"checks": [*GUARD["checks"][:6], {**GUARD["checks"][6], **changed}]}


BAD: dict[str, tuple[type[Model], dict[str, Any]]] = {
    "denied": (PolicySection, {**POLICY, "allow": False}),
    "allow as a number": (PolicySection, {**POLICY, "allow": 1}),
    "allow as text": (PolicySection, {**POLICY, "allow": "true"}),
    "no bundle": (PolicySection, {**POLICY, "bundles": []}),
    "engine with markup": (PolicySection, {**POLICY, "engine": "<b>"}),
    "a refusing finding": (ScanSection, {**SCAN, "refusals": 1}),
    "refusals: false": (ScanSection, {**SCAN, "refusals": False}),
    "negative warnings": (ScanSection, {**SCAN, "warnings": -1}),
    "image without algorithm": (ScanSection, {**SCAN, "image": SHA}),
    "too few checks": (GuardSection, {**GUARD, "checks": GUARD["checks"][:4]}),
    "too many checks": (GuardSection, {**GUARD, "checks": GUARD["checks"] * 2}),
    "a failed check": (GuardSection, {**GUARD, **check(verdict="fail")}),
    "check 0": (GuardSection, {**GUARD, **check(n=0)}),
    "check 10": (GuardSection, {**GUARD, **check(n=10)}),
    "check true": (GuardSection, {**GUARD, **check(n=True)}),
    "a path": (GuardSection, {**GUARD, **released(name="../model")}),
    "a hidden file": (GuardSection, {**GUARD, **released(name=".model")}),
    "a name with a newline": (GuardSection, {**GUARD, **released(name="a\n")}),
    "negative bytes": (GuardSection, {**GUARD, **released(bytes=-1)}),
    "17 files": (GuardSection, {**GUARD, "released": GUARD["released"] * 17}),
    "negative bits": (GuardSection, {**GUARD, "covert_bound_bits": -1}),
    "bits beyond 2^53": (GuardSection, {**GUARD, "covert_bound_bits": 2**53}),
    "fractional bits": (GuardSection, {**GUARD, "covert_bound_bits": 1.5}),
}


@pytest.mark.parametrize(("model", "value"), BAD.values(), ids=BAD.keys())
def test_a_bad_section_refuses(model: type[Model], value: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        model.parse(value)
    assert caught.value.code == "schema.field_invalid"
