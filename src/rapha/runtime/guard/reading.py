"""Check 1: one folder, exact names, plain files, read once into memory that the plan bounds.

The folder was written by a hostile process. Nothing is opened for reading before it is known to be a
regular file of a size that the plan allows.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rapha.runtime.guard.codes import Finding
from rapha.spec.release_plan import HEADER_LIMIT, ReleasePlan

_SYS_OPENAT2: Final = 437
"""The same number on every architecture (Linux 5.6, unified table)."""
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x01, 0x02, 0x04, 0x08
_RESOLVE: Final = _NO_XDEV | _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH
_CODES: Final = {
    errno.ELOOP: "guard.not_regular",  # a symbolic link
    errno.EXDEV: "guard.not_regular",  # a mount
    errno.ENOSYS: "guard.directory",  # no openat2 here: nothing can be found out
}
_LABELS: Final = frozenset({"security.selinux"})
"""Written by the kernel on every file of a labelled system; a job can't choose it, and it is not copied."""
_CHUNK: Final = 2**24


def read_outputs(directory: Path, plan: ReleasePlan) -> dict[str, bytearray]:
    """Copies of exactly the planned files, by name.

    Raises:
        Finding: any of check 1's codes.
    """
    limits = size_limits(plan)
    with folder_of(directory) as folder:
        _check_names(folder, frozenset(limits))
        return {name: read_plain(folder, name, *limits[name]) for name in sorted(limits)}


def size_limits(plan: ReleasePlan) -> dict[str, tuple[int, int]]:
    """Smallest and largest size in bytes of each planned file."""
    limits: dict[str, tuple[int, int]] = {}
    if plan.weights:
        data = plan.weights.input_bytes
        limits[plan.weights.file] = (8 + 2 + data, 8 + HEADER_LIMIT + data)
    if plan.self_reported:
        limits[plan.self_reported.file] = (2, plan.self_reported.input_bytes)
    return limits


@contextmanager
def folder_of(directory: Path) -> Iterator[int]:
    """A descriptor of `directory`. Raises `Finding` (`guard.directory`)."""
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise Finding("guard.directory", _why(error)) from None
    try:
        yield folder
    finally:
        os.close(folder)


def _check_names(folder: int, planned: frozenset[str]) -> None:
    seen: set[str] = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:  # stops at the first stranger, however many there are
                if entry.name not in planned:
                    raise Finding("guard.extra_file", f"{entry.name[:80]!a} is not in the plan")
                seen.add(entry.name)
    except OSError as error:
        raise Finding("guard.directory", _why(error)) from None
    missing = sorted(planned - seen)
    if missing:
        raise Finding("guard.missing_file", f"{missing[0]} is in the plan and not in the folder")


def read_plain(folder: int, name: str, smallest: int, largest: int) -> bytearray:
    """The bytes of `name`, one plain file of `smallest` to `largest` bytes beneath the open `folder`.

    Raises:
        Finding: a link, special file, hole, attribute, wrong size or a change while reading.
    """
    try:
        # O_PATH first: it opens nothing, so a FIFO can't block and a device is not touched.
        with _beneath(folder, name, os.O_PATH) as probe:
            before = os.fstat(probe)
            _check_plain(before, name)
        with _beneath(folder, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY) as handle:
            if _identity(os.fstat(handle)) != _identity(before):
                raise Finding("guard.changed", f"{name} was replaced")
            _check_contents(handle, name, before.st_size, smallest, largest)
            data = _read(handle, before.st_size)
            if _identity(os.fstat(handle)) != _identity(before) or len(data) != before.st_size:
                raise Finding("guard.changed", f"{name} changed while it was read")
            return data
    except OSError as error:
        raise Finding(_CODES.get(error.errno or 0, "guard.unreadable"), f"{name}: {_why(error)}") from None


def _check_plain(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_mode & (stat.S_ISUID | stat.S_ISGID):
        raise Finding("guard.not_regular", f"{name} is not a plain file ({stat.filemode(status.st_mode)})")
    if status.st_nlink != 1:
        raise Finding("guard.links", f"{name} has {status.st_nlink} links")


def _check_contents(handle: int, name: str, size: int, smallest: int, largest: int) -> None:
    if not smallest <= size <= largest:
        raise Finding("guard.file_size", f"{name} has {size} bytes; the plan implies {smallest} to {largest}")
    attributes = _attributes(handle)
    if attributes:
        raise Finding("guard.xattr", f"{name} has {attributes[0][:80]!a}")
    if os.lseek(handle, 0, os.SEEK_HOLE) != size:
        raise Finding("guard.sparse", f"{name} has holes")
    os.lseek(handle, 0, os.SEEK_SET)


def _attributes(handle: int) -> list[str]:
    try:
        return [name for name in os.listxattr(handle) if name not in _LABELS]
    except OSError as error:
        if error.errno == errno.ENOTSUP:  # the file system has none
            return []
        raise


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (
        *(status.st_dev, status.st_ino, status.st_mode, status.st_nlink),
        *(status.st_size, status.st_mtime_ns, status.st_ctime_ns),
    )


def _read(handle: int, size: int) -> bytearray:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        got = os.readv(handle, [view[done : done + _CHUNK]])
        if got == 0:
            break
        done += got
    view.release()
    del data[done:]
    return data


@contextmanager
def _beneath(folder: int, name: str, flags: int) -> Iterator[int]:
    """`openat2` of one component: no link, no mount crossing, nothing outside. Fails closed without it."""
    how = struct.pack("=QQQ", flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0, _RESOLVE)
    size = ctypes.c_size_t(len(how))
    handle = int(_LIBC.syscall(ctypes.c_long(_SYS_OPENAT2), folder, os.fsencode(name), how, size))
    if handle < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    try:
        yield handle
    finally:
        os.close(handle)


_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def _why(error: OSError | ValueError) -> str:
    return (error.strerror or "unreadable") if isinstance(error, OSError) else str(error)
