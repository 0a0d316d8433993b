"""Stored images from a PACS, one record's at a time, for the workers that decode them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from rapha.node.sources.imaging.assemble import NEEDED, Elsewhere, assembled
from rapha.node.sources.imaging.attributes import Instance
from rapha.node.sources.imaging.dicomjson import DataSet
from rapha.node.sources.imaging.order import decode_args, encode
from rapha.node.sources.imaging.wado import Place, Wado
from rapha.node.sources.imaging.wire import Failed
from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers.interface import Item, Unusable

_KEPT: Final = 4
"""Headers of multi-frame images, whose frames are mostly asked for one after the other."""
_BESIDE: Final = 64 * 2**20
"""Bytes that a whole file may have beside its pixels."""
_SAMPLE_BYTES: Final = 8


class Remote:
    """Retrieves what a survey found; `item` may be called from any thread.

    Attributes:
        parallel: how many calls at a time are worth their while.
    """

    pool_folder: Path | None = None
    parallel: int = 4

    def __init__(self, wado: Wado, record: Literal["frame", "series", "pet-ct"]) -> None:
        self._wado, self._frames = wado, record == "frame"
        self._headers: OrderedDict[str, DataSet] = OrderedDict()
        self._lock = threading.Lock()

    def item(self, args: bytes, instances: Sequence[Instance], frame: int) -> Item:
        """A record's images as whole PS3.10 files, each assembled from metadata and a frame where the PACS
        gives frames, or as stored. Of a multi-frame image only frame `frame` (from 0) is fetched, and
        `args` say 0 instead.

        Raises:
            Unusable: TRANSFER_FAILED, or FILE_INVALID where metadata are not DICOM.
            Refused: `node.dataset_missing` once the PACS as a whole is gone.
        """
        try:
            files = [self._file(instance, frame) for instance in instances]
        except Failed:
            raise Unusable(Quarantine.TRANSFER_FAILED) from None
        if any(cut for _, cut in files):
            args = encode(replace(decode_args(args), frame=0))
        return Item(args, data=tuple(data for data, _ in files))

    def _file(self, instance: Instance, frame: int) -> tuple[bytes, bool]:
        """A file, and whether it is one frame cut out of several."""
        place = Place(instance.study_uid, instance.series_uid, instance.sop_uid)
        pixels = instance.rows * instance.columns * max(1, instance.samples) * _SAMPLE_BYTES
        several = instance.frames > 1
        try:
            if several and not self._frames:
                raise Elsewhere
            header = self._header(place) if several else self._wado.header(place, NEEDED)
            found = self._wado.frame(place, frame + 1 if several else 1, pixels)
            return assembled(header, found.body, found.syntax, frame if several else None), several
        except Elsewhere:
            return self._wado.whole(place, pixels * instance.frames + _BESIDE), False

    def _header(self, place: Place) -> DataSet:
        with self._lock:
            if (header := self._headers.get(place.sop)) is not None:
                self._headers.move_to_end(place.sop)
                return header
        header = self._wado.header(place, NEEDED)
        with self._lock:
            self._headers[place.sop] = header
            while len(self._headers) > _KEPT:
                self._headers.popitem(last=False)
        return header
