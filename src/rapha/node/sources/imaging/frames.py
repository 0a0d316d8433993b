"""Where each frame of an enhanced multi-frame image lies (PS3.3, C.7.6.16)."""

from __future__ import annotations

from typing import Final

from rapha.node.sources.imaging.attributes import MAX_FRAMES, Values, along, normal_of
from rapha.node.sources.imaging.values import values_of
from rapha.node.sources.imaging.walk import Element, Walk

_PLANE_POSITION, _POSITION = 0x00209113, 0x00200032
_PLANE_ORIENTATION, _ORIENTATION = 0x00209116, 0x00200037

Macro = dict[int, Values]
_INSIDE: Final = {_PLANE_POSITION: _POSITION, _PLANE_ORIENTATION: _ORIENTATION}


def places_of(walk: Walk, shared: Element | None, frames: Element | None) -> tuple[float, ...]:
    """Each frame's position along the normal of the frames, mm; empty where they have no common normal.

    Args:
        shared, frames: the functional groups that all frames share, and those of each frame.

    Raises:
        Unusable: as `Walk.at`.
    """
    if frames is None:
        return ()
    common = next(iter(_groups(walk, shared, 1)), {}) if shared is not None else {}
    places: list[float] = []
    first: Values = ()
    for group in _groups(walk, frames, MAX_FRAMES):
        position = group.get(_POSITION) or common.get(_POSITION, ())
        orientation = group.get(_ORIENTATION) or common.get(_ORIENTATION, ())
        first = first or orientation
        if len(position) != 3 or len(orientation) != 6 or orientation != first:
            return ()
        normal = normal_of([float(cosine) for cosine in orientation])
        if normal is None:
            return ()
        places.append(along([float(part) for part in position], normal))
    return tuple(places)


def _groups(walk: Walk, sequence: Element, limit: int) -> list[Macro]:
    groups: list[Macro] = []
    for item in walk.items(sequence):
        if len(groups) == limit:
            break
        macro: Macro = {}
        for element in item:
            if (inner := _INSIDE.get(element.tag)) is not None:
                macro.update(_first_item(walk, element, inner))
        groups.append(macro)
    return groups


def _first_item(walk: Walk, sequence: Element, tag: int) -> Macro:
    for item in walk.items(sequence):
        return {
            element.tag: values_of(element.vr or b"DS", walk.value(element), walk.coding.order, ())
            for element in item
            if element.tag == tag
        }
    return {}
