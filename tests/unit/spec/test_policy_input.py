"""The published input document and the decision."""

from __future__ import annotations

import copy
import json
from importlib.resources import files
from typing import Any

import pytest
from pydantic import ValidationError

from rapha.runtime.policy.bundle import DEFAULT, EXAMPLE
from rapha.spec.agreement import Agreement
from rapha.spec.base import Model
from rapha.spec.dataset import DatasetManifest
from rapha.spec.job import Job
from rapha.spec.policy import AdmissionInput, AgreementTerms, DatasetTerms, Decision, JobFacts, Reason
from rapha.spec.private import PrivateTraining
from rapha.spec.refusals import REGISTRY, Refused
from rapha.spec.yaml import load

DIGEST = "0" * 64
TEMPLATE = files("rapha.researcher") / "templates" / "private" / "job.yaml"
WRITTEN: dict[str, Any] = load(TEMPLATE.read_text(encoding="utf-8"))


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
    "an epsilon of nothing": (("job", "private"), {"epsilon": 0.0, "delta": 1e-6, "model": "mlp"}),
    "a delta of one": (("job", "private"), {"epsilon": 1.0, "delta": 1.0, "model": "mlp"}),
    "a model of its own": (("job", "private"), {"epsilon": 1.0, "delta": 1e-6, "model": "code"}),
    "a guarantee that says nothing": (("job", "private"), True),
    "fewer values than none": (("job", "outputs", "self_reported"), -1),
    "a subgroup of two lines": (("job", "outputs", "subgroups"), ["sex\n=1"]),
    "an unknown severity": (("scan", "findings"), [{"rule": "a", "severity": "fatal"}]),
    "too many findings": (("scan", "findings"), [{"rule": "a", "severity": "info"}] * 4097),
    "no approval": (("approvals_required",), 0),
    "no review": (("reviews_required",), 0),
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


def job(**changes: Any) -> Job:
    tensor = {"name": "w", "dtype": "F32", "shape": [10, 4], "min": -1.0, "max": 1.0}
    parts = [{"field": "b", "gte": 1}, {"not": {"field": "a", "eq": 1}}, {"field": "b", "lt": 0}]
    fields: dict[str, Any] = {
        "kind": "train",
        "name": "a-job",
        "purpose": "research/diagnosis",
        "not_after": "2030-01-01T00:00:00Z",
        "nodes": "any",
        "entrypoint": ["python3", "train.py"],
        "model": {"architecture": "mlp", "base": None},
        "dataset": {
            "profile": "tabular.breast-fna",
            "modality": "tabular",
            "cohort": {"any": parts},
            "max_records": 500,
        },
        "outputs": {
            "version": 1,
            "weights": {"file": "m.safetensors", "release_dtype": "bf16", "tensors": [tensor]},
            "max_bytes": 100000,
        },
        "assurance": "tee",
        "budget": {"currency": "USDC", "max": "12.50"},
        "image": "sha256:" + DIGEST,
        "recipient": "A" * 43 + "=",
        "compute": {"cpus": 1, "memory_bytes": 2**28, "gpus": 0, "wall_clock_s": 60},
    }
    return Job.parse(fields | changes)


def test_a_rule_can_tell_private_training_and_what_is_told_beside_weights() -> None:
    asked = job()
    fields = [{"name": name, "type": "boolean"} for name in "ab"]
    plan = asked.outputs.dump() | {
        "self_reported": {"file": "report.json", "fields": fields},
        "trusted_metrics": ["auroc"],
        "subgroups": [{"field": "sex", "values": [0, 1]}],
    }
    facts = JobFacts.of(job(outputs=plan, predict=["python3", "predict.py"]), DIGEST)
    assert (facts.outputs.self_reported, facts.outputs.subgroups) == (2, ("sex=0", "sex=1"))
    assert facts.private is None and JobFacts.of(asked, DIGEST).outputs.self_reported == 0
    private = PrivateTraining.parse(WRITTEN["private"])
    told = JobFacts.of(asked.model_copy(update={"private": private}), DIGEST).private
    assert told is not None
    assert (told.epsilon, told.delta, told.model) == (private.epsilon, private.delta, private.model.kind)


def test_the_facts_of_a_job() -> None:
    asked = job()
    facts = JobFacts.of(asked, DIGEST)
    assert facts.dataset.cohort_fields == ("a", "b")
    assert facts.outputs.bytes == asked.outputs.outgoing_bytes > 0
    assert (facts.outputs.parameters, facts.outputs.release_dtype, facts.outputs.has_weights) == (
        40,
        "bf16",
        True,
    )
    assert (facts.network, facts.assurance, facts.budget_max) == (False, "tee", "12.50")


def test_the_facts_of_a_job_without_weights_or_budget() -> None:
    field = {"name": "loss", "type": "number", "min": 0, "max": 9, "decimals": 3}
    outputs = {"version": 1, "self_reported": {"file": "metrics.json", "fields": [field]}, "max_bytes": 10000}
    facts = JobFacts.of(job(outputs=outputs, budget=None), DIGEST)
    assert (facts.outputs.has_weights, facts.outputs.release_dtype, facts.budget_max) == (False, None, None)


def key(letter: str) -> str:
    return letter * 59 + "="


AGREEMENT: dict[str, Any] = {
    "id": "agreement-1",
    "hospital": {"id": "st-elsewhere", "name": "St Elsewhere", "key": key("A")},
    "company": {"id": "acme-ai", "name": "Acme AI", "key": key("B")},
    "not_before": "2026-01-01T00:00:00Z",
    "not_after": "2027-01-01T00:00:00Z",
    "developers": [{"name": "D", "role": "developer", "key": key("C")}],
    "approvers": [{"name": "A", "role": "guardian", "key": key("D")}],
    "approvals_required": 1,
    "reviewers": [{"name": "R", "role": "reviewer", "key": key("E")}],
    "reviews_required": 1,
    "nodes": [{"id": "node-1", "receipt_key": key("F")}],
    "measurements": [DIGEST],
    "datasets": ["breast-fna"],
    "purposes": ["research/diagnosis"],
    "max_output_bytes": 1024,
    "billing_bucket": 10,
    "price_per_record": "0.05",
    "currency": "USDC",
    "least_assurance": "simulated",
    "documents": None,
}
MANIFEST: dict[str, Any] = {
    "dataset": "breast-fna",
    "title": "Breast FNA",
    "profile": "tabular.breast-fna",
    "modality": "tabular",
    "fields": [{"name": "mean_radius", "dtype": "float32"}],
    "purposes": ["research/diagnosis"],
    "price_per_record": "0.05",
    "provenance": {"source": "s", "licence": "l"},
    "source": {
        "kind": "folder",
        "format": "parquet",
        "path": "records",
        "files": [{"name": "a.parquet", "sha256": DIGEST, "size": 1}],
    },
    "patient_id": "patient",
    "organisations": ["acme-ai"],
    "consent_basis": "Art. 9(2)(j)",
    "opt_outs": "opt-outs.txt",
    "salt": DIGEST,
}


def test_the_terms_of_an_agreement_name_the_company() -> None:
    terms = AgreementTerms.of(Agreement.parse(AGREEMENT)).dump()
    assert terms.pop("organisation") == "acme-ai"
    assert terms == {name: AGREEMENT[name] for name in terms}


def test_the_terms_of_a_manifest_leave_its_files_at_home() -> None:
    terms = DatasetTerms.of(DatasetManifest.parse(MANIFEST)).dump()
    assert (terms.pop("id"), terms.pop("minimum_cell")) == ("breast-fna", 10)
    assert terms == {name: MANIFEST[name] for name in terms}
    assert not {"source", "salt", "patient_id", "opt_outs"} & set(terms)
