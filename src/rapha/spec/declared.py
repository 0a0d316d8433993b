"""The models that a private job may declare, and what they see and learn: shapes and constants, no code."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Final, Literal, NamedTuple, Self

from pydantic import Field, StringConstraints, model_validator

from rapha.spec.base import Model
from rapha.spec.refusals import Refused

MAX_CLASSES: Final = 16
"""As many columns of predictions as a job's output folder has room for."""
_NORM_GROUPS: Final = 8

Real = Annotated[float, Field(allow_inf_nan=False, ge=-1e30, le=1e30)]
Positive = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]
Width = Annotated[int, Field(ge=1, le=65536)]
FieldName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Activation = Literal["relu", "tanh", "gelu"]


class Tensor(NamedTuple):
    """One trained or frozen tensor of a declared model, F32."""

    name: str
    shape: tuple[int, ...]


class Input(Model):
    """One field that the model sees, and the constants that bring it to about -1 to 1.

    Attributes:
        shape: of one record, after the job's `transforms`.
        mean, std: (value - mean) / std; the researcher's own numbers, such as from the literature.
        range: in their place, what becomes -1 and 1.
    """

    field: FieldName
    shape: Annotated[tuple[Width, ...], Field(max_length=4)] = ()
    mean: Real | None = None
    std: Positive | None = None
    range: tuple[Real, Real] | None = None

    @property
    def values(self) -> int:
        """How many numbers of one record this is."""
        return math.prod(self.shape)

    @property
    def affine(self) -> tuple[float, float]:
        """Shift and scale: a value becomes (value - shift) / scale."""
        if self.range is not None:
            low, high = self.range
            return (low + high) / 2, (high - low) / 2
        return self.mean or 0.0, self.std or 1.0

    @model_validator(mode="after")
    def _one_normalisation(self) -> Self:
        if self.range is not None and (self.mean is not None or self.std is not None):
            raise ValueError("give either `range`, or `mean` and `std`")
        if (self.mean is None) != (self.std is None):
            raise ValueError("`mean` and `std` go together")
        if self.range is not None and not self.range[1] - self.range[0] > 0:
            raise ValueError("`range` is a low and a higher number")
        return self


class Target(Model):
    """What is learned.

    Attributes:
        positive: binary: the label's value that is class 1.
        classes: multiclass: the label is a class number below this.
        mean, std: regression: the label is learned as (value - mean) / std.
    """

    label: FieldName
    task: Literal["binary", "multiclass", "regression"]
    positive: Real | None = None
    classes: Annotated[int, Field(ge=2, le=MAX_CLASSES)] | None = None
    mean: Real | None = None
    std: Positive | None = None

    @property
    def outputs(self) -> int:
        """Columns of the model's last layer, and of its predictions."""
        return self.classes or 1

    @model_validator(mode="after")
    def _fits_the_task(self) -> Self:
        given = {name for name in ("positive", "classes", "mean", "std") if getattr(self, name) is not None}
        wanted: dict[str, tuple[set[str], set[str]]] = {
            "binary": (set(), {"positive"}),
            "multiclass": ({"classes"}, {"classes"}),
            "regression": ({"mean", "std"}, {"mean", "std"}),
        }
        least, most = wanted[self.task]
        if not least <= given <= most:
            needs = f"needs {' and '.join(sorted(least))}" if least - given else "takes no"
            extra = "" if least - given else f" {' or '.join(sorted(given - most))}"
            raise ValueError(f"task {self.task} {needs}{extra}")
        return self


class Linear(Model):
    """One affine layer over all inputs, side by side."""

    kind: Literal["linear"]

    def body(self, inputs: tuple[Input, ...]) -> tuple[tuple[Tensor, ...], int]:
        """The tensors below the last layer, and how many features that one sees. Raises `Refused`."""
        return (), sum(i.values for i in inputs)

    def activations(self, inputs: tuple[Input, ...]) -> int:
        """Numbers that one record's forward pass keeps."""
        return sum(i.values for i in inputs)


class Mlp(Model):
    """Fully connected layers over all inputs, side by side."""

    kind: Literal["mlp"]
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=8192)], ...], Field(min_length=1, max_length=8)]
    activation: Activation = "relu"

    def body(self, inputs: tuple[Input, ...]) -> tuple[tuple[Tensor, ...], int]:
        """See `Linear.body`."""
        widths = (sum(i.values for i in inputs), *self.hidden)
        tensors = []
        for n, (before, after) in enumerate(pairwise(widths)):
            tensors += [Tensor(f"body.{n}.weight", (after, before)), Tensor(f"body.{n}.bias", (after,))]
        return tuple(tensors), widths[-1]

    def activations(self, inputs: tuple[Input, ...]) -> int:
        """See `Linear.activations`."""
        return sum(i.values for i in inputs) + 2 * sum(self.hidden)


class Cnn(Model):
    """Blocks of 3×3 convolution, GroupNorm, activation and 2×2 pooling over one image; then the mean.

    Never BatchNorm: it mixes the records of a batch, and then no gradient is one patient's own.
    """

    kind: Literal["cnn"]
    channels: Annotated[tuple[Annotated[int, Field(ge=1, le=512)], ...], Field(min_length=1, max_length=6)]
    activation: Activation = "relu"

    def body(self, inputs: tuple[Input, ...]) -> tuple[tuple[Tensor, ...], int]:
        """See `Linear.body`."""
        first, _, _ = image_of(inputs, len(self.channels))
        widths = (first, *self.channels)
        tensors = []
        for n, (before, after) in enumerate(pairwise(widths)):
            tensors += [
                Tensor(f"body.{n}.conv.weight", (after, before, 3, 3)),
                Tensor(f"body.{n}.conv.bias", (after,)),
                Tensor(f"body.{n}.norm.weight", (after,)),
                Tensor(f"body.{n}.norm.bias", (after,)),
            ]
        return tuple(tensors), widths[-1]

    def activations(self, inputs: tuple[Input, ...]) -> int:
        """See `Linear.activations`. The per-record gradient of a convolution unfolds its input ninefold."""
        before, height, width = image_of(inputs, len(self.channels))
        total = 0
        for after in self.channels:
            total += height * width * (10 * before + 4 * after)
            before, height, width = after, height // 2, width // 2
        return total


class Head(Model):
    """A frozen backbone with the weights of `model.base`, and a linear layer that is trained on top."""

    kind: Literal["head"]
    backbone: Annotated[Mlp | Cnn, Field(discriminator="kind")]

    def body(self, inputs: tuple[Input, ...]) -> tuple[tuple[Tensor, ...], int]:
        """See `Linear.body`; these are frozen."""
        return self.backbone.body(inputs)

    def activations(self, inputs: tuple[Input, ...]) -> int:
        """See `Linear.activations`."""
        return self.backbone.activations(inputs)


def image_of(inputs: tuple[Input, ...], blocks: int) -> tuple[int, int, int]:
    """Channels, height and width of the one image.

    Raises:
        Refused: `schema.field_invalid` where the inputs are something else, or too small for the blocks.
    """
    shape = inputs[0].shape
    if len(inputs) != 1 or len(shape) not in (2, 3):
        raise Refused("schema.field_invalid", "private.inputs: a cnn sees one image, [h, w] or [c, h, w]")
    channels, height, width = shape if len(shape) == 3 else (1, *shape)
    if min(height, width) < 2**blocks or channels > 512:
        raise Refused("schema.field_invalid", "private.inputs: the image is too small for so many blocks")
    return channels, height, width


def norm_groups(channels: int) -> int:
    """Groups of a GroupNorm over so many channels: the most up to 8 that divide them."""
    return max(n for n in range(1, _NORM_GROUPS + 1) if channels % n == 0)
