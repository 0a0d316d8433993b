"""The files of an OCI image layout, from a folder or from an archive of one, as bytes in memory.

Read once: what is verified later is exactly what was read, whoever writes to the source meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rapha.runtime.image.model import Limits
from rapha.runtime.image.paths import Tree, clean
from rapha.runtime.image.tar import Reader
from rapha.spec.refusals import Refused

LAYOUT_FILE: Final = "oci-layout"
INDEX_FILE: Final = "index.json"
BLOBS: Final = "blobs/sha256"
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def load(source: Path, limits: Limits) -> dict[str, bytes]:
    """The layout's files by path: `oci-layout`, `index.json` and `blobs/sha256/*`; others are not read.

    Raises:
        Refused: `image.not_found`, `image.layout_invalid`, `image.file_type`, `image.path_unsafe`,
            `image.too_large`.
    """
    try:
        mode = source.stat().st_mode
        if stat.S_ISDIR(mode):
            return _Folder(limits).load(source)
        if stat.S_ISREG(mode):
            return _from_archive(source, limits)
    except OSError as error:
        raise Refused("image.not_found", f"{source}: {error.strerror}") from None
    raise Refused("image.not_found", f"{source} is neither a folder nor an archive")


def _wanted(path: str) -> bool:
    return path in (LAYOUT_FILE, INDEX_FILE) or path.rpartition("/")[0] == BLOBS


def _from_archive(source: Path, limits: Limits) -> dict[str, bytes]:
    with source.open("rb") as file:
        data = file.read(limits.stored + 1)
    if len(data) > limits.stored:
        raise Refused("image.too_large", f"the archive is over {limits.stored} bytes")
    found: dict[str, bytes] = {}
    seen: set[str] = set()
    tree = Tree()
    for entry in Reader(data, limits, "the archive"):
        path = clean(entry.name, limits)
        if path in seen:
            raise Refused("image.path_unsafe", f"path {path!r} is in the archive twice")
        seen.add(path)
        tree.claim(path)
        if entry.kind == "link":
            raise Refused("image.file_type", f"{path!r} in the archive is a link")
        if entry.kind == "file" and _wanted(path):
            found[path] = bytes(entry.data)
        if len(seen) > limits.entries:
            raise Refused("image.too_large", f"the archive has over {limits.entries} entries")
    return found


class _Folder:
    """Reads a layout folder without following any link inside it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._room = limits.stored

    def load(self, source: Path) -> dict[str, bytes]:
        with _opened(str(source), None, os.O_DIRECTORY, follow=True) as root:
            found = {name: self._read(name, root) for name in (LAYOUT_FILE, INDEX_FILE)}
            with (
                _opened("blobs", root, os.O_DIRECTORY) as blobs,
                _opened("sha256", blobs, os.O_DIRECTORY) as folder,
            ):
                names = os.listdir(folder)  # noqa: PTH208  by descriptor, so that no link is followed
                if len(names) > self._limits.layers + 2:
                    raise Refused("image.too_large", f"over {self._limits.layers} layers")
                for name in sorted(names):
                    found[f"{BLOBS}/{name}"] = self._read(name, folder)
        return found

    def _read(self, name: str, folder: int) -> bytes:
        with _opened(name, folder) as descriptor:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Refused("image.file_type", f"{name!r} in the layout is not a regular file")
            with os.fdopen(os.dup(descriptor), "rb") as file:
                data = file.read(self._room + 1)
        self._room -= len(data)
        if self._room < 0:
            raise Refused("image.too_large", f"the layout is over {self._limits.stored} bytes")
        return data


@contextmanager
def _opened(name: str, folder: int | None, extra: int = 0, *, follow: bool = False) -> Iterator[int]:
    flags = (_FLAGS | extra) & ~(os.O_NOFOLLOW if follow else 0)
    try:
        descriptor = os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR):
            raise Refused("image.file_type", f"{name!r} in the layout is a link or a special file") from None
        raise Refused("image.layout_invalid", f"{name!r} in the layout: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)
