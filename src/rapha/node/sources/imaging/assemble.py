"""From an answer's metadata and a frame to a PS3.10 file in memory, for the same decoder as a file's.

Only the attributes that decoding needs are written (`tags.VR_OF`), at every depth: whatever else a PACS
sends about a patient ends here.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping
from typing import Any, Final

from rapha.node.sources.imaging.dicomjson import DataSet, number_of, stored, values_at, vr_of, whole_text
from rapha.node.sources.imaging.tags import VR_OF, Tag
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Unusable

MAX_DEPTH: Final = 8
"""Sequences within sequences; functional groups have two."""
_NATIVE: Final = "1.2.840.10008.1.2.1"
_NATIVE_TOO: Final = "1.2.840.10008.1.2"
"""Implicit Little Endian: its pixels are written alike (PS3.5, A.1)."""
_ENCAPSULATED: Final = "1.2.840.10008.1.2.4."
_RLE: Final = "1.2.840.10008.1.2.5"
_PACK: Final = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}
_TEXTS: Final = frozenset(("CS", "LO", "UI", "SH", "DA", "TM", "AS"))
_LONG: Final = frozenset(("OB", "OD", "OF", "OV", "OW", "SQ"))
_PIXELS: Final = frozenset(
    (Tag.OFFSETS, Tag.OFFSET_LENGTHS, Tag.FLOAT_PIXELS, Tag.DOUBLE_PIXELS, Tag.PIXELS, Tag.TRANSFER_SYNTAX)
)
_AVAILABLE: Final = 0x00083002  # Available Transfer Syntax UID: how the PACS has it stored
NEEDED: Final = frozenset(f"{tag:08X}" for tag in (*VR_OF, _AVAILABLE))
"""The tags that `assembled` reads."""


class Elsewhere(Exception):  # noqa: N818  a fork in the road
    """The metadata only link to a value that decoding needs: the whole instance has to be fetched."""


def native(syntax: str) -> bool:
    """Whether pixels in this transfer syntax are plain little endian."""
    return syntax in (_NATIVE, _NATIVE_TOO)


def assembled(header: DataSet, frame: memoryview, syntax: str, only: int | None) -> bytes:
    """A PS3.10 file in Explicit VR Little Endian, or encapsulated, that holds one frame.

    Args:
        header: the instance's metadata.
        frame: the frame's bytes in `syntax`.
        only: which frame it is of a multi-frame image, from 0; None where it is the only one. Of the
            groups of each frame (PS3.3, C.7.6.16) this one's are kept.

    Raises:
        Elsewhere: a value is not in the metadata, or frames of this syntax can't be had by themselves.
        Unusable: FILE_INVALID where the metadata are not what PS3.18 F describes.
    """
    known = native(syntax) or syntax.startswith(_ENCAPSULATED) or syntax == _RLE
    if not known or not _whole_bytes(header) or not _in_order(header, syntax):
        raise Elsewhere
    # JSON is UTF-8 whatever the stored file was (PS3.18, F.2.1).
    kept = {**header, f"{Tag.CHARACTER_SET:08X}": {"vr": "CS", "Value": ["ISO_IR 192"]}}
    if only is not None:
        kept[f"{Tag.FRAMES:08X}"] = {"vr": "IS", "Value": [1]}
        groups = stored(kept.get(f"{Tag.FRAME_GROUPS:08X}", {}))
        if groups:
            if only >= len(groups):
                raise Unusable(Quarantine.FILE_INVALID)
            kept[f"{Tag.FRAME_GROUPS:08X}"] = {"vr": "SQ", "Value": [groups[only]]}
    written = _NATIVE if native(syntax) else syntax
    meta = _element(Tag.TRANSFER_SYNTAX, "UI", written.encode())
    head = b"\0" * 128 + b"DICM" + _element(0x00020000, "UL", struct.pack("<I", len(meta))) + meta
    return b"".join((head, _encoded(kept, 0), _pixels(frame, native(syntax))))


def _whole_bytes(header: DataSet) -> bool:
    """Whether pixels are integers of whole bytes: of others, no two servers cut frames alike."""
    floats = any(f"{tag:08X}" in header for tag in (Tag.FLOAT_PIXELS, Tag.DOUBLE_PIXELS))
    return not floats and values_at(header, Tag.ALLOCATED, "US") in ((8.0,), (16.0,), (32.0,))


def _in_order(header: DataSet, syntax: str) -> bool:
    """Whether the metadata tell in what order a frame's colours are.

    A server that unpacks compressed frames may convert colours and interleave them, while its metadata go on
    to say how they are stored.
    """
    stored_in = values_at(header, _AVAILABLE, "UI")
    if not native(syntax) or (len(stored_in) == 1 and native(str(stored_in[0]))):
        return True
    planar, photometric = values_at(header, Tag.PLANAR, "US"), values_at(header, Tag.PHOTOMETRIC, "CS")
    one = values_at(header, Tag.SAMPLES, "US") in ((), (1.0,))
    return one or (planar in ((), (0.0,)) and photometric == ("RGB",))


def _pixels(frame: memoryview, plain: bool) -> bytes:
    even = bytes(frame) + b"\0" * (len(frame) % 2)
    if plain:
        return _element(Tag.PIXELS, "OW", even)
    # One frame in one fragment after an empty offset table (PS3.5, A.4).
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0), struct.pack("<HHI", 0xFFFE, 0xE000, len(even)), even
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF) + b"".join(item) + end


def _encoded(data_set: DataSet, depth: int) -> bytes:
    if depth > MAX_DEPTH:
        raise Unusable(Quarantine.FILE_INVALID)
    found = []
    for tag in sorted(VR_OF.keys() - _PIXELS):
        attribute = data_set.get(f"{tag:08X}")
        if attribute is None:
            continue
        vr = vr_of(attribute)
        if "BulkDataURI" in attribute:
            raise Elsewhere
        if vr == "UN" and "Value" in attribute:
            vr = VR_OF[tag].decode()
        if (vr == "SQ") != (VR_OF[tag] == b"SQ"):
            raise Unusable(Quarantine.FILE_INVALID)
        value = _sequence(attribute, depth) if vr == "SQ" else _value(attribute, vr)
        found.append(_element(tag, vr, value))
    return b"".join(found)


def _sequence(attribute: Any, depth: int) -> bytes:
    items = []
    for item in stored(attribute):
        if item is not None and not isinstance(item, Mapping):
            raise Unusable(Quarantine.FILE_INVALID)
        content = _encoded(item or {}, depth + 1)
        items.append(struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content)
    return b"".join(items)


def _value(attribute: Mapping[str, Any], vr: str) -> bytes:
    if vr in ("OB", "OW", "UN"):
        if "Value" in attribute:
            raise Unusable(Quarantine.FILE_INVALID)
        return _inline(attribute.get("InlineBinary", ""))
    values = stored(attribute)
    if vr in _PACK:
        return b"".join(_packed(value, vr) for value in values)
    if vr in ("DS", "IS"):
        return b"\\".join(_decimal(value, vr) for value in values)
    if vr in _TEXTS:
        return b"\\".join(_text(value) for value in values)
    raise Unusable(Quarantine.FILE_INVALID)


def _inline(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise Unusable(Quarantine.FILE_INVALID) from None


def _packed(value: Any, vr: str) -> bytes:
    number = number_of(value, vr)
    try:
        return struct.pack("<" + _PACK[vr], number if vr in ("FL", "FD") else int(number))
    except (struct.error, OverflowError):
        raise Unusable(Quarantine.FILE_INVALID) from None


def _decimal(value: Any, vr: str) -> bytes:
    if value is None:
        return b""
    number = number_of(value, vr)
    # The shortest text that means this very number; at times longer than the 16 characters of PS3.5, 6.2.
    return (str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)).encode()


def _text(value: Any) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, str) or "\\" in value:
        raise Unusable(Quarantine.FILE_INVALID)
    return whole_text(value).encode()


def _element(tag: int, vr: str, value: bytes) -> bytes:
    value += (b"\0" if vr in ("UI", "OB", "OW", "UN") else b" ") * (len(value) % 2)
    group, element = divmod(tag, 0x10000)
    if vr in _LONG or vr == "UN":
        return struct.pack("<HH2sHI", group, element, vr.encode(), 0, len(value)) + value
    if len(value) > 0xFFFF:
        raise Unusable(Quarantine.TOO_LARGE)
    return struct.pack("<HH2sH", group, element, vr.encode(), len(value)) + value
