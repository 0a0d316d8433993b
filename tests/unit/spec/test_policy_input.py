"""The published input document and the decision."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from pydantic import ValidationError

from rapha.runtime.policy.bundle import DEFAULT, EXAMPLE
from rapha.spec.base import Model
from rapha.spec.policy import AdmissionInput, Decision, Reason
from rapha.spec.refusals import REGISTRY, Refused

DIGEST = "0" * 64


def admissible() -> dict[str, Any]:
    value: dict[str, Any] = json.loads((DEFAULT / EXAMPLE).read_text())
    return value


def leaves(model: type[Model], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Model):
            found += leaves(inner, (*path, name))
        else:
            found.append((*path, name))
    return found


def parent(document: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for key in path[:-1]:
        document = document[key]
    return document


LEAVES = leaves(AdmissionInput)


def test_the_example_is_an_input_document() -> None:
    assert AdmissionInput.parse(admissible()).dump() == admissible()


@pytest.mark.parametrize("path", [p for p in LEAVES if p != ("job", "network")], ids=".".join)
def test_a_missing_fact_refuses(path: tuple[str, ...]) -> None:
    document = admissible()
    del parent(document, path)[path[-1]]
    with pytest.raises(Refused) as refused:
        AdmissionInput.parse(document)
    assert refused.value.code == "schema.field_missing"
    assert ".".join(path) in refused.value.detail


def test_network_is_absent_unless_said() -> None:
    document = admissible()
    del document["job"]["network"]
    assert AdmissionInput.parse(document).job.network is False


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
def test_an_unknown_fact_refuses(path: tuple[str, ...]) -> None:
    document = admissible()
    parent(document, path)["allow"] = True
    with pytest.raises(Refused, match=r"schema\.field_unknown"):
        AdmissionInput.parse(document)


BAD: dict[str, tuple[tuple[str, ...], Any]] = {
    "a float price": (("agreement", "price_per_record"), 0.05),
    "a negative price": (("dataset", "price_per_record"), "-1"),
    "a price in exponents": (("dataset", "price_per_record"), "1e3"),
    "seven decimals": (("job", "budget_max"), "0.0000001"),
    "a budget of infinity": (("job", "budget_max"), "inf"),
    "no records": (("job", "dataset", "max_records"), 0),
    "records as text": (("job", "dataset", "max_records"), "5"),
    "a truth for a number": (("job", "outputs", "bytes"), True),
    "negative bytes": (("job", "outputs", "bytes"), -1),
    "bytes beyond exact JSON": (("job", "outputs", "bytes"), 2**53),
    "a number for a truth": (("settlement_configured",), 1),
    "a text for a truth": (("job", "network"), "false"),
    "an unknown profile": (("node", "profile"), "staging"),
    "an unknown assurance": (("node", "assurance"), "TEE"),
    "a job that accepts none": (("job", "assurance"), "none"),
    "weights without a dtype": (("job", "outputs", "release_dtype"), None),
    "a dtype without weights": (("job", "outputs", "has_weights"), False),
    "a purpose with a quote": (("job", "purpose"), 'research"'),
    "a purpose that climbs": (("job", "purpose"), "../research"),
    "a basis of two lines": (("dataset", "consent_basis"), "a\nb"),
    "a digest in capitals": (("scan", "digest"), "A" * 64),
    "an unknown severity": (("scan", "findings"), [{"rule": "a", "severity": "fatal"}]),
    "too many findings": (("scan", "findings"), [{"rule": "a", "severity": "info"}] * 4097),
    "no approval": (("approvals_required",), 0),
    "another currency": (("agreement", "currency"), "EUR"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_fact_refuses(name: str) -> None:
    path, value = BAD[name]
    document = admissible()
    parent(document, path)[path[-1]] = value
    with pytest.raises(Refused, match=r"schema\.field_invalid"):
        AdmissionInput.parse(document)


def test_the_document_is_immutable() -> None:
    document = AdmissionInput.parse(admissible())
    with pytest.raises(ValidationError):
        document.settlement_configured = False  # type: ignore[misc]


def test_the_schema_is_closed_all_the_way_down() -> None:
    schema = AdmissionInput.model_json_schema()
    objects = [schema, *schema["$defs"].values()]
    assert all(o["additionalProperties"] is False for o in objects if o.get("type") == "object")


def reason(code: str) -> Reason:
    return Reason(code=code, message="m", fix="f")


def decision(**changes: Any) -> Decision:
    fields: dict[str, Any] = {
        "allow": True,
        "reasons": (),
        "bundles": (DIGEST,),
        "input": DIGEST,
        "engine": "regopy 1.5.2",
    }
    return Decision(**copy.deepcopy(fields) | changes)


def test_an_allowed_decision_passes() -> None:
    decision().require()


@pytest.mark.parametrize(
    "changes",
    [
        {"reasons": (reason("policy.scan"),)},
        {"allow": False},
        {"bundles": ()},
        {"engine": "a\nb"},
        {"bundles": ("x",)},
    ],
    ids=["allowed with a reason", "refused without one", "by no set", "engine of two lines", "no digest"],
)
def test_a_decision_that_contradicts_itself_is_no_decision(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        decision(**changes)


def test_one_reason_refuses_with_its_own_code() -> None:
    with pytest.raises(Refused) as refused:
        decision(allow=False, reasons=(reason("budget.max"),)).require()
    assert (refused.value.code, refused.value.detail) == ("budget.max", "m")


def test_several_reasons_refuse_as_denied_and_list_every_code() -> None:
    with pytest.raises(Refused) as refused:
        decision(allow=False, reasons=(reason("budget.max"), reason("policy.scan"))).require()
    assert refused.value.code == "policy.denied"
    assert "budget.max" in refused.value.detail
    assert "policy.scan" in refused.value.detail


@pytest.mark.parametrize(
    "code", ["policy.nonsense", "", *[c for c, e in REGISTRY.items() if e.depends_on_records]]
)
def test_a_reason_needs_a_code_that_policy_may_give(code: str) -> None:
    with pytest.raises(ValidationError):
        reason(code)
