"""Walk a read-only tree of files, read as hostile: no link is followed, nothing special is opened.

Whether the tree can be written is judged from what the walk has to read anyway:
  - a mount that is read-only (statvfs) settles it for a folder and the files in it; every folder is asked,
    since a writable mount may hide below a read-only one, even of the same device (a bind mount)
  - elsewhere every folder is asked as `folder.read_only` does, and every file's mode bits are compared with
    this process (root: nobody may have write permission), without a call for each file. Group bits also
    bound what an access control list grants, so a list that names this process is noticed by them.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import Final

from rapha.node.sources.folder import open_folder, read_only
from rapha.node.sources.interface import Quarantine
from rapha.spec.refusals import Refused

MAX_FILES: Final = 5_000_000
"""And as many folders, links and other entries together."""
MAX_DEPTH: Final = 32
MAX_PATH_BYTES: Final = 1024

_STAMP: Final = Struct("<QQQQQ")
_64_BITS: Final = 2**64 - 1
_UNPRINTABLE: Final = re.compile(r"[^ -\[\]-~]")
Stamp = bytes
"""Device, inode, size, and the times of the last change to content and to inode, ns, packed.

A time may be any number: whoever wrote the file chose it.
"""


@dataclass(frozen=True, slots=True)
class Found:
    """A regular file: its path below the root, and what tells whether it changed."""

    path: str
    stamp: Stamp


@dataclass(slots=True)
class Tree:
    """What a walk found, each part in the order of the paths.

    Attributes:
        lost: paths that couldn't be walked to their end, and why.
        aside: paths that are no files, and what they are.
    """

    files: list[Found] = field(default_factory=list)
    lost: list[tuple[str, Quarantine]] = field(default_factory=list)
    aside: list[tuple[str, str]] = field(default_factory=list)


def walk(path: str, start: Path) -> Tree:
    """Everything below the folder `path`, relative to `start`.

    Raises:
        Refused: `node.dataset_missing` or `node.dataset_invalid` for the root; `node.dataset_writable`;
            `node.dataset_invalid` past `MAX_FILES`.
    """
    with open_folder(path, start) as root:
        walker = _Walker()
        walker.folder(root, "", 1, walker.check_folder(root, root, ".", ""))
    return walker.tree


def printable(path: str) -> str:
    """A path for people and for JSON, by which no two paths are alike.

    What is no UTF-8 is \\xNN, what is no printable character \\u{N}, and a backslash \\\\.
    """
    return _UNPRINTABLE.sub(lambda found: _escape(found[0]), path)


def _escape(character: str) -> str:
    code = ord(character)
    if character == "\\":
        return "\\\\"
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as the file system's names have it
        return f"\\x{code - 0xDC00:02x}"
    return character if character.isprintable() else f"\\u{{{code:x}}}"


class _Walker:
    def __init__(self) -> None:
        self.tree = Tree()
        self._euid = os.geteuid()
        self._others = 0

    def folder(self, fd: int, path: str, depth: int, guarded: int | None) -> None:
        """Everything in the open folder `fd`; `guarded` is the device whose files nobody can write here."""
        try:
            entries = _entries(fd)
        except OSError:
            self.tree.lost.append((path.rstrip("/") or ".", Quarantine.FILE_UNREADABLE))
            return
        for name, status in entries:
            inner = f"{path}{name}"
            if status is not None and stat.S_ISREG(status.st_mode):
                self._file(inner, status, guarded)
                continue
            self._count_other()
            if len(os.fsencode(inner)) > MAX_PATH_BYTES:
                self.tree.lost.append((inner, Quarantine.TOO_LARGE))
            elif status is None:
                self.tree.lost.append((inner, Quarantine.FILE_UNREADABLE))
            elif not stat.S_ISDIR(status.st_mode):
                self.tree.aside.append((inner, "link" if stat.S_ISLNK(status.st_mode) else "special"))
            elif depth == MAX_DEPTH:
                self.tree.lost.append((inner, Quarantine.TOO_LARGE))
            elif (below := self._opened(fd, name, inner)) is not None:
                self._inner_folder(below, fd, name, inner, depth)
            elif status.st_dev != guarded and self._may_write(status):  # though it can't be looked into
                raise _writable(inner)

    def _file(self, path: str, status: os.stat_result, guarded: int | None) -> None:
        if len(self.tree.files) == MAX_FILES:
            raise _too_many()
        if status.st_dev != guarded and self._may_write(status):
            raise _writable(path)
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            self._count_other()
            self.tree.lost.append((path, Quarantine.TOO_LARGE))
            return
        times = (status.st_mtime_ns & _64_BITS, status.st_ctime_ns & _64_BITS)
        stamp = _STAMP.pack(status.st_dev, status.st_ino, status.st_size, *times)
        self.tree.files.append(Found(path, stamp))

    def _count_other(self) -> None:
        self._others += 1
        if self._others > MAX_FILES:
            raise _too_many()

    def _opened(self, parent: int, name: str, path: str) -> int | None:
        """The folder, opened; None where that can't be, which makes it a lost record."""
        try:
            return os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        except OSError:
            self.tree.lost.append((path, Quarantine.FILE_UNREADABLE))
            return None

    def _inner_folder(self, fd: int, parent: int, name: str, path: str, depth: int) -> None:
        try:
            self.folder(fd, f"{path}/", depth + 1, self.check_folder(fd, parent, name, path))
        finally:
            os.close(fd)

    def check_folder(self, fd: int, parent: int, name: str, path: str) -> int | None:
        """The device, if its mount is read-only here; the files on it need no look then."""
        device = os.fstat(fd).st_dev
        if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
            return device
        if not read_only(fd, parent, name):
            raise _writable(path)
        return None

    def _may_write(self, status: os.stat_result) -> bool:
        if self._euid == 0:
            return bool(status.st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
        if status.st_uid == self._euid:
            return bool(status.st_mode & stat.S_IWUSR)
        return bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _writable(path: str) -> Refused:
    what = printable(path) if path else "the records' folder"
    return Refused("node.dataset_writable", f"{what} can be written by the node")


def _too_many() -> Refused:
    return Refused("node.dataset_invalid", f"the tree holds more than {MAX_FILES} files, or other entries")


def _entries(fd: int) -> Iterator[tuple[str, os.stat_result | None]]:
    """Names and states in a folder, sorted; None where the state can't be had. Raises: OSError."""
    with os.scandir(fd) as entries:
        names = sorted(entry.name for entry in entries)
    return ((name, _status(name, fd)) for name in names)


def _status(name: str, fd: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError:
        return None
