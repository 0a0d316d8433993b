"""Read one file's header in a worker: who, what and how large, and never a pixel.

Numbered as the work does it:
  1. the mark of PS3.10; what is no DICOM file, or a directory of them (DICOMDIR), is no record
  2. the transfer syntax, from the file meta information
  3. the wanted attributes of the data set, up to its pixels; an attribute that is there twice has no
     value that two readers would agree on
  4. whether the pixels that the header promises are there at all
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO, Final

from rapha.node.sources.imaging.attributes import (
    Instance,
    Values,
    clean,
    encode,
    instance_of,
)
from rapha.node.sources.imaging.frames import stack_of
from rapha.node.sources.imaging.planes import NO_STACK
from rapha.node.sources.imaging.values import stored_values
from rapha.node.sources.imaging.walk import (
    BIG_ENDIAN,
    DEFLATED,
    IMPLICIT,
    UNDEFINED,
    Element,
    Walk,
    has_mark,
    inflated,
    meta_of,
)
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Unusable, Work

_SYNTAX_TAG, _CLASS_TAG = 0x00020010, 0x00020002
_CHARSET_TAG, _BITS_TAG = 0x00080005, 0x00280100
_PIXELS: Final = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_DIRECTORY: Final = "1.2.840.10008.1.3.10"
_NATIVE: Final = frozenset((IMPLICIT, BIG_ENDIAN, "1.2.840.10008.1.2.1"))
_FRAGMENT_BYTES: Final = 8
"""The least that a frame takes in encapsulated pixels: the header of its fragment (PS3.5, A.4)."""


class Aside(StrEnum):
    """What is in a tree and is no record."""

    DIRECTORY = "dicomdir"
    OTHER = "not-dicom"


ASIDE: Final = {one.encode(): one for one in Aside}
"""A worker's reply to what is no record."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute to read: its keyword, tag, and VR in PS3.6."""

    keyword: str
    tag: int
    vr: str


@dataclass(frozen=True, slots=True)
class Setup:
    """What to read of every file. `places`: also where each frame of a multi-frame image is."""

    attributes: tuple[Attribute, ...]
    places: bool

    @property
    def wanted(self) -> tuple[str, ...]:
        """The keywords that go into `Instance.values`."""
        return tuple(attribute.keyword for attribute in self.attributes)

    def encode(self) -> bytes:
        """For `make`."""
        attributes = [[one.keyword, one.tag, one.vr] for one in self.attributes]
        return json.dumps([attributes, self.places]).encode()


OWN: Final = (
    Attribute("SOPClassUID", 0x00080016, "UI"),
    Attribute("SOPInstanceUID", 0x00080018, "UI"),
    Attribute("Modality", 0x00080060, "CS"),
    Attribute("PatientID", 0x00100020, "LO"),
    Attribute("StudyInstanceUID", 0x0020000D, "UI"),
    Attribute("SeriesInstanceUID", 0x0020000E, "UI"),
    Attribute("ImagePositionPatient", 0x00200032, "DS"),
    Attribute("ImageOrientationPatient", 0x00200037, "DS"),
    Attribute("FrameOfReferenceUID", 0x00200052, "UI"),
    Attribute("SamplesPerPixel", 0x00280002, "US"),
    Attribute("NumberOfFrames", 0x00280008, "IS"),
    Attribute("Rows", 0x00280010, "US"),
    Attribute("Columns", 0x00280011, "US"),
)
"""`STRUCTURE`, with tags and VRs written out: a worker starts without pydicom's dictionary."""
_SHARED_GROUPS, _FRAME_GROUPS = 0x52009229, 0x52009230


def make(setup: bytes) -> Work:
    """The work of one index: `Setup.encode` in, a function from one file to `attributes.encode` out.

    The reply to a file that is no record is one of `ASIDE`.
    """
    attributes, places = json.loads(setup)
    order = Setup(tuple(Attribute(*one) for one in attributes), bool(places))
    reader = _Reader(order)

    def work(args: bytes, stored: Sequence[BinaryIO], out: memoryview) -> bytes:
        (stream,) = stored
        answer = reader.read(stream)
        if isinstance(answer, Aside):
            return answer.encode()
        return encode(answer, order.wanted)

    return work


class _Reader:
    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        by_tag = {one.tag: one for one in (*OWN, *setup.attributes)}
        self._by_tag = by_tag
        self._tag_of = {one.keyword: one.tag for one in by_tag.values()}
        self._wanted = frozenset(by_tag) | {_CHARSET_TAG, _BITS_TAG, _SHARED_GROUPS, _FRAME_GROUPS}

    def read(self, stream: BinaryIO) -> Instance | Aside:
        """Steps 1 to 4. Raises: Unusable."""
        # 1. the mark
        head = stream.read(132)
        if not has_mark(head):
            return _without_mark(head)
        # 2. the transfer syntax
        meta, start = meta_of(stream, (_SYNTAX_TAG, _CLASS_TAG))
        syntax = _plain(meta.get(_SYNTAX_TAG, b""))
        if _plain(meta.get(_CLASS_TAG, b"")) == _DIRECTORY:
            return Aside.DIRECTORY
        if not syntax:
            raise Unusable(Quarantine.FILE_INVALID)
        # 3. the attributes
        if syntax == DEFLATED:
            walk = Walk(inflated(stream, start), syntax)
            start = 0
        else:
            walk = Walk(stream, syntax)
        found, pixels = walk.scan(start, self._wanted, _PIXELS)
        header = _Header(walk, found, self._by_tag, self._tag_of)
        # 4. the pixels
        flaw = _judge_pixels(header, pixels, syntax)
        groups = (found.get(_SHARED_GROUPS), found.get(_FRAME_GROUPS))
        return instance_of(
            header.get,
            self._setup.wanted,
            syntax=syntax,
            locator="",
            stack=stack_of(walk, *groups) if self._setup.places else NO_STACK,
            flaw=flaw,
        )


class _Header:
    """Reads the values of the elements that were found."""

    def __init__(
        self,
        walk: Walk,
        found: dict[int, Element],
        by_tag: dict[int, Attribute],
        tag_of: dict[str, int],
    ) -> None:
        self.walk = walk
        self._found = found
        self._by_tag = by_tag
        self._tag_of = tag_of
        charset = self._values(_CHARSET_TAG, b"CS", ()) if _CHARSET_TAG in found else ()
        self._charset = tuple(str(term) for term in charset)

    def get(self, keyword: str) -> Values:
        """As `attributes.Get`."""
        tag = self._tag_of[keyword]
        if tag not in self._found:
            return ()
        return self._values(tag, self._by_tag[tag].vr.encode(), self._charset)

    def bits(self) -> int:
        """Bits Allocated, 0 where it is absent."""
        if _BITS_TAG not in self._found:
            return 0
        values = self._values(_BITS_TAG, b"US", ())
        return int(values[0]) if len(values) == 1 else 0

    def _values(self, tag: int, vr: bytes, charset: tuple[str, ...]) -> Values:
        element = self._found[tag]
        return stored_values(vr, element.vr, self.walk.value(element), self.walk.coding.order, charset)


def _without_mark(head: bytes) -> Aside:
    """Tell another kind of file from a DICOM file that is cut off or has lost its preamble.

    Raises:
        Unusable: FILE_INVALID where it begins as an empty file, an empty preamble or a data set does.
    """
    if not head.strip(b"\0") or head[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        raise Unusable(Quarantine.FILE_INVALID)
    return Aside.OTHER


def _judge_pixels(header: _Header, pixels: Element | None, syntax: str) -> Quarantine:
    if pixels is None:
        return Quarantine.PIXELS_MISSING
    if syntax == DEFLATED:  # sizes are known once it is inflated, which is the decoder's work
        return Quarantine.NONE
    frames, rows, columns, samples = (
        next(iter(header.get(keyword)), 1.0)
        for keyword in ("NumberOfFrames", "Rows", "Columns", "SamplesPerPixel")
    )
    room = header.walk.size - pixels.start
    if syntax not in _NATIVE:
        promised = float(frames) * _FRAGMENT_BYTES
    else:
        # Native colour may be subsampled (YBR_FULL_422); what is less than that is not there.
        shared = 1.5 if samples == 3 else float(samples)
        promised = float(frames) * float(rows) * float(columns) * shared * header.bits() / 8
        if pixels.length == UNDEFINED:
            return Quarantine.PIXELS_INVALID
        room = min(room, pixels.length)
    return Quarantine.PIXELS_INVALID if promised > room else Quarantine.NONE


def _plain(raw: bytes) -> str:
    return clean(raw.decode("ascii", "replace"))
