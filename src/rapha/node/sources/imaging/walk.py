"""A bounded walk over the data elements of a file of any size, for its header alone (PS3.5, 7).

Where `elements` holds one image whole to decode it, this holds a window of the file and a few positions.
The file is hostile: a length is believed only as far as the file reaches, sequences are stepped over and
never built, and what is walked, nested or kept at all has a limit.
"""

from __future__ import annotations

import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from io import SEEK_END, BytesIO
from struct import Struct
from typing import BinaryIO, Final

from rapha.node.sources.imaging.elements import (
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    Coding,
    head,
)
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Unusable

UNDEFINED: Final = 0xFFFFFFFF
MAX_ELEMENTS: Final = 200_000
MAX_DEPTH: Final = 16
MAX_VALUE_BYTES: Final = 65536
MAX_INFLATED: Final = 8 * 2**20
"""Of a deflated file, before its pixels: a header is some kilobytes, a bomb is not."""

IMPLICIT: Final = "1.2.840.10008.1.2"
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
_CODINGS: Final = {IMPLICIT: IMPLICIT_LITTLE, BIG_ENDIAN: EXPLICIT_BIG}

_WINDOW: Final = 16384
_HEAD: Final = 12
"""Bytes of the longest element header."""
_SHORT: Final = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
"""VRs whose length has two bytes (PS3.5, 7.1.2)."""
_EXPLICIT: Final = (Struct(">HH2sH"), Struct("<HH2sH"))
_IMPLICIT: Final = (Struct(">HHI"), Struct("<HHI"))
_PREAMBLE: Final = 128
_PIXEL_GROUP: Final = 0x7FE0
_DELIMITERS: Final = 0xFFFE
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


@dataclass(frozen=True, slots=True)
class Element:
    """Where a data element is.

    Attributes:
        tag: group << 16 | element.
        vr: as written; b"" where that isn't known.
        start: offset of its value. length: of the value in bytes, or UNDEFINED.
    """

    tag: int
    vr: bytes
    start: int
    length: int


class Walk:
    """The elements of one stream, by offset.

    Args:
        stream: seekable; only its header is read.
        syntax: decides how elements are written; most are explicit VR little endian (PS3.5, A.4).
    """

    def __init__(self, stream: BinaryIO, syntax: str) -> None:
        self.coding = _CODINGS.get(syntax, EXPLICIT_LITTLE)
        self.size = stream.seek(0, SEEK_END)
        self._stream = stream
        self._base = 0
        self._window = b""
        self._budget = MAX_ELEMENTS

    def at(self, start: int) -> Element | None:
        """The element whose tag is at `start`, or None where the stream ends there.

        Raises:
            Unusable: FILE_INVALID for one that is cut off, overlong or of no VR; TOO_LARGE past
                `MAX_ELEMENTS` or `MAX_DEPTH`.
        """
        return self._at(start, self.coding) if start != self.size else None

    def scan(
        self, start: int, wanted: Container[int], stop: Container[int]
    ) -> tuple[dict[int, Element], Element | None]:
        """The `wanted` elements from `start` up to the first of `stop`, and that one, None where none comes.

        Raises:
            Unusable: as `at`; FILE_INVALID where a wanted element comes twice, or an item or a delimiter
                outside of a sequence: readers differ in which of the two they believe, and in where they end.
        """
        found: dict[int, Element] = {}
        while (start := self._skip(start, wanted, stop)) != self.size:
            element = self._at(start, self.coding)
            if element.tag in stop:
                return found, element
            if element.tag in found or element.tag >> 16 == _DELIMITERS:
                raise Unusable(Quarantine.FILE_INVALID)
            if element.tag in wanted:
                found[element.tag] = element
            start = self.after(element)
        return found, None

    def value(self, element: Element) -> bytes:
        """Its value. Raises Unusable: TOO_LARGE past `MAX_VALUE_BYTES`, FILE_INVALID if undefined."""
        if element.length == UNDEFINED:
            raise Unusable(Quarantine.FILE_INVALID)
        if element.length > MAX_VALUE_BYTES:
            raise Unusable(Quarantine.TOO_LARGE)
        return self.peek(element.start, element.length)

    def peek(self, start: int, length: int) -> bytes:
        """Up to `length` bytes at `start`."""
        at = self._within(start, length)
        return self._window[at : at + length]

    def after(self, element: Element) -> int:
        """Where the next element starts. Raises as `at`."""
        if element.length != UNDEFINED:
            return element.start + element.length
        return self._end_of_sequence(element.start, _inside(element, self.coding), 1)

    def items(self, sequence: Element) -> Iterator[list[Element]]:
        """The elements of each item of a sequence, in turn. Raises as `at`."""
        start, end = sequence.start, self.after(sequence)
        while start < end:
            item = self._at(start, self.coding)
            if item.tag == _SEQUENCE_END:
                return
            if item.tag != _ITEM:
                raise Unusable(Quarantine.FILE_INVALID)
            stop = end if item.length == UNDEFINED else item.start + item.length
            start = item.start
            found: list[Element] = []
            while start < stop:
                element = self._at(start, self.coding)
                start = element.start if element.tag == _ITEM_END else self.after(element)
                if element.tag == _ITEM_END:
                    break
                found.append(element)
            yield found

    def _skip(self, start: int, wanted: Container[int], stop: Container[int]) -> int:
        """Past the elements that nobody asked for, as far as the window shows them to be plain.

        A loop of its own, since most of a header is that: what it passes over costs a tenth of `_at`. A
        length that leads out of the file is noticed by whoever looks at what it leads to.
        """
        at = self._within(start, _HEAD)
        window, last, explicit = self._window, len(self._window) - _HEAD, self.coding.explicit
        unpack = (_EXPLICIT if explicit else _IMPLICIT)[self.coding.little].unpack_from
        passed = 0
        while at <= last:
            if explicit:
                group, number, vr, length = unpack(window, at)
                if vr not in _SHORT:
                    break
            else:
                group, number, length = unpack(window, at)
                if length == UNDEFINED:
                    break
            tag = group << 16 | number
            if tag in wanted or tag in stop or group == _DELIMITERS:
                break
            at += 8 + length
            passed += 1
        self._budget -= passed
        return self._base + at

    def _at(self, start: int, coding: Coding) -> Element:
        self._budget -= 1
        if self._budget < 0:
            raise Unusable(Quarantine.TOO_LARGE)
        at = self._within(start, _HEAD)
        tag, vr, length, value = head(self._window, at, len(self._window), coding)
        value += self._base
        # The pixels' length is judged apart: the header before them can be read and counted all the same.
        if length != UNDEFINED and value + length > self.size and tag >> 16 != _PIXEL_GROUP:
            raise Unusable(Quarantine.FILE_INVALID)
        return Element(tag, vr, value, length)

    def _end_of_sequence(self, start: int, coding: Coding, depth: int) -> int:
        """Past the delimiter of a sequence of undefined length; encapsulated fragments are one too."""
        if depth > MAX_DEPTH:
            raise Unusable(Quarantine.TOO_LARGE)
        while True:
            item = self._at(start, coding)
            if item.tag == _SEQUENCE_END:
                return item.start
            if item.tag != _ITEM:
                raise Unusable(Quarantine.FILE_INVALID)
            if item.length != UNDEFINED:
                start = item.start + item.length
            else:
                start = self._end_of_item(item.start, coding, depth)

    def _end_of_item(self, start: int, coding: Coding, depth: int) -> int:
        while True:
            element = self._at(start, coding)
            if element.tag == _ITEM_END:
                return element.start
            if element.length != UNDEFINED:
                start = element.start + element.length
            else:
                start = self._end_of_sequence(element.start, _inside(element, coding), depth + 1)

    def _within(self, start: int, length: int) -> int:
        """Where `start` is in the window, which holds `length` bytes from there if the stream does."""
        at = start - self._base
        if at >= 0 and at + length <= len(self._window):
            return at
        self._stream.seek(start)
        self._window = self._stream.read(max(_WINDOW, length))
        self._base = start
        return 0


def _inside(element: Element, coding: Coding) -> Coding:
    """The coding of a sequence's items: that of a UN is implicit little endian (PS3.5, 6.2.2, note 2)."""
    return IMPLICIT_LITTLE if element.vr == b"UN" else coding


def has_mark(start: bytes) -> bool:
    """Whether a file begins as PS3.10, 7.1 has it: a preamble of 128 bytes and the letters DICM."""
    return start[_PREAMBLE : _PREAMBLE + 4] == b"DICM"


def meta_of(stream: BinaryIO, wanted: Container[int]) -> tuple[dict[int, bytes], int]:
    """The file meta information's `wanted` values (PS3.10, 7.1), and where the data set starts.

    Raises:
        Unusable: as `Walk.at`; FILE_INVALID where one comes twice.
    """
    meta = Walk(stream, "")
    found: dict[int, bytes] = {}
    start = _PREAMBLE + 4
    # The group is looked at first: the data set behind it may be written in another way.
    while meta.peek(start, 2) == b"\x02\x00" and (element := meta.at(start)) is not None:
        if element.tag in found:
            raise Unusable(Quarantine.FILE_INVALID)
        if element.tag in wanted:
            found[element.tag] = meta.value(element)
        start = meta.after(element)
    return found, start


def inflated(stream: BinaryIO, start: int) -> BytesIO:
    """The first `MAX_INFLATED` bytes of a deflated data set (PS3.5, A.5). Raises Unusable: FILE_INVALID."""
    stream.seek(start)
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    whole = bytearray()
    try:
        while not engine.eof and len(whole) < MAX_INFLATED and (chunk := stream.read(_WINDOW)):
            whole += engine.decompress(engine.unconsumed_tail + chunk, MAX_INFLATED - len(whole))
    except zlib.error:
        raise Unusable(Quarantine.FILE_INVALID) from None
    if not engine.eof and len(whole) < MAX_INFLATED:
        raise Unusable(Quarantine.FILE_INVALID)
    return BytesIO(bytes(whole))
