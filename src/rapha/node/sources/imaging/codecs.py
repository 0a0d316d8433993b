"""One decoder a transfer syntax, chosen here and nowhere else.

A decoder is C or C++ code that a stranger's bytes go through, so it runs only in a walled-off worker, sees
only frames whose own header agrees with the data set, and its answer is measured before it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from rapha.node.sources.imaging.codestream import Header, jpeg, jpeg2000, unboxed, unmarked
from rapha.node.sources.imaging.elements import EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE, Coding
from rapha.node.sources.imaging.fragments import broken
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Unusable

Array = NDArray[Any]
Colour = Literal["RGB", "YBR"]
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
NATIVE: Final = {
    "1.2.840.10008.1.2": IMPLICIT_LITTLE,
    "1.2.840.10008.1.2.1": EXPLICIT_LITTLE,
    DEFLATED: EXPLICIT_LITTLE,
    "1.2.840.10008.1.2.2": EXPLICIT_BIG,
}
"""Syntaxes whose pixels are not compressed one frame at a time."""
_PANIC: Final = "pyo3_runtime"
"""Where the exception lives that a panic in Rust becomes; it derives from BaseException alone."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the data set says of every frame (PS3.3, C.7.6.3)."""

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    signed: bool

    @property
    def frame_bits(self) -> int:
        """Bits of one frame that isn't compressed."""
        return self.rows * self.columns * self.samples * self.allocated


@dataclass(frozen=True, slots=True)
class Decoded:
    """A frame's samples.

    Attributes:
        samples: [rows, columns, samples], of an integer dtype.
        signed: whether the dtype carries the sign already; else the samples are plain bits.
        colour: what the code stream itself says that three samples are; None where it doesn't.
        precision: how many bits of each sample hold its value.
    """

    samples: Array
    signed: bool
    colour: Colour | None
    precision: int


def coding_of(syntax: str) -> Coding:
    """How the data elements of `syntax` are written. Raises Unusable: SYNTAX_UNSUPPORTED."""
    if syntax in NATIVE:
        return NATIVE[syntax]
    if syntax not in _DECODERS:
        raise Unusable(Quarantine.SYNTAX_UNSUPPORTED)
    return EXPLICIT_LITTLE


def decode(syntax: str, frame: bytes, layout: Layout) -> Decoded:
    """One compressed frame's samples.

    Raises:
        Unusable: SYNTAX_UNSUPPORTED or PIXELS_INVALID.
        MemoryError: there is no room for it.
    """
    decoder = _DECODERS.get(syntax)
    if decoder is None:
        raise Unusable(Quarantine.SYNTAX_UNSUPPORTED)
    try:
        return decoder(frame, layout)
    except (Unusable, MemoryError):
        raise
    except BaseException as error:  # each decoder fails in its own ways, and all of them mean this
        if not isinstance(error, Exception) and type(error).__module__ != _PANIC:
            raise
        raise Unusable(Quarantine.PIXELS_INVALID) from error


def load() -> None:
    """Import every decoder now: once a worker is walled off it can't open their files."""
    import gdcm  # noqa: F401
    import jpeg_ls  # noqa: F401
    import openjpeg  # noqa: F401
    import rle  # noqa: F401
    from PIL import JpegImagePlugin  # noqa: F401


def _agree(header: Header, layout: Layout) -> None:
    """The code stream is of the image that the data set describes, and fits what it allocates."""
    same = (header.rows, header.columns, header.samples) == (layout.rows, layout.columns, layout.samples)
    if not same or not 2 <= header.precision <= layout.allocated:
        broken()


def _shaped(buffer: bytes | bytearray | Array, dtype: str, layout: Layout, *, planes: bool = False) -> Array:
    """`buffer` as [rows, columns, samples], exactly."""
    array: Array = np.frombuffer(buffer, dtype=dtype)
    rows, columns, samples = layout.rows, layout.columns, layout.samples
    if array.size != rows * columns * samples:
        broken()
    if planes:
        return array.reshape(samples, rows, columns).transpose(1, 2, 0)
    return array.reshape(rows, columns, samples)


def _rle(frame: bytes, layout: Layout) -> Decoded:
    """PS3.5, annex G: byte planes, most significant first, after a header of 16 numbers."""
    from rle.rle import decode_frame

    segments, *offsets = struct.unpack_from("<16I", frame)
    used = [*offsets[:segments], len(frame)] if segments <= 15 else broken()
    if segments * 8 != layout.samples * layout.allocated or offsets[0] != 64:
        broken()
    if any(a >= b for a, b in pairwise(used)):
        broken()
    buffer = decode_frame(frame, layout.rows * layout.columns, layout.allocated, "<")
    samples = _shaped(buffer, f"<u{layout.allocated // 8}", layout, planes=True)
    return Decoded(samples, signed=False, colour=None, precision=layout.stored)


def _jpeg_by_process(*processes: int) -> Callable[[bytes, Layout], Decoded]:
    """Huffman-coded JPEG of the given processes (start-of-frame markers)."""

    def decode_jpeg(frame: bytes, layout: Layout) -> Decoded:
        header = jpeg(frame)
        _agree(header, layout)
        if header.process not in processes:
            broken()
        if header.process == 0xC3 or header.precision > 8:
            return _gdcm(unmarked(frame), layout, header)
        return _pillow(unmarked(frame), layout, header)

    return decode_jpeg


def _pillow(frame: bytes, layout: Layout, header: Header) -> Decoded:
    """8 bits, sequential: libjpeg-turbo."""
    from PIL.JpegImagePlugin import JpegImageFile

    with JpegImageFile(BytesIO(frame)) as image:
        buffer = image.tobytes()
    samples = _shaped(buffer, "u1", layout)
    return Decoded(samples, signed=False, colour="YBR" if header.ybr else None, precision=8)


def _gdcm(frame: bytes, layout: Layout, header: Header) -> Decoded:
    """12 bits and lossless: GDCM's builds of the IJG library, which agree with dcmtk's to the bit."""
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((layout.columns, layout.rows, 1))
    image.SetDataElement(element)
    kind = (
        gdcm.PhotometricInterpretation.RGB
        if layout.samples == 3
        else gdcm.PhotometricInterpretation.MONOCHROME2
    )
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    if layout.samples == 3:
        image.SetPlanarConfiguration(0)
    lossless = gdcm.TransferSyntax.JPEGLosslessProcess14
    extended = gdcm.TransferSyntax.JPEGExtendedProcess2_4
    image.SetTransferSyntax(gdcm.TransferSyntax(lossless if header.process == 0xC3 else extended))
    container = 8 if header.precision <= 8 else 16
    image.SetPixelFormat(
        gdcm.PixelFormat(layout.samples, container, header.precision, header.precision - 1, 0)
    )
    text = image.GetBuffer()
    if text is None:
        broken()
    # The binding hands bytes over as text.
    samples = _shaped(text.encode("utf-8", "surrogateescape"), f"<u{container // 8}", layout)
    return Decoded(samples, signed=False, colour=None, precision=header.precision)


def _jpeg_ls(frame: bytes, layout: Layout) -> Decoded:
    """CharLS, lossless and near-lossless (ITU T.87)."""
    from jpeg_ls import decode_pixel_data

    header = jpeg(frame)
    _agree(header, layout)
    if header.process != 0xF7:
        broken()
    buffer, info = decode_pixel_data(frame)
    planes = info["components"] > 1 and info["interleave_mode"] == 0
    samples = _shaped(buffer, "<u1" if header.precision <= 8 else "<u2", layout, planes=planes)
    return Decoded(samples, signed=False, colour=None, precision=header.precision)


def _jpeg_2000(frame: bytes, layout: Layout) -> Decoded:
    """OpenJPEG, JPEG 2000 and HTJ2K (ITU T.800, T.814)."""
    from openjpeg.utils import decode_pixel_data

    frame = unboxed(frame)
    header = jpeg2000(frame)
    _agree(header, layout)
    width = next(size for size in (1, 2, 4) if header.precision <= 8 * size)
    buffer = decode_pixel_data(frame, version=2)
    samples = _shaped(buffer, f"<{'i' if header.signed else 'u'}{width}", layout)
    return Decoded(
        samples, signed=header.signed, colour="RGB" if header.mixed else None, precision=header.precision
    )


_DECODERS: Final[dict[str, Callable[[bytes, Layout], Decoded]]] = {
    "1.2.840.10008.1.2.5": _rle,
    "1.2.840.10008.1.2.4.50": _jpeg_by_process(0xC0, 0xC1),
    "1.2.840.10008.1.2.4.51": _jpeg_by_process(0xC0, 0xC1),
    "1.2.840.10008.1.2.4.57": _jpeg_by_process(0xC3),
    "1.2.840.10008.1.2.4.70": _jpeg_by_process(0xC3),
    "1.2.840.10008.1.2.4.80": _jpeg_ls,
    "1.2.840.10008.1.2.4.81": _jpeg_ls,
    "1.2.840.10008.1.2.4.90": _jpeg_2000,
    "1.2.840.10008.1.2.4.91": _jpeg_2000,
    "1.2.840.10008.1.2.4.201": _jpeg_2000,
    "1.2.840.10008.1.2.4.202": _jpeg_2000,
    "1.2.840.10008.1.2.4.203": _jpeg_2000,
}
SYNTAXES: Final = frozenset({*NATIVE, *_DECODERS})
"""Every transfer syntax that can be decoded."""
