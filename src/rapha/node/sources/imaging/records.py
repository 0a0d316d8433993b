"""Records of images, wherever they are stored: the index, the small fields, and how to have them decoded.

Nothing here opens an image: descriptions come as `Instance`s, and bytes go from a `Retrieval` straight to
walled-off workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from rapha.node.sources.filter import Column, matches
from rapha.node.sources.imaging import labels, order
from rapha.node.sources.imaging.attributes import Instance
from rapha.node.sources.imaging.columns import Columns
from rapha.node.sources.imaging.progress import Progress
from rapha.node.sources.imaging.rendering import Rendering, Retrieval
from rapha.node.sources.imaging.rules import Kind, Plan, plan
from rapha.node.sources.imaging.series import Grouping, Lost, frames, pairs, volumes
from rapha.node.sources.imaging.verdicts import Same, judge, judge_patient, settle_duplicates, settle_studies
from rapha.node.sources.interface import (
    Array,
    Aside,
    Index,
    Mask,
    Quarantine,
    Render,
    Rendered,
    Sink,
    Surroundings,
)
from rapha.node.sources.tree import printable
from rapha.node.sources.workers.interface import Task
from rapha.node.sources.workers.pool import Pool
from rapha.runtime.broker.store import Ragged
from rapha.spec.cohort import Node
from rapha.spec.dataset import DatasetManifest
from rapha.spec.imaging import Imaging
from rapha.spec.refusals import Refused

MAX_RECORDS: Final = 20_000_000

_FORMED_BY: Final[dict[str, Callable[[Sequence[Instance], Sequence[Quarantine]], Grouping]]] = {
    "frame": frames,
    "series": volumes,
    "pet-ct": pairs,
}


def prepare_plan(manifest: DatasetManifest, around: Surroundings) -> Plan:
    """What to read of every image for `manifest`.

    Raises:
        Refused: `node.dataset_invalid`, naming a field or the label table; `node.dataset_missing`.
    """
    return plan(manifest, labels.columns_of(manifest, around.folder))


def differ(first: Instance, second: Instance) -> bool:
    """A `Same` for sources that can't compare bytes cheaply: nothing is the same."""
    return False


class ImagingRecords:
    """An open source of images.

    Args:
        instances: every image that could be described; `values` hold the keywords of `prepare_plan`.
        lost: what could not be described: its name, and why.
        same: compares two images of one SOP Instance UID.
        aside: what is no image.
        reading: what `prepare_plan` gave.

    Raises:
        Refused: `node.dataset_invalid` where there is no record or too many, or for the label table.
    """

    def __init__(
        self,
        manifest: DatasetManifest,
        instances: Sequence[Instance],
        lost: Sequence[Lost],
        retrieval: Retrieval,
        around: Surroundings,
        *,
        reading: Plan | None = None,
        same: Same = differ,
        aside: Sequence[Aside] = (),
    ) -> None:
        source = manifest.source
        if not isinstance(source, Imaging):
            raise Refused("node.internal", "not a source of images")
        self._plan = reading or prepare_plan(manifest, around)
        self._manifest, self._source = manifest, source
        self._retrieval, self._around = retrieval, around
        self._instances, verdicts, copies = _settled(instances, source, self._plan, same)
        self._records = _formed(source, self._instances, verdicts, lost)
        unused = [Aside(printable(self._instances[n].locator), "unpaired") for n in self._records.unused]
        self._aside = (*aside, *(Aside(printable(one.locator), "copy") for one in copies), *unused)
        labelled = tuple(rule.field for rule in self._plan.rules if rule.kind is Kind.LABELLED)
        table = labels.read(manifest, labelled, around.folder)
        self._columns = Columns(self._plan.rules, self._instances, self._records, table)
        self._index = self._indexed()

    @property
    def index(self) -> Index:
        """See `Records.index`."""
        return self._index

    @property
    def aside(self) -> Sequence[Aside]:
        """See `Records.aside`."""
        return self._aside

    @property
    def rendered(self) -> tuple[str, ...]:
        """See `Records.rendered`."""
        return self._plan.rendered

    def select(self, cohort: Node) -> Mask:
        """See `Records.select`."""
        return matches(
            cohort, _Selectable(self._columns, self._index, self.rendered), len(self._index.patients)
        )

    def read(self, positions: Array) -> Mapping[str, Array | Ragged]:
        """See `Records.read`."""
        return {name: self._columns.held(name).take(positions) for name in self._small()}

    def render(self, positions: Array, renders: Sequence[Render], sink: Sink) -> Rendered:
        """See `Records.render`."""
        run = Rendering(self._setup(renders), positions, self._records, self._instances, self._retrieval)
        progress = Progress(self._around.tell, "decoding", len(positions))
        with Pool(
            Task.DECODE,
            order.encode(run.setup),
            folder=self._retrieval.pool_folder,
            workers=self._around.workers,
            output_bytes=run.setup.output_bytes,
        ) as pool:
            for answer in pool.run(run.items()):
                run.keep(answer, sink)
                progress.step()
        progress.end()
        return Rendered(run.quarantine, run.content)

    def close(self) -> None:
        """Drop everything held."""
        self._instances, self._aside = [], ()
        self._records = Grouping()
        self._columns = Columns((), (), self._records, None)
        self._index = Index([], np.zeros(0, dtype=np.uint8), ())

    def _small(self) -> list[str]:
        rules = self._plan.rules
        return [r.field.name for r in rules if r.field.served and r.kind is not Kind.RENDERED]

    def _setup(self, renders: Sequence[Render]) -> order.Setup:
        fields = {field.name: field for field in self._manifest.fields}
        orders = tuple(order.RenderOrder.of(fields[one.field], one.steps) for one in renders)
        return order.Setup(self._source.record, orders)

    def _indexed(self) -> Index:
        """The index, after what is missing in the small fields has been judged too."""
        records = self._records
        quarantine = np.array(records.quarantine, dtype=np.uint8)
        for rule in self._plan.rules:
            if rule.field.served and rule.kind is not Kind.RENDERED:
                missing = ~self._columns.held(rule.field.name).valid
                missing &= quarantine == Quarantine.NONE
                quarantine[missing] = (
                    Quarantine.LABEL_MISSING if rule.field.label else Quarantine.VALUE_MISSING
                )
                for record in np.flatnonzero(missing).tolist():
                    records.locators[record] = self._stored_at(record)
        unreadable = (Quarantine.PATIENT_MISSING, Quarantine.PATIENT_INVALID, Quarantine.DUPLICATE)
        patients = [
            self._patient(members[0]) if members and verdict not in unreadable else ""
            for members, verdict in zip(records.members, records.quarantine, strict=True)
        ]
        return Index(patients, quarantine, records.locators)

    def _patient(self, position: int) -> str:
        """Whose an image is; "" where that can't be read, whatever else is wrong with the image."""
        patient = self._instances[position].patient_id
        return "" if judge_patient(patient) else patient

    def _stored_at(self, record: int) -> str:
        """Where a record that falls out is stored, which tells staff more than its UID."""
        first = self._instances[self._records.members[record][0]]
        frame = f":{self._records.frames[record] + 1}" if first.frames > 1 else ""
        return printable(first.locator) + frame


class _Selectable(Mapping[str, Column]):
    """The columns as a cohort sees them: pixels are there or not, and compare with nothing."""

    def __init__(self, columns: Columns, index: Index, rendered: tuple[str, ...]) -> None:
        self._columns = columns
        self._index = index
        self._rendered = rendered

    def __getitem__(self, name: str) -> Column:
        if name not in self._rendered:
            return self._columns.held(name).column()
        present = np.asarray(self._index.quarantine == Quarantine.NONE)
        return Column(present.astype(np.uint8), present)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rendered)

    def __len__(self) -> int:
        return len(self._rendered)


def _settled(
    instances: Sequence[Instance], source: Imaging, reading: Plan, same: Same
) -> tuple[list[Instance], list[Quarantine], list[Instance]]:
    """The images that count, with their verdicts, and the superfluous copies."""
    verdicts = [judge(instance, source, pixels=bool(reading.rendered)) for instance in instances]
    copies = settle_duplicates(instances, verdicts, same)
    settle_studies(instances, verdicts)
    if not copies:
        return list(instances), verdicts, []
    left = [position for position in range(len(instances)) if position not in copies]
    return (
        [instances[position] for position in left],
        [verdicts[position] for position in left],
        [instances[position] for position in sorted(copies)],
    )


def _formed(
    source: Imaging, instances: Sequence[Instance], verdicts: Sequence[Quarantine], lost: Sequence[Lost]
) -> Grouping:
    # What an image promises that can't be used is nothing: a few such files could refuse all the others.
    usable = (not verdict and instance.frames for instance, verdict in zip(instances, verdicts, strict=True))
    promised = len(lost) + len(instances) + sum(usable)
    if promised > MAX_RECORDS:
        raise Refused("node.dataset_invalid", f"there are more than {MAX_RECORDS} frames")
    records = _FORMED_BY[source.record](instances, verdicts)
    records.add_lost(lost)
    if not records.members:
        raise Refused("node.dataset_invalid", "the source holds no record")
    return records
