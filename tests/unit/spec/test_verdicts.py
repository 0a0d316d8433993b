"""What reviewers can say of a plan, and what leaves then."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from rapha.spec.refusals import Refused
from rapha.spec.release_plan import ReleasePlan
from rapha.spec.verdicts import Verdict, narrowest, offered, outgoing

WEIGHTS = {
    "weights": {
        **{"file": "model.safetensors", "release_dtype": "bf16"},
        "tensors": [{"name": "w", "dtype": "F32", "shape": [4, 4], "min": -1.0, "max": 1.0}],
    }
}
REPORTED = {
    "self_reported": {
        "file": "metrics.json",
        "fields": [{"name": "loss", "type": "number", "min": 0, "max": 1, "decimals": 3}],
    }
}
TRUSTED = {"trusted_metrics": ["auroc"]}


def plan(*parts: dict[str, Any]) -> ReleasePlan:
    return ReleasePlan.parse(
        {"version": 1, "max_bytes": 100_000, **{k: v for p in parts for k, v in p.items()}}
    )


@pytest.mark.parametrize(
    ("parts", "narrower"),
    [
        ((WEIGHTS,), False),
        ((REPORTED,), False),
        ((WEIGHTS, REPORTED), False),
        ((TRUSTED,), False),  # nothing is left to keep back
        ((WEIGHTS, TRUSTED), True),
        ((REPORTED, TRUSTED), True),
        ((WEIGHTS, REPORTED, TRUSTED), True),
    ],
)
def test_metrics_only_is_offered_where_it_keeps_something_back(
    parts: tuple[dict[str, Any], ...], narrower: bool
) -> None:
    found = plan(*parts)
    assert ("metrics-only" in offered(found)) == narrower
    assert {"release", "refuse"} <= set(offered(found)) <= set(get_args(Verdict))
    assert outgoing(found, "all") is found
    if not narrower:
        with pytest.raises(Refused) as caught:
            outgoing(found, "metrics")
        assert caught.value.code == "schema.plan_invalid"
        return
    less = outgoing(found, "metrics")
    assert less.released_files == ("metrics.json",)
    assert less.released_bits() < found.released_bits()
    assert less.outgoing_bytes < found.outgoing_bytes
    assert less == ReleasePlan.parse(less.dump()), "a plan like any other"
    assert "metrics-only" not in offered(less)


@pytest.mark.parametrize(
    ("verdicts", "scope"),
    [
        (["release"], "all"),
        (["release", "release"], "all"),
        (["metrics-only"], "metrics"),
        (["release", "metrics-only"], "metrics"),
        (["metrics-only", "release", "release"], "metrics"),
    ],
)
def test_the_narrowest_verdict_counts(verdicts: list[Verdict], scope: str) -> None:
    assert narrowest(verdicts) == scope


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ([], "policy.approval_missing"),
        (["refuse"], "policy.review_refused"),
        (["release", "refuse"], "policy.review_refused"),
        (["metrics-only", "refuse", "release"], "policy.review_refused"),
        (["Release"], "policy.review_refused"),
        (["approve"], "policy.review_refused"),
    ],
)
def test_nobody_and_anything_else_is_a_no(verdicts: list[Any], code: str) -> None:
    with pytest.raises(Refused) as caught:
        narrowest(verdicts)
    assert caught.value.code == code
