"""What a job may release, fixed before it sees a record: exact tensors, fields and metrics.

The plan is the guard's only input besides the files, so everything that must be bounded (sizes, names,
ranges, covert capacity) is bounded here, from the plan alone.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field, model_validator

from rapha.spec.base import Model, One
from rapha.spec.reported import (
    Number,
    SelfReportedPlan,
    check_bounds,
    check_file,
    check_name,
    invalid,
    unique,
)

Dtype = Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]
ReleaseDtype = Literal["f32", "bf16", "f16", "int8"]

WIDTH: Final[dict[str, int]] = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1},
}
"""Bytes of one element, by safetensors dtype."""
ORDER: Final[tuple[Dtype, ...]] = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")
"""Order of dtypes in a file by the safetensors library: falling width, so that all data is aligned."""
FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})
RELEASED_AS: Final[dict[str, Dtype]] = {"f32": "F32", "bf16": "BF16", "f16": "F16", "int8": "I8"}
"""What a floating tensor becomes; integers and booleans keep their dtype."""
LARGEST: Final = {"f32": 3.4028234663852886e38, "bf16": 3.3895313892515355e38, "f16": 65504.0}
LARGEST_INT8: Final = LARGEST["f32"] / 2
"""Half, since 127 × the rounded scale may lie above the largest value."""
INTEGER_RANGE: Final[dict[str, tuple[int, int]]] = {
    # JSON numbers are exact up to 2^53 (RFC 8785), so a bound on I64 can't be written beyond it.
    "I64": (-(2**53), 2**53),
    "I32": (-(2**31), 2**31 - 1),
    "I16": (-(2**15), 2**15 - 1),
    "I8": (-(2**7), 2**7 - 1),
    "U8": (0, 2**8 - 1),
    "BOOL": (0, 1),
}
MAX_TENSORS: Final = 8192
MAX_RANK: Final = 16
MAX_TOTAL_BYTES: Final = 2**40
METRICS_FILE: Final = "metrics.json"
"""Where the node writes trusted metrics, beside or in place of a self-reported file of that name."""
HEADER_LIMIT: Final = 2**20
"""Largest safetensors header that is read or written, bytes."""
METRIC_DECIMALS: Final = 3
METRIC_WIDTH: Final = 11
"""Most characters of a published metric: 1e6 with its decimals."""
ENDINGS: Final = (
    *("success", "job.failed", "job.time", "job.memory", "job.outputs"),
    *("job.cancelled", "policy.review_refused", "node.stopped", "node.restarted"),
)
"""The ways in which a job may end once a record was served: what it can cause, then what others can."""
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
}
CURVE_POINTS: Final = {"roc": 9, "calibration": 10}
"""Points of a binned curve, numbered from 1."""
TrustedMetric = Literal["auroc", "auprc", "accuracy", "brier", "rmse", "concordance", "roc", "calibration"]


def metric_keys(name: TrustedMetric) -> tuple[str, ...]:
    """The numbers that make up metric `name`: points of a curve, or a value and its 95% interval."""
    if name in CURVE_POINTS:
        return tuple(f"{name}.{n}" for n in range(1, CURVE_POINTS[name] + 1))
    return (name, f"{name}.low", f"{name}.high")


def metric_bits(name: TrustedMetric) -> float:
    """log2 of the number of results that metric `name` can have, suppression included, in bits."""
    low, high = TRUSTED_METRICS[name]
    values = (high - low) * 10**METRIC_DECIMALS + 1
    return len(metric_keys(name)) * math.log2(values + 1)


class TensorPlan(Model):
    """One tensor: what the job must write, and the range that values are clipped to."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    min: Number
    max: Number

    @property
    def elements(self) -> int:
        """Product of `shape`; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def floating(self) -> bool:
        """Whether the tensor takes the plan's release dtype."""
        return self.dtype in FLOATS

    @model_validator(mode="after")
    def _consistent(self) -> TensorPlan:
        check_name(self.name, "tensor")
        where = f"tensor {self.name}"
        if len(self.shape) > MAX_RANK or any(n < 1 for n in self.shape):
            raise invalid(f"{where}: a shape has at most {MAX_RANK} dimensions, each 1 or more")
        if any(n > MAX_TOTAL_BYTES for n in self.shape) or self.elements > MAX_TOTAL_BYTES:
            raise invalid(f"{where}: the shape overflows")
        check_bounds(self.min, self.max, where)
        if not self.floating:
            low, high = INTEGER_RANGE[self.dtype]
            if not all(isinstance(x, int) or x.is_integer() for x in (self.min, self.max)):
                raise invalid(f"{where}: the bounds of {self.dtype} are whole numbers")
            if self.min < low or self.max > high:
                raise invalid(f"{where}: the bounds of {self.dtype} lie in [{low}, {high}]")
        return self


class WeightsPlan(Model):
    """The weights file. `tensors` is in the order in which `rapha_trainer` writes it."""

    file: str
    release_dtype: ReleaseDtype
    tensors: tuple[TensorPlan, ...]

    @model_validator(mode="after")
    def _consistent(self) -> WeightsPlan:
        check_file(self.file, ".safetensors")
        if not 1 <= len(self.tensors) <= MAX_TENSORS:
            raise invalid(f"weights name 1 to {MAX_TENSORS} tensors")
        unique([t.name for t in self.tensors], "tensor")
        largest = LARGEST.get(self.release_dtype, LARGEST_INT8)
        for tensor in self.tensors:
            if tensor.floating and max(abs(tensor.min), abs(tensor.max)) > largest:
                raise invalid(f"tensor {tensor.name}: the bounds are beyond {self.release_dtype}")
        released = [name for name, _, _ in self.released]
        for name in released:
            check_name(name, "released tensor")
        unique(released, "released tensor")
        # A quarter is left for what a writer may add to the job's own header: spaces, wider offsets.
        if len(self.released_header()) > HEADER_LIMIT * 3 // 4:
            raise invalid("the names and shapes don't fit a header of 768 KiB")
        return self

    @property
    def released(self) -> list[tuple[str, Dtype, tuple[int, ...]]]:
        """Name, dtype and shape of everything in the released file, in plan order."""
        result: list[tuple[str, Dtype, tuple[int, ...]]] = []
        for t in self.tensors:
            result.append((t.name, RELEASED_AS[self.release_dtype] if t.floating else t.dtype, t.shape))
            if t.floating and self.release_dtype == "int8":
                result.append((f"{t.name}.scale", "F32", ()))
        return result

    def released_header(self) -> bytes:
        """The one safetensors header that is released: no free byte, data aligned to its own width.

        Tensors lie by falling width, then dtype, then name, as the safetensors library orders them.
        """
        entries, offset = {}, 0
        for name, dtype, shape in sorted(self.released, key=lambda r: (ORDER.index(r[1]), r[0])):
            end = offset + math.prod(shape) * WIDTH[dtype]
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": (offset, end)}
            offset = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        return text + b" " * (-len(text) % 8)

    @property
    def input_bytes(self) -> int:
        """Exact size of the tensor data that the job must write."""
        return sum(t.elements * WIDTH[t.dtype] for t in self.tensors)

    @property
    def released_bytes(self) -> int:
        """Exact size of the file that is released: length, header and data."""
        data = sum(math.prod(shape) * WIDTH[dtype] for _, dtype, shape in self.released)
        return 8 + len(self.released_header()) + data

    def bits(self) -> float:
        """log2 of the number of files that can be released under this plan, at most."""
        total = 0.0
        for t in self.tensors:
            if not t.floating:
                total += t.elements * math.log2(int(t.max) - int(t.min) + 1)
                continue
            total += t.elements * 8 * WIDTH[RELEASED_AS[self.release_dtype]]
            total += 32 if self.release_dtype == "int8" else 0
        return total


class ReleasePlan(Model):
    """`plan.json`, and `outputs:` in job.yaml.

    Raises:
        Refused: `schema.plan_invalid` when the parts contradict one another.
    """

    version: One
    weights: WeightsPlan | None = None
    self_reported: SelfReportedPlan | None = None
    trusted_metrics: tuple[TrustedMetric, ...] = ()
    max_bytes: Annotated[int, Field(ge=1, le=MAX_TOTAL_BYTES)]

    @model_validator(mode="after")
    def _consistent(self) -> ReleasePlan:
        if not (self.weights or self.self_reported or self.trusted_metrics):
            raise invalid("the plan releases nothing")
        unique([f.casefold() for f in self.files], "file")
        unique(list(self.trusted_metrics), "trusted metric")
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
    def metrics_bytes(self) -> int:
        """Most bytes of the node's own metrics file, which repeats the self-reported fields."""
        if not self.trusted_metrics:
            return 0
        keys = [key for name in self.trusted_metrics for key in metric_keys(name)]
        trusted = 2 + sum(len(key) + 4 + METRIC_WIDTH for key in keys)
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
        return math.ceil(content + sum(map(metric_bits, self.trusted_metrics)) + VERDICT_BITS)
