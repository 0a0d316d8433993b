"""Which source reads a dataset, and what the hospital's staff may know of what fell out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rapha.node.datasets import consent, control
from rapha.node.datasets.resolve import usable_cell
from rapha.node.sources.interface import Quarantine, Records, RecordSource, Surroundings, Told
from rapha.spec.dataset import DatasetManifest


class Sources:
    """The sources of one dataset process; each is made when it is first needed, and kept."""

    def __init__(self, tell: Told) -> None:
        self._tell = tell
        self._made: dict[str, RecordSource] = {}

    def open(self, manifest: DatasetManifest, folder: Path, means: control.Means) -> Records:
        """As `RecordSource.open`."""
        kind = manifest.source.kind
        if kind not in self._made:
            self._made[kind] = _make(kind)
        return self._made[kind].open(manifest, Surroundings(folder, means.workers, self._tell))

    def describe(self, request: control.Describe) -> control.Described:
        """Count what could be used by anyone, and what could not, by reason and by name.

        Raises:
            Refused: `node.dataset_*`.
        """
        folder = Path(request.folder)
        listed = consent.read_opt_outs(request.manifest, folder)
        records = self.open(request.manifest, folder, request.means)
        try:
            usable = usable_cell(records.index, listed)
            index = records.index
            fell_out = [(n, Quarantine(q)) for n, q in enumerate(index.quarantine.tolist()) if q]
            return control.Described(
                records=usable.records,
                patients=usable.patients,
                reasons=dict(Counter(kind.reason for _, kind in fell_out)),
                faults=tuple(
                    _named(index.locators[n], kind.reason) for n, kind in fell_out[: control.MAX_FAULTS]
                ),
                set_aside=len(records.aside),
                aside=tuple(_named(a.locator, a.reason) for a in records.aside[: control.MAX_FAULTS]),
            )
        finally:
            records.close()


def _named(locator: str, reason: str) -> control.Fault:
    return control.Fault(locator=locator[: control.MAX_LOCATOR], reason=reason)


def _make(kind: str) -> RecordSource:
    # Imported when needed: a table's process has no use for image codecs, and the other way round.
    match kind:
        case "dicom":
            from rapha.node.sources.dicom import DicomSource

            return DicomSource()
        case "dicomweb":
            from rapha.node.sources.dicomweb import DicomWebSource

            return DicomWebSource()
        case _:
            from rapha.node.sources.parquet import ParquetSource

            return ParquetSource()
