"""The DICOM JSON Model (PS3.18, F), read from a server that may mean harm.

An answer is parsed one data set at a time, and what nobody asked for (names, free text, private elements,
links to bulk data) is never looked at. No link in an answer is ever followed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rapha.node.sources.imaging.attributes import MAX_TEXT, MAX_VALUES, Values, clean
from rapha.node.sources.imaging.multipart import Malformed
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Unusable

MAX_DEPTH: Final = 64
MAX_NODES: Final = 2**22
"""Most commas and brackets of an answer: what its objects in memory may grow to."""
_MAX_DIGITS: Final = 40
_BLANK: Final = re.compile(r"[ \t\r\n]*")
_TEXTS: Final = frozenset(
    ("AE", "AS", "CS", "DA", "DT", "LO", "LT", "SH", "ST", "TM", "UC", "UI", "UR", "UT")
)
_ONE_TEXT: Final = frozenset(("LT", "ST", "UT", "UR"))
_NUMBERS: Final = frozenset(("DS", "IS", "FL", "FD", "SL", "SS", "SV", "UL", "US", "UV"))
_WHOLE: Final = frozenset(("IS", "SL", "SS", "SV", "UL", "US", "UV"))

DataSet = Mapping[str, Any]
"""One data set: attributes by tag, eight upper-case hex digits."""


def data_sets(content: bytes, keep: frozenset[str] | None = None) -> Iterator[DataSet]:
    """The data sets in an answer, one after the other, of which only the tags in `keep` stay in memory.

    Raises:
        Malformed: what is not an array of objects in strict JSON: duplicate keys, NaN, numbers of more than
            `_MAX_DIGITS` digits or beyond a double, deeper than `MAX_DEPTH`, or more than `MAX_NODES`.
    """
    if sum(map(content.count, (b",", b"{", b"["))) > MAX_NODES:
        raise Malformed("too much JSON")
    try:
        for data_set in _elements(content.decode("utf-8")):
            yield data_set if keep is None else {tag: data_set[tag] for tag in keep & data_set.keys()}
    except (RecursionError, UnicodeError):
        raise Malformed("not JSON") from None


def _elements(text: str) -> Iterator[DataSet]:
    at = _skip(text, 0)
    if text[at : at + 1] != "[":
        raise Malformed("not an array")
    at = _skip(text, at + 1)
    expected = text[at : at + 1] != "]"
    while expected:
        value, at = _one(text, at)
        yield value
        at = _skip(text, at)
        expected = text[at : at + 1] == ","
        at = _skip(text, at + 1) if expected else at
    if text[at : at + 1] != "]" or _skip(text, at + 1) != len(text):
        raise Malformed("not an array")


def _one(text: str, at: int) -> tuple[DataSet, int]:
    try:
        value, end = _DECODER.raw_decode(text, at)
    except ValueError:  # Malformed, from the hooks, among them
        raise Malformed("not strict JSON") from None
    if not isinstance(value, dict):
        raise Malformed("not a data set")
    _check_depth(value)
    return value, end


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [v for v in level if isinstance(v, dict | list)]
        if not inner:
            return
        level = [part for v in inner for part in (v.values() if isinstance(v, dict) else v)]
    raise Malformed("nested too deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Malformed("a key comes twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise Malformed("a number is too long")
    return int(digits)


def _real(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise Malformed("a number is too large")
    return number


def _constant(name: str) -> float:
    raise Malformed(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_real, parse_constant=_constant
)


def values_at(data_set: DataSet, tag: int, vr: str) -> Values:
    """The values of one attribute: texts without padding and in NFC, or numbers; () where it is absent.

    Args:
        vr: what PS3.6 gives the attribute; the answer may name another of the same sort, or UN.

    Raises:
        Unusable: FILE_INVALID where it is not an attribute, or its values are not of its VR; TOO_LARGE
            past `MAX_VALUES` or `MAX_TEXT`.
    """
    attribute = data_set.get(f"{tag:08X}")
    if attribute is None:
        return ()
    values = stored(attribute)
    written = vr_of(attribute) if vr_of(attribute) != "UN" else vr
    if len(values) > MAX_VALUES:
        raise Unusable(Quarantine.TOO_LARGE)
    if vr in _NUMBERS and written in _NUMBERS:
        last = max((n for n, value in enumerate(values, 1) if value is not None and value != ""), default=0)
        return tuple(number_of(value, written) for value in values[:last])  # a y must not become an x
    if vr in _TEXTS and written in _TEXTS:
        words = tuple(clean(_text_of(value, written)) for value in values)
        return words if any(words) else ()
    raise Unusable(Quarantine.FILE_INVALID)


def vr_of(attribute: Any) -> str:
    """An attribute's VR. Raises: Unusable, FILE_INVALID where it has none."""
    vr = attribute.get("vr") if isinstance(attribute, dict) else None
    if not isinstance(vr, str):
        raise Unusable(Quarantine.FILE_INVALID)
    return vr


def stored(attribute: Any) -> list[Any]:
    """An attribute's `Value`; [] where it has none. Raises: Unusable, FILE_INVALID."""
    values = attribute.get("Value", []) if isinstance(attribute, dict) else None
    if not isinstance(values, list):
        raise Unusable(Quarantine.FILE_INVALID)
    return values


def items_at(data_set: DataSet, tag: int) -> list[DataSet]:
    """The items of a sequence; an empty item is null (PS3.18, F.2.5). Raises: Unusable, FILE_INVALID."""
    attribute = data_set.get(f"{tag:08X}")
    if attribute is None:
        return []
    items = [item if item is not None else {} for item in stored(attribute)]
    if vr_of(attribute) != "SQ" or not all(isinstance(item, dict) for item in items):
        raise Unusable(Quarantine.FILE_INVALID)
    return items


def number_of(value: Any, vr: str) -> float:
    """A number, or one written as a string, as servers do with DS, IS, SV and UV (PS3.18, F.2.3).

    Raises:
        Unusable: FILE_INVALID.
    """
    number = _parsed(value) if isinstance(value, str) else value
    if type(number) not in (int, float) or not abs(number) < 1e300:
        raise Unusable(Quarantine.FILE_INVALID)
    if vr in _WHOLE and not float(number).is_integer():
        raise Unusable(Quarantine.FILE_INVALID)
    return float(number)


def _parsed(word: str) -> float:
    # Python's float() takes more than PS3.5 does: underscores, other scripts' digits, "nan", "inf".
    word = word.strip(" \0")
    if not word.isascii() or word.strip("+-.0123456789eE") or len(word) > _MAX_DIGITS:
        raise Unusable(Quarantine.FILE_INVALID)
    try:
        return float(word)
    except ValueError:
        raise Unusable(Quarantine.FILE_INVALID) from None


def _text_of(value: Any, vr: str) -> str:
    if value is None:
        return ""
    # A backslash separates values: within one, two readers would count differently.
    if not isinstance(value, str) or (vr not in _ONE_TEXT and "\\" in value):
        raise Unusable(Quarantine.FILE_INVALID)
    if len(value) > MAX_TEXT:
        raise Unusable(Quarantine.TOO_LARGE)
    return whole_text(value)


def whole_text(text: str) -> str:
    """`text` with U+FFFD for halves of surrogate pairs, which have no encoding: no identifier may hold it."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
