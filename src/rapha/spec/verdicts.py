"""What output reviewers can decide, and what each decision lets out.

A reviewer signs one verdict over the one page that they were shown. The narrowest of the signed ones counts:
one `refuse` ends the job, one `metrics-only` keeps weights and self-reported values in the hospital.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, get_args

from rapha.spec.refusals import Refused
from rapha.spec.release_plan import ReleasePlan

Verdict = Literal["release", "metrics-only", "refuse"]
Scope = Literal["all", "metrics"]
"""What left of the plan: all of it, or only the metrics that the node computed."""
Sentence = Literal[
    "Automated checks cannot exclude that weights encode patient data; the maximum is the bound above."
]
SENTENCE: Final[Sentence] = get_args(Sentence)[0]
"""On every page about a release (gates, section 5.9)."""


def offered(plan: ReleasePlan) -> tuple[Verdict, ...]:
    """The verdicts that mean something for `plan`, from the widest to the narrowest."""
    narrower = bool(plan.trusted_metrics) and bool(plan.weights or plan.self_reported)
    return ("release", "metrics-only", "refuse") if narrower else ("release", "refuse")


def narrowest(verdicts: Iterable[Verdict]) -> Scope:
    """What leaves when these were signed.

    Raises:
        Refused: `policy.review_refused` if one is a no; `policy.approval_missing` if there is none at all.
    """
    signed = set(verdicts)
    if not signed:
        raise Refused("policy.approval_missing", "nobody signed")
    if not signed <= {"release", "metrics-only"}:
        raise Refused("policy.review_refused")
    return "metrics" if "metrics-only" in signed else "all"


def outgoing(plan: ReleasePlan, scope: Scope) -> ReleasePlan:
    """The part of `plan` that leaves: with `metrics`, the node's own metrics file and nothing else.

    Raises:
        Refused: `schema.plan_invalid` for `metrics` where no narrower release than the plan's was offered.
    """
    if scope == "all":
        return plan
    if "metrics-only" not in offered(plan):
        raise Refused("schema.plan_invalid", "metrics only is no narrower release of this plan")
    return plan.model_copy(update={"weights": None, "self_reported": None})
