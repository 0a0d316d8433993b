"""What each field of the surface costs: bits about records that a job can put into it, at most."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from rapha.spec.disclosure import Price
from rapha.spec.release_plan import VERDICT_BITS, ReleasePlan
from rapha.spec.surface import Quanta, steps

GUARD_S: Final = 60
"""Longest that the guard may take over the outputs, in seconds."""
SEARCH_S: Final = 60
"""Longest that the search for identifiers may take, in seconds, beside a second for every 4 MiB."""


@dataclass(frozen=True, slots=True)
class PriceContext:
    """What is fixed before the job runs, and bounds what each field can say.

    Attributes:
        plan: the signed release plan.
        max_records: the job's record cap.
        bucket: of the dataset, in records and in patients.
        wall_s, cpu_s, memory_bytes: the job's limits.
        quanta: how resource use is rounded.
        moments: quantised moments that can be observed: when the end is told, and where the WAN was severed
            also when it came back.
        audit_s: longest that check 8 may take, which runs the job's code again.
        trains: whether the entrypoint runs before `predict` does; an evaluation runs `predict` alone.
    """

    plan: ReleasePlan
    max_records: int
    bucket: int
    wall_s: int
    cpu_s: int
    memory_bytes: int
    quanta: Quanta
    moments: int = 1
    trains: bool = True
    audit_s: int = 0


def price_bits(context: PriceContext) -> dict[str, float]:
    """For each field of `Surface`, the most bits about records that a job can put into it.

    Zero where the field is fixed by the researcher or by another field, or can be set only while no
    record has been served.
    """
    plan, quanta = context.plan, context.quanta
    buckets = math.log2(steps(context.max_records, context.bucket) + 1)
    usage = (
        steps(context.wall_s, quanta.duration_s),
        steps(context.cpu_s, quanta.cpu_s),
        steps(context.memory_bytes, quanta.memory_bytes),
    )
    return {
        "version": 0.0,
        "job_id": 0.0,
        "outcome": 0.0,
        "code": VERDICT_BITS,
        "detail": 0.0,
        "startup": 0.0,
        "artifacts": plan.weights.bits() if plan.weights else 0.0,
        "metrics": plan.metric_bits(),
        # The released file of self-reported values says the same again, so it is priced here only.
        "self_reported": plan.self_reported.bits() if plan.self_reported else 0.0,
        "records_bucket": buckets,
        "patients_bucket": buckets,
        "exit_class": 0.0,
        "usage": sum(math.log2(most + 1) for most in usage),
    }


def search_s(plan: ReleasePlan) -> int:
    """Longest that the search of all rebuilt files for identifiers may take, in seconds."""
    return SEARCH_S + plan.released_bytes // 2**22


def timing_bits(context: PriceContext) -> float:
    """What the moments can say: each is a multiple of the quantum after training began.

    The job decides how long its entrypoint takes, its predict entry where there are trusted metrics, and to
    some degree the guard over its outputs, the search of them and check 8; what people do afterwards it does
    not decide.
    """
    runs = context.trains + bool(context.plan.trusted_metrics)
    longest = runs * context.wall_s + GUARD_S + search_s(context.plan) + context.audit_s
    return context.moments * math.log2(steps(longest, context.quanta.duration_s) + 1)


def covert_bound_bits(context: PriceContext) -> int:
    """Sum of all prices and the timing, rounded up: the job's line on the disclosure report."""
    return math.ceil(sum(price_bits(context).values()) + timing_bits(context))


def ended_bits(context: PriceContext) -> int:
    """What an end tells that releases nothing: how and when it came, counts in buckets, resources."""
    price = price_bits(context)
    released = price["artifacts"] + price["metrics"] + price["self_reported"]
    return math.ceil(sum(price.values()) - released + timing_bits(context))


def worst_price(context: PriceContext, epsilon: float = 0.0, delta: float = 0.0) -> Price:
    """The most that a job can cost of its dataset's caps, from its signed terms alone.

    Args:
        epsilon, delta: of a job that the hospital's own trainer runs; they stand for its weights, which then
            cost no bits.
    """
    weights = price_bits(context)["artifacts"] if epsilon else 0.0
    return Price(
        bits=math.ceil(sum(price_bits(context).values()) - weights + timing_bits(context)),
        epsilon=epsilon,
        delta=delta,
        evaluations=1 if context.plan.trusted_metrics else 0,
    )
