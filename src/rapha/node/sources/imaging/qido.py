"""Finding what a dataset is made of (QIDO-RS, PS3.18 10.6): only by searches that can't be broad.

A search takes a `Narrow`, and each of its three kinds names what narrows it; there is no other way to ask.
Every answer is held against what was asked, since a server that ignores a key answers with the archive.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from rapha.node.sources.imaging.dicomjson import DataSet, data_sets, values_at
from rapha.node.sources.imaging.http import Pacs, Target
from rapha.node.sources.imaging.multipart import Malformed
from rapha.node.sources.imaging.wire import Failed, Fault
from rapha.node.sources.workers.interface import Unusable
from rapha.spec.imaging import Scope
from rapha.spec.refusals import Refused

JSON: Final = "application/dicom+json"
PAGE: Final = 500
MAX_PAGES: Final = 2048
MAX_FOUND: Final = 100_000
"""Studies of one search, or images of one study."""
MAX_PAGE_BYTES: Final = 32 * 2**20
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
_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)+")
_CODE: Final = re.compile(r"[A-Z0-9_][A-Z0-9_ ]{0,15}")
_UNREACHED: Final = frozenset((
    Fault.UNREACHABLE, Fault.UNTRUSTED, Fault.LOGIN, Fault.FORBIDDEN, Fault.FAILING, Fault.TOO_SLOW,
))  # fmt: skip


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
    several (PS3.4, C.2.2.2); none has a way to be escaped.
    """

    identifier: str

    def __post_init__(self) -> None:
        text = self.identifier
        if not text.strip() or len(text) > 64 or not text.isprintable() or set(text) & set("*?\\"):
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


@dataclass(frozen=True, slots=True)
class Study:
    """A study of the scope, and the search that found it; None where the manifest names the study."""

    uid: str
    narrow: Narrow | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """One image that the PACS says it has."""

    sop_uid: str
    series_uid: str


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


class Finder:
    """Searches one PACS. Every method raises `Refused`.

    `node.dataset_missing`: it does not answer; `node.dataset_invalid`: not as PS3.18 says, with what it
    wasn't asked for, or without end. A list that may be short of something is no list.
    """

    def __init__(self, pacs: Pacs, page: int = PAGE) -> None:
        self._pacs, self._page = pacs, page

    def studies(self, narrow: Narrow) -> list[Study]:
        """The studies that `narrow` finds."""
        found = []
        for data_set in self._walk(("studies",), _keys(narrow), "StudyInstanceUID"):
            uid = text_of(data_set, "StudyInstanceUID")
            if not answers(data_set, narrow):
                raise Refused("node.dataset_invalid", "the PACS answers with a study that wasn't asked for")
            found.append(Study(uid, narrow))
        return found

    def images(self, study: Study) -> list[Found]:
        """The images of a study; none where the PACS doesn't have it."""
        uid = OfStudy(study.uid).uid
        keys = [("includefield", "SOPInstanceUID"), ("includefield", "SeriesInstanceUID")]
        if isinstance(study.narrow, OfDays):
            keys.append(("Modality", study.narrow.modality))
        found = []
        for data_set in self._walk(("studies", uid, "instances"), keys, "SOPInstanceUID"):
            if text_of(data_set, "StudyInstanceUID") not in ("", uid):
                raise Refused("node.dataset_invalid", "the PACS answers with another study's images")
            series = text_of(data_set, "SeriesInstanceUID")
            if not is_uid(series):
                raise Refused("node.dataset_invalid", "the PACS answers with an image of no series")
            found.append(Found(text_of(data_set, "SOPInstanceUID"), series))
        return found

    def _walk(self, path: tuple[str, ...], keys: list[tuple[str, str]], key: str) -> Iterator[DataSet]:
        """All pages, until one is empty: a short page may be the server's own limit."""
        seen: set[str] = set()
        for _ in range(MAX_PAGES):
            query = (*keys, ("limit", str(self._page)), ("offset", str(len(seen))))
            page = self._ask(Target(path, query))
            if not page:
                return
            for data_set in page:
                name = text_of(data_set, key)
                if not is_uid(name):
                    raise Refused("node.dataset_invalid", "the PACS answers with something without a UID")
                if name in seen:
                    raise Refused("node.dataset_invalid", "the PACS repeats itself instead of going on")
                seen.add(name)
                yield data_set
            if len(seen) > MAX_FOUND:
                break
        raise Refused("node.dataset_invalid", f"a search finds more than {MAX_FOUND}, or never ends")

    def _ask(self, target: Target) -> list[DataSet]:
        try:
            answer = self._pacs.get(target, JSON, MAX_PAGE_BYTES)
            if answer.kind is None:  # status 204
                return []
            if answer.kind.name not in (JSON, "application/json"):
                raise Failed(Fault.GARBLED)
            return list(data_sets(answer.content))
        except Failed as failed:
            if failed.fault is Fault.ABSENT:  # some servers say so where others send an empty list
                return []
            raise refusal(failed) from None
        except Malformed:
            raise refusal(Failed(Fault.GARBLED)) from None


def refusal(failed: Failed) -> Refused:
    """What a failure means where nothing can be done without the answer."""
    code = "node.dataset_missing" if failed.fault in _UNREACHED else "node.dataset_invalid"
    return Refused(code, failed.fault.value)


def text_of(data_set: DataSet, keyword: str) -> str:
    """The one text of an attribute that searches name, "" where there isn't exactly one.

    Raises:
        Refused: `node.dataset_invalid`.
    """
    tag, vr = _TAGS[keyword]
    try:
        values = values_at(data_set, tag, vr)
    except Unusable:
        raise Refused("node.dataset_invalid", f"the PACS answers with a {keyword} that is none") from None
    return str(values[0]) if len(values) == 1 else ""


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise Refused("node.dataset_invalid", f"the calendar has no {text}") from None


def _stored(day: date) -> str:
    """As VR DA writes it (PS3.5, 6.2)."""
    return day.isoformat().replace("-", "")


def _keys(narrow: Narrow) -> list[tuple[str, str]]:
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
        Refused: `node.dataset_invalid` where it tells something that is none.
    """
    match narrow:
        case OfPatient(identifier):
            return text_of(data_set, "PatientID") in ("", identifier)
        case OfDays(_, first, last):
            day = text_of(data_set, "StudyDate")
            return not day or _stored(first) <= day <= _stored(last)
