from __future__ import annotations

import base64
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.evidence import canonical
from rapha.spec import yaml
from rapha.spec.job import RANK, Job, JobFile, parse_job_file
from rapha.spec.refusals import Refused

# The example of the documented format, word for word, with a release plan in place of `{…release plan…}`.
EXAMPLE = """\
version: 1
kind: train                     # train | evaluate
name: breast-fna-malignancy
purpose: research/diagnosis     # matched against the agreement
not_after: 2027-01-31T00:00:00Z
nodes: any                      # or a list of node ids
recipient: keys/results.hpke.pub   # results are encrypted to it; inside the signed job
image: ./image                  # OCI layout; its digest is what is signed
entrypoint: [python3, train.py]
predict: [python3, predict.py]  # inputs only; the node computes the trusted metrics
model: {architecture: mlp, base: null}      # base: a safetensors file by digest (required for evaluate)
dataset:
  profile: tabular.breast-fna
  modality: tabular
  cohort: {all: [{field: mean_radius, gte: 6.0}]}
  max_records: 5000
outputs:
  {"version": 1,
   "weights": {"file": "model.safetensors", "release_dtype": "bf16",
               "tensors": [{"name": "fc.weight", "dtype": "F32", "shape": [10, 4], "min": -16.0, "max": 16.0}]},
   "self_reported": {"file": "metrics.json", "fields": [{"name": "loss", "type": "number", "min": 0, "max": 100, "decimals": 3}]},
   "trusted_metrics": ["auroc", "accuracy"],
   "max_bytes": 1048576}
compute: {cpus: 2, memory: 4GiB, gpus: 0, wall_clock: 20m}
assurance: simulated            # least accepted: tee+tpm | tee | tpm | simulated
budget: {currency: USDC, max: "250.00"}
"""  # noqa: E501
DIGEST = "sha256:" + "ab" * 32
RECIPIENT = base64.b64encode(bytes(range(32))).decode()
TREE: dict[str, Any] = yaml.load(EXAMPLE)


def changed(path: str, value: Any) -> dict[str, Any]:
    tree = copy.deepcopy(TREE)
    *parents, last = path.split(".")
    target: Any = tree
    for part in parents:
        target = target[int(part) if part.isdigit() else part]
    if value is DELETE:
        del target[last]
    else:
        target[last] = value
    return tree


DELETE = object()


def refusal(tree: object) -> Refused:
    with pytest.raises(Refused) as caught:
        JobFile.parse(tree).to_job(image_digest=DIGEST, recipient=RECIPIENT)
    return caught.value


def test_every_field_of_the_documented_example_parses_exactly() -> None:
    file = parse_job_file(EXAMPLE)
    plan = {
        "version": 1,
        "weights": {
            "file": "model.safetensors",
            "release_dtype": "bf16",
            "tensors": [{"name": "fc.weight", "dtype": "F32", "shape": [10, 4], "min": -16.0, "max": 16.0}],
            "bits": None,
            "noise": None,
        },
        "self_reported": {
            "file": "metrics.json",
            "fields": [{"name": "loss", "type": "number", "min": 0, "max": 100, "decimals": 3}],
        },
        "trusted_metrics": ["auroc", "accuracy"],
        "subgroups": [],
        "max_bytes": 1048576,
    }
    assert file.dump() == {
        "version": 1,
        "kind": "train",
        "name": "breast-fna-malignancy",
        "purpose": "research/diagnosis",
        "not_after": "2027-01-31T00:00:00Z",
        "nodes": "any",
        "recipient": "keys/results.hpke.pub",
        "image": "./image",
        "entrypoint": ["python3", "train.py"],
        "predict": ["python3", "predict.py"],
        "model": {"architecture": "mlp", "base": None},
        "dataset": {
            "profile": "tabular.breast-fna",
            "modality": "tabular",
            "cohort": {"all": [{"field": "mean_radius", "gte": 6.0}]},
            "max_records": 5000,
            "transforms": {},
        },
        "outputs": plan,
        "compute": {"cpus": 2, "memory": "4GiB", "gpus": 0, "wall_clock": "20m"},
        "assurance": "simulated",
        "budget": {"currency": "USDC", "max": "250.00"},
        "private": None,
    }


def test_the_signed_form_has_digests_and_si_units_in_place_of_paths_and_words() -> None:
    job = parse_job_file(EXAMPLE).to_job(image_digest=DIGEST, recipient=RECIPIENT)
    assert (job.image, job.recipient) == (DIGEST, RECIPIENT)
    assert job.compute.dump() == {"cpus": 2, "memory_bytes": 2**32, "gpus": 0, "wall_clock_s": 1200}
    assert Job.parse(canonical.loads_canonical(canonical.dumps(job.dump()))) == job


LEVELS = ["", "model", "dataset", "dataset.cohort", "dataset.cohort.all.0", "compute", "budget", "outputs"]
LEVELS += ["outputs.weights", "outputs.weights.tensors.0", "outputs.self_reported"]
LEVELS += ["outputs.self_reported.fields.0"]


@pytest.mark.parametrize("level", LEVELS)
def test_an_unknown_field_refuses_at_every_level(level: str) -> None:
    found = refusal(changed(f"{level}.extra".strip("."), 1))
    assert found.code in ("schema.field_unknown", "schema.field_invalid", "schema.plan_invalid")
    assert "extra" in found.detail or "expected one of" in found.detail


REQUIRED = ["version", "kind", "name", "purpose", "not_after", "nodes", "recipient", "image", "entrypoint"]
REQUIRED += ["model", "dataset", "outputs", "compute", "assurance", "dataset.profile", "dataset.modality"]
REQUIRED += ["dataset.cohort", "dataset.max_records", "compute.memory", "compute.wall_clock", "budget.max"]
REQUIRED += ["model.architecture", "outputs.version", "outputs.max_bytes", "budget.currency"]


@pytest.mark.parametrize("path", REQUIRED)
def test_a_required_field_that_is_missing_is_named(path: str) -> None:
    found = refusal(changed(path, DELETE))
    assert (found.code, found.detail) == ("schema.field_missing", f"{path}: is missing")


BAD: dict[str, tuple[str, Any]] = {
    "version 2": ("version", 2),
    "version true": ("version", True),
    "version text": ("version", "1"),
    "kind": ("kind", "Train"),
    "name with a path": ("name", "../x"),
    "purpose with capitals": ("purpose", "Research"),
    "purpose too deep": ("purpose", "a/b/c/d/e"),
    "purpose with an empty part": ("purpose", "a//b"),
    "date only": ("not_after", "2027-01-31"),
    "no such day": ("not_after", "2027-02-30T00:00:00Z"),
    "nodes: all": ("nodes", "all"),
    "no nodes": ("nodes", []),
    "node with a space": ("nodes", ["a b"]),
    "257 nodes": ("nodes", [f"n{i}" for i in range(257)]),
    "absolute image": ("image", "/image"),
    "image with NUL": ("image", "a\x00b"),
    "empty image": ("image", ""),
    "absolute recipient": ("recipient", "/etc/passwd"),
    "entrypoint is text": ("entrypoint", "python3 train.py"),
    "empty entrypoint": ("entrypoint", []),
    "empty argument": ("entrypoint", [""]),
    "argument with a newline": ("entrypoint", ["python3", "a\nb"]),
    "argument that moves the cursor": ("entrypoint", ["python3", "a\x1b[2J"]),
    "argument with a C1 control": ("entrypoint", ["python3", "a\x9b2J"]),
    "argument that reads backwards": ("entrypoint", ["python3", "a\u202egpj.exe"]),
    "argument with an isolate": ("entrypoint", ["python3", "\u2066x"]),
    "argument is a number": ("entrypoint", ["python3", 1]),
    "65 arguments": ("entrypoint", ["a"] * 65),
    "predict is empty": ("predict", []),
    "predict is null": ("predict", None),
    "architecture with a newline": ("model.architecture", "mlp\nAPPROVED"),
    "base is a path": ("model.base", "base.safetensors"),
    "base with its algorithm": ("model.base", "sha256:" + "0" * 64),
    "modality": ("dataset.modality", "Tabular"),
    "no records": ("dataset.max_records", 0),
    "too many records": ("dataset.max_records", 10**9 + 1),
    "records true": ("dataset.max_records", True),
    "records text": ("dataset.max_records", "5000"),
    "records float": ("dataset.max_records", 5000.0),
    "cohort is code": ("dataset.cohort", "age > 5"),
    "cohort null": ("dataset.cohort", None),
    "cohort with infinity": ("dataset.cohort.all.0.gte", float("inf")),
    "no cpus": ("compute.cpus", 0),
    "too many cpus": ("compute.cpus", 1025),
    "negative gpus": ("compute.gpus", -1),
    "too little memory": ("compute.memory", "63MiB"),
    "too much memory": ("compute.memory", "4097GiB"),
    "memory in GB": ("compute.memory", "4GB"),
    "memory number": ("compute.memory", 2**32),
    "no time": ("compute.wall_clock", "0s"),
    "31 days": ("compute.wall_clock", "744h"),
    "time without unit": ("compute.wall_clock", "20"),
    "assurance none": ("assurance", "none"),
    "assurance list": ("assurance", ["tee"]),
    "currency": ("budget.currency", "USD"),
    "budget is a number": ("budget.max", 250.0),
    "budget negative": ("budget.max", "-1"),
    "budget in other digits": ("budget.max", "1٢"),
    "outputs null": ("outputs", None),
    "evaluate without base": ("kind", "evaluate"),
}


@pytest.mark.parametrize(("path", "value"), BAD.values(), ids=BAD.keys())
def test_a_wrong_value_refuses(path: str, value: Any) -> None:
    assert refusal(changed(path, value)).code == "schema.field_invalid"


def evaluation() -> dict[str, Any]:
    """A job that measures a model: metrics alone, and `predict` alone."""
    tree = changed("kind", "evaluate")
    tree["model"]["base"] = "ab" * 32
    del tree["entrypoint"], tree["outputs"]["weights"], tree["outputs"]["self_reported"]
    return tree


def test_an_evaluation_runs_predict_and_nothing_else() -> None:
    job = JobFile.parse(evaluation()).to_job(image_digest=DIGEST, recipient=RECIPIENT)
    assert job.entrypoint == job.predict == ("python3", "predict.py")
    assert Job.parse(job.dump()) == job
    assert JobFile.parse(evaluation() | {"entrypoint": ["python3", "predict.py"]}).kind == "evaluate"


@pytest.mark.parametrize(
    ("says", "change"),
    [
        ("model.base", {"model": {"architecture": "mlp", "base": None}}),
        ("model.base", {"model": {"architecture": "mlp"}}),
        ("no weights", {"outputs": TREE["outputs"]}),
        ("no weights", {"outputs": {k: v for k, v in TREE["outputs"].items() if k != "self_reported"}}),
        ("no self_reported", {"outputs": {k: v for k, v in TREE["outputs"].items() if k != "weights"}}),
        ("leave `entrypoint` out", {"entrypoint": ["python3", "train.py"]}),
        ("leave `entrypoint` out", {"predict": ["python3", "other.py"], "entrypoint": ["python3"]}),
        ("predict", {"predict": None, "entrypoint": ["python3", "predict.py"]}),
        ("entrypoint", {"predict": None}),
        ("base", {"model": {"architecture": "mlp", "base": "sha256:" + "ab" * 32}}),
        ("base", {"model": {"architecture": "mlp", "base": "AB" * 32}}),
    ],
)
def test_an_evaluation_that_asks_for_more_is_told_what_to_leave_out(
    says: str, change: dict[str, Any]
) -> None:
    refused = refusal(evaluation() | change)
    assert refused.code == "schema.field_invalid"
    assert says in refused.detail


def test_an_evaluation_without_predict_is_told_so() -> None:
    tree = evaluation()
    del tree["predict"]
    assert "`predict` is needed" in refusal(tree).detail


def test_the_node_takes_no_signed_evaluation_that_releases_weights() -> None:
    signed = JobFile.parse(evaluation()).to_job(image_digest=DIGEST, recipient=RECIPIENT).dump()
    with pytest.raises(Refused, match="no weights"):
        Job.parse({**signed, "outputs": TREE["outputs"]}, "job")
    with pytest.raises(Refused, match=r"schema\.field_missing"):
        Job.parse({k: v for k, v in signed.items() if k != "entrypoint"}, "job")


def test_the_published_schema_lets_the_entrypoint_be_left_out() -> None:
    assert "entrypoint" not in JobFile.model_json_schema()["required"]
    assert "entrypoint" in Job.model_json_schema()["required"]


def test_trusted_metrics_need_predict_and_released_weights() -> None:
    assert "predict" in refusal(changed("predict", DELETE)).detail
    assert "weights" in refusal(changed("outputs.weights", DELETE)).detail


def test_what_is_optional_may_be_left_out() -> None:
    tree = changed("budget", DELETE)
    del tree["predict"], tree["outputs"]["trusted_metrics"], tree["model"]["base"]
    del tree["compute"]["cpus"], tree["compute"]["gpus"]
    job = JobFile.parse(tree).to_job(image_digest=DIGEST, recipient=RECIPIENT)
    assert (job.budget, job.predict, job.model.base, job.compute.cpus, job.compute.gpus) == (
        *(None, None, None),
        *(1, 0),
    )


def test_nodes_may_be_listed() -> None:
    assert JobFile.parse(changed("nodes", ["hospital-1", "hospital-2"])).nodes == ("hospital-1", "hospital-2")


@pytest.mark.parametrize(
    "digest", ["", "ab" * 32, "sha512:" + "ab" * 32, "sha256:" + "AB" * 32, DIGEST + "\n"]
)
def test_only_a_digest_is_signed_as_image(digest: str) -> None:
    with pytest.raises(Refused):
        JobFile.parse(TREE).to_job(image_digest=digest, recipient=RECIPIENT)


@pytest.mark.parametrize("text", ["", "- a", "5", "just text", "null", "[]"])
def test_a_file_that_is_no_mapping_refuses(text: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_job_file(text)
    assert caught.value.code == "schema.yaml"


def test_the_order_of_assurance() -> None:
    assert sorted(RANK, key=RANK.__getitem__) == ["none", "simulated", "tpm", "tee", "tee+tpm"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([*LEVELS[1:4], *REQUIRED]), JSON)
def test_any_json_in_any_field_is_read_or_refused(path: str, value: Any) -> None:
    try:
        job = JobFile.parse(changed(path, value)).to_job(image_digest=DIGEST, recipient=RECIPIENT)
    except Refused as refused:
        assert refused.code.startswith("schema.")
        return
    json.dumps(job.dump(), allow_nan=False)
