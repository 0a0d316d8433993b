"""What a PACS may be asked to find: nothing that is broad can be written down.

Each of the three kinds of search names what narrows it; there is no other way to ask.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from rapha.node.sources.imaging.dicomjson import DataSet, values_at
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Unusable
from rapha.spec.imaging import Scope
from rapha.spec.refusals import Refused

MAX_DAYS: Final = 7
"""Of one search; a longer window is walked."""
_TAGS: Final = {
    "StudyDate": (0x00080020, "DA"),
    "ModalitiesInStudy": (0x00080061, "CS"),
    "Modality": (0x00080060, "CS"),
    "PatientID": (0x00100020, "LO"),
    "StudyInstanceUID": (0x0020000D, "UI"),
    "SeriesInstanceUID": (0x0020000E, "UI"),
    "SOPInstanceUID": (0x00080018, "UI"),
}
KEPT: Final = frozenset(f"{tag:08X}" for tag, _ in _TAGS.values())
"""The tags of what searches name."""
_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)+")
_DAY: Final = re.compile(r"[0-9]{8}")
_CODE: Final = re.compile(r"[A-Z0-9_][A-Z0-9_ ]{0,15}")


def is_uid(text: str) -> bool:
    """Whether `text` is a unique identifier (PS3.5, 9.1)."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class OfStudy:
    """The images of one study. Raises `Refused` (`node.query_broad`) where it is no UID."""

    uid: str

    def __post_init__(self) -> None:
        if not is_uid(self.uid):
            raise Refused("node.query_broad", "a study is named by its UID")


@dataclass(frozen=True, slots=True)
class OfPatient:
    """The studies of one patient. Raises `Refused` (`node.query_broad`).

    An empty identifier matches every patient, `*` and `?` match any characters, and a backslash lists
    several (PS3.4, C.2.2.2), as a comma does for some servers; none has a way to be escaped.
    """

    identifier: str

    def __post_init__(self) -> None:
        text = self.identifier
        if not text.strip() or len(text) > 64 or not text.isprintable() or set(text) & set("*?\\,"):
            raise Refused("node.query_broad", "a patient is named by an identifier without wildcards")


@dataclass(frozen=True, slots=True)
class OfDays:
    """The studies with a modality, of at most `MAX_DAYS` days. Raises `Refused` (`node.query_broad`)."""

    modality: str
    first: date
    last: date

    def __post_init__(self) -> None:
        if not _CODE.fullmatch(self.modality):
            raise Refused("node.query_broad", "a modality is a code")
        if not timedelta(0) <= self.last - self.first < timedelta(days=MAX_DAYS):
            raise Refused("node.query_broad", f"a search spans one to {MAX_DAYS} days")


Narrow = OfPatient | OfDays


def searches(scope: Scope, patients: tuple[str, ...]) -> Iterator[Narrow]:
    """The searches that find a scope's studies, where it doesn't name them.

    Raises:
        Refused: `node.query_broad`; `node.dataset_invalid` for a day that there isn't.
    """
    if scope.modality is not None and scope.since is not None and scope.until is not None:
        first, end = _day(scope.since), _day(scope.until)
        for days in range(0, (end - first).days + 1, MAX_DAYS):
            day = first + timedelta(days=days)
            yield OfDays(scope.modality, day, day + min(end - day, timedelta(days=MAX_DAYS - 1)))
    yield from map(OfPatient, patients)


def tag_of(keyword: str) -> str:
    """The tag of an attribute that searches name, as the DICOM JSON Model writes it."""
    return f"{_TAGS[keyword][0]:08X}"


def text_of(data_set: DataSet, keyword: str) -> str:
    """The one text of an attribute that searches name, "" where there isn't exactly one. Raises: Unusable."""
    values = values_at(data_set, *_TAGS[keyword])
    return str(values[0]) if len(values) == 1 else ""


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise Refused("node.dataset_invalid", f"the calendar has no {text}") from None


def _stored(day: date) -> str:
    """As VR DA writes it (PS3.5, 6.2)."""
    return day.isoformat().replace("-", "")


def keys(narrow: Narrow) -> list[tuple[str, str]]:
    asked = [("includefield", "StudyDate"), ("includefield", "PatientID")]
    match narrow:
        case OfPatient(identifier):
            return [("PatientID", identifier), *asked]
        case OfDays(modality, first, last):
            days = f"{_stored(first)}-{_stored(last)}"
            return [("ModalitiesInStudy", modality), ("StudyDate", days), *asked]


def answers(data_set: DataSet, narrow: Narrow) -> bool:
    """Whether a study, or an image of it, is one that was asked for, as far as the answer tells.

    Raises:
        Unusable: FILE_INVALID where it tells something that is none.
    """
    match narrow:
        case OfPatient(identifier):
            return text_of(data_set, "PatientID") in ("", identifier)
        case OfDays(_, first, last):
            day = text_of(data_set, "StudyDate")
            if day and not _DAY.fullmatch(day):
                raise Unusable(Quarantine.FILE_INVALID)
            return not day or _stored(first) <= day <= _stored(last)


def differs_by_case(data_set: DataSet, narrow: Narrow) -> bool:
    """Whether a study is of a patient whose identifier is the one that was asked for but for its case."""
    if not isinstance(narrow, OfPatient):
        return False
    return text_of(data_set, "PatientID").casefold() == narrow.identifier.casefold()
