"""Released bytes on their way to the dataset process: in memory that can't change any more."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from rapha.node.datasets.control import Content
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import ReleasePlan

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def searchable(files: Mapping[str, bytes], plan: ReleasePlan) -> Iterator[tuple[str, Content, memoryview]]:
    """Of each rebuilt file the name, the kind, and all that `plan` left open: not the header of weights.

    The header was fixed before data access, so what its numbers spell is nobody's doing.

    Raises:
        Refused: `node.internal` for weights without the planned header.
    """
    for name, data in files.items():
        if not plan.weights or name != plan.weights.file:
            yield name, "text", memoryview(data)
            continue
        header = plan.weights.released_header()
        head = len(header).to_bytes(8, "little") + header
        if not data.startswith(head):
            raise Refused("node.internal", "rebuilt weights without the planned header")
        yield name, "numbers", memoryview(data)[len(head) :]


@contextmanager
def sealed(data: memoryview) -> Iterator[int]:
    """A memfd of `data` that nobody can write, grow or cut any more; closed afterwards."""
    descriptor = os.memfd_create("released", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def unsealed(descriptor: int | None) -> Iterator[memoryview]:
    """The bytes behind `descriptor`, mapped.

    Raises:
        Refused: `node.internal` for anything but a memfd sealed by `sealed`: what changes while it is read
            could end this process, or be released as something else than was searched.
    """
    try:
        seals = 0 if descriptor is None else fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:  # not a memfd
        seals = 0
    if descriptor is None or seals & _SEALS != _SEALS:
        raise Refused("node.internal", "released bytes that could still change")
    size = os.fstat(descriptor).st_size
    if not size:
        yield memoryview(b"")
        return
    # No view of it outlives the caller, so closing the map can't fail.
    with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
        yield view
