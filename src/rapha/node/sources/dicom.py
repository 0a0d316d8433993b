"""A read-only mount of DICOM files (PS3.10), such as a PACS archive.

1. the tree is walked: no link is followed, nothing special is opened, and nothing in it may be writable
2. the label table and the fields are checked
3. walled-off workers read every header that isn't known from an earlier opening
4. each regular file is then an image, a lost record with a reason, or set aside by name: none goes missing
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Final

from rapha.node.sources.folder import open_file, open_folder
from rapha.node.sources.imaging.attributes import Decoder, Instance
from rapha.node.sources.imaging.headers import ASIDE, Setup
from rapha.node.sources.imaging.headers import Aside as Other
from rapha.node.sources.imaging.progress import Progress
from rapha.node.sources.imaging.records import ImagingRecords, prepare_plan
from rapha.node.sources.interface import Aside, Quarantine, Surroundings
from rapha.node.sources.tree import Found, Stamp, printable, walk
from rapha.node.sources.workers.interface import Answer, Item, Limits, Task, Unusable
from rapha.node.sources.workers.pool import Pool
from rapha.spec.dataset import DatasetManifest
from rapha.spec.imaging import DicomSource as Described
from rapha.spec.refusals import Refused

_HEADER_LIMITS: Final = Limits(item_s=10.0, memory_bytes=2**29)
_CHUNK: Final = 2**20
_PASSING: Final = (Quarantine.TOO_SLOW, Quarantine.DECODER_CRASHED, Quarantine.FILE_UNREADABLE)
"""What might not be said again: such a file gets another chance."""

Description = Instance | Quarantine | Other
"""What a file is: an image, why it can't be one, or something else."""


class DicomSource:
    """Opens what `DatasetManifest.source` of kind `dicom` describes; remembers headers between openings."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bytes], dict[str, tuple[Stamp, Description]]] = {}

    def open(self, manifest: DatasetManifest, around: Surroundings) -> ImagingRecords:
        """See `RecordSource.open`."""
        source = manifest.source
        if not isinstance(source, Described):
            raise Refused("node.internal", "not a mount of DICOM files")
        # 1. the tree
        around.tell("finding", 0, 0)
        tree = walk(source.path, around.folder)
        # 2. the fields
        plan = prepare_plan(manifest, around)
        # 3. the headers
        described = self._described(around.folder / source.path, tree.files, plan.setup, around)
        # 4. every file
        instances = [one for one in described if isinstance(one, Instance)]
        lost = [(f.path, d) for f, d in zip(tree.files, described, strict=True) if isinstance(d, Quarantine)]
        aside = [(f.path, d) for f, d in zip(tree.files, described, strict=True) if isinstance(d, Other)]
        mount = _Mount(source.path, around.folder)
        return ImagingRecords(
            manifest,
            instances,
            [(printable(path), why) for path, why in (*lost, *tree.lost)],
            mount,
            around,
            reading=plan,
            same=mount.same,
            aside=[Aside(printable(path), str(what)) for path, what in (*aside, *tree.aside)],
        )

    def _described(
        self, folder: Path, files: Sequence[Found], setup: Setup, around: Surroundings
    ) -> list[Description]:
        """What each file is, read anew where it is not the file that was read before."""
        key = (str(folder), setup.encode())
        known = self._known.pop(key, {})
        fresh = [found for found in files if known.get(found.path, (b"",))[0] != found.stamp]
        read = dict(zip((found.path for found in fresh), _read(folder, fresh, setup, around), strict=True))
        described = [read[f.path] if f.path in read else known[f.path][1] for f in files]
        both = zip(files, described, strict=True)
        self._known[key] = {found.path: (found.stamp, one) for found, one in both if one not in _PASSING}
        return described


@dataclass(frozen=True, slots=True)
class _Mount:
    """How workers come to a file, and how two files compare."""

    path: str
    start: Path

    @property
    def pool_folder(self) -> Path:
        """As `Retrieval.pool_folder`."""
        return self.start / self.path

    @property
    def parallel(self) -> int:
        """As `Retrieval.parallel`: naming files takes no time."""
        return 1

    def item(self, args: bytes, instances: Sequence[Instance], frame: int) -> Item:
        """As `Retrieval.item`."""
        return Item(args, paths=tuple(instance.locator for instance in instances))

    def same(self, first: Instance, second: Instance) -> bool:
        """Whether two files are the same bytes; what can't be read is the same as nothing."""
        try:
            with self._opened(first.locator) as one, self._opened(second.locator) as two:
                if os.fstat(one.fileno()).st_size != os.fstat(two.fileno()).st_size:
                    return False
                if os.path.sameopenfile(one.fileno(), two.fileno()):
                    return True
                return all(a == b for a, b in zip_longest(_chunks(one), _chunks(two)))
        except (OSError, Refused):
            return False

    @contextlib.contextmanager
    def _opened(self, locator: str) -> Iterator[BufferedReader]:
        path = PurePosixPath(self.path) / locator
        with open_folder(str(path.parent), self.start) as folder, open_file(path.name, folder) as file:
            yield file


def _chunks(file: BufferedReader) -> Iterator[bytes]:
    return iter(lambda: file.read(_CHUNK), b"")


def _read(folder: Path, files: Sequence[Found], setup: Setup, around: Surroundings) -> Sequence[Description]:
    """What workers say of each file."""
    described: list[Description] = [Quarantine.DECODER_CRASHED] * len(files)
    if not files:
        return described
    decoder = Decoder(setup.wanted)
    progress = Progress(around.tell, "indexing", len(files))
    items: Iterator[Item] = (Item(b"", paths=(found.path,)) for found in files)
    with Pool(
        Task.INDEX, setup.encode(), folder=folder, workers=around.workers, limits=_HEADER_LIMITS
    ) as pool:
        for answer in pool.run(items):
            described[answer.ordinal] = _understood(answer, files[answer.ordinal].path, decoder)
            progress.step()
    progress.end()
    return described


def _understood(answer: Answer, path: str, decoder: Decoder) -> Description:
    if answer.quarantine is not Quarantine.NONE:
        return answer.quarantine
    if (other := ASIDE.get(answer.reply)) is not None:
        return other
    try:
        return decoder.decode(answer.reply, path)
    except Unusable as verdict:
        return verdict.quarantine
