"""Check 1: one folder, exact names, plain files, sizes that the plan allows; and how files are read then.

The folder was written by a hostile process, which is dead by now. Nothing is opened for reading before it is
known to be a regular file of a size that the plan allows. A file may be larger than memory, so nobody holds
one whole: every reader copies a part into memory of its own and judges that copy, and no verdict about one
reading is carried over to another. A file that changed in between refuses.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from rapha.runtime.guard.codes import Finding
from rapha.spec.release_plan import ReleasePlan
from rapha.spec.weights import HEADER_LIMIT

_SYS_OPENAT2: Final = 437
"""The same number on every architecture (Linux 5.6, unified table)."""
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x01, 0x02, 0x04, 0x08
_RESOLVE: Final = _NO_XDEV | _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH
_CODES: Final = {
    errno.ELOOP: "guard.not_regular",  # a symbolic link
    errno.EXDEV: "guard.not_regular",  # a mount
    errno.ENOSYS: "guard.directory",  # no openat2 here: nothing can be found out
}
_LABELS: Final = frozenset({"security.selinux", "security.ima", "security.evm", "security.SMACK64"})
"""Written by the kernel on every file of a labelled system; a job can't choose it, and it is not copied."""
_CHUNK: Final = 2**22


class Source(Protocol):
    """Bytes at rest, read in parts."""

    @property
    def size(self) -> int:
        """Bytes in all."""

    def read_into(self, buffer: Any, offset: int) -> None:
        """Fill `buffer`, writable bytes, from `offset`. Raises `Finding` where there are not so many."""


@dataclass(frozen=True, slots=True)
class Held:
    """A source in memory."""

    data: bytes
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", len(self.data))

    def read_into(self, buffer: Any, offset: int) -> None:
        """See `Source.read_into`."""
        view = memoryview(buffer).cast("B")
        if offset + len(view) > self.size:
            raise Finding("guard.changed", "the data ends too soon")
        view[:] = self.data[offset : offset + len(view)]


@dataclass(frozen=True, slots=True)
class PlainFile:
    """An open regular file that passed check 1. `close` belongs to whoever opened it."""

    name: str
    handle: int
    size: int
    identity: tuple[int, ...]

    def read_into(self, buffer: Any, offset: int) -> None:
        """See `Source.read_into`."""
        view, done = memoryview(buffer).cast("B"), 0
        try:
            while done < len(view):
                got = os.preadv(self.handle, [view[done:]], offset + done)
                if got == 0:
                    raise Finding("guard.changed", f"{self.name} became shorter while it was read")
                done += got
        except OSError as error:
            raise Finding("guard.unreadable", f"{self.name}: {_why(error)}") from None

    def check_unchanged(self) -> None:
        """Raises `Finding` (`guard.changed`) where the file is not what it was when it was opened."""
        if _identity(os.fstat(self.handle)) != self.identity:
            raise Finding("guard.changed", f"{self.name} changed while it was read")


def part(source: Source, offset: int, size: int) -> bytes:
    """What `source` has of `size` bytes from `offset`: fewer where it ends, none before its beginning."""
    size = min(size, source.size - offset)
    if offset < 0 or size <= 0:
        return b""
    buffer = bytearray(size)
    source.read_into(buffer, offset)
    return bytes(buffer)


def parts(source: Source) -> Iterator[memoryview]:
    """All of `source` in order, through one buffer: a part is gone when the next is asked for."""
    buffer = memoryview(bytearray(min(_CHUNK, max(1, source.size))))
    for offset in range(0, source.size, len(buffer)):
        piece = buffer[: min(len(buffer), source.size - offset)]
        source.read_into(piece, offset)
        yield piece


@contextmanager
def open_outputs(directory: Path, plan: ReleasePlan, share: bool = False) -> Iterator[dict[str, PlainFile]]:
    """Exactly the planned files of `directory`, open, by name. Afterwards each must be what it was.

    With `share` every user who can reach the folder may then read it and them.

    Raises:
        Finding: any of check 1's codes.
    """
    limits = size_limits(plan)
    with folder_of(directory) as folder, ExitStack() as stack:
        _check_names(folder, frozenset(limits))
        files = {
            name: stack.enter_context(open_plain(folder, name, *limits[name], share))
            for name in sorted(limits)
        }
        if share:
            _share(folder)
        yield files
        for file in files.values():
            file.check_unchanged()


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


def _share(folder: int) -> None:
    try:
        os.fchmod(folder, 0o755)
    except OSError as error:
        raise Finding("guard.directory", _why(error)) from None


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


@contextmanager
def open_plain(
    folder: int, name: str, smallest: int, largest: int, share: bool = False
) -> Iterator[PlainFile]:
    """`name`, one plain file of `smallest` to `largest` bytes beneath the open `folder`.

    Raises:
        Finding: a link, special file, hole, attribute or wrong size.
    """
    with ExitStack() as stack:
        try:
            # O_PATH first: it opens nothing, so a FIFO can't block and a device is not touched.
            with _beneath(folder, name, os.O_PATH) as probe:
                before = os.fstat(probe)
                _check_plain(before, name)
            handle = stack.enter_context(_beneath(folder, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY))
            if _identity(os.fstat(handle)) != _identity(before):
                raise Finding("guard.changed", f"{name} was replaced")
            _check_contents(handle, name, before.st_size, smallest, largest)
            if share:
                os.fchmod(handle, 0o444)
                before = os.fstat(handle)
        except OSError as error:
            code = _CODES.get(error.errno or 0, "guard.unreadable")
            raise Finding(code, f"{name}: {_why(error)}") from None
        yield PlainFile(name, handle, before.st_size, _identity(before))


def read_plain(folder: int, name: str, smallest: int, largest: int) -> bytes:
    """The bytes of a small file, opened by `open_plain`.

    Raises:
        Finding: as `open_plain`, or it changed.
    """
    with open_plain(folder, name, smallest, largest) as file:
        data = part(file, 0, file.size)
        file.check_unchanged()
    return data


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
