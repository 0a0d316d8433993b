"""The surface: nothing leaves that is not a priced field, and less may be said after the first record."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rapha.spec.price import PriceContext, covert_bound_bits, price_bits, timing_bits
from rapha.spec.refusals import REGISTRY, Refused
from rapha.spec.release_plan import ENDINGS, ReleasePlan
from rapha.spec.surface import (
    AFTER_RECORDS,
    Artifact,
    Quanta,
    Startup,
    Surface,
    Usage,
    bucketed,
    encode,
    printable,
    public_code,
    startup_fault,
    steps,
)

JOB = "a" * 64
PLAN = ReleasePlan.parse(
    {
        "version": 1,
        "weights": {
            "file": "model.safetensors",
            "release_dtype": "bf16",
            "tensors": [{"name": "w", "dtype": "F32", "shape": [40], "min": -1, "max": 1}],
        },
        "self_reported": {
            "file": "metrics.json",
            "fields": [{"name": "loss", "type": "number", "min": 0, "max": 100, "decimals": 3}],
        },
        "trusted_metrics": ["auroc"],
        "max_bytes": 4096,
    }
)
ARTIFACTS = tuple(
    Artifact(name=name, sha256="1" * 64, cipher_sha256="2" * 64, bytes=9) for name in PLAN.files
)
SUCCESS: dict[str, Any] = {
    "artifacts": ARTIFACTS,
    "metrics": {"auroc": 0.912, "auroc.low": 0.9, "auroc.high": 0.95},
    "self_reported": {"loss": 0.126},
    "records_bucket": 570,
    "patients_bucket": 570,
    "usage": Usage(duration_quanta=3),
}
CONTEXT = PriceContext(PLAN, 1000, 10, 1200, 2400, 2**32, Quanta())
SERVED: dict[str, Any] = {"records_bucket": 10, "patients_bucket": 10}
STARTUP = Startup(exception="ValueError", file="train.py", line=3)


def test_every_field_has_a_price() -> None:
    prices = price_bits(CONTEXT)
    assert prices.keys() == Surface.model_fields.keys()
    assert all(math.isfinite(bits) and bits >= 0 for bits in prices.values())
    assert covert_bound_bits(CONTEXT) == math.ceil(sum(prices.values()) + timing_bits(CONTEXT))
    assert covert_bound_bits(CONTEXT) >= PLAN.released_bits()


def test_prices_are_of_what_can_vary() -> None:
    prices = price_bits(CONTEXT)
    assert prices["artifacts"] == 40 * 16
    assert prices["self_reported"] == math.log2(100_001)
    assert prices["code"] == math.log2(len(ENDINGS))
    assert prices["records_bucket"] == math.log2(101)
    assert prices["usage"] == math.log2(21) + math.log2(41) + math.log2(17)
    metrics_only = ReleasePlan.parse({"version": 1, "trusted_metrics": ["auroc"], "max_bytes": 128})
    prices = price_bits(PriceContext(metrics_only, 1, 1, 1, 1, 1, Quanta()))
    assert (prices["artifacts"], prices["self_reported"]) == (0, 0)


def test_each_moment_that_can_be_seen_is_priced() -> None:
    # Training and predictions take up to twice 20 minutes, the guard and the search one more each: 42 quanta,
    # or none.
    assert timing_bits(CONTEXT) == math.log2(43)
    assert timing_bits(replace(CONTEXT, moments=2)) == 2 * math.log2(43)
    no_metrics = PLAN.model_copy(update={"trusted_metrics": ()})
    assert timing_bits(replace(CONTEXT, plan=no_metrics)) == math.log2(23)


def test_success_is_encoded_canonically() -> None:
    data = encode(Surface.success(JOB, PLAN, **SUCCESS))
    value = json.loads(data)
    assert value.keys() == Surface.model_fields.keys()
    assert (value["outcome"], value["exit_class"], value["code"]) == ("success", "success", None)
    assert data == json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


UNPLANNED: dict[str, dict[str, Any]] = {
    "artifact missing": {"artifacts": ARTIFACTS[:1]},
    "artifact twice": {"artifacts": (*ARTIFACTS, ARTIFACTS[0])},
    "artifact unknown": {"artifacts": (*ARTIFACTS[:1], ARTIFACTS[1].model_copy(update={"name": "x"}))},
    "metric not planned": {"metrics": {"brier": 0.1}},
    "metric point not priced": {"metrics": {"auroc.3": 0.1}},
    "field missing": {"self_reported": {}},
    "field unknown": {"self_reported": {"loss": 0.1, "mrn": 1234567}},
    "field not rounded": {"self_reported": {"loss": 0.12345}},
    "field out of range": {"self_reported": {"loss": 101.0}},
    "field of another type": {"self_reported": {"loss": "Mary Smith"}},
}


@pytest.mark.parametrize("name", UNPLANNED)
def test_a_success_carries_exactly_what_is_planned(name: str) -> None:
    with pytest.raises(Refused, match=r"node\.internal"):
        Surface.success(JOB, PLAN, **(SUCCESS | UNPLANNED[name]))


@pytest.mark.parametrize(
    "metrics", [{"auroc": 0.91234}, {"auroc": 1.5}, {"auroc": -0.1}, {"auroc": math.nan}]
)
def test_metrics_are_rounded_and_in_range(metrics: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Surface.success(JOB, PLAN, **(SUCCESS | {"metrics": metrics}))


@pytest.mark.parametrize("code", sorted(REGISTRY))
@pytest.mark.parametrize("served", [False, True])
def test_every_refusal_has_a_surface(code: str, served: bool) -> None:
    refusal = Refused(code, "patient 1234567, Mary Smith")
    surface = Surface.ended(JOB, refusal, startup=STARTUP, **(SERVED if served else {}))
    data = encode(surface)
    assert surface.code == public_code(code, records_served=served)
    if served:
        assert surface.code in AFTER_RECORDS
        assert surface.startup is None
    if served or REGISTRY[code].depends_on_records or code.startswith(("job.", "node.", "privacy.")):
        assert surface.detail is None
        assert b"Mary" not in data
    assert (surface.startup is not None) == (code == "job.startup" and not served)


def test_what_a_job_does_after_records_is_one_of_few() -> None:
    for code in ("job.startup", "image.digest_mismatch", "node.internal", "schema.json"):
        surface = Surface.ended(JOB, Refused(code, "text of the job"), startup=STARTUP, **SERVED)
        assert (surface.code, surface.exit_class, surface.detail) == ("job.failed", "failed", None)


FORGED: dict[str, dict[str, Any]] = {
    "no code": {"outcome": "failed"},
    "unknown code": {"outcome": "failed", "code": "job.secret"},
    "detail of a record-dependent code": {
        "outcome": "refused",
        "code": "privacy.cohort_refused",
        "detail": "9 of 12",
    },
    "detail after records": {"outcome": "refused", "code": "policy.review_refused", "detail": "x", **SERVED},
    "detail of a job code": {"outcome": "failed", "code": "job.failed", "detail": "x"},
    "detail too long": {"outcome": "refused", "code": "policy.purpose", "detail": "x" * 501},
    "code after records": {"outcome": "refused", "code": "policy.purpose", **SERVED},
    "startup after records": {"outcome": "failed", "code": "job.startup", "exit_class": "failed", **SERVED},
    "startup of another code": {
        "outcome": "failed",
        "code": "job.time",
        "exit_class": "time",
        "startup": STARTUP,
    },
    "exit class of another code": {"outcome": "failed", "code": "job.time", "exit_class": "memory"},
    "artifacts of a failure": {"outcome": "failed", "code": "job.cancelled", "artifacts": ARTIFACTS},
    "metrics of a failure": {"outcome": "failed", "code": "job.cancelled", "metrics": {"auroc": 0.5}},
    "report of a failure": {"outcome": "failed", "code": "job.cancelled", "self_reported": {"loss": 0.5}},
    "success with a code": {"outcome": "success", "exit_class": "success", "code": "job.failed"},
    "success with a detail": {"outcome": "success", "exit_class": "success", "detail": "x"},
    "success of no exit class": {"outcome": "success"},
    "records without patients": {"outcome": "failed", "code": "job.cancelled", "records_bucket": 10},
    "job id": {"outcome": "failed", "code": "job.cancelled", "job_id": "../x"},
    "unknown field": {"outcome": "failed", "code": "job.cancelled", "stdout": "x"},
    "unknown metric": {"outcome": "success", "exit_class": "success", "metrics": {"patients": 0.5}},
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_surfaces_cannot_be_made(name: str) -> None:
    with pytest.raises(ValidationError):
        Surface(**({"job_id": JOB} | FORGED[name]))


def test_a_surface_that_skipped_validation_is_not_encoded() -> None:
    surface = Surface.model_construct(
        job_id=JOB, outcome="failed", code="job.failed", detail="Mary Smith", exit_class="failed"
    )
    with pytest.raises(Refused, match=r"schema\."):
        encode(surface)


OWN = frozenset({"train.py", "lib/net.py"})


def test_a_startup_fault_names_the_submitters_own_line() -> None:
    assert startup_fault("torch.OutOfMemoryError", "lib/net.py", 7, OWN) == Startup(
        exception="torch.OutOfMemoryError", file="lib/net.py", line=7
    )


@pytest.mark.parametrize(
    ("exception", "file", "line"),
    [
        ("ValueError", "/etc/passwd", 1),
        ("ValueError", "other.py", 1),
        ("Mary Smith", "train.py", 1),
        ("E" * 65, "train.py", 1),
        ("", "train.py", 1),
        ("1E", "train.py", 1),
        ("E\n", "train.py", 1),
        ("ValueError", "train.py", 0),
        ("ValueError", "train.py", 10**7),
    ],
)
def test_a_startup_fault_that_is_the_jobs_own_text_is_dropped(exception: str, file: str, line: int) -> None:
    assert startup_fault(exception, file, line, OWN) is None


@given(st.integers(0, 10**9), st.integers(1, 10**4))
def test_buckets_round_up_and_keep_only_zero(count: int, bucket: int) -> None:
    rounded = bucketed(count, bucket)
    assert rounded % bucket == 0
    assert count <= rounded < count + bucket
    assert (rounded == 0) == (count == 0)


@given(st.floats(0, 1e6), st.integers(1, 1000))
def test_steps_cover_the_value(value: float, quantum: int) -> None:
    count = steps(value, quantum)
    assert (count == 0) == (value == 0)
    assert (count - 1) * quantum <= value <= count * quantum


@pytest.mark.parametrize(("value", "quantum"), [(-1, 1), (math.nan, 1), (math.inf, 1), (1, 0)])
def test_what_cannot_be_counted_refuses(value: float, quantum: int) -> None:
    with pytest.raises(Refused, match=r"node\.internal"):
        steps(value, quantum)


def test_usage_is_quantised() -> None:
    usage = Quanta().usage(61.0, 0.0, 2**28 + 1)
    assert usage == Usage(duration_quanta=2, cpu_quanta=0, memory_quanta=2)


@given(st.text(max_size=600))
def test_printable_is_one_short_line(text: str) -> None:
    assert printable(text).isprintable()
    assert len(printable(text)) <= 500
