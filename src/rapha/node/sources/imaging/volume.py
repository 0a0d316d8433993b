"""Where images lie in the patient (PS3.3, C.7.6.2): stacks of slices, and CT on a PET slice's grid.

Positions are in mm in the patient's coordinate system. A stack's first axis rises along the normal, which
is the cross product of the row and the column direction; the in-plane axes stay as stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from rapha.node.sources.imaging.groups import numbers
from rapha.node.sources.imaging.image import Image
from rapha.node.sources.imaging.tags import Tag
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Unusable

Array = NDArray[Any]
Vector = NDArray[np.float64]
SPACING_TOLERANCE: Final = 0.05
"""Of the median gap: how much a gap may differ from it, and a slice may be shifted in its plane."""
DIRECTION_TOLERANCE: Final = 1e-3
OUTSIDE_CT: Final = -1024.0
"""HU of what no CT pixel covers: air, as scanners write it."""


@dataclass(frozen=True, slots=True)
class Plane:
    """One frame's plane.

    Attributes:
        origin: centre of the first pixel. along_row, along_column: unit vectors in which the column index
            and the row index rise.
        row_gap, column_gap: mm between rows and between columns; 0 where unknown.
        thickness: mm, 0 where unknown.
        reference: the frame of reference that positions are in.
    """

    origin: Vector
    along_row: Vector
    along_column: Vector
    row_gap: float
    column_gap: float
    thickness: float
    reference: str

    @property
    def normal(self) -> Vector:
        """Unit vector across the plane."""
        return np.cross(self.along_row, self.along_column)


def geometry() -> NoReturn:
    """Raises Unusable: GEOMETRY."""
    raise Unusable(Quarantine.GEOMETRY)


def plane_of(image: Image, frame: int) -> Plane | None:
    """Where a frame lies, or None where the image doesn't say.

    Raises:
        Unusable: GEOMETRY where what it says is no plane, FILE_INVALID.
    """
    elements = image.elements
    if image.frames > 1 and not elements.items(Tag.FRAME_GROUPS):
        return None  # a place for the whole file says nothing of its frames
    position = numbers(elements, frame, Tag.PLANE_POSITIONS, Tag.POSITION)
    orientation = numbers(elements, frame, Tag.PLANE_ORIENTATIONS, Tag.ORIENTATION)
    if not position and not orientation:
        return None
    spacing = numbers(elements, frame, Tag.PIXEL_MEASURES, Tag.SPACING) or (0.0, 0.0)
    thickness = numbers(elements, frame, Tag.PIXEL_MEASURES, Tag.SLICE_THICKNESS) or (0.0,)
    if (len(position), len(orientation), len(spacing), len(thickness)) != (3, 6, 2, 1):
        geometry()
    if max(map(abs, (*position, *spacing, *thickness))) > 1e6 or min(*spacing, *thickness) < 0:
        geometry()
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.array([row @ row, column @ column])
    if np.abs(lengths - 1).max() > 0.01 or abs(row @ column) > 0.01:
        geometry()
    return Plane(
        origin=np.array(position),
        along_row=row / np.sqrt(lengths[0]),
        along_column=column / np.sqrt(lengths[1]),
        row_gap=spacing[0],
        column_gap=spacing[1],
        thickness=thickness[0],
        reference=elements.text(Tag.FRAME_OF_REFERENCE),
    )


def order(planes: Sequence[Plane | None]) -> list[int]:
    """The frames in which a stack rises along its normal.

    One frame needs no place. Frames of one file that says of none where it lies (a cine loop) stay as they
    are; files without places have no order, and their caller refuses them.

    Raises:
        Unusable: GEOMETRY where planes aren't parallel, evenly spaced, of one grid, above one another and in
            one frame of reference.
    """
    known = [plane for plane in planes if plane is not None]
    if not known or len(planes) == 1:
        return list(range(len(planes)))
    first = known[0]
    if len(known) != len(planes) or not all(_parallel(first, plane) for plane in known):
        geometry()
    offsets = np.array([plane.origin - first.origin for plane in known])
    along = offsets @ first.normal
    ranks = np.argsort(along, kind="stable")
    gaps = np.diff(along[ranks])
    typical = float(np.median(gaps))
    slack = SPACING_TOLERANCE * typical
    steps = np.diff((offsets - np.outer(along, first.normal))[ranks], axis=0)
    if typical <= 1e-3 or np.abs(gaps - typical).max() > slack or np.abs(steps).max() > slack:
        geometry()
    return [int(rank) for rank in ranks]


def _parallel(one: Plane, other: Plane) -> bool:
    turned = max(
        np.abs(one.along_row - other.along_row).max(), np.abs(one.along_column - other.along_column).max()
    )
    gaps = np.isclose([one.row_gap, one.column_gap], [other.row_gap, other.column_gap], rtol=1e-3)
    return bool(turned <= DIRECTION_TOLERANCE and gaps.all() and one.reference == other.reference)


def onto(target: Plane, shape: tuple[int, int], source: Plane, values: Array) -> NDArray[np.float64]:
    """`values` of the plane `source` at the pixels of `target`, interpolated linearly in the plane.

    What lies outside `source`, by more than half a pixel, is `OUTSIDE_CT`.

    Raises:
        Unusable: GEOMETRY where the planes aren't parallel, in one frame of reference, of known spacing, and
            within half a slice of one another.
    """
    normal = target.normal
    apart = abs(float((source.origin - target.origin) @ normal))
    reach = max(target.thickness, source.thickness) / 2 + 0.01
    gaps = (target.row_gap, target.column_gap, source.row_gap, source.column_gap)
    if min(gaps) <= 0 or not target.reference or target.reference != source.reference:
        geometry()
    if apart > reach or np.abs(np.abs(normal @ source.normal) - 1) > DIRECTION_TOLERANCE:
        geometry()
    down = np.arange(shape[0])[:, np.newaxis, np.newaxis] * target.row_gap * target.along_column
    across = np.arange(shape[1])[np.newaxis, :, np.newaxis] * target.column_gap * target.along_row
    offset = (target.origin - source.origin) + down + across
    rows = offset @ source.along_column / source.row_gap
    columns = offset @ source.along_row / source.column_gap
    return _bilinear(values, rows, columns)


def _bilinear(values: Array, rows: Vector, columns: Vector) -> NDArray[np.float64]:
    height, width = values.shape
    inside = (rows >= -0.5) & (rows <= height - 0.5) & (columns >= -0.5) & (columns <= width - 0.5)
    rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    top, left = rows.astype(np.int64), columns.astype(np.int64)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = rows - top, columns - left
    upper = values[top, left] * (1 - across) + values[top, right] * across
    lower = values[bottom, left] * (1 - across) + values[bottom, right] * across
    return np.where(inside, upper * (1 - down) + lower * down, OUTSIDE_CT)
