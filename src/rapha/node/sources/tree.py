"""Walk a read-only tree of files, read as hostile: no link is followed, nothing special is opened.

Whether the tree can be written is judged from what the walk has to read anyway:
  - a mount that is read-only (statvfs) settles it for everything on that mount; a folder on another one is
    asked again, since a writable mount may hide below a read-only one
  - elsewhere every folder is asked as `folder.read_only` does, and every file's mode bits are compared with
    this process (root: nobody may have write permission), without a call for each file. Group bits also
    bound what an access control list grants, so a list that names this process is noticed by them.
"""

from __future__ import annotations

import os
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
MAX_DEPTH: Final = 32
MAX_PATH_BYTES: Final = 1024

_STAMP: Final = Struct("<QQqqq")
Stamp = bytes
"""Device, inode, size, and the times of the last change to content and to inode, ns, packed."""


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
        walker = _Walker(root)
        walker.folder(root, "", 1)
    return walker.tree


def printable(path: str) -> str:
    """A path for people and for JSON: what is no UTF-8, or no printable character, is escaped."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


class _Walker:
    def __init__(self, root: int) -> None:
        self.tree = Tree()
        self._euid = os.geteuid()
        self._guarded: dict[int, bool] = {}
        self._check_folder(root, root, ".", "")

    def folder(self, fd: int, path: str, depth: int) -> None:
        """Everything in the open folder `fd`."""
        try:
            entries = _entries(fd)
        except OSError:
            self.tree.lost.append((path.rstrip("/") or ".", Quarantine.FILE_UNREADABLE))
            return
        for name, status in entries:
            inner = f"{path}{name}"
            if len(os.fsencode(inner)) > MAX_PATH_BYTES:
                self.tree.lost.append((inner, Quarantine.TOO_LARGE))
            elif status is None:
                self.tree.lost.append((inner, Quarantine.FILE_UNREADABLE))
            elif stat.S_ISREG(status.st_mode):
                self._file(inner, status)
            elif not stat.S_ISDIR(status.st_mode):
                self.tree.aside.append((inner, "link" if stat.S_ISLNK(status.st_mode) else "special"))
            elif depth == MAX_DEPTH:
                self.tree.lost.append((inner, Quarantine.TOO_LARGE))
            else:
                self._inner_folder(fd, name, inner, depth)

    def _file(self, path: str, status: os.stat_result) -> None:
        if len(self.tree.files) == MAX_FILES:
            raise Refused("node.dataset_invalid", f"the tree holds more than {MAX_FILES} files")
        if not self._guarded.get(status.st_dev, False) and self._may_write(status):
            raise Refused("node.dataset_writable", f"{printable(path)} can be written by the node")
        times = (status.st_mtime_ns, status.st_ctime_ns)
        stamp = _STAMP.pack(status.st_dev, status.st_ino, status.st_size, *times)
        self.tree.files.append(Found(path, stamp))

    def _inner_folder(self, parent: int, name: str, path: str, depth: int) -> None:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        except OSError:
            self.tree.lost.append((path, Quarantine.FILE_UNREADABLE))
            return
        try:
            self._check_folder(fd, parent, name, path)
            self.folder(fd, f"{path}/", depth + 1)
        finally:
            os.close(fd)

    def _check_folder(self, fd: int, parent: int, name: str, path: str) -> None:
        device = os.fstat(fd).st_dev
        if device not in self._guarded:
            self._guarded[device] = bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)
        if not self._guarded[device] and not read_only(fd, parent, name):
            what = printable(path) if path else "the records' folder"
            raise Refused("node.dataset_writable", f"{what} can be written by the node")

    def _may_write(self, status: os.stat_result) -> bool:
        if self._euid == 0:
            return bool(status.st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
        if status.st_uid == self._euid:
            return bool(status.st_mode & stat.S_IWUSR)
        return bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


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
