"""From records to decoded values: where the stored bytes come from, and what becomes of each answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from rapha.node.sources.imaging import order
from rapha.node.sources.imaging.ahead import ahead
from rapha.node.sources.imaging.attributes import Instance
from rapha.node.sources.imaging.series import Grouping
from rapha.node.sources.interface import Array, Quarantine, Sink
from rapha.node.sources.workers.interface import Answer, Item, Unusable

_DIGEST_BYTES: Final = 32


class Retrieval(Protocol):
    """Where the stored bytes of an image come from."""

    @property
    def pool_folder(self) -> Path | None:
        """The folder that workers may read from, or None where `item` brings the bytes."""
        ...

    @property
    def parallel(self) -> int:
        """How many calls of `item` may run at a time, each in its own thread; 1 for none but the caller's."""
        ...

    def item(self, args: bytes, instances: Sequence[Instance], frame: int) -> Item:
        """The work of decoding a record of these images.

        Called in the order of work, shortly before a worker is free. `frame`, from 0, is the one that is
        wanted of a single image; a record of a whole series wants all.

        Raises:
            Unusable: these bytes can't be had; the record falls out, and the others go on.
        """
        ...


class Rendering:
    """One run over some records: what goes to the workers, and what comes back."""

    def __init__(
        self,
        setup: order.Setup,
        positions: Array,
        records: Grouping,
        instances: Sequence[Instance],
        retrieval: Retrieval,
    ) -> None:
        self.setup = setup
        self.quarantine = np.full(len(positions), Quarantine.DECODER_CRASHED, dtype=np.uint8)
        self.content: list[bytes] = [b""] * len(positions)
        self._positions = positions.tolist()
        self._records = records
        self._instances = instances
        self._retrieval = retrieval
        self._asked: list[int] = []
        sizes = [one.after.nbytes for one in setup.renders]
        self._slices = list(itertools.pairwise(itertools.accumulate(sizes, initial=0)))

    def items(self) -> Iterator[Item]:
        """The work, in the order of the positions; what can't be had is noted and left out."""
        found = ahead(self._item, self._positions, self._retrieval.parallel)
        for ordinal, item in enumerate(found):
            if isinstance(item, Quarantine):
                self.quarantine[ordinal] = item
                continue
            self._asked.append(ordinal)
            yield item

    def _item(self, position: int) -> Item | Quarantine:
        """The work of one record, or why it can't be had; called from any thread."""
        members = [self._instances[member] for member in self._records.members[position]]
        frame = self._records.frames[position]
        expect = tuple(order.Expect(one.sop_uid, one.patient_id) for one in members)
        try:
            return self._retrieval.item(order.encode(order.Args(frame, expect)), members, frame)
        except Unusable as verdict:
            return verdict.quarantine

    def keep(self, answer: Answer, sink: Sink) -> None:
        """Take one answer: its values go to the sink."""
        ordinal = self._asked[answer.ordinal]
        verdict = answer.quarantine
        if verdict is Quarantine.NONE and len(answer.reply) != _DIGEST_BYTES:
            verdict = Quarantine.DECODER_CRASHED
        self.quarantine[ordinal] = verdict
        if verdict is not Quarantine.NONE:
            return
        self.content[ordinal] = answer.reply
        for one, (start, stop) in zip(self.setup.renders, self._slices, strict=True):
            sink.put(ordinal, one.field, answer.output[start:stop])
