"""From the stored bytes of an attribute to its values (PS3.5, 6.1 and 6.2)."""

from __future__ import annotations

import math
import struct
import warnings
from typing import Final

from rapha.node.sources.imaging.attributes import MAX_TEXT, MAX_VALUES, Values, clean
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Unusable

UNREADABLE: Final = "\ufffd"
"""Stands for text that its character set can't explain; no identifier may hold it."""

_BINARY: Final = {
    b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i", b"UV": "Q", b"SV": "q", b"FL": "f", b"FD": "d",
}  # fmt: skip
_DECIMAL: Final = frozenset((b"DS", b"IS"))
_ONE_TEXT: Final = frozenset((b"LT", b"ST", b"UT"))
_IN_CHARSET: Final = frozenset((b"LO", b"LT", b"PN", b"SH", b"ST", b"UC", b"UT"))
_PLAIN: Final = frozenset((b"AE", b"AS", b"CS", b"DA", b"DT", b"TM", b"UI"))
_NUMERIC: Final = frozenset(_BINARY) | _DECIMAL


def stored_values(vr: bytes, written: bytes, raw: bytes, order: str, charset: tuple[str, ...]) -> Values:
    """The values of an attribute whose VR in PS3.6 is `vr`; `written` is what its element says, or b"".

    Raises:
        Unusable: as `values_of`; FILE_INVALID where one is a number and the other isn't, or where readers
            differ in the order of the bytes (a UN keeps its own: PS3.5, 6.2.2).
    """
    if written == b"UN" and order == ">" and vr in _BINARY:
        raise Unusable(Quarantine.FILE_INVALID)
    vr_there = vr if written in (b"", b"UN") else written
    if (vr_there in _NUMERIC) != (vr in _NUMERIC):
        raise Unusable(Quarantine.FILE_INVALID)
    return values_of(vr_there, raw, order, charset)


def values_of(vr: bytes, raw: bytes, order: str, charset: tuple[str, ...]) -> Values:
    """The values of an attribute: texts without padding and in NFC, or numbers.

    Args:
        vr: one of those that this module reads.
        order: "<" or ">".
        charset: the defined terms of Specific Character Set.

    Raises:
        Unusable: FILE_INVALID for a VR that can't be read or a number that is none, empty before others or
            past what a float64 holds exactly; TOO_LARGE past `MAX_VALUES` or `MAX_TEXT`.
    """
    if vr in _BINARY:
        return _unpacked(_BINARY[vr], raw, order)
    if vr not in _IN_CHARSET and vr not in _PLAIN and vr not in _DECIMAL:
        raise Unusable(Quarantine.FILE_INVALID)
    text = _decoded(raw, vr, charset)
    parts = [text] if vr in _ONE_TEXT else text.split("\\")
    if len(parts) > MAX_VALUES or any(len(part) > MAX_TEXT for part in parts):
        raise Unusable(Quarantine.TOO_LARGE)
    words = [clean(part) for part in parts]
    if vr in _DECIMAL:
        while words and not words[-1]:
            words.pop()
        return tuple(map(_number, words))  # an empty one before others is none: a y must not become an x
    return tuple(words) if any(words) else ()


def _unpacked(code: str, raw: bytes, order: str) -> Values:
    count, left = divmod(len(raw), struct.calcsize(order + code))
    if left:
        raise Unusable(Quarantine.FILE_INVALID)
    if count > MAX_VALUES:
        raise Unusable(Quarantine.TOO_LARGE)
    numbers = struct.unpack(f"{order}{count}{code}", raw)
    if any(float(number) != number for number in numbers):  # NaN too; only 64 bits can be too many
        raise Unusable(Quarantine.FILE_INVALID)
    return tuple(_finite(float(number)) for number in numbers)


def _number(word: str) -> float:
    # Python's float() takes more than PS3.5 does: underscores, other scripts' digits, "nan", "inf".
    if not word.isascii() or word.strip("+-.0123456789eE"):
        raise Unusable(Quarantine.FILE_INVALID)
    try:
        return _finite(float(word))
    except ValueError:
        raise Unusable(Quarantine.FILE_INVALID) from None


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise Unusable(Quarantine.FILE_INVALID)
    return number


def _decoded(raw: bytes, vr: bytes, charset: tuple[str, ...]) -> str:
    if raw.isascii() and b"\x1b" not in raw:
        return raw.decode("ascii")
    if vr not in _IN_CHARSET:
        return UNREADABLE
    return _in_charset(raw, charset)


def _in_charset(raw: bytes, charset: tuple[str, ...]) -> str:
    from pydicom.charset import convert_encodings, decode_bytes, python_encoding
    from pydicom.valuerep import TEXT_VR_DELIMS

    if any(term not in python_encoding for term in charset):
        return UNREADABLE
    if not any(charset[:1]) and not raw.split(b"\x1b")[0].isascii():
        # Nobody said what these bytes are (PS3.3, C.12.1.1.2): a guess could miss an opt-out.
        return UNREADABLE
    if b"\x1b" in raw and not any(term.startswith("ISO 2022") for term in charset):
        return UNREADABLE  # an escape that no code extension allows would vanish, and two names be one
    with warnings.catch_warnings():
        # pydicom warns and goes on with replacement characters, or with another character set.
        warnings.simplefilter("error")
        try:
            return decode_bytes(raw, convert_encodings(list(charset) or ""), TEXT_VR_DELIMS)
        except (UserWarning, UnicodeError, LookupError):
            return UNREADABLE
