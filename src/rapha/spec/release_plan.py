"""What a job may release, fixed before it sees a record: exact tensors, fields and metrics.

The plan is the guard's only input besides the files, so everything that must be bounded (sizes, names,
ranges, covert capacity) is bounded here, from the plan alone.
"""

from __future__ import annotations

import math
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field, model_validator

from rapha.spec.base import Model, One
from rapha.spec.reported import SelfReportedPlan, invalid, unique
from rapha.spec.subgroups import Subgroup, planned
from rapha.spec.weights import HEADER_LIMIT, MAX_TOTAL_BYTES, WeightsPlan

METRICS_FILE: Final = "metrics.json"
"""Where the node writes trusted metrics, beside or in place of a self-reported file of that name."""
METRIC_DECIMALS: Final = 3
METRIC_WIDTH: Final = 11
"""Most characters of a published metric: 1e6 with its decimals."""
ENDINGS: Final = (
    *("success", "success.metrics", "job.failed", "job.time", "job.memory", "job.outputs"),
    *("job.cancelled", "policy.review_refused", "node.stopped", "node.restarted"),
)
"""The ways in which a job may end once a record was served: what it can cause, then what others can.

A success is all that was planned, or the metrics alone."""
VERDICT_BITS: Final = math.log2(len(ENDINGS))


class MetricRange(NamedTuple):
    """Smallest and largest value that is published; values beyond are clipped."""

    low: float
    high: float


TRUSTED_METRICS: Final[dict[str, MetricRange]] = {
    "auroc": MetricRange(0, 1),
    "auprc": MetricRange(0, 1),
    "accuracy": MetricRange(0, 1),
    "brier": MetricRange(0, 1),
    "rmse": MetricRange(0, 1e6),
    "concordance": MetricRange(0, 1),
    "roc": MetricRange(0, 1),
    "calibration": MetricRange(0, 1),
    "calibration_error": MetricRange(0, 1),
    "sensitivity_at_90": MetricRange(0, 1),
    "sensitivity_at_95": MetricRange(0, 1),
}
CURVE_POINTS: Final = {"roc": 9, "calibration": 10}
"""Points of a binned curve, numbered from 1."""
SENSITIVITY_AT: Final = {"sensitivity_at_90": 0.90, "sensitivity_at_95": 0.95}
"""The specificity on the held-out patients that each is at, at least."""
TrustedMetric = Literal[
    "auroc", "auprc", "accuracy", "brier", "rmse", "concordance", "roc", "calibration",
    "calibration_error", "sensitivity_at_90", "sensitivity_at_95",
]  # fmt: skip
MAX_COLUMNS: Final = 16
"""Predictions a record, at most: one, or one a class."""


def metric_of(key: str) -> str:
    """The metric that a number belongs to: `auroc` of `auroc@sex=1.low`."""
    return key.partition("@")[0].partition(".")[0]


def metric_keys(name: TrustedMetric, group: str = "") -> tuple[str, ...]:
    """The numbers that make up metric `name`: points of a curve, or a value and its 95% interval.

    With a `group` such as `sex=1`, those of that subgroup: none of a curve.
    """
    if name in CURVE_POINTS:
        return () if group else tuple(f"{name}.{n}" for n in range(1, CURVE_POINTS[name] + 1))
    whole = f"{name}@{group}" if group else name
    return (whole, f"{whole}.low", f"{whole}.high")


def metric_bits(name: TrustedMetric) -> float:
    """log2 of the number of results that metric `name` can have for one group of patients, in bits.

    Each number may also be left out.
    """
    low, high = TRUSTED_METRICS[name]
    values = (high - low) * 10**METRIC_DECIMALS + 1
    return len(metric_keys(name)) * math.log2(values + 1)


class ReleasePlan(Model):
    """`plan.json`, and `outputs:` in job.yaml.

    Raises:
        Refused: `schema.plan_invalid` when the parts contradict one another.
    """

    version: One
    weights: WeightsPlan | None = None
    self_reported: SelfReportedPlan | None = None
    trusted_metrics: tuple[TrustedMetric, ...] = ()
    subgroups: tuple[Subgroup, ...] = ()
    max_bytes: Annotated[int, Field(ge=1, le=MAX_TOTAL_BYTES)]

    @model_validator(mode="after")
    def _consistent(self) -> ReleasePlan:
        if not (self.weights or self.self_reported or self.trusted_metrics):
            raise invalid("the plan releases nothing")
        unique([f.casefold() for f in self.files], "file")
        unique(list(self.trusted_metrics), "trusted metric")
        planned(self.subgroups, bool(set(self.trusted_metrics) - CURVE_POINTS.keys()))
        if self.outgoing_bytes > self.max_bytes:
            raise invalid(f"{self.outgoing_bytes} bytes may be released, and max_bytes is {self.max_bytes}")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """The names that the output folder must hold, and no other."""
        return tuple(part.file for part in (self.weights, self.self_reported) if part)

    @property
    def released_files(self) -> tuple[str, ...]:
        """The names of what leaves: the planned files, and the node's own metrics."""
        return tuple(dict.fromkeys((*self.files, *([METRICS_FILE] if self.trusted_metrics else []))))

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(t.elements for t in self.weights.tensors) if self.weights else 0

    @property
    def released_bytes(self) -> int:
        """Most bytes of all files that the guard rebuilds; the node's own metrics are not among them."""
        weights = self.weights.released_bytes if self.weights else 0
        return weights + (self.self_reported.released_bytes if self.self_reported else 0)

    @property
    def groups(self) -> tuple[str, ...]:
        """The subgroups that are measured apart, such as `sex=1`."""
        return tuple(name for subgroup in self.subgroups for name in subgroup.groups)

    @property
    def metric_keys(self) -> tuple[str, ...]:
        """Every trusted number that may leave, over everybody and over each subgroup."""
        return tuple(
            key
            for group in ("", *self.groups)
            for name in self.trusted_metrics
            for key in metric_keys(name, group)
        )

    def metric_bits(self) -> float:
        """log2 of the number of trusted results that can leave, in bits."""
        single = [name for name in self.trusted_metrics if name not in CURVE_POINTS]
        everybody = sum(map(metric_bits, self.trusted_metrics))
        return everybody + len(self.groups) * sum(map(metric_bits, single))

    @property
    def metrics_bytes(self) -> int:
        """Most bytes of the node's own metrics file, which repeats the self-reported fields."""
        if not self.trusted_metrics:
            return 0
        trusted = 2 + sum(len(key) + 4 + METRIC_WIDTH for key in self.metric_keys)
        reported = self.self_reported.released_bytes if self.self_reported else 2
        return len('{"self_reported":,"trusted":}') + reported + trusted

    @property
    def outgoing_bytes(self) -> int:
        """Most bytes of all that leaves: the rebuilt files and the node's own metrics.

        A self-reported file with the name of the metrics file is replaced by it.
        """
        replaced = bool(self.trusted_metrics) and METRICS_FILE in self.files
        kept = 0 if replaced or not self.self_reported else self.self_reported.released_bytes
        return (self.weights.released_bytes if self.weights else 0) + kept + self.metrics_bytes

    @property
    def output_bytes(self) -> int:
        """Most that a conforming job leaves in its output folder: a cap for its tmpfs."""
        weights = self.weights.input_bytes + HEADER_LIMIT + 8 if self.weights else 0
        return weights + (self.self_reported.input_bytes if self.self_reported else 0)

    def released_bits(self) -> int:
        """Upper bound of what a job can encode in its outputs and verdict, bits.

        Σ parameters × bits + Σ log2(metric values) + log2(verdicts), as on the disclosure report; timing
        and counts are priced by `rapha.spec.surface`.
        """
        content = self.weights.bits() if self.weights else 0.0
        content += self.self_reported.bits() if self.self_reported else 0.0
        return math.ceil(content + self.metric_bits() + VERDICT_BITS)
