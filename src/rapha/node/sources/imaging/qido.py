"""Finding what a dataset is made of (QIDO-RS, PS3.18 10.6): only by searches that can't be broad.

Every answer is held against what was asked, since a server that ignores a key answers with the archive.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rapha.node.sources.imaging.dicomjson import DataSet, data_sets
from rapha.node.sources.imaging.http import Pacs, Target
from rapha.node.sources.imaging.multipart import Malformed
from rapha.node.sources.imaging.narrow import (
    KEPT,
    Narrow,
    OfDays,
    OfPatient,
    OfStudy,
    answers,
    differs_by_case,
    is_uid,
    keys,
    tag_of,
    text_of,
)
from rapha.node.sources.imaging.series import Lost
from rapha.node.sources.imaging.wire import Failed, Fault
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.tree import printable
from rapha.node.sources.workers.interface import Unusable
from rapha.spec.refusals import Refused

JSON: Final = "application/dicom+json"
PAGE: Final = 500
MAX_PAGES: Final = 2048
MAX_FOUND: Final = 100_000
"""Studies of one search, or images of one study."""
MAX_PAGE_BYTES: Final = 32 * 2**20
MAX_NAME: Final = 128
"""Characters of what is no identifier, in the hospital's report."""
_UNREACHED: Final = frozenset((
    Fault.UNREACHABLE, Fault.UNTRUSTED, Fault.LOGIN, Fault.FORBIDDEN, Fault.FAILING, Fault.TOO_SLOW,
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Study:
    """A study of the scope, and the searches that found it; none where the manifest names the study."""

    uid: str
    narrows: tuple[Narrow, ...] = ()

    @property
    def modality(self) -> str | None:
        """The only one that was asked for, if any."""
        return next((one.modality for one in self.narrows if isinstance(one, OfDays)), None)

    def holds(self, header: DataSet) -> bool:
        """Whether an image of the study with these metadata was asked for.

        Raises:
            Unusable: as `answers`; VALUE_MISSING where they don't tell the date that was asked for.
        """
        dated = all(isinstance(one, OfPatient) for one in self.narrows) or text_of(header, "StudyDate")
        if not dated:
            raise Unusable(Quarantine.VALUE_MISSING)
        return not self.narrows or any(answers(header, one) for one in self.narrows)


@dataclass(frozen=True, slots=True)
class Found:
    """One image that the PACS says it has; `quarantine` where it can't be asked for by that name."""

    sop_uid: str
    series_uid: str
    quarantine: Quarantine = Quarantine.NONE


class Finder:
    """Searches one PACS. Every method raises `Refused`.

    `node.dataset_missing`: it does not answer; `node.dataset_invalid`: not as PS3.18 says, with what it
    wasn't asked for, or without end. A list that may be short of something is no list. What is wrong with
    one study or image costs that one: it is there, with a name for the hospital's report and the reason.
    """

    def __init__(self, pacs: Pacs, page: int = PAGE) -> None:
        self._pacs, self._page = pacs, page

    def studies(self, narrow: Narrow) -> tuple[list[Study], list[Lost]]:
        """The studies that `narrow` finds, and those that can't be used."""
        found: list[Study] = []
        lost: list[Lost] = []
        for number, data_set in self._walk(("studies",), keys(narrow), ("StudyInstanceUID", "PatientID")):
            uid = _word(data_set, "StudyInstanceUID")
            name = printable(uid[:MAX_NAME]) or f"study {number} of a search"
            try:
                asked = answers(data_set, narrow)
            except Unusable as unusable:
                lost.append((name, unusable.quarantine))
                continue
            if not asked and differs_by_case(data_set, narrow):  # many a PACS ignores it
                continue
            if not asked:
                raise Refused("node.dataset_invalid", "the PACS answers with a study that wasn't asked for")
            if is_uid(uid):
                found.append(Study(uid, (narrow,)))
            else:
                lost.append((name, Quarantine.UID_MISSING))
        return found, lost

    def images(self, study: Study) -> list[Found]:
        """The images of a study; none where the PACS doesn't have it."""
        uid = OfStudy(study.uid).uid
        asked = [("includefield", "SOPInstanceUID"), ("includefield", "SeriesInstanceUID")]
        if study.modality is not None:
            asked.append(("Modality", study.modality))
        asked.append(("includefield", "PatientID"))
        found = []
        path, apart = ("studies", uid, "instances"), ("SOPInstanceUID", "SeriesInstanceUID", "PatientID")
        for number, data_set in self._walk(path, asked, apart):
            if _word(data_set, "StudyInstanceUID") not in ("", uid):
                raise Refused("node.dataset_invalid", "the PACS answers with another study's images")
            sop, series = _word(data_set, "SOPInstanceUID"), _word(data_set, "SeriesInstanceUID")
            if is_uid(sop) and is_uid(series):
                found.append(Found(sop, series))
            else:
                name = name_of(data_set) or f"{uid}/{number}"
                found.append(Found(name, series, Quarantine.UID_MISSING))
        return found

    def close(self) -> None:
        """End every call, also those that others are waiting for."""
        self._pacs.close()

    def _walk(
        self, path: tuple[str, ...], asked: list[tuple[str, str]], names: Sequence[str]
    ) -> Iterator[tuple[int, DataSet]]:
        """All results, numbered from 1, until a page is empty: a short one may be the server's own limit.

        Args:
            names: what tells results apart. One that has the first of them comes once.
        """
        seen: set[tuple[str, ...]] = set()
        count = 0
        for _ in range(MAX_PAGES):
            query = (*asked, ("limit", str(self._page)), ("offset", str(count)))
            page = self._ask(Target(path, query))
            if not page:
                return
            if not any(tag_of(names[0]) in data_set for data_set in page):
                raise Refused("node.dataset_invalid", "the PACS answers with something without a UID")
            for data_set in page:
                count += 1
                name = tuple(_word(data_set, keyword) for keyword in names)
                if name[0] and name in seen:
                    raise Refused("node.dataset_invalid", "the PACS repeats itself instead of going on")
                seen.add(name)
                yield count, data_set
            if count > MAX_FOUND:
                break
        raise Refused("node.dataset_invalid", f"a search finds more than {MAX_FOUND}, or never ends")

    def _ask(self, target: Target) -> list[DataSet]:
        try:
            answer = self._pacs.get(target, JSON, MAX_PAGE_BYTES)
            if answer.kind is None:  # status 204
                return []
            if answer.kind.name not in (JSON, "application/json"):
                raise Failed(Fault.GARBLED)
            return list(data_sets(answer.content, KEPT))
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


def _word(data_set: DataSet, keyword: str) -> str:
    """As `text_of`; "" also for what is no text."""
    try:
        return text_of(data_set, keyword)
    except Unusable:
        return ""


def name_of(header: DataSet) -> str:
    """What names an image for people, whatever it says its identifier is; "" where it says nothing."""
    return printable(_word(header, "SOPInstanceUID")[:MAX_NAME])
