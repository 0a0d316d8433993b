"""The file of the ledger's entries: locked, checked from its first byte whenever it is opened, synced."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rapha.node.datasets.ledger.entries import START, Entry, Event, read
from rapha.spec.refusals import Refused
from rapha.spec.units import parse_time

NAME: Final = "ledger.jsonl"
LOCK_S: Final = 30.0
"""Longest that one process waits for another; each holds the lock for the time of one check or write."""
_LOOK_S: Final = 0.01
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class Chain:
    """An open ledger, locked against every other process. A context manager; make one with `open`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.entries: list[Entry] = []
        self._size = 0

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open or create the ledger in `folder`, and check all of it.

        A torn last line is passed over, since it was never relied on. The next `append` cuts it off: what is
        only looked at stays as it is.

        Raises:
            Refused: `node.ledger_invalid` where it was altered, or others may read or write it; `node.busy`
                where another process holds it; `node.disk_full`, `node.internal`.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            chain = cls(os.open(folder / NAME, flags, 0o600))
        except OSError as error:
            raise refusal(error, folder / NAME) from None
        try:
            check_private(chain._fd, folder / NAME)
            chain._lock()
            chain._read()
            sync_folder(folder)
        except OSError as error:
            chain.close()
            raise refusal(error, folder / NAME) from None
        except BaseException:
            chain.close()
            raise
        return chain

    @property
    def head(self) -> str:
        """Digest of the last entry."""
        return self.entries[-1].digest if self.entries else START

    def append(self, event: Event, now: str) -> Entry:
        """Write one entry; it is on disk when this returns.

        Raises:
            Refused: `node.disk_full`, `node.internal`; nothing was added then.
        """
        if self.entries and parse_time(now) < parse_time(self.entries[-1].time):
            now = self.entries[-1].time  # a clock that was set back must not make the order doubtful
        entry = Entry(seq=len(self.entries), time=now, previous=self.head, entry=event)
        line = entry.line
        try:
            os.ftruncate(self._fd, self._size)
            written = 0
            while written < len(line):  # a write may stop short
                written += os.write(self._fd, line[written:])
            os.fdatasync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, self._size)
            raise refusal(error, Path(NAME)) from None
        self._size += len(line)
        self.entries.append(entry)
        return entry

    def close(self) -> None:
        """Release the file and its lock. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        deadline = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Refused("node.busy", "another process holds the disclosure ledger") from None
                time.sleep(_LOOK_S)
            else:
                return

    def _read(self) -> None:
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(0)
            self.entries, self._size = read(file.read())


def check_private(fd: int, path: Path) -> None:
    """Raises `Refused` (`node.ledger_invalid`) for what isn't a file of this user's own."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_mode & _OTHERS or info.st_uid != os.geteuid():
        raise Refused("node.ledger_invalid", f"{path.name} must be a file of the node's own (chmod 600)")


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` as durable as what they name."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def refusal(error: OSError, path: Path) -> Refused:
    """What an I/O error on the ledger's files is told as."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Refused("node.disk_full", f"{path.name}: {error.strerror}")
    invalid = error.errno in (errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.ENXIO, errno.ENOENT)
    return Refused("node.ledger_invalid" if invalid else "node.internal", f"{path.name}: {error.strerror}")
