"""The blobs of an OCI image layout, in a folder or in an archive of one, each read when it is asked for.

Nothing read here is trusted: whoever writes to the source meanwhile changes what is hashed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from rapha.runtime.image.model import Limits
from rapha.runtime.image.paths import Spellings, clean
from rapha.runtime.image.stream import CHUNK
from rapha.runtime.image.tar import Entry, Reader
from rapha.spec.refusals import Refused

LAYOUT_FILE: Final = "oci-layout"
INDEX_FILE: Final = "index.json"
BLOBS: Final = "blobs/sha256"
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_MAX_BLOBS: Final = 1024


class Store:
    """An opened layout: sizes and contents of `oci-layout`, `index.json` and `blobs/sha256/*`."""

    def __init__(self, source: Path, limits: Limits) -> None:
        """Open `source` and list it; a context manager that closes it.

        Raises:
            Refused: `image.not_found`, `image.layout_invalid`, `image.file_type`, `image.path_unsafe`,
                `image.too_large`.
        """
        self._source = source
        with ExitStack() as opened:
            self._fd = _open_source(source)
            opened.callback(os.close, self._fd)
            if stat.S_ISDIR(os.fstat(self._fd).st_mode):
                self._at: Mapping[str, tuple[int, int]] | None = None
                self.sizes = _list_folder(self._fd)
            else:
                self._at = _index_archive(self._fd, limits)
                self.sizes = {name: size for name, (_, size) in self._at.items()}
            self._check(limits)
            self._closing = opened.pop_all()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def check_size(self, limits: Limits) -> None:
        """Raises `Refused` (`image.too_large`) if all of it together passes `limits.stored`."""
        if sum(self.sizes.values()) > limits.stored:
            raise Refused("image.too_large", f"the layout is over {limits.stored} bytes")

    def chunks(self, name: str) -> Iterator[bytes]:
        """The contents of `name`, which is one of `sizes`; at most as many bytes as it had when listed.

        Raises:
            Refused: `image.not_found`, `image.file_type`.
        """
        if self._at is not None:
            yield from _range(self._fd, *self._at[name], name)
            return
        with _opened(name, self._fd) as file:
            yield from _range(file, 0, self.sizes[name], name)

    def _check(self, limits: Limits) -> None:
        if len(self.sizes) > _MAX_BLOBS:
            raise Refused("image.too_large", f"over {_MAX_BLOBS} blobs")
        self.check_size(limits)


def _open_source(source: Path) -> int:
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Refused("image.not_found", f"{source}: {error.strerror}") from None
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
        return fd
    os.close(fd)
    raise Refused("image.not_found", f"{source} is neither a folder nor an archive")


def _range(fd: int, start: int, size: int, name: str) -> Iterator[bytes]:
    end = start + size
    while start < end:
        try:
            chunk = os.pread(fd, min(CHUNK, end - start), start)
        except OSError as error:
            raise Refused("image.not_found", f"{name!r} in the layout: {error.strerror}") from None
        if not chunk:  # cut short since it was listed: what reads it finds another digest
            return
        start += len(chunk)
        yield chunk


# --- a folder --------------------------------------------------------------------------------------


def _list_folder(root: int) -> dict[str, int]:
    sizes = {}
    with _opened(BLOBS, root, os.O_DIRECTORY) as folder:
        names = [LAYOUT_FILE, INDEX_FILE]
        with os.scandir(folder) as found:
            for entry in found:
                names.append(f"{BLOBS}/{entry.name}")
                if len(names) > _MAX_BLOBS:
                    raise Refused("image.too_large", f"over {_MAX_BLOBS} blobs")
    for name in names:
        with _opened(name, root) as file:
            sizes[name] = os.fstat(file).st_size
    return sizes


@contextmanager
def _opened(name: str, root: int, extra: int = 0) -> Iterator[int]:
    """Open `name` below `root`, component by component, without following a link anywhere."""
    with ExitStack() as stack:
        folder = root
        *folders, last = name.split("/")
        for part in folders:
            folder = _open(part, folder, os.O_DIRECTORY, name)
            stack.callback(os.close, folder)
        file = _open(last, folder, extra, name)
        stack.callback(os.close, file)
        if not extra and not stat.S_ISREG(os.fstat(file).st_mode):
            raise Refused("image.file_type", f"{name!r} in the layout is not a regular file")
        yield file


def _open(part: str, folder: int, extra: int, name: str) -> int:
    try:
        return os.open(part, _FLAGS | extra, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR):
            raise Refused("image.file_type", f"{name!r} in the layout is a link or a special file") from None
        raise Refused("image.layout_invalid", f"{name!r} in the layout: {error.strerror}") from None


# --- an archive ------------------------------------------------------------------------------------


class _Archive:
    """A `tar.Source` over an open file, in which contents are passed over without reading them."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self.position = 0

    def read(self, size: int) -> bytes:
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[bytes]:
        for piece in _range(self._fd, self.position, size, "the archive"):
            self.position += len(piece)
            yield piece

    def skip(self, size: int) -> int:
        skipped = min(size, max(0, self._size - self.position))
        self.position += skipped
        return skipped


def _index_archive(fd: int, limits: Limits) -> dict[str, tuple[int, int]]:
    if os.fstat(fd).st_size > limits.stored:
        raise Refused("image.too_large", f"the archive is over {limits.stored} bytes")
    found: dict[str, tuple[int, int]] = {}
    seen: set[str] = set()
    spellings = Spellings()
    archive = _Archive(fd)
    for entry in Reader(archive, limits, "the archive"):
        path = clean(entry.name, limits)
        if path in seen:
            raise Refused("image.path_unsafe", f"path {path!r} is in the archive twice")
        seen.add(path)
        if len(seen) > min(limits.entries, 8 * _MAX_BLOBS):
            raise Refused("image.too_large", "the archive has too many entries")
        spellings.claim(path)
        _check_entry(entry, path)
        if entry.kind == "file" and _wanted(path):
            found[path] = (archive.position, entry.size)
    if LAYOUT_FILE not in found and "manifest.json" in seen:
        raise Refused(
            "image.layout_invalid", "a docker-archive, not an OCI one; export it as oci-archive or type=oci"
        )
    return found


def _check_entry(entry: Entry, path: str) -> None:
    if entry.kind in ("symlink", "hardlink"):
        raise Refused("image.file_type", f"{path!r} in the archive is a link")


def _wanted(path: str) -> bool:
    return path in (LAYOUT_FILE, INDEX_FILE) or path.rpartition("/")[0] == BLOBS
