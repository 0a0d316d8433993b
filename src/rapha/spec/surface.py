"""Everything that leaves the hospital about a job: one closed type, one way out, each field priced.

The threat: a job, or whoever sends jobs, turns any freedom in what leaves (a class of failure, an end
time, a count, the text of an error) into a channel for records. So what is not a field here can't be
sent, every field says how many bits it can carry about records, and before the first record is served
more may be said than after it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

import rfc8785
from pydantic import Field, StringConstraints, model_validator

from rapha.spec.base import Model, One, Sha256
from rapha.spec.refusals import REGISTRY, Refused, entry
from rapha.spec.release_plan import ENDINGS, METRIC_DECIMALS, TRUSTED_METRICS, ReleasePlan, metric_of
from rapha.spec.reported import Reported
from rapha.spec.subgroups import GROUP_PATTERN

Outcome = Literal["success", "refused", "failed"]
ExitClass = Literal["none", "success", "failed", "time", "memory", "outputs"]
Count = Annotated[int, Field(ge=0, le=2**53)]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")]
MetricName = Annotated[
    str, StringConstraints(pattern=rf"^[a-z][a-z0-9_]{{0,31}}({GROUP_PATTERN})?(\.(low|high|10|[1-9]))?$")
]
"""A metric, the subgroup it is of, and which of its numbers: `auroc`, `auroc@sex=1.low`, `roc.3`."""

EXIT_CODES: Final[dict[str, ExitClass]] = {
    "job.failed": "failed",
    "job.startup": "failed",
    "job.time": "time",
    "job.memory": "memory",
    "job.outputs": "outputs",
}
"""How the code ended, where its own behaviour is what the code names."""
AFTER_RECORDS: Final = frozenset(ENDINGS) & REGISTRY.keys()
"""All that may be said of a failure once a record was served."""
EXPLAINED: Final = ("schema.", "image.", "policy.", "consent.", "budget.", "posture.")
"""Families whose own words may leave before that; the rest may speak of records, the host or job text."""
_DETAIL_LIMIT: Final = 500


class Artifact(Model):
    """A released file: the digest of the rebuilt bytes, and of the ciphertext that is uploaded."""

    name: FileName
    sha256: Sha256
    cipher_sha256: Sha256
    bytes: Count


class Startup(Model):
    """Where the submitter's own code failed before the first record."""

    exception: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.]{0,63}$")]
    file: Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,255}$")]
    line: Annotated[int, Field(ge=1, le=10**6)]


class Usage(Model):
    """What the job used, each number rounded up to its quantum (`Quanta`)."""

    duration_quanta: Count = 0
    cpu_quanta: Count = 0
    memory_quanta: Count = 0


@dataclass(frozen=True, slots=True)
class Quanta:
    """Steps in which resources are published: seconds, CPU seconds and bytes."""

    duration_s: int = 60
    cpu_s: int = 60
    memory_bytes: int = 2**28

    def usage(self, wall_s: float, cpu_s: float, memory_bytes: int) -> Usage:
        """Round up; a job that was never started used nothing."""
        return Usage(
            duration_quanta=steps(wall_s, self.duration_s),
            cpu_quanta=steps(cpu_s, self.cpu_s),
            memory_quanta=steps(memory_bytes, self.memory_bytes),
        )


def steps(value: float, quantum: int) -> int:
    """How many whole quanta cover `value`.

    Raises:
        Refused: `node.internal` for a negative or non-finite value, or a quantum below 1.
    """
    if quantum < 1 or not 0 <= value < math.inf:
        raise Refused("node.internal", f"{value} can't be counted in steps of {quantum}")
    return -int(-value // quantum)


def bucketed(count: int, bucket: int) -> int:
    """`count` rounded up to the dataset's billing bucket; only 0 stays 0. Raises as `steps`."""
    return steps(count, bucket) * bucket


class Surface(Model):
    """What the coordinator and the researcher learn of one job. Made by `success` or `ended` only.

    Attributes:
        detail: for refusals that do not depend on records, what to change; else None.
        records_bucket, patients_bucket: used by the job, rounded up to the dataset's bucket; 0 exactly
            where no record was served.
    """

    version: One = 1
    job_id: Sha256
    outcome: Outcome
    code: str | None = None
    detail: Annotated[str, StringConstraints(max_length=_DETAIL_LIMIT)] | None = None
    startup: Startup | None = None
    artifacts: tuple[Artifact, ...] = ()
    metrics: dict[MetricName, float] = Field(default_factory=dict)
    self_reported: dict[str, Reported] = Field(default_factory=dict)
    records_bucket: Count = 0
    patients_bucket: Count = 0
    exit_class: ExitClass = "none"
    usage: Usage = Usage()

    @model_validator(mode="after")
    def _closed(self) -> Self:
        served = self.records_bucket > 0
        if served != (self.patients_bucket > 0):
            raise ValueError("records and patients are both zero or both not")
        if self.outcome == "success":
            self._check_success()
        else:
            self._check_ended(served)
        return self

    def _check_success(self) -> None:
        if self.code or self.detail or self.startup or self.exit_class != "success":
            raise ValueError("a success carries no code, detail or startup fault")
        for name, value in self.metrics.items():
            low, high = TRUSTED_METRICS.get(metric_of(name), (1, 0))
            if round(value, METRIC_DECIMALS) != value or not low <= value <= high:
                raise ValueError(f"metric {name}: not a trusted metric in its range, at 3 decimals")

    def _check_ended(self, served: bool) -> None:
        if self.code not in REGISTRY:
            raise ValueError("a refusal or failure has a registered code")
        if self.artifacts or self.metrics or self.self_reported:
            raise ValueError("only a success releases anything")
        if self.exit_class != EXIT_CODES.get(self.code, "none"):
            raise ValueError("the exit class follows from the code")
        if served and self.code not in AFTER_RECORDS:
            raise ValueError("the code may not be said after a record was served")
        if self.detail and not explains(self.code, records_served=served):
            raise ValueError("no detail after a record was served, nor where it depends on records")
        if (self.startup is not None) and (served or self.code != "job.startup"):
            raise ValueError("only job.startup names an exception and its place")

    @classmethod
    def success(
        cls,
        job_id: str,
        plan: ReleasePlan,
        *,
        artifacts: tuple[Artifact, ...],
        metrics: Mapping[str, float],
        self_reported: Mapping[str, Reported],
        records_bucket: int,
        patients_bucket: int,
        usage: Usage,
    ) -> Self:
        """A job whose outputs were released, in the terms of its plan.

        Raises:
            Refused: `node.internal` for a name or value that `plan` does not have.
        """
        check_planned(plan, artifacts, metrics, self_reported)
        return cls(
            job_id=job_id,
            outcome="success",
            artifacts=artifacts,
            metrics=dict(metrics),
            self_reported=dict(self_reported),
            records_bucket=records_bucket,
            patients_bucket=patients_bucket,
            exit_class="success",
            usage=usage,
        )

    @classmethod
    def ended(
        cls,
        job_id: str,
        refusal: Refused,
        *,
        startup: Startup | None = None,
        records_bucket: int = 0,
        patients_bucket: int = 0,
        usage: Usage | None = None,
    ) -> Self:
        """A refusal or failure, cut down to what may be said of it.

        Total over the registry: once a record was served, any code that may not be said is `job.failed`,
        and detail and startup fault are dropped.
        """
        served = records_bucket > 0
        code = public_code(refusal.code, records_served=served)
        return cls(
            job_id=job_id,
            outcome="failed" if code.startswith(("job.", "node.")) else "refused",
            code=code,
            detail=printable(refusal.detail) if explains(code, records_served=served) else None,
            startup=startup if code == "job.startup" else None,
            records_bucket=records_bucket,
            patients_bucket=patients_bucket,
            exit_class=EXIT_CODES.get(code, "none"),
            usage=usage or Usage(),
        )


def check_planned(
    plan: ReleasePlan,
    artifacts: tuple[Artifact, ...],
    metrics: Mapping[str, float],
    self_reported: Mapping[str, Reported],
) -> None:
    """What a success carries is what `plan` names. Raises `Refused` (`node.internal`)."""
    fields = {f.name: f for f in plan.self_reported.fields} if plan.self_reported else {}
    if (
        sorted(a.name for a in artifacts) != sorted(plan.released_files)
        or self_reported.keys() != fields.keys()
    ):
        raise Refused("node.internal", "the surface does not carry exactly the planned artifacts and fields")
    if not metrics.keys() <= set(plan.metric_keys):
        raise Refused("node.internal", "the surface carries a metric that is not planned")
    for name, value in self_reported.items():
        try:
            rounded = fields[name].release(value)
        except ValueError as error:
            raise Refused("node.internal", f"self-reported {name}: {error}") from None
        if rounded != value:
            raise Refused("node.internal", f"self-reported {name} is not rounded as planned")


def public_code(code: str, *, records_served: bool) -> str:
    """The code that may leave for `code` (KeyError if it is not registered)."""
    entry(code)
    return code if not records_served or code in AFTER_RECORDS else "job.failed"


def explains(code: str, *, records_served: bool) -> bool:
    """Whether a refusal's own words may leave with its code."""
    return not records_served and code.startswith(EXPLAINED) and not entry(code).depends_on_records


def printable(text: str) -> str:
    """One line of at most 500 characters; what is not printable becomes `?`."""
    return "".join(c if c.isprintable() else "?" for c in text[:_DETAIL_LIMIT])


def startup_fault(exception: str, file: str, line: int, image_files: frozenset[str]) -> Startup | None:
    """The place of a startup fault, if it is one of the submitter's own files; else None.

    A name or path that the sandbox made up is dropped, not repaired: it would be the job's own text.
    """
    if file not in image_files:
        return None
    try:
        return Startup.parse({"exception": exception, "file": file, "line": line})
    except Refused:
        return None


def encode(surface: Surface) -> bytes:
    """The one way out: RFC 8785 bytes of a surface, checked once more as a whole.

    Raises:
        Refused: `schema.*` where the object was not made by this module's constructors.
    """
    checked = Surface.parse(surface.dump())
    return rfc8785.dumps(checked.dump())
