"""Where each frame of an enhanced multi-frame image lies (PS3.3, C.7.6.16)."""

from __future__ import annotations

from typing import Final

from rapha.node.sources.imaging.attributes import MAX_FRAMES, Values
from rapha.node.sources.imaging.planes import NO_STACK, Stack, stacked
from rapha.node.sources.imaging.values import stored_values
from rapha.node.sources.imaging.walk import Element, Walk

_PLANE_POSITION, _POSITION = 0x00209113, 0x00200032
_PLANE_ORIENTATION, _ORIENTATION = 0x00209116, 0x00200037

Macro = dict[int, Values]
_INSIDE: Final = {_PLANE_POSITION: _POSITION, _PLANE_ORIENTATION: _ORIENTATION}


def stack_of(walk: Walk, shared: Element | None, frames: Element | None) -> Stack:
    """The frames, if they are parallel.

    Args:
        shared, frames: the functional groups that all frames share, and those of each frame.

    Raises:
        Unusable: as `Walk.at`.
    """
    if frames is None:
        return NO_STACK
    common = next(iter(_groups(walk, shared, 1)), {}) if shared is not None else {}
    return stacked(
        (
            group.get(_POSITION) or common.get(_POSITION, ()),
            group.get(_ORIENTATION) or common.get(_ORIENTATION, ()),
        )
        for group in _groups(walk, frames, MAX_FRAMES)
    )


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
            element.tag: stored_values(b"DS", element.vr, walk.value(element), walk.coding.order, ())
            for element in item
            if element.tag == tag
        }
    return {}
