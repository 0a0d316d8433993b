"""What a compressed frame says of itself, read before any decoder sees it.

A code stream that declares another size than the data set is a bomb, or another image: it never reaches a
decoder.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rapha.node.sources.imaging.fragments import broken

MAX_TILES: Final = 4096
_MAX_MARKERS: Final = 4096
_ALONE: Final = frozenset({0x01, *range(0xD0, 0xD9)})
"""JPEG markers without a length: TEM, RST0 to RST7, SOI."""
_SOF: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_SOS: Final = 0xDA
_JFIF: Final = 0xE0
_ADOBE: Final = 0xEE
_UNTRANSFORMED: Final = b"\xff\xee\0\x0eAdobe\0\x64" + bytes(5)
_FILL: Final = re.compile(rb"\xff+")
"""A marker may be preceded by any number of them (ITU T.81, B.1.1.2)."""
_REMARKS: Final = frozenset({*range(0xE0, 0xF0), 0xFE})
"""Application data and comments."""


@dataclass(frozen=True, slots=True)
class Header:
    """A frame by its own account.

    Attributes:
        process: of a JPEG or JPEG-LS stream, the start-of-frame marker's second byte; else 0.
        precision: bits a sample. signed: of JPEG 2000 only; the others hold plain bits.
        ybr: of JPEG, whether Adobe's marker or else JFIF says that its three components are YCbCr.
        mixed: whether JPEG 2000's own colour transform is undone in decoding, so that RGB comes out.
    """

    process: int
    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool = False
    ybr: bool = False
    mixed: bool = False


def jpeg(data: bytes) -> Header:
    """The header of a JPEG or JPEG-LS stream (ITU T.81, B.2; T.87, C).

    Raises:
        Unusable: PIXELS_INVALID.
    """
    ybr, adobe, found = False, False, None
    for marker, start, end in _segments(data):
        if marker == _ADOBE and data[start : start + 5] == b"Adobe" and end - start >= 12:
            ybr, adobe = data[start + 11] == 1, True
        if marker == _JFIF and data[start : start + 5] == b"JFIF\0":
            ybr = ybr or not adobe
        if marker in _SOF:
            if found or end - start < 6 or end - start != 6 + 3 * data[start + 5]:
                broken()
            precision, rows, columns, samples = struct.unpack_from(">BHHB", data, start)
            found = (marker, rows, columns, samples, precision)
    if found is None:
        broken()
    return Header(*found, ybr=ybr and found[3] == 3)


def unmarked(data: bytes) -> bytes:
    """A JPEG stream without comments or application data, but for a marker that nothing was transformed.

    What a decoder takes the components for, and what it makes of them, is its own guess from JFIF, Adobe's
    marker and the components' names. With this marker it hands over what is stored.

    Precondition: `jpeg` has read it.
    """
    kept = (data[start - 4 : end] for marker, start, end in _segments(data) if marker not in _REMARKS)
    return b"".join((b"\xff\xd8", _UNTRANSFORMED, *kept))


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, and where its content starts and ends; the last is the first scan, with all that follows it."""
    if data[:2] != b"\xff\xd8":
        broken()
    at = 2
    for _ in range(_MAX_MARKERS):
        filled = _FILL.match(data, at) or broken()
        at = filled.end() - 1
        if at + 4 > len(data):
            broken()
        marker, length = struct.unpack_from(">xBH", data, at)
        if marker == _SOS:
            yield marker, at + 4, len(data)
            return
        if marker in _ALONE:
            at += 2
            continue
        end = at + 2 + length
        if length < 2 or end > len(data):
            broken()
        yield marker, at + 4, end
        at = end
    broken()


def jpeg2000(data: bytes) -> Header:
    """The header of a JPEG 2000 or HTJ2K code stream (ITU T.800, A.5).

    Raises:
        Unusable: PIXELS_INVALID.
    """
    if data[:4] != b"\xff\x4f\xff\x51" or len(data) < 42:
        broken()
    length, _, *size, samples = struct.unpack_from(">HH8IH", data, 4)
    width, height, left, top, tile_width, tile_height, tile_left, tile_top = size
    if not 1 <= samples <= 4 or length != 38 + 3 * samples or len(data) < 4 + length:
        broken()
    components = {bytes(data[at : at + 3]) for at in range(42, 42 + 3 * samples, 3)}
    if len(components) != 1 or not (tile_width and tile_height) or left >= width or top >= height:
        broken()
    depth, across, down = components.pop()
    tiles = -(-(width - tile_left) // tile_width) * -(-(height - tile_top) // tile_height)
    if (across, down) != (1, 1) or tile_left > left or tile_top > top or tiles > MAX_TILES:
        broken()
    return Header(
        0, height - top, width - left, samples, (depth & 0x7F) + 1, bool(depth & 0x80),
        mixed=_mixed(data, 4 + length),
    )  # fmt: skip


def _mixed(data: bytes, at: int) -> bool:
    """Whether the coding style default has a multiple component transform (A.6.1)."""
    for _ in range(_MAX_MARKERS):
        if at + 9 > len(data):
            break
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == 0xFF52:
            return bool(data[at + 8])
        if marker == 0xFF90 or marker < 0xFF00 or length < 2:
            break
        at += 2 + length
    return broken()


def unboxed(data: bytes) -> bytes:
    """The code stream within a JP2 file, which some archives store in its place; else `data` itself.

    Raises:
        Unusable: PIXELS_INVALID where there is none.
    """
    if data[4:8] != b"jP  ":
        return data
    at = 0
    for _ in range(_MAX_MARKERS):
        if at + 16 > len(data):
            break
        length, kind, extended = struct.unpack_from(">I4sQ", data, at)
        header, length = (16, extended) if length == 1 else (8, length or len(data) - at)
        if not header <= length <= len(data) - at:
            break
        if kind == b"jp2c":
            return data[at + header : at + length]
        at += length
    return broken()
