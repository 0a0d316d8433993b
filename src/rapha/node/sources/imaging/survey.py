"""Everything in a dataset's scope that a PACS has: what can be described, and what can't, with the reason.

The searches say which images there are; the metadata of their series say what they are. Only what is in both
is described, and whatever is in one alone is named among the lost: nothing falls between the two.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

from rapha.node.sources.imaging.ahead import ahead
from rapha.node.sources.imaging.attributes import Decoder, Instance, encode
from rapha.node.sources.imaging.describe import Describer
from rapha.node.sources.imaging.dicomjson import DataSet
from rapha.node.sources.imaging.headers import Setup
from rapha.node.sources.imaging.narrow import KEPT, Narrow, is_uid
from rapha.node.sources.imaging.order import Kind
from rapha.node.sources.imaging.progress import Progress
from rapha.node.sources.imaging.qido import MAX_FOUND, Finder, Found, Study, name_of
from rapha.node.sources.imaging.series import Lost
from rapha.node.sources.imaging.wado import Place, Wado, is_of
from rapha.node.sources.imaging.wire import Failed, Fault
from rapha.node.sources.interface import Quarantine, Told
from rapha.node.sources.workers.interface import Unusable
from rapha.spec.refusals import Refused

MAX_IMAGES: Final = 5_000_000
PARALLEL: Final = 4
"""Connections; a PACS also has people who wait for it."""
_BATCH: Final = 256
"""Studies whose images are listed before their series are described."""
_ONE_BY_ONE: Final = frozenset((Fault.TOO_LARGE, Fault.NOT_OFFERED))


@dataclass(frozen=True, slots=True)
class Survey:
    """The images that could be described, and the others: locator (SOP Instance UID) and reason."""

    instances: tuple[Instance, ...]
    lost: tuple[Lost, ...]


@dataclass(frozen=True, slots=True)
class _Series:
    """What the searches found of one series; `last` of its study."""

    study: Study
    uid: str
    images: Sequence[Found]
    last: bool


def survey(
    finder: Finder,
    wado: Wado,
    studies: Iterable[str],
    searches: Iterable[Narrow],
    setup: Setup,
    tell: Told,
    record: Kind = "frame",
) -> Survey:
    """Find and describe. `studies` are those that the manifest names, `searches` find the others.

    Args:
        record: what the images are for. A `series` that an image of is lost is no volume.

    Raises:
        Refused: `node.dataset_missing` or `node.dataset_invalid`, as `Finder` and `Wado`; also past
            `MAX_IMAGES`. The connections are closed then.
    """
    instances: list[Instance] = []
    named, lost = _studies(finder, studies, searches)
    surveyor = _Surveyor(wado, Describer(setup), whole=record == "series")
    decoder = Decoder(setup.wanted)
    progress = Progress(tell, "indexing", len(named))
    for batch in _batches(named):
        images = ahead(finder.images, batch, PARALLEL, finder.close)
        listed = [_by_series(study, found) for study, found in zip(batch, images, strict=True)]
        for study, of in zip(batch, listed, strict=True):
            if not of:
                # A server may search by modality no deeper than by study; else a study holds what was found.
                lost += [(study.uid, Quarantine.TRANSFER_FAILED)] if study.modality is None else []
                progress.step()
        works = list(chain.from_iterable(listed))
        results = ahead(surveyor.series, works, PARALLEL, finder.close)
        for series, (described, missing) in zip(works, results, strict=True):
            kept, unkept = _kept(described, decoder, setup)
            if record == "series" and unkept:
                kept = [replace(one, flaw=unkept[0][1]) for one in kept]
            instances += kept
            lost += missing + unkept
            if len(instances) + len(lost) > MAX_IMAGES:
                raise Refused("node.dataset_invalid", f"the scope holds more than {MAX_IMAGES} images")
            if series.last:
                progress.step()
    progress.end()
    return Survey(tuple(instances), tuple(lost))


def _kept(described: Iterable[Instance], decoder: Decoder, setup: Setup) -> tuple[list[Instance], list[Lost]]:
    """The images through the decoder, which keeps equal parts once: a study's repeat most of theirs."""
    kept: list[Instance] = []
    lost: list[Lost] = []
    for one in described:
        try:
            kept.append(decoder.decode(encode(one, setup.wanted), one.locator))
        except Unusable:  # a value that is longer than any reader keeps
            lost.append((one.locator, Quarantine.TOO_LARGE))
    return kept, lost


def _studies(
    finder: Finder, studies: Iterable[str], searches: Iterable[Narrow]
) -> tuple[list[Study], list[Lost]]:
    named = {uid: Study(uid) for uid in studies}
    lost: list[Lost] = []
    for found, unusable in ahead(finder.studies, searches, PARALLEL, finder.close):
        lost += unusable
        for study in found:
            known = named.get(study.uid)
            # Two patients may be in one study: each was asked for.
            named[study.uid] = replace(known, narrows=known.narrows + study.narrows) if known else study
    return list(named.values()), lost


def _batches(studies: Sequence[Study]) -> Iterator[Sequence[Study]]:
    for start in range(0, len(studies), _BATCH):
        yield studies[start : start + _BATCH]


def _by_series(study: Study, images: Iterable[Found]) -> list[_Series]:
    found: dict[str, list[Found]] = defaultdict(list)
    for image in images:
        found[image.series_uid].append(image)
    return [_Series(study, uid, of, n == len(found)) for n, (uid, of) in enumerate(found.items(), 1)]


class _Surveyor:
    """Describes one series at a time; called from several threads.

    Args:
        whole: whether a series is of use only as a whole.
    """

    def __init__(self, wado: Wado, describer: Describer, *, whole: bool) -> None:
        self._wado, self._describer, self._whole = wado, describer, whole
        # And what says whether an image was asked for at all, though no field may read it.
        self._needed = describer.needed | KEPT

    def series(self, series: _Series) -> tuple[list[Instance], list[Lost]]:
        """The images of a series that can be described, and the others."""
        unusable = [(one.sop_uid, one.quarantine) for one in series.images if one.quarantine]
        sops = [one.sop_uid for one in series.images if not one.quarantine]
        try:
            headers = self._headers(series, sops) if sops else []
        except Failed:
            headers = []
        instances, lost = self._match(series, sops, headers)
        lost += unusable
        if self._whole and lost:  # a volume without some of its slices shows another body
            instances = [replace(one, flaw=lost[0][1]) for one in instances]
        return instances, lost

    def _headers(self, series: _Series, sops: Sequence[str]) -> list[DataSet]:
        study = series.study.uid
        try:
            headers = self._wado.series_headers(study, series.uid, self._needed)
        except Failed as failed:
            if failed.fault not in _ONE_BY_ONE:
                raise
        else:
            if len(headers) > MAX_FOUND:
                raise Failed(Fault.GARBLED)
            return headers
        headers = []
        for sop in sops:
            try:
                headers.append(self._wado.header(Place(study, series.uid, sop), self._needed))
            except Failed:  # then it is among the searched and not among the described
                continue
        return headers

    def _match(
        self, series: _Series, sops: Sequence[str], headers: Sequence[DataSet]
    ) -> tuple[list[Instance], list[Lost]]:
        """What was searched for against what was described."""
        names = [name_of(header) for header in headers]
        times = Counter(names)
        listed = {one.sop_uid for one in series.images}
        instances: list[Instance] = []
        missing = dict.fromkeys(sops, Quarantine.TRANSFER_FAILED)
        for name, header in zip(names, headers, strict=True):
            if name not in listed:  # nobody searched for it
                if name and times[name] == 1:
                    missing[name] = Quarantine.CHANGED if is_uid(name) else Quarantine.UID_MISSING
            elif times[name] > 1:
                missing[name] = Quarantine.DUPLICATE
            elif name in missing:
                instance, missing[name] = self._described(series, name, header)
                if missing[name] is Quarantine.NONE and instance is not None:
                    instances.append(instance)
        return instances, [(name, reason) for name, reason in missing.items() if reason]

    def _described(self, series: _Series, name: str, header: DataSet) -> tuple[Instance | None, Quarantine]:
        """The image, None where it wasn't asked for; and why it can't be used, or NONE."""
        wanted = series.study.modality
        try:
            if not is_of(header, Place(series.study.uid, series.uid, name)) or not series.study.holds(header):
                return None, Quarantine.CHANGED
            instance = self._describer.instance(header, name)
        except Unusable as unusable:
            return None, unusable.quarantine
        if wanted is not None and not instance.modality:
            return None, Quarantine.VALUE_MISSING
        # A server may search by modality no deeper than by study: the others were not asked for.
        return (instance if wanted in (None, instance.modality) else None), Quarantine.NONE
