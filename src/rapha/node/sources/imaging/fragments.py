"""Encapsulated pixel data: which bytes are which frame (PS3.5, A.4).

A table of offsets is believed only where it points at the starts of items; without one, frames are told
apart by the only marks that there are.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NoReturn

from rapha.node.sources.imaging.elements import IMPLICIT_LITTLE, MAX_ITEMS, head
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Unusable

_ITEM: Final = 0xFFFEE000
_END: Final = 0xFFFEE0DD

Fragment = tuple[int, int]
"""Where a fragment's bytes start and end."""


def broken() -> NoReturn:
    """Raises Unusable: PIXELS_INVALID."""
    raise Unusable(Quarantine.PIXELS_INVALID)


def frames_of(data: bytes, start: int, frames: int, offsets: bytes, lengths: bytes) -> list[list[Fragment]]:
    """The fragments of each frame.

    Args:
        start: of the first item, which is the Basic Offset Table.
        frames: Number of Frames; what is found has to agree.
        offsets, lengths: the Extended Offset Table and its lengths (PS3.3, C.7.6.3.1.8), or b"".

    Raises:
        Unusable: PIXELS_INVALID.
    """
    (table_start, table_end), *fragments = _fragments(data, start)
    basic = data[table_start:table_end]
    if frames < 1 or len(fragments) < frames or (basic and offsets):
        broken()
    if basic:
        return _by_offsets(fragments, _numbers(basic, "<I", frames))
    if offsets:
        found = _by_offsets(fragments, _numbers(offsets, "<Q", frames))
        return _cut(found, _numbers(lengths, "<Q", frames))
    if frames == 1:
        return [fragments]
    if frames == len(fragments):
        return [[fragment] for fragment in fragments]
    return _by_ends(data, fragments, frames)


def _fragments(data: bytes, at: int) -> list[Fragment]:
    found: list[Fragment] = []
    end = len(data)
    while True:
        try:
            # Items are little endian in every encapsulated syntax.
            tag, _, length, start = head(data, at, end, IMPLICIT_LITTLE)
        except Unusable:
            broken()
        if tag == _END and found:
            return found
        if tag != _ITEM or length > end - start or len(found) > MAX_ITEMS:
            broken()
        at = start + length
        found.append((start, at))


def _numbers(table: bytes, item: str, frames: int) -> list[int]:
    if len(table) != frames * struct.calcsize(item):
        broken()
    return [number for (number,) in struct.iter_unpack(item, table)]


def _by_offsets(fragments: Sequence[Fragment], offsets: Sequence[int]) -> list[list[Fragment]]:
    """Offsets count from the first item after the table to a frame's first item."""
    origin = fragments[0][0]
    number = {start - origin: index for index, (start, _) in enumerate(fragments)}
    firsts = [number.get(offset, -1) for offset in offsets]
    bounds = [*firsts, len(fragments)]
    if firsts[0] != 0 or any(a >= b for a, b in pairwise(bounds)):
        broken()
    return [list(fragments[a:b]) for a, b in pairwise(bounds)]


def _cut(frames: list[list[Fragment]], lengths: Sequence[int]) -> list[list[Fragment]]:
    """Each frame without the padding after its declared length; such a frame is one fragment."""
    cut = []
    for fragments, length in zip(frames, lengths, strict=True):
        ((start, end),) = fragments if len(fragments) == 1 else broken()
        if not end - start - 1 <= length <= end - start:
            broken()
        cut.append([(start, start + length)])
    return cut


def _by_ends(data: bytes, fragments: Sequence[Fragment], frames: int) -> list[list[Fragment]]:
    """Several fragments a frame and no table: a frame is over where its code stream is (FFD9 in all)."""
    found: list[list[Fragment]] = [[]]
    for start, end in fragments:
        found[-1].append((start, end))
        if b"\xff\xd9" in data[max(start, end - 10) : end]:
            found.append([])
    if found.pop() or len(found) != frames:
        broken()
    return found
