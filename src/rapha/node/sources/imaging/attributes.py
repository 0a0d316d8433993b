"""What is known of one stored image before its pixels are looked at.

`Instance` is what the index keeps. `instance_of` makes one from any reader of attributes (a file's header,
a PACS's answer), so that both are judged alike; `encode` and `decode` carry one out of a worker, whose
answer is believed no more than the file it read.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rapha.node.sources.imaging.planes import NO_STACK, Stack, coordinates
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Unusable

MAX_FRAMES: Final = 65536
"""Of one instance. A header that promises more would fill the index with records that aren't there."""
MAX_VALUES: Final = 1024
MAX_TEXT: Final = 10240
"""Characters of one value, the longest that PS3.5 table 6.2-1 allows (LT), UT apart."""

IDENTITY: Final = (
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "PatientID",
    "SOPClassUID",
    "Modality",
)
SIZES: Final = ("NumberOfFrames", "Rows", "Columns", "SamplesPerPixel")
PLACE: Final = ("ImagePositionPatient", "ImageOrientationPatient")
STRUCTURE: Final = (*IDENTITY, *SIZES, *PLACE)
"""The attributes behind `Instance`'s own fields; every source has to ask for them."""

Scalar = str | float
Values = tuple[Scalar, ...]
Value = Scalar | Values | None
Get = Callable[[str], Values]
"""The values of an attribute by keyword: text decoded, in NFC, without padding; () where it is absent."""

_OWN_FIELDS: Final = {
    "SOPInstanceUID": "sop_uid",
    "SeriesInstanceUID": "series_uid",
    "StudyInstanceUID": "study_uid",
    "FrameOfReferenceUID": "frame_of_reference",
    "PatientID": "patient_id",
    "SOPClassUID": "sop_class",
    "Modality": "modality",
    "NumberOfFrames": "frames",
    "Rows": "rows",
    "Columns": "columns",
    "SamplesPerPixel": "samples",
    "ImagePositionPatient": "position",
    "ImageOrientationPatient": "orientation",
}
_MOST: Final = 65535
"""Rows, columns and samples: their VR is US."""
_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True, slots=True)
class Instance:
    """One stored image (SOP instance), or why it can't be used.

    Attributes:
        sop_uid, series_uid, study_uid, frame_of_reference: "" where absent or malformed.
        patient_id: as stored, in NFC and without padding (PS3.5, 6.2); "" where absent.
        syntax: transfer syntax of the stored bytes.
        frames: at least 1.
        rows, columns: pixels; 0 where absent.
        position: Image Position (Patient), mm. orientation: Image Orientation (Patient), direction cosines;
            of a multi-frame image with `places`, that of all its frames.
        values: every keyword that the index was asked for: a scalar, several, or None.
        locator: names the bytes within the source.
        places: of a multi-frame image, each frame's position along the normal, mm; else empty.
        flaw: why the description itself already rules the image out, or NONE.
    """

    sop_uid: str
    series_uid: str
    study_uid: str
    frame_of_reference: str
    patient_id: str
    sop_class: str
    syntax: str
    modality: str
    frames: int
    rows: int
    columns: int
    samples: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    values: Mapping[str, Value]
    locator: str
    places: tuple[float, ...] = ()
    flaw: Quarantine = Quarantine.NONE


def instance_of(
    get: Get,
    wanted: Sequence[str],
    *,
    syntax: str,
    locator: str,
    stack: Stack = NO_STACK,
    flaw: Quarantine = Quarantine.NONE,
) -> Instance:
    """The instance that `get` describes.

    Args:
        wanted: the keywords to keep in `values`.

    Raises:
        Unusable: TOO_LARGE past `MAX_FRAMES`, FILE_INVALID where a size is not one.
    """
    frames = _size(get, "NumberOfFrames", 1, 2**31) or 1
    if frames > MAX_FRAMES:
        raise Unusable(Quarantine.TOO_LARGE)
    if len(stack.places) != frames:
        stack = NO_STACK
    return Instance(
        sop_uid=uid(get, "SOPInstanceUID"),
        series_uid=uid(get, "SeriesInstanceUID"),
        study_uid=uid(get, "StudyInstanceUID"),
        frame_of_reference=uid(get, "FrameOfReferenceUID"),
        patient_id="\\".join(str(value) for value in get("PatientID")),
        sop_class=uid(get, "SOPClassUID"),
        syntax=syntax,
        modality=_text(get, "Modality"),
        frames=frames,
        rows=_size(get, "Rows", 0, _MOST),
        columns=_size(get, "Columns", 0, _MOST),
        samples=_size(get, "SamplesPerPixel", 1, _MOST),
        position=coordinates(get("ImagePositionPatient"), 3),
        orientation=stack.orientation or coordinates(get("ImageOrientationPatient"), 6),
        values={keyword: _compact(get(keyword)) for keyword in wanted},
        locator=locator,
        places=stack.places,
        flaw=flaw,
    )


def value_of(instance: Instance, keyword: str) -> Value:
    """The value of any attribute that the instance holds, None where it is absent.

    Precondition: `keyword` is of `STRUCTURE` or was wanted.
    """
    own = _OWN_FIELDS.get(keyword)
    if own is None:
        return instance.values[keyword]
    value = getattr(instance, own) or None
    return float(value) if isinstance(value, int) else value


def uid(get: Get, keyword: str) -> str:
    """A unique identifier, or "" where it is absent or none (PS3.5, 9.1)."""
    text = _text(get, keyword)
    return text if _is_uid(text) else ""


def _is_uid(text: str) -> bool:
    """Whether a reader of ours would give this as a UID: one, or that there is none."""
    return not text or (len(text) <= 64 and _UID.fullmatch(text) is not None)


def clean(text: str) -> str:
    """A text value as it compares: without padding (PS3.5, 6.2), in NFC."""
    text = text.strip(" \0")
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _text(get: Get, keyword: str) -> str:
    values = get(keyword)
    return str(values[0]) if len(values) == 1 else ""


def _size(get: Get, keyword: str, default: int, limit: int) -> int:
    values = get(keyword)
    if not values:
        return default
    value = values[0]
    if len(values) > 1 or isinstance(value, str) or not value.is_integer() or not 0 <= value <= limit:
        raise Unusable(Quarantine.FILE_INVALID)
    return int(value)


def _compact(values: Values) -> Value:
    if len(values) > 1:
        return values
    return values[0] if values else None


def encode(instance: Instance, wanted: Sequence[str]) -> bytes:
    """The instance as a worker's reply, without the locator, which the node knows itself."""
    values = [instance.values[keyword] for keyword in wanted]
    strings = [instance.sop_uid, instance.series_uid, instance.study_uid, instance.frame_of_reference]
    strings += [instance.patient_id, instance.sop_class, instance.syntax, instance.modality]
    numbers = [instance.frames, instance.rows, instance.columns, instance.samples, int(instance.flaw)]
    reply = [strings, numbers, instance.position, instance.orientation, values, instance.places]
    return json.dumps(reply, separators=(",", ":"), allow_nan=False).encode()


class Decoder:
    """Reads the workers' replies, keeping equal parts once: a study's images repeat most of their values."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self._wanted = tuple(wanted)
        self._shared: dict[Any, Any] = {}
        self._kept: dict[tuple[Value, ...], Mapping[str, Value]] = {}

    def decode(self, reply: bytes, locator: str) -> Instance:
        """The instance in `reply`.

        Raises:
            Unusable: DECODER_CRASHED where the reply is not one: the worker is not what it was.
        """
        try:
            strings, numbers, position, orientation, values, places = json.loads(reply)
            sop, *others = map(_checked_text, strings)
            series, study, reference, patient, sop_class, syntax, modality = map(self._once, others)
            if not all(map(_is_uid, (sop, series, study, reference, sop_class))):
                raise ValueError
            frames, rows, columns, samples, flaw = numbers
            if not all(type(number) is int for number in numbers) or not 1 <= frames <= MAX_FRAMES:
                raise ValueError
            if not all(0 <= size <= _MOST for size in (rows, columns, samples)):
                raise ValueError
            return Instance(
                sop, series, study, reference, patient, sop_class, syntax, modality,
                frames, rows, columns, samples,
                _checked_numbers(position, 3), self._once(_checked_numbers(orientation, 6)),
                self._values(values), locator,
                _checked_numbers(places, frames) or () if places else (), Quarantine(flaw),
            )  # fmt: skip
        except (ValueError, TypeError, RecursionError):
            raise Unusable(Quarantine.DECODER_CRASHED) from None

    def _once(self, value: Any) -> Any:
        return self._shared.setdefault(value, value)

    def _values(self, values: list[Any]) -> Mapping[str, Value]:
        key = tuple(map(_checked_value, values))
        if (known := self._kept.get(key)) is None:
            known = self._kept[key] = dict(zip(self._wanted, map(self._once, key), strict=True))
        return known


def _checked_text(value: Any) -> str:
    if type(value) is not str or len(value) > MAX_TEXT:
        raise ValueError
    value.encode()  # a ValueError too, for half of a surrogate pair: nobody could write it down
    return value


def _checked_value(value: Any) -> Value:
    if value is None:
        return None
    if type(value) is list and 1 < len(value) <= MAX_VALUES:
        return tuple(_checked_scalar(item) for item in value)
    return _checked_scalar(value)


def _checked_scalar(value: Any) -> Scalar:
    if type(value) is float and math.isfinite(value):
        return value
    return _checked_text(value)


def _checked_numbers(value: Any, count: int) -> tuple[float, ...] | None:
    if value is None:
        return None
    if len(value) != count or not all(type(number) is float and math.isfinite(number) for number in value):
        raise ValueError
    return tuple(value)
