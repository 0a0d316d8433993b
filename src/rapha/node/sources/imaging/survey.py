"""Everything in a dataset's scope that a PACS has: what can be described, and what can't, with the reason.

The searches say which images there are; the metadata of their series say what they are. Only what is in both
is described, and whatever is in one alone is named among the lost: nothing falls between the two.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from rapha.node.sources.imaging.ahead import ahead
from rapha.node.sources.imaging.attributes import Decoder, Instance, encode
from rapha.node.sources.imaging.describe import Describer
from rapha.node.sources.imaging.dicomjson import DataSet
from rapha.node.sources.imaging.headers import Setup
from rapha.node.sources.imaging.progress import Progress
from rapha.node.sources.imaging.qido import Finder, Narrow, OfDays, Study, answers, is_uid, text_of
from rapha.node.sources.imaging.series import Lost
from rapha.node.sources.imaging.wado import Place, Wado, is_of
from rapha.node.sources.imaging.wire import Failed, Fault
from rapha.node.sources.interface import Quarantine, Told
from rapha.node.sources.workers.interface import Unusable
from rapha.spec.refusals import Refused

MAX_IMAGES: Final = 5_000_000
PARALLEL: Final = 4
"""Connections; a PACS also has people who wait for it."""
_ONE_BY_ONE: Final = frozenset((Fault.TOO_LARGE, Fault.NOT_OFFERED))


@dataclass(frozen=True, slots=True)
class Survey:
    """The images that could be described, and the others: locator (SOP Instance UID) and reason."""

    instances: tuple[Instance, ...]
    lost: tuple[Lost, ...]


def survey(
    finder: Finder, wado: Wado, studies: Iterable[str], searches: Iterable[Narrow], setup: Setup, tell: Told
) -> Survey:
    """Find and describe. `studies` are those that the manifest names, `searches` find the others.

    Raises:
        Refused: `node.dataset_missing` or `node.dataset_invalid`, as `Finder` and `Wado`; also past
            `MAX_IMAGES`.
    """
    named = {uid: Study(uid) for uid in studies}
    surveyor = _Surveyor(finder, wado, Describer(setup))
    decoder = Decoder(setup.wanted)
    instances: list[Instance] = []
    lost: list[Lost] = []
    for found in ahead(finder.studies, searches, PARALLEL):
        for study in found:
            named.setdefault(study.uid, study)
    progress = Progress(tell, "indexing", len(named))
    for described, missing in ahead(surveyor.study, named.values(), PARALLEL):
        # Through the decoder, which keeps equal parts once: a study's images repeat most of theirs.
        instances += [decoder.decode(encode(one, setup.wanted), one.locator) for one in described]
        lost += missing
        if len(instances) + len(lost) > MAX_IMAGES:
            raise Refused("node.dataset_invalid", f"the scope holds more than {MAX_IMAGES} images")
        progress.step()
    progress.end()
    return Survey(tuple(instances), tuple(lost))


class _Surveyor:
    """Describes one study at a time; called from several threads."""

    def __init__(self, finder: Finder, wado: Wado, describer: Describer) -> None:
        self._finder, self._wado, self._describer = finder, wado, describer

    def study(self, study: Study) -> tuple[list[Instance], list[Lost]]:
        """The images of a study. One that the manifest names and the PACS doesn't have is itself lost."""
        by_series: dict[str, list[str]] = defaultdict(list)
        for found in self._finder.images(study):
            by_series[found.series_uid].append(found.sop_uid)
        if not by_series and study.narrow is None:
            return [], [(study.uid, Quarantine.TRANSFER_FAILED)]
        instances: list[Instance] = []
        lost: list[Lost] = []
        for series, sops in by_series.items():
            try:
                headers = self._headers(study, series, sops)
            except Failed:
                headers = []
            self._match(study, series, sops, headers, instances, lost)
        return instances, lost

    def _headers(self, study: Study, series: str, sops: Sequence[str]) -> list[DataSet]:
        try:
            return self._wado.series_headers(study.uid, series)
        except Failed as failed:
            if failed.fault not in _ONE_BY_ONE:
                raise
        headers = []
        for sop in sops:
            try:
                headers.append(self._wado.header(Place(study.uid, series, sop)))
            except Failed:  # then it is among the searched and not among the described
                continue
        return headers

    def _match(
        self,
        study: Study,
        series: str,
        sops: Sequence[str],
        headers: Sequence[DataSet],
        instances: list[Instance],
        lost: list[Lost],
    ) -> None:
        names = [_name(header) for header in headers]
        twice = {name for name, count in Counter(names).items() if count > 1}
        missing = dict.fromkeys(sops, Quarantine.TRANSFER_FAILED)
        for name, header in zip(names, headers, strict=True):
            if name not in missing:  # nobody searched for it
                if is_uid(name) and name not in twice:
                    lost.append((name, Quarantine.CHANGED))
            elif name in twice:
                missing[name] = Quarantine.DUPLICATE
            elif not is_of(header, Place(study.uid, series, name)):
                missing[name] = Quarantine.CHANGED
            else:
                self._describe(study, name, header, instances, missing)
        lost += missing.items()

    def _describe(
        self,
        study: Study,
        name: str,
        header: DataSet,
        instances: list[Instance],
        missing: dict[str, Quarantine],
    ) -> None:
        try:
            instance = self._describer.instance(header, name)
            asked = study.narrow is None or answers(header, study.narrow)
        except Unusable as unusable:
            missing[name] = unusable.quarantine
            return
        except Refused:  # its date or patient is none
            missing[name] = Quarantine.FILE_INVALID
            return
        if not asked:
            missing[name] = Quarantine.CHANGED
            return
        del missing[name]
        # A server may search by modality no deeper than by study: the others were not asked for.
        if not isinstance(study.narrow, OfDays) or instance.modality == study.narrow.modality:
            instances.append(instance)


def _name(header: DataSet) -> str:
    try:
        return text_of(header, "SOPInstanceUID")
    except Refused:
        return ""
