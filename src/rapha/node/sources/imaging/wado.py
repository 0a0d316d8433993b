"""Retrieving what was found (WADO-RS, PS3.18 10.4): headers as metadata, pixels by the frame.

One instance at a time and by its three UIDs, which are the narrowest question there is. An answer counts only
where it says that it is what was asked for.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from rapha.node.sources.imaging.assemble import Elsewhere
from rapha.node.sources.imaging.dicomjson import DataSet, data_sets, values_at
from rapha.node.sources.imaging.http import Answer, Pacs, Target
from rapha.node.sources.imaging.multipart import Malformed, Part, parts
from rapha.node.sources.imaging.qido import JSON, refusal
from rapha.node.sources.imaging.wire import Failed, Fault
from rapha.node.sources.workers.interface import Unusable

MAX_METADATA: Final = 64 * 2**20
MAX_FRAME: Final = 256 * 2**20
MAX_WHOLE: Final = 2**30
MAX_FAILURES: Final = 8
"""In a row: then it is the PACS that fails and not its images."""
_ROOM: Final = 2**20
"""For headers of parts, and for what is stored beside the pixels of one frame."""
_FRAMES: Final = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
_WHOLE: Final = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_OCTETS: Final = "application/octet-stream"
_SYNTAXES: Final = {
    _OCTETS: "1.2.840.10008.1.2.1",
    "image/jpeg": "1.2.840.10008.1.2.4.70",
    "image/jls": "1.2.840.10008.1.2.4.80",
    "image/jp2": "1.2.840.10008.1.2.4.90",
    "image/dicom-rle": "1.2.840.10008.1.2.5",
    "image/x-dicom-rle": "1.2.840.10008.1.2.5",
}
"""Of parts that don't name theirs (PS3.18, 8.7.3.3)."""
_BOXED: Final = b"\x00\x00\x00\x0cjP  "
"""Begins a JP2 file, where PS3.5 A.4.4 wants the codestream alone."""
_COUNTED: Final = frozenset((Fault.UNREACHABLE, Fault.FAILING, Fault.TOO_SLOW))
_FATAL: Final = frozenset((Fault.LOGIN, Fault.UNTRUSTED))
_NAMES: Final = (0x0020000D, 0x0020000E, 0x00080018)
"""Study, Series and SOP Instance UID."""
_NAMED: Final = frozenset(f"{tag:08X}" for tag in _NAMES)
_MARK: Final = slice(128, 132)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one image is."""

    study: str
    series: str
    sop: str

    @property
    def path(self) -> tuple[str, ...]:
        """Its resource (PS3.18, 10.1.2)."""
        return ("studies", self.study, "series", self.series, "instances", self.sop)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame's bytes in the transfer syntax that they came in."""

    syntax: str
    body: memoryview


class Breaker:
    """Tells an image that can't be had from a PACS that is gone. Safe to use from any thread."""

    def __init__(self, limit: int = MAX_FAILURES) -> None:
        self._limit, self._run = limit, 0
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        """The PACS answered."""
        with self._lock:
            self._run = 0

    def failed(self, failed: Failed) -> None:
        """One more failure in a row.

        Raises:
            Refused: `node.dataset_missing` at the limit, or at once where the login or the certificate is
                what is wrong.
        """
        with self._lock:
            self._run = self._run + 1 if failed.fault in _COUNTED else 0
            over = self._run >= self._limit
        if over or failed.fault in _FATAL:
            raise refusal(failed)


class Wado:
    """Retrieves from one PACS; safe to use from any thread.

    Every method raises `Failed`; and `Refused` (`node.dataset_missing`) once the PACS is gone as a whole.
    """

    def __init__(self, pacs: Pacs, breaker: Breaker) -> None:
        self._pacs, self._breaker = pacs, breaker

    def series_headers(self, study: str, series: str, keep: frozenset[str]) -> list[DataSet]:
        """The tags in `keep` of every image of a series, whoever they are of."""
        return self._json(Target(("studies", study, "series", series, "metadata")), keep)

    def header(self, place: Place, keep: frozenset[str]) -> DataSet:
        """The tags in `keep` of one image, which says that it is this one."""
        found = self._json(Target((*place.path, "metadata")), keep)
        if len(found) != 1 or not is_of(found[0], place):
            raise Failed(Fault.GARBLED)
        return found[0]

    def frame(self, place: Place, number: int, limit: int) -> Frame:
        """One frame, of at most `limit` bytes, from 1 as PS3.18 counts them.

        Raises:
            Elsewhere: the PACS gives no frames of this image, or not as PS3.5 stores them.
        """
        target = Target((*place.path, "frames", str(number)))
        try:
            part = _only(self._get(target, _FRAMES, min(limit + _ROOM, MAX_FRAME)))
        except Failed as failed:
            if failed.fault in (Fault.NOT_OFFERED, Fault.ABSENT, Fault.FAILING):
                raise Elsewhere from None
            raise
        syntax = part.kind.parameters.get("transfer-syntax") or _SYNTAXES.get(part.kind.name)
        if part.kind.name not in _SYNTAXES and not part.kind.name.startswith("image/"):
            raise Failed(Fault.GARBLED)
        if syntax is None or bytes(part.body[: len(_BOXED)]) == _BOXED:
            raise Elsewhere
        return Frame(syntax, part.body)

    def whole(self, place: Place, limit: int) -> bytes:
        """The stored file (PS3.10), of at most `limit` bytes; whose it is, its decoder checks."""
        answer = self._get(Target(place.path), _WHOLE, min(limit + _ROOM, MAX_WHOLE))
        if answer.kind is not None and answer.kind.name == "application/dicom":
            content = answer.content
        else:
            part = _only(answer)
            if part.kind.name != "application/dicom":
                raise Failed(Fault.GARBLED)
            content = bytes(part.body)
        if content[_MARK] != b"DICM":
            raise Failed(Fault.GARBLED)
        return content

    def _json(self, target: Target, keep: frozenset[str]) -> list[DataSet]:
        answer = self._get(target, JSON, MAX_METADATA)
        if answer.kind is None or answer.kind.name not in (JSON, "application/json"):
            raise Failed(Fault.GARBLED)
        try:
            return list(data_sets(answer.content, keep | _NAMED))
        except Malformed:
            raise Failed(Fault.GARBLED) from None

    def _get(self, target: Target, accept: str, limit: int) -> Answer:
        try:
            answer = self._pacs.get(target, accept, limit)
        except Failed as failed:
            self._breaker.failed(failed)
            raise
        self._breaker.succeeded()
        return answer


def is_of(header: DataSet, place: Place) -> bool:
    """Whether metadata say that they are of the image at `place`."""
    try:
        named = tuple(values_at(header, tag, "UI") for tag in _NAMES)
    except Unusable:
        return False
    return named == ((place.study,), (place.series,), (place.sop,))


def _only(answer: Answer) -> Part:
    try:
        if answer.kind is None:
            raise Failed(Fault.GARBLED)
        (part,) = parts(answer.content, answer.kind, 1)
    except Malformed:
        raise Failed(Fault.GARBLED) from None
    return part
