"""A bounded reader of DICOM data elements (PS3.5, 7): only what decoding needs, nothing else is touched.

A header reader in this place, and not a general library's: it visits each element once, skips by length,
holds no more than a table of positions, and has a limit on depth and number. Nothing it does depends on
what else is installed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final, NoReturn

from rapha.node.sources.imaging.tags import VR_OF, Tag
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Unusable

MAX_ELEMENTS: Final = 2**20
MAX_DEPTH: Final = 32
MAX_ITEMS: Final = 2**20

_UNDEFINED: Final = 0xFFFFFFFF
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_LONG: Final = frozenset({
    b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV",
})  # fmt: skip
_SHORT: Final = frozenset({
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL",
    b"SS", b"ST", b"TM", b"UI", b"UL", b"US",
})  # fmt: skip
_BINARY: Final = {b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i", b"FL": "f", b"FD": "d"}
_DECIMAL: Final = re.compile(rb" *[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})? *")


def invalid() -> NoReturn:
    """Raises Unusable: FILE_INVALID."""
    raise Unusable(Quarantine.FILE_INVALID)


@dataclass(frozen=True, slots=True)
class Coding:
    """How data elements are written: a transfer syntax's part that is about them (PS3.5, A)."""

    explicit: bool
    little: bool

    @property
    def order(self) -> str:
        """The byte order, as `struct` and numpy write it."""
        return "<" if self.little else ">"


EXPLICIT_LITTLE: Final = Coding(explicit=True, little=True)
IMPLICIT_LITTLE: Final = Coding(explicit=False, little=True)
EXPLICIT_BIG: Final = Coding(explicit=True, little=False)
_HEADS: Final = {
    EXPLICIT_LITTLE: (Struct("<HH2sH"), Struct("<I")),
    EXPLICIT_BIG: (Struct(">HH2sH"), Struct(">I")),
    IMPLICIT_LITTLE: (Struct("<HHI"), Struct("<I")),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where an element's value lies: `length` is None where it is undefined."""

    vr: bytes
    start: int
    length: int | None


def head(data: bytes, at: int, end: int, coding: Coding) -> tuple[int, bytes, int, int]:
    """Tag, VR, length and start of the value of the element at `at`; the value itself may be cut off.

    Raises:
        Unusable: FILE_INVALID where there is no whole header before `end`, or a VR that PS3.5 doesn't have.
    """
    if end - at < 8:
        invalid()
    short, long = _HEADS[coding]
    if not coding.explicit:
        group, element, length = short.unpack_from(data, at)
        tag = group << 16 | element
        return tag, VR_OF.get(tag, b""), length, at + 8
    group, element, vr, length = short.unpack_from(data, at)
    if group == 0xFFFE:  # items and delimiters have no VR (PS3.5, 7.5)
        return group << 16 | element, b"", long.unpack_from(data, at + 4)[0], at + 8
    if vr in _SHORT:
        return group << 16 | element, vr, length, at + 8
    if vr not in _LONG or end - at < 12:
        invalid()
    return group << 16 | element, vr, long.unpack_from(data, at + 8)[0], at + 12


class Elements:
    """The data set in `data[start:end]`, up to the first element whose tag is `stop` or above.

    Raises:
        Unusable: FILE_INVALID where elements overrun their container, come twice, or nest too deep.
    """

    def __init__(self, data: bytes, start: int, end: int, coding: Coding, stop: int = _ITEM_END) -> None:
        self.data = data
        self.coding = coding
        self._places: dict[int, Place] = {}
        self._item_ranges: dict[int, list[tuple[int, int]]] = {}
        self.end = self._walk(start, end, stop)

    def _walk(self, at: int, end: int, stop: int) -> int:
        data, coding, places = self.data, self.coding, self._places
        for _ in range(MAX_ELEMENTS):
            if at == end:
                return at
            tag, vr, length, start = head(data, at, end, coding)
            if tag >= stop:
                return at
            if length == _UNDEFINED:
                at = _after_undefined(data, start, end, _inside(vr, coding))
            elif length > end - start:
                invalid()
            else:
                at = start + length
            if tag in VR_OF:
                if tag in places:
                    # Readers differ in which of two they take, so it could be one image to the index
                    # and another here.
                    invalid()
                places[tag] = Place(vr, start, None if length == _UNDEFINED else length)
        invalid()

    def __contains__(self, tag: Tag) -> bool:
        place = self._places.get(tag)
        return place is not None and place.length != 0

    def raw(self, tag: Tag) -> bytes:
        """The bytes of the value, b"" where there is none."""
        place = self._places.get(tag)
        if place is None:
            return b""
        if place.length is None:
            invalid()
        return self.data[place.start : place.start + place.length]

    def text(self, tag: Tag) -> str:
        """The value as ASCII text without padding, "" where there is none.

        Raises:
            Unusable: FILE_INVALID where it isn't ASCII.
        """
        raw = self.raw(tag)
        if not raw.isascii():
            invalid()
        return raw.decode("ascii").strip(" \0")

    def numbers(self, tag: Tag) -> tuple[float, ...]:
        """All values as numbers, () where there are none.

        Raises:
            Unusable: FILE_INVALID where they aren't finite numbers of the element's VR.
        """
        raw = self.raw(tag)
        if not raw:
            return ()
        vr = self._places[tag].vr
        if kind := _BINARY.get(vr if vr != b"UN" else VR_OF[tag]):
            item = Struct(self.coding.order + kind)
            if len(raw) % item.size:
                invalid()
            values = tuple(float(value) for (value,) in item.iter_unpack(raw))
        elif raw := raw.strip(b" \0"):
            values = tuple(_decimal(part) for part in raw.split(b"\\"))
        else:
            return ()
        if not all(abs(value) < 1e300 for value in values):
            invalid()
        return values

    def whole(self, tag: Tag, default: int | None = None) -> int:
        """The one value as a whole number, or `default` where there is none.

        Raises:
            Unusable: FILE_INVALID where it isn't one whole number, or is missing without a default.
        """
        values = self.numbers(tag)
        if not values and default is not None:
            return default
        if len(values) != 1 or not values[0].is_integer():
            invalid()
        return int(values[0])

    def items(self, tag: Tag) -> int:
        """How many items a sequence has, 0 where there is none."""
        return len(self._ranges(tag))

    def item(self, tag: Tag, index: int = 0) -> Elements:
        """One item of a sequence. Precondition: `index` is below `items(tag)`."""
        start, end = self._ranges(tag)[index]
        return Elements(self.data, start, end, _inside(self._places[tag].vr, self.coding))

    def _ranges(self, tag: Tag) -> Sequence[tuple[int, int]]:
        place = self._places.get(tag)
        if place is None:
            return ()
        if tag not in self._item_ranges:
            end = len(self.data) if place.length is None else place.start + place.length
            self._item_ranges[tag] = _items(self.data, place, end, _inside(place.vr, self.coding))
        return self._item_ranges[tag]


def _inside(vr: bytes, coding: Coding) -> Coding:
    """The coding of a sequence's items: that of a UN is implicit little endian (PS3.5, 6.2.2, note 2)."""
    return IMPLICIT_LITTLE if vr == b"UN" else coding


def _decimal(part: bytes) -> float:
    if not _DECIMAL.fullmatch(part):
        invalid()
    return float(part)


def _items(data: bytes, place: Place, end: int, coding: Coding) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    at = place.start
    while at < end:
        tag, _, length, start = head(data, at, end, coding)
        if tag == _SEQUENCE_END and place.length is None:
            return found
        if tag != _ITEM or len(found) >= MAX_ITEMS:
            invalid()
        if length == _UNDEFINED:
            at = _after_undefined(data, start, end, coding, item=True)
            found.append((start, at - 8))
        elif length > end - start:
            invalid()
        else:
            at = start + length
            found.append((start, at))
    if place.length is None:
        invalid()
    return found


def _after_undefined(data: bytes, at: int, end: int, coding: Coding, *, item: bool = False) -> int:
    """Where the sequence (or item) of undefined length whose content starts at `at` is over.

    Kept on a list and not by recursion, so that nesting costs no stack.
    """
    open_: list[tuple[bool, Coding]] = [(item, coding)]
    for _ in range(MAX_ELEMENTS):
        in_item, coding = open_[-1]
        tag, vr, length, start = head(data, at, end, coding)
        at = start
        if tag == (_ITEM_END if in_item else _SEQUENCE_END):
            open_.pop()
            if not open_:
                return at
        elif in_item == (tag == _ITEM) or length not in (_UNDEFINED, min(length, end - start)):
            invalid()
        elif length != _UNDEFINED:
            at += length
        elif len(open_) >= MAX_DEPTH:
            invalid()
        else:
            open_.append((not in_item, coding if not in_item else _inside(vr, coding)))
    invalid()
