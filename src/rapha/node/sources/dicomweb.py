"""A PACS over DICOMweb: found by searches that can't be broad, described by metadata, decoded from frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rapha.node.sources.folder import read_small
from rapha.node.sources.identifiers import is_identifier
from rapha.node.sources.imaging.http import Pacs
from rapha.node.sources.imaging.narrow import searches
from rapha.node.sources.imaging.qido import PAGE, Finder
from rapha.node.sources.imaging.records import ImagingRecords, prepare_plan
from rapha.node.sources.imaging.retrieval import Remote
from rapha.node.sources.imaging.rules import Plan
from rapha.node.sources.imaging.survey import Survey, survey
from rapha.node.sources.imaging.wado import Breaker, Wado
from rapha.node.sources.imaging.wire import Limits
from rapha.node.sources.interface import Surroundings
from rapha.spec import imaging
from rapha.spec.dataset import DatasetManifest
from rapha.spec.refusals import Refused

MAX_PATIENTS_FILE: Final = 16 * 2**20


class DicomWebSource:
    """Opens what a manifest's source of kind `dicomweb` describes.

    Args:
        limits: of every call to the PACS.
        page: how many results to ask for at a time.
    """

    def __init__(self, limits: Limits | None = None, page: int = PAGE) -> None:
        self._limits, self._page = limits or Limits(), page

    def open(self, manifest: DatasetManifest, around: Surroundings) -> WebRecords:
        """See `RecordSource.open`. Nothing is sent before everything in the manifest has been checked.

        Raises:
            Refused: also `node.query_broad` for a scope that can't be asked for narrowly, and
                `node.key_unsafe` for the secret.
        """
        source = manifest.source
        if not isinstance(source, imaging.DicomWebSource):
            raise Refused("node.internal", "not a PACS over DICOMweb")
        reading = prepare_plan(manifest, around)
        narrowed = tuple(searches(source.scope, _patients(source, around)))
        pacs = Pacs(source, around.folder, self._limits)
        try:
            wado = Wado(pacs, Breaker())
            finder = Finder(pacs, self._page)
            found = survey(
                finder, wado, source.scope.studies, narrowed, reading.setup, around.tell, source.record
            )
            return WebRecords(manifest, found, Remote(wado, source.record), around, reading, pacs)
        except BaseException:
            pacs.close()
            raise


class WebRecords(ImagingRecords):
    """Records that hold a connection."""

    def __init__(
        self,
        manifest: DatasetManifest,
        found: Survey,
        retrieval: Remote,
        around: Surroundings,
        reading: Plan,
        pacs: Pacs,
    ) -> None:
        super().__init__(manifest, found.instances, found.lost, retrieval, around, reading=reading)
        self._pacs = pacs

    def close(self) -> None:
        """Drop everything held, and hang up."""
        super().close()
        self._pacs.close()


def _patients(source: imaging.DicomWebSource, around: Surroundings) -> tuple[str, ...]:
    """The group of patients, one identifier a line.

    Raises:
        Refused: `node.dataset_missing`; `node.dataset_invalid` for what is no list of identifiers. The
            detail names the line and never what is in it.
    """
    path = source.scope.patients
    if path is None:
        return ()
    try:
        lines = read_small(path, around.folder, MAX_PATIENTS_FILE).decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise Refused("node.dataset_invalid", "the patients of the scope are not UTF-8 text") from None
    found = dict.fromkeys(_identifiers(lines))
    if not found:
        raise Refused("node.query_broad", "the scope names no patient")
    return tuple(found)


def _identifiers(lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        word = line.strip(" \t\r")  # any other blank belongs to no identifier
        if word and not is_identifier(word):
            raise Refused("node.dataset_invalid", f"line {number} of the patients is not an identifier")
        if word:
            yield word
