"""One stored DICOM file, opened: who it is of, what its pixels are, and each frame's stored values."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rapha.node.sources.imaging import codecs
from rapha.node.sources.imaging.codecs import DEFLATED, NATIVE, Colour, Layout
from rapha.node.sources.imaging.elements import EXPLICIT_LITTLE, Elements, head, invalid
from rapha.node.sources.imaging.fragments import Fragment, broken, frames_of
from rapha.node.sources.imaging.tags import Tag
from rapha.node.sources.imaging.values import values_of
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Unusable

MAX_FRAME_BYTES: Final = 2**27
"""Of one decoded frame: four times the largest mammogram."""
MAX_INFLATED_BYTES: Final = 2**28
"""Of a deflated file: what it may become."""

Array = NDArray[Any]
_UNDEFINED: Final = 0xFFFFFFFF
_FLOATS: Final = {Tag.FLOAT_PIXELS: (32, "f4"), Tag.DOUBLE_PIXELS: (64, "f8")}


@dataclass(frozen=True, slots=True)
class Stored:
    """A frame as stored.

    Attributes:
        samples: [rows, columns, samples]; integers by Bits Stored and Pixel Representation, or floats.
        colour: what a code stream says that three samples are, whatever Photometric Interpretation is; None
            where it says nothing.
    """

    samples: Array
    colour: Colour | None = None


class Image:
    """A PS3.10 file in memory.

    Raises:
        Unusable: FILE_INVALID, SYNTAX_UNSUPPORTED, PIXELS_MISSING, PIXELS_INVALID, or TOO_LARGE, all before
            any pixel is decoded.
    """

    def __init__(self, file: bytes) -> None:
        start = _meta_end(file)
        meta = Elements(file, 132, start, EXPLICIT_LITTLE)
        self.syntax = meta.text(Tag.TRANSFER_SYNTAX) or invalid()
        coding = codecs.coding_of(self.syntax)
        if self.syntax == DEFLATED:
            file, start = _inflated(file, start), 0
        self.elements = Elements(file, start, len(file), coding, stop=Tag.FLOAT_PIXELS)
        self._file = file
        self._tag, self._vr, self._length, self._start = self._pixel_element()
        self.photometric = self.elements.text(Tag.PHOTOMETRIC)
        self.layout = self._layout()
        self.frames = self.elements.whole(Tag.FRAMES, 1)
        self._check()

    @property
    def sop_uid(self) -> str:
        """SOP Instance UID, "" where it is missing."""
        return self.elements.text(Tag.SOP_INSTANCE)

    @property
    def patient_id(self) -> str:
        """Patient ID as the index reads it, by the same code; "" where it is missing."""
        charset = values_of(b"CS", self.elements.raw(Tag.CHARACTER_SET), "<", ())
        found = values_of(b"LO", self.elements.raw(Tag.PATIENT_ID), "<", tuple(map(str, charset)))
        return "\\".join(map(str, found))

    def stored(self, frame: int) -> Stored:
        """Frame `frame`, from 0.

        Raises:
            Unusable: CHANGED where there is no such frame (any more), PIXELS_INVALID.
        """
        if not 0 <= frame < self.frames:
            raise Unusable(Quarantine.CHANGED)
        if self.syntax not in NATIVE:
            return self._decoded(frame)
        if self._tag in _FLOATS:
            dtype = self.elements.coding.order + _FLOATS[self._tag][1]
            return Stored(self._native(frame, dtype).astype(dtype[1:], copy=False))
        if self.layout.allocated == 1:
            return Stored(self._bits(frame))
        if self.photometric == "YBR_FULL_422":
            size = self._frame_bits // 8
            return Stored(_upsampled(self._bytes(frame * size, size), self.layout))
        bits = self._native(frame, f"{self.elements.coding.order}u{self.layout.allocated // 8}")
        return Stored(self._valued(bits, self.layout.stored, self._high))

    def _pixel_element(self) -> tuple[Tag, bytes, int, int]:
        if self.elements.end >= len(self._file):
            raise Unusable(Quarantine.PIXELS_MISSING)
        tag, vr, length, start = head(self._file, self.elements.end, len(self._file), self.elements.coding)
        if tag not in (Tag.FLOAT_PIXELS, Tag.DOUBLE_PIXELS, Tag.PIXELS):
            raise Unusable(Quarantine.PIXELS_MISSING)
        return Tag(tag), vr, length, start

    def _layout(self) -> Layout:
        whole = self.elements.whole
        allocated = whole(Tag.ALLOCATED)
        stored = allocated if self._tag in _FLOATS else whole(Tag.STORED, allocated)
        self._high = stored - 1 if self._tag in _FLOATS else whole(Tag.HIGH_BIT, stored - 1)
        return Layout(
            rows=whole(Tag.ROWS),
            columns=whole(Tag.COLUMNS),
            samples=whole(Tag.SAMPLES, 1),
            allocated=allocated,
            stored=stored,
            signed=self._flag(Tag.SIGNED),
        )

    def _flag(self, tag: Tag) -> bool:
        """An attribute that is 0 or 1: another number has no meaning that could be guessed."""
        value = self.elements.whole(tag, 0)
        return value == 1 if value in (0, 1) else broken()

    def _check(self) -> None:
        """The description makes sense by itself, and agrees with the bytes that are there."""
        image = self.layout
        allocated = {_FLOATS[self._tag][0]} if self._tag in _FLOATS else {1, 8, 16, 32}
        sizes = 0 < image.rows <= 65535 and 0 < image.columns <= 65535 and image.samples in (1, 3)
        bits = image.allocated in allocated and 1 <= image.stored <= image.allocated
        if not sizes or not bits or not image.stored - 1 <= self._high < image.allocated:
            broken()
        if image.samples == 3 and (image.signed or self._tag in _FLOATS or image.stored < 8):
            broken()
        if image.allocated == 1 and image.signed:
            broken()
        if image.frame_bits > 8 * MAX_FRAME_BYTES:
            raise Unusable(Quarantine.TOO_LARGE)
        if self.frames < 1 or (self.syntax in NATIVE) != (self._length != _UNDEFINED):
            broken()
        if self.syntax not in NATIVE:
            if self._tag in _FLOATS or image.allocated == 1:
                broken()
            return
        available = min(self._length, len(self._file) - self._start)
        if available < self._length or self.frames * self._frame_bits > 8 * available:
            broken()
        if self.photometric == "YBR_FULL_422" and self.frames * image.frame_bits <= 8 * available:
            broken()  # colour at full resolution under a name that says half

    @property
    def _frame_bits(self) -> int:
        """Bits of one native frame: two samples a pixel where colour is at half resolution."""
        if self.photometric != "YBR_FULL_422":
            return self.layout.frame_bits
        if self.layout.columns % 2 or self.layout.samples != 3 or self.layout.allocated != 8:
            broken()
        return self.layout.rows * self.layout.columns * 16

    def _bytes(self, first: int, size: int) -> bytes:
        """`size` bytes of the pixel data from `first`, in the order of little-endian files.

        In a big-endian file they may lie in 16-bit words (PS3.5, 8.1.1 and annex D).
        """
        at = self._start
        if self.elements.coding.little or self._vr != b"OW":
            return self._file[at + first : at + first + size]
        low, high = first // 2 * 2, -(-(first + size) // 2) * 2
        if high > self._length:
            broken()
        words = np.frombuffer(self._file, ">u2", (high - low) // 2, at + low)
        return words.astype("<u2").tobytes()[first - low : first - low + size]

    def _native(self, frame: int, dtype: str) -> Array:
        image = self.layout
        size = self._frame_bits // 8
        if image.allocated == 8:
            array: Array = np.frombuffer(self._bytes(frame * size, size), dtype)
        else:
            count = image.rows * image.columns * image.samples
            array = np.frombuffer(self._file, dtype, count, self._start + frame * size)
        if image.samples == 3 and self._flag(Tag.PLANAR):
            return array.reshape(3, image.rows, image.columns).transpose(1, 2, 0)
        return array.reshape(image.rows, image.columns, image.samples)

    def _bits(self, frame: int) -> Array:
        """One bit a pixel, frames one after the other without padding (PS3.5, 8.1.1)."""
        count = self.layout.rows * self.layout.columns
        first, skip = divmod(frame * count, 8)
        data = np.frombuffer(self._bytes(first, -(-(skip + count) // 8)), np.uint8)
        bits = np.unpackbits(data, count=skip + count, bitorder="little")[skip:]
        return bits.reshape(self.layout.rows, self.layout.columns, 1)

    def _decoded(self, frame: int) -> Stored:
        data = b"".join(self._file[start:end] for start, end in self._fragments[frame])
        decoded = codecs.decode(self.syntax, data, self.layout)
        if self.layout.samples == 3 and decoded.precision != self.layout.stored:
            broken()  # how bright its brightest is would be a guess
        if decoded.signed:
            if not self.layout.signed:
                broken()
            return Stored(decoded.samples, decoded.colour)
        if decoded.precision > self.layout.stored:
            return Stored(self._valued(decoded.samples, self.layout.stored, self._high), decoded.colour)
        if self.layout.signed and decoded.precision < self.layout.stored:
            broken()
        values = self._valued(decoded.samples, decoded.precision, decoded.precision - 1)
        # A decoder's container fits the stream's precision; what follows counts on Bits Allocated's.
        wide = np.promote_types(values.dtype, f"{values.dtype.kind}{self.layout.allocated // 8}")
        return Stored(values.astype(wide, copy=False), decoded.colour)

    @cached_property
    def _fragments(self) -> list[list[Fragment]]:
        raw = self.elements.raw
        offsets, lengths = raw(Tag.OFFSETS), raw(Tag.OFFSET_LENGTHS)
        return frames_of(self._file, self._start, self.frames, offsets, lengths)

    def _valued(self, bits: Array, stored: int, high: int) -> Array:
        """Plain bits as values: overlay bits above High Bit are not part of them (PS3.5, 8.1.2)."""
        size = bits.dtype.itemsize
        native = bits.astype(f"{'i' if self.layout.signed else 'u'}{size}", copy=False)
        if stored == 8 * size:
            return native
        above, below = 8 * size - high - 1, high + 1 - stored
        if self.layout.signed:
            return (native << above) >> (above + below)
        return (native >> below if below else native) & ((1 << stored) - 1)


def _meta_end(file: bytes) -> int:
    """Where the file meta information is over (PS3.10, 7.1)."""
    if file[128:132] != b"DICM":
        invalid()
    at = 132
    while file[at : at + 2] == b"\x02\x00":
        _, _, length, start = head(file, at, len(file), EXPLICIT_LITTLE)
        at = start + length
    if at > len(file):
        invalid()
    return at


def _inflated(file: bytes, start: int) -> bytes:
    """The data set of a deflated file (PS3.5, A.5), no larger than it may be."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(memoryview(file)[start:], MAX_INFLATED_BYTES)
    except zlib.error as error:
        raise Unusable(Quarantine.FILE_INVALID) from error
    if not inflater.eof:
        if len(data) >= MAX_INFLATED_BYTES:
            raise Unusable(Quarantine.TOO_LARGE)
        invalid()
    return data


def _upsampled(data: bytes, image: Layout) -> Array:
    """YBR_FULL_422: two luminances, then the two colour differences they share (PS3.3, C.7.6.3.1.2)."""
    pairs = np.frombuffer(data, np.uint8).reshape(image.rows, image.columns // 2, 4)
    result = np.empty((image.rows, image.columns // 2, 2, 3), np.uint8)
    result[..., 0] = pairs[..., :2]
    result[..., 1:] = pairs[..., np.newaxis, 2:]
    return result.reshape(image.rows, image.columns, 3)
