"""Tier A: a model that the hospital itself trains with differential privacy, declared and never coded.

A job with `private:` carries no code of its submitter. The declaration fixes model, inputs, loss and budget;
the hospital's own trainer does the rest, with randomness that nobody can seed. So everything here is bounded
from the text alone, and everything that could depend on a record is a constant: a mean that the trainer
computed from the records would leak, and so would a batch size or a stopping rule.

Source: Abadi et al., Deep Learning with Differential Privacy, CCS 2016 (DP-SGD); gates, section 5, Tier A.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from rapha.spec.base import Model
from rapha.spec.declared import Cnn, Head, Input, Linear, Mlp, Target, Tensor
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import ReleasePlan
from rapha.spec.reported import invalid

TRAIN: Final = ("python3", "-m", "rapha_trainer.private", "train")
PREDICT: Final = ("python3", "-m", "rapha_trainer.private", "predict")
"""What a private job's `entrypoint` and `predict` say, since it is what runs: the hospital's own program."""
MAX_PARAMETERS: Final = 10**7
MAX_INPUTS: Final = 4096
MAX_VALUES: Final = 2**24
"""Values of all inputs of one record."""
MAX_EPSILON: Final = 16.0
"""Beyond it the guarantee says next to nothing: e^16 to 1 is what an attacker may then bet."""
PATIENTS_TO_DELTA: Final = 10
"""`delta` times the record cap is at most one in this many. Publishing one patient at random in the clear is
(0, 1/n)-private, so a delta near 1/n protects nobody; and there are no more patients than records."""
MOST_AT_ONCE: Final = 4096
"""Most records whose gradients are in memory at a time."""
_BASE_BYTES: Final = 2**30
"""The trainer with its libraries and nothing of the model, bytes of memory."""


class PrivateTraining(Model):
    """`private:` of a job: all that the hospital's own trainer is told.

    Attributes:
        epsilon, delta: the most that the released weights may tell of any one patient, all records of theirs
            together, for adding or removing that patient.
        clip: the longest that one patient's gradient may be in a step (L2 norm).
        sample_rate: the chance of each patient to be in a step, each for themselves.
        expected_batch: what the noisy sum is divided by. A public guess at sample_rate × patients, never the
            number itself: with another number of patients the step size is another, and nothing else is.
        steps: all of them are taken.
        init_seed: of the initial weights, which depend on nothing else. No other randomness has a seed.
    """

    model: Annotated[Linear | Mlp | Cnn | Head, Field(discriminator="kind")]
    inputs: Annotated[tuple[Input, ...], Field(min_length=1, max_length=MAX_INPUTS)]
    target: Target
    loss: Literal["cross-entropy", "mse", "huber"]
    epsilon: Annotated[float, Field(gt=0, le=MAX_EPSILON, allow_inf_nan=False)]
    delta: Annotated[float, Field(ge=1e-15, le=1e-2, allow_inf_nan=False)]
    clip: Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]
    sample_rate: Annotated[float, Field(ge=1e-6, le=1, allow_inf_nan=False)]
    expected_batch: Annotated[int, Field(ge=1, le=10**6)]
    steps: Annotated[int, Field(ge=1, le=10**5)]
    learning_rate: Annotated[float, Field(gt=0, le=1e3, allow_inf_nan=False)]
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    init_seed: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0

    @property
    def frozen(self) -> tuple[Tensor, ...]:
        """Tensors that the base file must hold, and nothing else; empty without a frozen backbone."""
        return self.model.body(self.inputs)[0] if isinstance(self.model, Head) else ()

    @property
    def trained(self) -> tuple[Tensor, ...]:
        """Tensors that are trained and may be released."""
        body, features = self.model.body(self.inputs)
        outputs = self.target.outputs
        head = Tensor("head.weight", (outputs, features)), Tensor("head.bias", (outputs,))
        return head if isinstance(self.model, Head) else (*body, *head)

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        return sum(math.prod(t.shape) for t in self.trained)

    def records_at_once(self, memory_bytes: int) -> int:
        """How many records' gradients fit into `memory_bytes` beside the rest; 0 is none.

        Half of what is left is used: the allocator keeps the rest.
        """
        frozen = sum(math.prod(t.shape) for t in self.frozen)
        # Weights, optimizer state, the sum and its noise in double precision, four draws each.
        fixed = _BASE_BYTES + 128 * self.parameters + 8 * frozen
        # A record's gradient in single and double precision, and what its two passes keep.
        each = 24 * self.parameters + 16 * self.model.activations(self.inputs)
        return max(0, min(MOST_AT_ONCE, (memory_bytes - fixed) // (2 * each)))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [i.field for i in self.inputs]
        if len(set(names)) != len(names) or self.target.label in names:
            raise ValueError("each field is there once: as an input, or as the label")
        if sum(i.values for i in self.inputs) > MAX_VALUES:
            raise ValueError(f"the inputs of a record are more than {MAX_VALUES} values")
        if (self.loss == "cross-entropy") != (self.target.task != "regression"):
            raise ValueError("cross-entropy is the loss of a class; mse and huber are those of a quantity")
        if self.optimizer == "adam" and self.momentum:
            raise ValueError("momentum is for optimizer sgd")
        if self.parameters > MAX_PARAMETERS or sum(math.prod(t.shape) for t in self.frozen) > 2**28:
            raise ValueError(f"more than {MAX_PARAMETERS} numbers are trained, or more than 2^28 frozen")
        return self


def planned(private: PrivateTraining, *, largest: float = 1024.0) -> Iterator[dict[str, Any]]:
    """The entries of a release plan's `weights.tensors` for this model, each clipped to ±`largest`."""
    for name, shape in private.trained:
        yield {"name": name, "dtype": "F32", "shape": list(shape), "min": -largest, "max": largest}


def check_plan(private: PrivateTraining, plan: ReleasePlan) -> None:
    """The plan releases exactly the tensors that are trained, and no word of the trainer's own.

    Raises:
        Refused: `schema.plan_invalid`.
    """
    if plan.weights is None:
        raise invalid("a private job releases weights: those of the model it declares")
    if plan.self_reported is not None:
        raise invalid("a private job reports nothing of itself: a loss tells of records, at no ε")
    wanted = {t.name: t.shape for t in private.trained}
    found = {t.name: t.shape for t in plan.weights.tensors}
    if different := sorted(wanted.items() ^ found.items()):
        name, shape = different[0]
        hint = f"{name} {list(shape)}" if wanted.get(name) == shape else f"no {name} {list(shape)}"
        raise invalid(f"the declared model has other tensors than the plan; it has {hint}")
    if any(t.dtype != "F32" for t in plan.weights.tensors):
        raise invalid("the hospital's trainer writes F32")


def check_delta(private: PrivateTraining, max_records: int) -> None:
    """`delta` is far below one patient's share.

    Raises:
        Refused: `policy.private`.
    """
    most = 1 / (PATIENTS_TO_DELTA * max_records)
    if private.delta > most:
        raise Refused(
            "policy.private",
            f"delta {private.delta:g} is above {most:g}, one in {PATIENTS_TO_DELTA} × max_records: near one "
            "in the number of patients it would allow to publish a whole patient",
        )


def with_commands(job: Mapping[str, Any]) -> dict[str, Any]:
    """`job.yaml` of a private job with the commands that it need not write: there is one trainer."""
    return {"entrypoint": TRAIN, "predict": PREDICT, **job}
