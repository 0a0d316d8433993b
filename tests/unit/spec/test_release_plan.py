"""Release plans: what contradicts itself refuses, and every size and bound follows from the plan alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.evidence import canonical
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import (
    ENDINGS,
    TRUSTED_METRICS,
    VERDICT_BITS,
    ReleasePlan,
    metric_bits,
    metric_keys,
)
from rapha.spec.reported import NumberField

PLAN: dict[str, Any] = {
    "version": 1,
    "weights": {
        "file": "model.safetensors",
        "release_dtype": "bf16",
        "tensors": [{"name": "fc.weight", "dtype": "F32", "shape": [10, 4], "min": -16.0, "max": 16.0}],
    },
    "self_reported": {
        "file": "metrics.json",
        "fields": [{"name": "loss", "type": "number", "min": 0, "max": 100, "decimals": 3}],
    },
    "trusted_metrics": ["auroc", "accuracy"],
    "max_bytes": 1048576,
}
Change = Callable[[dict[str, Any]], Any]


def changed(change: Change) -> dict[str, Any]:
    plan = copy.deepcopy(PLAN)
    change(plan)
    return plan


def tensor(**fields: Any) -> Change:
    return lambda p: p["weights"]["tensors"][0].update(fields)


def field(**fields: Any) -> Change:
    return lambda p: p["self_reported"]["fields"][0].update(fields)


def twice(p: dict[str, Any]) -> None:
    p["weights"]["tensors"] *= 2


def scale_collision(p: dict[str, Any]) -> None:
    p["weights"]["release_dtype"] = "int8"
    p["weights"]["tensors"].append(
        {"name": "fc.weight.scale", "dtype": "I8", "shape": [1], "min": 0, "max": 1}
    )


CONTRADICTIONS: dict[str, Change] = {
    "duplicate tensor": twice,
    "scale collision": scale_collision,
    "scale name too long": lambda p: (
        p["weights"].update(release_dtype="int8"),
        p["weights"]["tensors"][0].update(name="a" * 190),
    ),
    "no tensors": lambda p: p["weights"].update(tensors=[]),
    "too many tensors": lambda p: p["weights"].update(
        tensors=[{"name": f"t{i}", "dtype": "U8", "shape": [], "min": 0, "max": 1} for i in range(8193)]
    ),
    "header too large": lambda p: p["weights"].update(
        tensors=[{"name": f"{i:0190}", "dtype": "U8", "shape": [], "min": 0, "max": 1} for i in range(4000)]
    ),
    "name with slash": tensor(name="a/b"),
    "name with dots": tensor(name="a..b"),
    "name is dots": tensor(name=".."),
    "name hidden": tensor(name=".a"),
    "name ends in dot": tensor(name="a."),
    "name with NUL": tensor(name="a\x00b"),
    "name with newline": tensor(name="a\n"),
    "name with escape": tensor(name="a\x1b[31m"),
    "name with bidi": tensor(name="a\u202eb"),
    "name non-ASCII": tensor(name="é"),
    "name with quote": tensor(name='a"b'),
    "name with backslash": tensor(name="a\\b"),
    "name empty": tensor(name=""),
    "name long": tensor(name="a" * 192),
    "name reserved": tensor(name="__metadata__"),
    "shape zero": tensor(shape=[10, 0]),
    "shape negative": tensor(shape=[-10, -4]),
    "shape overflows": tensor(shape=[2**31, 2**31]),
    "shape huge": tensor(shape=[2**63]),
    "rank": tensor(shape=[1] * 17),
    "min above max": tensor(min=1.0, max=0.0),
    "NaN bound": tensor(min=math.nan),
    "infinite bound": tensor(max=math.inf),
    "beyond f16": lambda p: (p["weights"].update(release_dtype="f16"), tensor(max=70000.0)(p)),
    "beyond bf16": tensor(max=3.4e38),
    "beyond f32": lambda p: (p["weights"].update(release_dtype="f32"), tensor(max=1e39)(p)),
    "huge integer bound": tensor(max=10**400),
    "U8 range": tensor(dtype="U8", min=-1, max=1),
    "BOOL range": tensor(dtype="BOOL", min=0, max=2),
    "I64 beyond JSON": tensor(dtype="I64", min=0, max=2**53 + 1),
    "integer with fraction": tensor(dtype="I32", min=0.5, max=2),
    "max_bytes too small": lambda p: p.update(max_bytes=100),
    "nothing released": lambda p: p.update(weights=None, self_reported=None, trusted_metrics=[]),
    "weights file suffix": lambda p: p["weights"].update(file="model.dcm"),
    "weights file path": lambda p: p["weights"].update(file="../model.safetensors"),
    "weights file absolute": lambda p: p["weights"].update(file="/model.safetensors"),
    "weights file hidden": lambda p: p["weights"].update(file=".safetensors"),
    "weights file NUL": lambda p: p["weights"].update(file="a\x00.safetensors"),
    "weights file newline": lambda p: p["weights"].update(file="a.safetensors\n"),
    "report file suffix": lambda p: p["self_reported"].update(file="metrics.pkl"),
    "duplicate field": lambda p: p["self_reported"].update(fields=p["self_reported"]["fields"] * 2),
    "no fields": lambda p: p["self_reported"].update(fields=[]),
    "field name": field(name="a b"),
    "field min above max": field(min=2, max=1),
    "field not finite": field(max=math.inf),
    "field too wide": field(max=1e15, decimals=3),
    "enum without options": lambda p: p["self_reported"].update(
        fields=[{"name": "a", "type": "enum", "options": []}]
    ),
    "enum option twice": lambda p: p["self_reported"].update(
        fields=[{"name": "a", "type": "enum", "options": ["x", "x"]}]
    ),
    "enum option text": lambda p: p["self_reported"].update(
        fields=[{"name": "a", "type": "enum", "options": ["x y"]}]
    ),
    "metric twice": lambda p: p.update(trusted_metrics=["auroc", "auroc"]),
}

WRONG_TYPES: dict[str, Change] = {
    "unknown key": lambda p: p.update(extra=1),
    "version": lambda p: p.update(version=2),
    "dtype": tensor(dtype="F8_E4M3"),
    "release dtype": lambda p: p["weights"].update(release_dtype="int4"),
    "shape of text": tensor(shape="10"),
    "shape of bools": tensor(shape=[True]),
    "shape of floats": tensor(shape=[1.0]),
    "bool bound": tensor(max=True),
    "text bound": tensor(max="16"),
    "unknown metric": lambda p: p.update(trusted_metrics=["secret"]),
    "field type": field(type="text"),
    "decimals": field(decimals=10),
    "boolean with range": lambda p: p["self_reported"].update(
        fields=[{"name": "a", "type": "boolean", "min": 0}]
    ),
    "max_bytes zero": lambda p: p.update(max_bytes=0),
    "max_bytes text": lambda p: p.update(max_bytes="1"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_are_plan_invalid(name: str) -> None:
    with pytest.raises(Refused) as refused:
        ReleasePlan.parse(changed(CONTRADICTIONS[name]))
    assert refused.value.code == "schema.plan_invalid"
    assert refused.value.detail.isprintable()


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_wrong_types_name_the_field(name: str) -> None:
    with pytest.raises(Refused) as refused:
        ReleasePlan.parse(changed(WRONG_TYPES[name]))
    assert refused.value.code.startswith("schema.field_")


def test_the_contracts_example() -> None:
    plan = ReleasePlan.parse(PLAN)
    assert ReleasePlan.parse(plan.dump()) == plan
    assert (plan.parameters, plan.files) == (40, ("model.safetensors", "metrics.json"))
    expected = 40 * 16 + math.log2(100_001) + metric_bits("auroc") + metric_bits("accuracy") + VERDICT_BITS
    assert plan.released_bits() == math.ceil(expected)


def test_each_part_is_optional() -> None:
    for part in ("weights", "self_reported", "trusted_metrics"):
        only = {"version": 1, "max_bytes": 4096, part: PLAN[part]}
        plan = ReleasePlan.parse(only)
        assert plan.released_bits() > VERDICT_BITS
        assert plan.released_bytes <= plan.outgoing_bytes <= plan.max_bytes


@pytest.mark.parametrize("own", ["metrics.json", "own.json"])
@pytest.mark.parametrize("fields", [0, 3])
def test_the_largest_metrics_file_fits_what_may_leave(own: str, fields: int) -> None:
    plan_json: dict[str, Any] = {"version": 1, "max_bytes": 2**20, "trusted_metrics": list(TRUSTED_METRICS)}
    if fields:
        named = [
            {"name": f"x{n}", "type": "number", "min": 0, "max": 1, "decimals": 9} for n in range(fields)
        ]
        plan_json["self_reported"] = {"file": own, "fields": named}
    plan = ReleasePlan.parse(plan_json)
    widest = {name: max(0.999, high - 0.001) for name, (_, high) in TRUSTED_METRICS.items()}
    trusted = {key: widest[name] for name in plan.trusted_metrics for key in metric_keys(name)}
    reported = {f"x{n}": 0.123456789 for n in range(fields)}
    size = len(canonical.dumps({"trusted": trusted, "self_reported": reported}))
    both = size + (len(canonical.dumps(reported)) if fields and own != "metrics.json" else 0)
    assert both <= plan.outgoing_bytes < 2 * both
    ReleasePlan.parse({**plan_json, "max_bytes": plan.outgoing_bytes})
    with pytest.raises(Refused):
        ReleasePlan.parse({**plan_json, "max_bytes": plan.outgoing_bytes - 1})


def test_int8_adds_a_scale_and_prices_it() -> None:
    plan = ReleasePlan.parse(changed(lambda p: p["weights"].update(release_dtype="int8")))
    assert plan.weights is not None
    assert plan.weights.released == [("fc.weight", "I8", (10, 4)), ("fc.weight.scale", "F32", ())]
    assert plan.weights.bits() == 40 * math.log2(255) + 32


def test_integers_cost_what_their_range_allows() -> None:
    plan = ReleasePlan.parse(changed(tensor(dtype="I64", min=0, max=7)))
    assert plan.weights is not None
    assert plan.weights.bits() == 40 * 3
    assert plan.weights.released_bytes == 8 + len(plan.weights.released_header()) + 320


def test_a_scalar_has_one_element() -> None:
    assert ReleasePlan.parse(changed(tensor(shape=[]))).parameters == 1


@pytest.mark.parametrize("name", sorted(TRUSTED_METRICS))
def test_every_metric_has_keys_and_a_price(name: Any) -> None:
    assert metric_bits(name) >= len(metric_keys(name)) * math.log2(1001)


def test_verdict_bits_cover_all_endings() -> None:
    assert pytest.approx(2**VERDICT_BITS) == len(ENDINGS)


@given(
    low=st.integers(-(10**6), 10**6),
    span=st.integers(0, 10**6),
    decimals=st.integers(0, 6),
    value=st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
)
def test_released_numbers_lie_on_the_priced_grid(low: int, span: int, decimals: int, value: float) -> None:
    # Bounds with more decimals than are released, too.
    plan = NumberField(name="x", type="number", min=low / 7, max=(low + span) / 7, decimals=decimals)
    released = plan.release(value)
    assert isinstance(released, float)
    assert plan.release(released) == released
    index = plan.rounded(released) - plan.rounded(plan.min)
    assert 0 <= int(index.scaleb(decimals)) < plan.values()
    assert math.copysign(1, released) == 1 or released < 0


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ({"type": "number", "min": 0, "max": 1, "decimals": 1}, [True, "1", None, math.nan, math.inf, [1]]),
        ({"type": "integer", "min": 0, "max": 9}, [True, 1.0, "1", None]),
        ({"type": "boolean"}, [0, 1, "true", None]),
        ({"type": "enum", "options": ["a", "b"]}, ["c", 0, None, ["a"]]),
    ],
)
def test_fields_take_only_their_type(kind: dict[str, Any], bad: list[Any]) -> None:
    only = {
        "version": 1,
        "max_bytes": 99,
        "self_reported": {"file": "m.json", "fields": [{"name": "x", **kind}]},
    }
    plan = ReleasePlan.parse(only)
    assert plan.self_reported is not None
    for value in bad:
        with pytest.raises(ValueError, match="planned"):
            plan.self_reported.fields[0].release(value)
