"""A read-only folder of files, read as hostile: no links, only what the manifest names, by digest.

Each file is read once into memory and everything later works on those bytes, so what was hashed is what is
parsed, whatever happens to the file meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Final

from rapha.spec.dataset import FolderSource
from rapha.spec.paths import SourceFile
from rapha.spec.refusals import Refused

MAX_TOTAL_BYTES: Final = 4 * 2**30
_ANY_WRITE: Final = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def read_files(source: FolderSource, manifest_folder: Path) -> dict[str, bytes]:
    """The bytes of every file that the manifest names, by name.

    Raises:
        Refused: `node.dataset_missing` (folder or file absent), `node.dataset_writable` (see `read_only`),
            `node.dataset_invalid` (a link, special or unlisted file, a size or digest that differs, or
            more than `MAX_TOTAL_BYTES`).
    """
    if sum(file.size for file in source.files) > MAX_TOTAL_BYTES:
        raise Refused("node.dataset_invalid", f"the files are larger than {MAX_TOTAL_BYTES} bytes together")
    with open_folder(source.path, manifest_folder) as folder:
        if not read_only(folder, folder, "."):
            raise Refused("node.dataset_writable", "the records' folder can be written by the node")
        unlisted = set(os.listdir(folder)) - {file.name for file in source.files}  # noqa: PTH208  of the open folder
        if unlisted:
            raise Refused("node.dataset_invalid", f"{len(unlisted)} entries are not in the manifest")
        return {file.name: _read(folder, file) for file in source.files}


def read_small(path: str, manifest_folder: Path, limit: int) -> bytes:
    """A small regular file that the manifest names, such as the list of opt-outs.

    Raises:
        Refused: `node.dataset_missing`, or `node.dataset_invalid` for a link, a special file or one past
            `limit` bytes.
    """
    pure = PurePosixPath(path)
    with open_folder(str(pure.parent), manifest_folder) as folder:
        file = open_file(pure.name, folder)
    with file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Refused("node.dataset_invalid", f"{pure.name} is larger than {limit} bytes")
    return data


def read_pinned(path: str, file: SourceFile, manifest_folder: Path) -> bytes:
    """One file of the folder `path`, whatever else lies there. Raises: as `read_files`."""
    if file.size > MAX_TOTAL_BYTES:
        raise Refused("node.dataset_invalid", f"{file.name} is larger than {MAX_TOTAL_BYTES} bytes")
    with open_folder(path, manifest_folder) as folder:
        return _read(folder, file)


@contextlib.contextmanager
def open_folder(path: str, start: Path) -> Iterator[int]:
    """Open `path` below `start` one component at a time, so that no part of it can be a link."""
    with contextlib.ExitStack() as opened:
        pure = PurePosixPath(path)
        parts = pure.parts[1:] if pure.is_absolute() else pure.parts
        fd = _open("/" if pure.is_absolute() else str(start), None, os.O_DIRECTORY)
        opened.callback(os.close, fd)
        for part in parts:
            fd = _open(part, fd, os.O_DIRECTORY | os.O_NOFOLLOW)
            opened.callback(os.close, fd)
        yield fd


def _read(folder: int, file: SourceFile) -> bytes:
    with open_file(file.name, folder) as stream:
        if not read_only(stream.fileno(), folder, file.name):
            raise Refused("node.dataset_writable", f"{file.name} can be written by the node")
        if os.fstat(stream.fileno()).st_size != file.size:
            raise Refused("node.dataset_invalid", f"{file.name} is not of the size in the manifest")
        data = stream.read(file.size + 1)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise Refused("node.dataset_invalid", f"{file.name} does not have the digest in the manifest")
    return data


def open_file(name: str, folder: int) -> BufferedReader:
    """The regular file `name` in the open folder; no link is followed. Raises: as `read_small`."""
    # Without O_NONBLOCK a FIFO of that name would hang the node.
    fd = _open(name, folder, os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Refused("node.dataset_invalid", f"{name} is not a regular file")
    return os.fdopen(fd, "rb")


def _open(name: str, parent: int | None, flags: int) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=parent)
    except FileNotFoundError:
        raise Refused("node.dataset_missing", f"{name} is not there") from None
    except OSError as error:  # ELOOP and ENOTDIR: a link, or a file where a folder should be
        raise Refused("node.dataset_invalid", f"{name} can't be opened: {error.strerror}") from None


def read_only(fd: int, folder: int, name: str) -> bool:
    """Whether this process lacks write access to `fd`, opened as `name` in `folder`.

    A mount that is read-only (statvfs ST_RDONLY) settles it. Otherwise access(2) answers for an ordinary
    user, ACLs included. Root passes every access(2), so for root the mode bits decide instead: nobody
    may have write permission. That shows the hospital's intent, and stops accidents; what stops root is
    the read-only mount, and what detects a change is the digest of each file.
    """
    if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
        return True
    if os.geteuid() == 0:
        return not os.fstat(fd).st_mode & _ANY_WRITE
    return not os.access(name, os.W_OK, dir_fd=folder, effective_ids=True)
