"""Where contents of layers wait, under numbers, until it is known which of them the image keeps.

No name of an archive reaches the disk before all layers were read and verified.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rapha.runtime.image.model import Limits
from rapha.spec.refusals import Refused

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_UNNAMEABLE: Final = frozenset({errno.EEXIST, errno.EILSEQ, errno.EINVAL, errno.ENAMETOOLONG})
_CHECK_BYTES: Final = 16 * 1024 * 1024
_CHECK_FILES: Final = 1024
_SMALL: Final = 64 * 1024
"""Files up to this size wait side by side in one: a bomb of small ones costs no more than reading it."""
_BUFFER: Final = 1024 * 1024
_MAX_LINKS: Final = 30_000
"""Hard links of one file; ext4 holds 65,000."""


class Blob:
    """Contents of one file, shared by its hard links; where they wait is the pool's to know."""

    __slots__ = ("at", "links", "name", "runs", "size")

    def __init__(self, at: int, name: str, size: int, runs: bool) -> None:
        self.at = at
        self.name = name
        self.size = size
        self.runs = runs
        self.links = 1


class Pool:
    """A folder of its own inside the destination, on the same file system; a context manager."""

    def __init__(self, into: Path, limits: Limits) -> None:
        """Make the folder. Nobody can guess its name, so no path of an image meets it."""
        self._folder = into / f".rapha-{secrets.token_hex(16)}"
        self._keep_free = limits.keep_free
        self._count = 0
        self._unchecked = _CHECK_BYTES
        with room():
            self._folder.mkdir(mode=0o700)
        self._fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._small = (self._folder / "small").open("w+b", buffering=_BUFFER)
        self._end = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with contextlib.suppress(OSError):  # a full disk was refused before, and all of it goes now
                self._small.close()
        finally:
            os.close(self._fd)
            shutil.rmtree(self._folder)

    def write(self, pieces: Iterable[bytes], size: int, runs: bool) -> Blob:
        """Keep `pieces`, which are `size` bytes, as a file that will have mode 0555 if it `runs`, else 0444.

        Raises:
            Refused: `node.disk_full`, and what `pieces` raises.
        """
        self._check(size)
        if size > _SMALL:
            return Blob(0, self._file(pieces, runs), size, runs)
        blob = Blob(self._end, "", size, runs)
        for piece in pieces:
            with room():
                self._small.write(piece)
            self._end += len(piece)
        return blob

    def link(self, blob: Blob) -> Blob:
        """Count one more name of `blob`. Raises `Refused` (`image.too_large`) past 30,000."""
        blob.links += 1
        if blob.links > _MAX_LINKS:
            raise Refused("image.too_large", f"over {_MAX_LINKS} hard links to one file")
        if not blob.name:
            blob.name = self._file(self._waiting(blob), blob.runs)
        return blob

    def drop(self, blob: Blob) -> None:
        """One name of `blob` is gone; with the last one, so is what it holds."""
        blob.links -= 1
        if blob.name and not blob.links:
            os.unlink(blob.name, dir_fd=self._fd)

    def place(self, blob: Blob, folder: int, name: str) -> None:
        """Give `blob` its name in the open folder, where nothing has it.

        Raises:
            Refused: `node.disk_full`, `image.path_unsafe` for a name that the disk can't hold.
        """
        blob.links -= 1
        if not blob.name:
            self._create(folder, name, self._waiting(blob), blob.runs)
            return
        move = os.link if blob.links else os.rename
        with room():
            move(blob.name, name, src_dir_fd=self._fd, dst_dir_fd=folder)

    def _waiting(self, blob: Blob) -> Iterator[bytes]:
        with room():
            self._small.flush()
        data = os.pread(self._small.fileno(), blob.size, blob.at)
        if len(data) != blob.size:
            raise OSError(errno.EIO, "the disk lost what was written")
        yield data

    def _file(self, pieces: Iterable[bytes], runs: bool) -> str:
        self._count += 1
        self._create(self._fd, str(self._count), pieces, runs)
        return str(self._count)

    def _create(self, folder: int, name: str, pieces: Iterable[bytes], runs: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with room():
            file = os.open(name, flags, 0o600, dir_fd=folder)
        try:
            for piece in pieces:
                self._check(len(piece))
                _write(file, piece)
            os.fchmod(file, 0o555 if runs else 0o444)
        finally:
            os.close(file)

    def _check(self, size: int) -> None:
        self._unchecked += size + _CHECK_BYTES // _CHECK_FILES
        if self._unchecked < _CHECK_BYTES:
            return
        self._unchecked = 0
        disk = os.fstatvfs(self._fd)
        if disk.f_bavail * disk.f_frsize - max(size, _CHECK_BYTES) < self._keep_free:
            raise Refused("node.disk_full", f"less than {self._keep_free} bytes would be left on the disk")
        # Some file systems have no fixed number of inodes, and say 0 of 0.
        if disk.f_files and disk.f_favail < 2 * _CHECK_FILES:
            raise Refused("node.disk_full", "the disk has no room for more files")


def _write(file: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        with room():
            written = os.write(file, view)
        view = view[written:]


@contextmanager
def room() -> Iterator[None]:
    """Turn what a disk says about its room or its names into a refusal.

    Raises:
        Refused: `node.disk_full`, `image.path_unsafe` for a name that the disk can't hold.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise Refused("node.disk_full", f"the disk says: {error.strerror}") from None
        if error.errno in _UNNAMEABLE:
            raise Refused("image.path_unsafe", f"the disk can't hold a path: {error.strerror}") from None
        raise
