"""Declared transforms: what the hospital's side does to a field before a job sees it, never code.

    transforms:
      pixels: [{window: {center: 40, width: 80}}, {resize: [64, 64]}, {dtype: float16}]
      labs:   [{length: {size: 32, pad: 0}}]

Steps run in order, once a record, outside the job's reach. They are part of the signed job, so that owners
approve them and the size of every batch is known before a record is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Field as Bounds
from pydantic import SerializerFunctionWrapHandler, StringConstraints, model_serializer, model_validator

from rapha.spec.base import Model
from rapha.spec.refusals import Refused

MAX_STEPS: Final = 8
MAX_SIDE: Final = 65536
MAX_RECORD_BYTES: Final = 2**26
"""Of one field of one record, after each step that changes its size: what fits a slot of the ring."""

Number = Annotated[float, Bounds(ge=-1e30, le=1e30)]
Positive = Annotated[float, Bounds(gt=0, le=1e30)]
Side = Annotated[int, Bounds(ge=1, le=MAX_SIDE)]
Numeric = Literal[
    "bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32",
]  # fmt: skip
FieldName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
ITEM_BYTES: Final = {
    "bool": 1, "int8": 1, "uint8": 1, "float16": 2, "int16": 2, "uint16": 2,
    "float32": 4, "int32": 4, "uint32": 4, "float64": 8, "int64": 8,
}  # fmt: skip


class Window(Model):
    """Values from `center - width/2` to `center + width/2` become 0 to 1, clipped (PS3.3 C.11.2.1.3.2)."""

    center: Number
    width: Positive


class Clip(Model):
    """Values below `min` become `min`, above `max` become `max`."""

    min: Number
    max: Number

    @model_validator(mode="after")
    def _ordered(self) -> Clip:
        if self.min > self.max:
            raise ValueError("min is above max")
        return self


class Normalise(Model):
    """`(value - mean) / scale`."""

    mean: Number
    scale: Positive


class Length(Model):
    """A field of variable length becomes one of `size` values: cut off, or filled up with `pad`."""

    size: Side
    pad: Number = 0.0


class Step(Model):
    """One step: exactly one of its fields is given.

    Attributes:
        window, normalise: the result is float32.
        clip: keeps the dtype.
        resize: the last axes get these sizes: linear interpolation, averaging where it shrinks.
        length: variable length becomes fixed.
        dtype: values are rounded to nearest and saturate where an integer dtype can't hold them.
    """

    window: Window | None = None
    clip: Clip | None = None
    normalise: Normalise | None = None
    resize: Annotated[tuple[Side, ...], Bounds(min_length=1, max_length=3)] | None = None
    length: Length | None = None
    dtype: Numeric | None = None

    @model_validator(mode="after")
    def _one(self) -> Step:
        if len(self.model_fields_set) != 1 or getattr(self, self.kind) is None:
            raise ValueError("a step is exactly one of window, clip, normalise, resize, length, dtype")
        return self

    @property
    def kind(self) -> str:
        """Which step it is."""
        return next(iter(self.model_fields_set), "dtype")

    @model_serializer(mode="wrap")
    def _only_what_is_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}


Steps = Annotated[tuple[Step, ...], Bounds(max_length=MAX_STEPS)]
Transforms = Annotated[dict[FieldName, Steps], Bounds(max_length=4096)]


@dataclass(frozen=True, slots=True)
class Form:
    """What one record's value of a field looks like.

    Attributes:
        dtype: numpy's name.
        shape: of one record; 0 is an axis that differs between records. For a ragged field, of one value.
        ragged: a record holds any number of such values, one after the other.
    """

    dtype: str
    shape: tuple[int, ...]
    ragged: bool = False

    @property
    def settled(self) -> bool:
        """Whether every record has this very shape."""
        return 0 not in self.shape

    @property
    def nbytes(self) -> int:
        """Bytes of one record, or of one value of a ragged field. Precondition: settled."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def form_after(name: str, form: Form, steps: tuple[Step, ...]) -> Form:
    """The form of field `name` after `steps`.

    Raises:
        Refused: `schema.transform` where a step doesn't fit what it is given or makes a record too large,
            or where axes still differ between records after a resize, or at the end.
    """
    form = forms_through(name, form, steps)[-1]
    _check_size(name, form)
    return form


def forms_through(name: str, form: Form, steps: tuple[Step, ...]) -> tuple[Form, ...]:
    """The form before the first step, and after each. Raises: as `form_after`, for one step at a time."""
    forms = [form]
    for step in steps:
        forms.append(_after(name, forms[-1], step))
        if step.kind in ("resize", "length"):
            # What a later step would shrink again has to fit meanwhile, whichever the record: else a job
            # could choose steps at which only the largest fall out, and compare cohorts with and without.
            _check_size(name, forms[-1])
    return tuple(forms)


def _check_size(name: str, form: Form) -> None:
    if not form.settled:
        raise Refused("schema.transform", f"{name}: its size differs between records; resize all its axes")
    if form.nbytes > MAX_RECORD_BYTES:
        raise Refused("schema.transform", f"{name}: a record has more than {MAX_RECORD_BYTES} bytes")


def _after(name: str, form: Form, step: Step) -> Form:
    match step.kind:
        case "window" | "normalise":
            return Form("float32", form.shape, form.ragged)
        case "dtype":
            return Form(str(step.dtype), form.shape, form.ragged)
        case "resize":
            sizes = step.resize or ()
            if form.ragged or len(sizes) > len(form.shape):
                raise Refused("schema.transform", f"{name}: it has no {len(sizes)} axes to resize")
            return Form(form.dtype, (*form.shape[: len(form.shape) - len(sizes)], *sizes))
        case "length":
            if not form.ragged or step.length is None:
                raise Refused("schema.transform", f"{name}: its length does not vary")
            return Form(form.dtype, (step.length.size, *form.shape))
        case _:
            return form


def check_names(transforms: Mapping[str, tuple[Step, ...]], inputs: frozenset[str]) -> None:
    """Every transformed field is an input of the job; a label is handed over as it is.

    Raises:
        Refused: `schema.transform`.
    """
    if unknown := sorted(transforms.keys() - inputs):
        raise Refused("schema.transform", f"the dataset serves no input {unknown[0]!r}")
