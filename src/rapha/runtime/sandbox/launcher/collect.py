"""What the dead sandbox left in /rapha/out, copied to the host: plain files only, the rest is named.

Read through openat2 rules, on a tmpfs that nothing but the launcher can reach any more.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from typing import Any, Final

from rapha.runtime.sandbox.launcher import system

_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_CHUNK: Final = 1 << 20
_SHOWN: Final = 80
_KINDS: Final = {
    stat.S_IFLNK: "symbolic link",
    stat.S_IFDIR: "directory",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


class NoRoomError(Exception):
    """The host's disk does not take the copies; that is no fault of the job, and nothing of them is kept."""


class _AnomalyError(Exception):
    """A reason not to copy; the text follows the file's name."""


def collect(folder: str, dest: int, max_files: int, max_bytes: int) -> tuple[list[list[Any]], list[str]]:
    """Copy the files of `folder` into the directory `dest` (a descriptor), modes 0600.

    Returns:
        `[name, size, sha256]` of each copy, and one line for each thing not copied. With more than
        `max_files` entries nothing is copied.

    Raises:
        NoRoomError: the host's disk is full, or fails.
    """
    source = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        names = sorted(os.listdir(source))  # noqa: PTH208
        if len(names) > max_files:
            return [], [f"{len(names)} entries, at most {max_files} are read"]
        outputs: list[list[Any]] = []
        anomalies = []
        left = max_bytes
        for name in names:
            try:
                size, digest = _copy(source, dest, name, left)
            except _AnomalyError as anomaly:
                anomalies.append(f"{_shown(name)}: {anomaly}")
                continue
            except NoRoomError:
                for copied, *_ in outputs:
                    os.unlink(copied, dir_fd=dest)
                raise
            left -= size
            outputs.append([name, size, digest])
        return outputs, anomalies
    finally:
        os.close(source)


def _shown(name: str) -> str:
    """A name that the job chose, safe to print."""
    return ascii(os.fsencode(name)[:_SHOWN].decode("utf-8", "backslashreplace"))[1:-1]


def _copy(source: int, dest: int, name: str, max_bytes: int) -> tuple[int, str]:
    if not _PLAIN.fullmatch(name):
        raise _AnomalyError("not a plain name (letters, digits, dot, dash, underscore; at most 128)")
    fd = _open_plain(source, name)
    try:
        about = os.fstat(fd)
        if os.listxattr(fd):
            raise _AnomalyError("has extended attributes")
        if about.st_size > max_bytes:
            raise _AnomalyError(f"{about.st_size} bytes, {max_bytes} are left")
        if about.st_blocks * 512 < about.st_size:
            raise _AnomalyError("sparse file")
        return about.st_size, _write(fd, about.st_size, dest, name)
    except OSError as error:
        raise _AnomalyError(f"can't be copied: {error.strerror}") from None
    finally:
        os.close(fd)


def _open_plain(source: int, name: str) -> int:
    """Open for reading what has been seen to be a regular file with one link, and nothing else."""
    try:
        seen = system.open_beneath(source, name, os.O_PATH)
    except OSError as error:
        raise _AnomalyError(f"can't be opened: {error.strerror}") from None
    try:
        about = os.fstat(seen)
    finally:
        os.close(seen)
    if not stat.S_ISREG(about.st_mode):
        raise _AnomalyError(_KINDS.get(stat.S_IFMT(about.st_mode), "not a file"))
    if about.st_nlink != 1:
        raise _AnomalyError(f"{about.st_nlink} hard links")
    try:
        return system.open_beneath(source, name, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise _AnomalyError(f"can't be opened: {error.strerror}") from None


def _write(fd: int, size: int, dest: int, name: str) -> str:
    """Copy `size` bytes and return their SHA-256; what was half written is removed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with _room():
        copy = os.open(name, flags, 0o600, dir_fd=dest)
    digest, left = hashlib.sha256(), size
    try:
        while left:
            chunk = os.read(fd, min(left, _CHUNK))
            if not chunk:
                raise _AnomalyError("shorter than its size")
            digest.update(chunk)
            left -= len(chunk)
            with _room():
                while chunk:
                    chunk = chunk[os.write(copy, chunk) :]
    except (OSError, _AnomalyError, NoRoomError):
        os.unlink(name, dir_fd=dest)
        raise
    finally:
        os.close(copy)
    return digest.hexdigest()


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """Around what is done to the host's disk."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise NoRoomError(error.strerror) from None
        raise
