"""Where images lie in the patient (PS3.3, C.7.6.2), as far as their descriptions say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

_FARTHEST: Final = 1e9
"""mm; what is past that is no place, and arithmetic with it might overflow."""

Stored = Sequence[str | float]
"""The values of an attribute."""


@dataclass(frozen=True, slots=True)
class Stack:
    """The frames of a multi-frame image, if they are parallel.

    Attributes:
        places: each frame's position along the normal, mm; empty where they have no common normal.
        orientation: their common direction cosines.
    """

    places: tuple[float, ...] = ()
    orientation: tuple[float, ...] | None = None


NO_STACK: Final = Stack()


def stacked(planes: Iterable[tuple[Stored, Stored]]) -> Stack:
    """The stack of frames with these Image Positions and Image Orientations (Patient)."""
    places: list[float] = []
    first: tuple[float, ...] | None = None
    for stored_position, stored_orientation in planes:
        position, orientation = coordinates(stored_position, 3), coordinates(stored_orientation, 6)
        first = first or orientation
        if position is None or orientation is None or orientation != first:
            return NO_STACK
        normal = normal_of(orientation)
        if normal is None:
            return NO_STACK
        places.append(along(position, normal))
    return Stack(tuple(places), first)


def coordinates(values: Stored, count: int) -> tuple[float, ...] | None:
    """Exactly `count` numbers of a sensible size, or None."""
    numbers = tuple(value for value in values if isinstance(value, float) and abs(value) < _FARTHEST)
    return numbers if len(numbers) == count == len(values) else None


def normal_of(orientation: Sequence[float]) -> tuple[float, float, float] | None:
    """Unit vector across the image plane (PS3.3, C.7.6.2.1.1); None where the cosines aren't a plane."""
    (a, b, c), (d, e, f) = orientation[:3], orientation[3:]
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    length = math.hypot(*normal)
    skewed = abs(a * d + b * e + c * f) > 0.01
    if skewed or not 0.98 < math.hypot(a, b, c) < 1.02 or not 0.98 < math.hypot(d, e, f) < 1.02:
        return None
    return (normal[0] / length, normal[1] / length, normal[2] / length)


def along(position: Sequence[float], normal: Sequence[float]) -> float:
    """Where a plane is along its normal, mm."""
    return sum(p * n for p, n in zip(position, normal, strict=True))
