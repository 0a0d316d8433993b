"""`job.yaml` as people write it, and the job as it is signed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, field_validator, model_validator

from rapha.spec.base import PLAIN, Model, Money, Name, One, Sha256, Timestamp
from rapha.spec.cohort import Cohort
from rapha.spec.private import PREDICT, TRAIN, PrivateTraining, check_delta, check_plan, with_commands
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import ReleasePlan
from rapha.spec.transforms import Transforms
from rapha.spec.units import parse_bytes, parse_duration

Purpose = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,64}(/[a-z0-9-]{1,64}){0,3}$")]
Assurance = Literal["tee+tpm", "tee", "tpm", "simulated"]
Modality = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,32}$")]
Argument = Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=PLAIN)]
Command = Annotated[tuple[Argument, ...], Field(min_length=1, max_length=64)]

RANK: dict[str, int] = {"none": 0, "simulated": 1, "tpm": 2, "tee": 3, "tee+tpm": 4}
"""Order of assurance: a job accepts its own level and everything above."""


class ModelDeclaration(Model):
    """What is trained or evaluated; `base` is the SHA-256 of a safetensors file inside the image."""

    architecture: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=PLAIN)]
    base: Sha256 | None = None


class DatasetRequest(Model):
    """Which records the job asks for, and in which form: a declarative filter and steps, never code."""

    profile: Name
    modality: Modality
    cohort: Cohort
    max_records: Annotated[int, Field(ge=1, le=10**9)]
    transforms: Transforms = Field(default_factory=dict)


class Budget(Model):
    """The most the researcher will pay."""

    currency: Literal["USDC"]
    max: Money


class ComputeText(Model):
    """`compute:` as written."""

    cpus: Annotated[int, Field(ge=1, le=1024)] = 1
    memory: str
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    wall_clock: str


class Compute(Model):
    """Limits in SI units: bytes and seconds."""

    cpus: Annotated[int, Field(ge=1, le=1024)]
    memory_bytes: Annotated[int, Field(ge=2**26, le=2**42)]
    gpus: Annotated[int, Field(ge=0, le=64)]
    wall_clock_s: Annotated[int, Field(ge=1, le=30 * 86400)]


NodeIds = Annotated[tuple[Name, ...], Field(min_length=1, max_length=256)]
Kind = Literal["train", "evaluate"]


class _Common(Model):
    kind: Kind
    name: Name
    purpose: Purpose
    not_after: Timestamp
    nodes: Literal["any"] | NodeIds
    entrypoint: Command
    predict: Command | None = None
    model: ModelDeclaration
    dataset: DatasetRequest
    outputs: ReleasePlan
    assurance: Assurance
    budget: Budget | None = None
    private: PrivateTraining | None = None

    @model_validator(mode="after")
    def _consistent(self) -> _Common:
        if self.private is not None:
            self._check_private(self.private)
        elif self.entrypoint in (TRAIN, PREDICT) or self.predict in (TRAIN, PREDICT):
            raise ValueError("the hospital's own trainer runs for a job with `private` alone")
        if self.outputs.trusted_metrics and self.predict is None:
            raise ValueError("`predict` is needed for the trusted_metrics that `outputs` names")
        if self.outputs.trusted_metrics and self.outputs.weights is None and self.kind == "train":
            raise ValueError("trusted_metrics are those of released weights, and `outputs` releases none")
        if self.kind == "evaluate":
            self._check_evaluation()
        return self

    def _check_private(self, private: PrivateTraining) -> None:
        if self.kind != "train" or (self.entrypoint, self.predict) != (TRAIN, PREDICT):
            raise ValueError("the hospital's program trains: write no entrypoint and no predict")
        if bool(private.frozen) != (self.model.base is not None):
            raise ValueError("`model.base` is the frozen backbone of model kind head, and of no other")
        check_plan(private, self.outputs)
        check_delta(private, self.dataset.max_records)

    def _check_evaluation(self) -> None:
        """The model is the developer's already: only the node's own numbers have a reason to leave."""
        if self.model.base is None:
            raise ValueError("`model.base` is needed for kind: evaluate")
        if self.outputs.weights or self.outputs.self_reported:
            raise ValueError("kind: evaluate releases trusted_metrics alone, no weights and no self_reported")
        if self.entrypoint != self.predict:
            raise ValueError("kind: evaluate trains nothing: leave `entrypoint` out, `predict` is what runs")


def _without_entrypoint(schema: dict[str, Any]) -> None:
    schema["required"].remove("entrypoint")


class JobFile(_Common):
    """`job.yaml`. Paths are relative to the file; `entrypoint` may be left out for kind: evaluate."""

    model_config = ConfigDict(json_schema_extra=_without_entrypoint)

    version: One
    recipient: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    image: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    compute: ComputeText

    @model_validator(mode="before")
    @classmethod
    def _what_runs(cls, value: Any) -> Any:
        """Of an evaluation `predict` is all that runs, so that is the entrypoint where none is written; of a
        private job it is the hospital's program."""
        if isinstance(value, Mapping) and value.get("private") is not None:
            return with_commands(value)
        if not isinstance(value, Mapping) or value.get("kind") != "evaluate" or "entrypoint" in value:
            return value
        if "predict" not in value:
            raise ValueError("`predict` is needed for kind: evaluate")
        return {**value, "entrypoint": value["predict"]}

    @field_validator("recipient", "image")
    @classmethod
    def _inside(cls, value: str) -> str:
        if "\x00" in value or PurePosixPath(value).is_absolute():
            raise ValueError("must be a path relative to job.yaml")
        return value

    def to_job(self, *, image_digest: str, recipient: str) -> Job:
        """The signed form, with the image's digest and the recipient key in place of paths.

        Raises:
            Refused: `schema.*` where a quantity is out of range.
        """
        fields = self.dump()
        for name in ("version", "image", "recipient", "compute"):
            del fields[name]
        compute = {
            "cpus": self.compute.cpus,
            "memory_bytes": parse_bytes(self.compute.memory),
            "gpus": self.compute.gpus,
            "wall_clock_s": parse_duration(self.compute.wall_clock),
        }
        return Job.parse({**fields, "image": image_digest, "recipient": recipient, "compute": compute}, "job")


class Job(_Common):
    """The job as it is signed; `digest` of it with its nonce is the job's id."""

    image: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    recipient: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{43}=$")]
    compute: Compute

    @model_validator(mode="after")
    def _has_room(self) -> Job:
        if self.private is not None and not self.private.records_at_once(self.compute.memory_bytes):
            raise ValueError("`compute.memory` does not hold the gradient of one record of `private.model`")
        return self


def parse_job_file(text: str) -> JobFile:
    """Read `job.yaml`.

    Raises:
        Refused: `schema.yaml` with the line, or `schema.field_*` with the field.
    """
    from rapha.spec.yaml import load

    value: Any = load(text)
    if not isinstance(value, dict):
        raise Refused("schema.yaml", "the file must be a mapping of fields")
    return JobFile.parse(value)
