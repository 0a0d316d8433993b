"""Attributes that a multi-frame image may give once for all frames or for each (PS3.3, C.7.6.16)."""

from __future__ import annotations

from collections.abc import Iterator

from rapha.node.sources.imaging.elements import Elements, invalid
from rapha.node.sources.imaging.tags import Tag


def of_frame(elements: Elements, frame: int, macro: Tag) -> Iterator[Elements]:
    """Where to look for what `macro` holds of `frame`, the most specific place first.

    The frame's own functional group, the shared one, and the data set itself, which is where a
    single-frame image has it.

    Raises:
        Unusable: FILE_INVALID, also where other frames have groups of their own and this one has none.
    """
    if groups := elements.items(Tag.FRAME_GROUPS):
        if frame >= groups:
            invalid()  # what holds for this frame is not known
        yield from _macro(elements.item(Tag.FRAME_GROUPS, frame), macro)
    if elements.items(Tag.SHARED_GROUPS):
        yield from _macro(elements.item(Tag.SHARED_GROUPS), macro)
    yield elements


def numbers(elements: Elements, frame: int, macro: Tag, tag: Tag) -> tuple[float, ...]:
    """The values of `tag` of one frame, () where it has none. Raises Unusable: FILE_INVALID."""
    return next((found.numbers(tag) for found in of_frame(elements, frame, macro) if tag in found), ())


def _macro(group: Elements, macro: Tag) -> Iterator[Elements]:
    if group.items(macro):
        yield group.item(macro)
