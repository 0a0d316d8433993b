"""What the node tells its own trainer: the declaration as it was signed, and what the node made of it.

The node has checked all of it (`rapha.spec.private`); this only gives it types.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Task = Literal["binary", "multiclass", "regression"]


@dataclass(frozen=True, slots=True)
class Input:
    """A field of `shape` a record, seen as (value - shift) / scale."""

    field: str
    shape: tuple[int, ...]
    shift: float
    scale: float


@dataclass(frozen=True, slots=True)
class Target:
    """The label, as `rapha.spec.private.Target`; `outputs` columns."""

    label: str
    task: Task
    positive: float
    outputs: int
    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class Net:
    """A declared model: `layers` are widths or channels; frozen is a body that is not trained."""

    kind: Literal["linear", "mlp", "cnn"]
    layers: tuple[int, ...]
    activation: Literal["relu", "tanh", "gelu"]
    frozen: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """One private job. There is no field for a seed but that of the initial weights.

    Attributes:
        noise_multiplier: standard deviation of the noise, in units of `clip`.
        at_once: most records whose gradients are in memory at a time.
        weights_file: what the release plan calls the weights.
    """

    net: Net
    inputs: tuple[Input, ...]
    target: Target
    loss: Literal["cross-entropy", "mse", "huber"]
    clip: float
    noise_multiplier: float
    sample_rate: float
    expected_batch: int
    steps: int
    learning_rate: float
    optimizer: Literal["sgd", "adam"]
    momentum: float
    init_seed: int
    at_once: int
    weights_file: str

    @classmethod
    def read(cls) -> Settings:
        """From `private.json` among the job's inputs."""
        return cls.of(json.loads((inputs_folder() / "private.json").read_text()))

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Settings:
        """From JSON types: `private` as it was signed, and beside it what the node adds."""
        private = told["private"]
        plain = ("loss", "clip", "sample_rate", "expected_batch", "steps", "learning_rate", "optimizer")
        return cls(
            net=_net(private["model"]),
            inputs=tuple(
                Input(i["field"], tuple(i["shape"]), float(shift), float(scale))
                for i, (shift, scale) in zip(private["inputs"], told["affine"], strict=True)
            ),
            target=_target(private["target"]),
            momentum=private["momentum"],
            init_seed=private["init_seed"],
            noise_multiplier=told["noise_multiplier"],
            at_once=told["at_once"],
            weights_file=told["weights_file"],
            **{name: private[name] for name in plain},
        )


def inputs_folder() -> Path:
    """Where the node puts what a job may read."""
    return Path(os.environ.get("RAPHA_IN", "/rapha/in"))


def _net(model: Mapping[str, Any]) -> Net:
    if model["kind"] == "head":
        below = _net(model["backbone"])
        return Net(below.kind, below.layers, below.activation, frozen=True)
    layers = model.get("hidden") or model.get("channels") or ()
    return Net(model["kind"], tuple(layers), model.get("activation", "relu"), frozen=False)


def _target(target: Mapping[str, Any]) -> Target:
    positive, std = target["positive"], target["std"]
    return Target(
        label=target["label"],
        task=target["task"],
        positive=1.0 if positive is None else positive,
        outputs=target["classes"] or 1,
        mean=target["mean"] or 0.0,
        std=1.0 if std is None else std,
    )
