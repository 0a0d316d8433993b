"""What a decoding worker is told: once, what to render; with each item, what the item is.

Both travel as JSON between the node's own processes. Nothing here imports a decoder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from rapha.spec.dataset import Field
from rapha.spec.transforms import Form, Step, form_after

Kind = Literal["frame", "series", "pet-ct"]
"""As `Imaging.record` of the manifest."""
What = Literal["pixels", "pet", "ct"]
PLACES: Final[dict[str, What]] = {"@pixels": "pixels", "@pet": "pet", "@ct": "ct"}
"""The paths of rendered fields."""
WHATS: Final[dict[Kind, tuple[What, ...]]] = {
    "frame": ("pixels",), "series": ("pixels",), "pet-ct": ("pet", "ct"),
}  # fmt: skip
"""What each kind of record has to render."""


@dataclass(frozen=True, slots=True)
class RenderOrder:
    """One rendered field.

    Attributes:
        before: the field's own form in the manifest (`Field.form`), before any step; axes of 0 differ
            between records.
        steps: of the signed job.
    """

    field: str
    what: What
    before: Form
    steps: tuple[Step, ...] = ()

    @property
    def after(self) -> Form:
        """The form that comes out.

        Raises:
            Refused: `schema.transform`, as `form_after`.
        """
        return form_after(self.field, self.before, self.steps)

    @classmethod
    def of(cls, field: Field, steps: tuple[Step, ...] = ()) -> RenderOrder:
        """The order for a field whose path is one of `PLACES`. Raises KeyError for any other field."""
        return cls(field.name, PLACES[field.where], field.form, steps)


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker renders of every item, in this order, one value after the other."""

    record: Kind
    renders: tuple[RenderOrder, ...]

    @property
    def output_bytes(self) -> int:
        """Bytes of all renders of one item: `out` is this long."""
        return sum(order.after.nbytes for order in self.renders)


@dataclass(frozen=True, slots=True)
class Expect:
    """Whose image a stored file has to be: what the index read from it."""

    sop_uid: str
    patient_id: str


@dataclass(frozen=True, slots=True)
class Args:
    """One item.

    Attributes:
        frame: which frame of the file, from 0; unused for a series.
        expect: one for each stored file, in their order.
    """

    frame: int
    expect: tuple[Expect, ...]


def encode(order: Setup | Args) -> bytes:
    """`order` as JSON, for `decode_setup` or `decode_args`."""
    return json.dumps(_plain(order), separators=(",", ":")).encode()


def decode_setup(data: bytes) -> Setup:
    """The inverse of `encode`. Raises ValueError, KeyError or TypeError on what it didn't write."""
    value = json.loads(data)
    return Setup(cast(Kind, value["record"]), tuple(map(_render_order, value["renders"])))


def decode_args(data: bytes) -> Args:
    """The inverse of `encode`. Raises ValueError, KeyError or TypeError on what it didn't write."""
    value = json.loads(data)
    return Args(int(value["frame"]), tuple(Expect(str(uid), str(who)) for uid, who in value["expect"]))


def _render_order(value: dict[str, Any]) -> RenderOrder:
    dtype, shape, ragged = value["before"]
    steps = tuple(Step.parse(step) for step in value["steps"])
    return RenderOrder(value["field"], value["what"], Form(dtype, tuple(shape), ragged), steps)


def _plain(order: Setup | Args) -> dict[str, Any]:
    if isinstance(order, Args):
        return {"frame": order.frame, "expect": [[one.sop_uid, one.patient_id] for one in order.expect]}
    return {
        "record": order.record,
        "renders": [
            {
                "field": render.field,
                "what": render.what,
                "before": [render.before.dtype, render.before.shape, render.before.ragged],
                "steps": [step.dump() for step in render.steps],
            }
            for render in order.renders
        ],
    }
