"""Files on their way out: written in order, hashed, and looked at again; gone if the answer is no."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from rapha.runtime.guard.codes import Finding
from rapha.runtime.guard.report import ReleasedFile
from rapha.runtime.guard.tripwires import HEAD, MARKS, TAIL

_LONGEST: Final = max(len(magic) for _, magic, _, _ in MARKS)


class Outgoing:
    """One released file of a known size: a stream in, its name and digest out.

    It is also a source of the parts that tripwires look at; it keeps those and no other.
    """

    def __init__(self, name: str, size: int, handle: int | None) -> None:
        self.name = name
        self.size = size
        self._handle = handle
        self._at = 0
        self._digest = hashlib.sha256()
        far = (first for _, _, first, _ in MARKS if HEAD - _LONGEST < first < size - TAIL)
        self._kept = [_Window(0, HEAD), _Window(max(0, size - TAIL), TAIL)]
        self._kept += [_Window(first, _LONGEST) for first in sorted(set(far))]

    def write(self, data: Any) -> None:
        """Append `data`, an array or bytes.

        Raises:
            Finding: `guard.out`.
        """
        view = memoryview(data).cast("B")
        self._digest.update(view)
        for window in self._kept:
            window.see(self._at, view)
        self._at += len(view)
        if self._handle is None:
            return
        try:
            while view:
                view = view[os.write(self._handle, view) :]
        except OSError as error:
            raise Finding("guard.out", f"the rebuilt files can't be written: {error.strerror}") from None

    def read_into(self, buffer: Any, offset: int) -> None:
        """See `Source.read_into`; only what tripwires ask for is still there."""
        view = memoryview(buffer).cast("B")
        for window in self._kept:
            if window.begin <= offset and offset + len(view) <= window.begin + len(window.data):
                view[:] = window.data[offset - window.begin : offset - window.begin + len(view)]
                return
        raise Finding("guard.rebuild", f"{self.name}: {len(view)} bytes at {offset} were not kept")

    def finish(self) -> ReleasedFile:
        """What was written. Raises `Finding` (`guard.rebuild`) for another size than planned."""
        if self._at != self.size:
            raise Finding("guard.rebuild", f"{self.name} has {self._at} bytes instead of {self.size}")
        return ReleasedFile(name=self.name, sha256=self._digest.hexdigest(), bytes=self.size)


class _Window:
    """Bytes `begin` to `begin + size` of a stream."""

    def __init__(self, begin: int, size: int) -> None:
        self.begin = begin
        self._size = size
        self.data = bytearray()

    def see(self, at: int, view: memoryview) -> None:
        first = max(0, self.begin - at)
        last = self.begin + self._size - at
        if first < len(view) and last > 0:
            self.data += view[first:last]


class Folder:
    """Where released files go: an empty or new folder, or nowhere."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._handles: list[int] = []
        self._written: list[Path] = []

    def file(self, name: str, size: int) -> Outgoing:
        """A new file of `size` bytes. Raises `Finding` (`guard.out`)."""
        if self._path is None:
            return Outgoing(name, size, None)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            handle = os.open(self._path / name, flags, 0o600)
        except (OSError, ValueError) as error:
            raise Finding("guard.out", f"the rebuilt files can't be written: {error}") from None
        self._handles.append(handle)
        self._written.append(self._path / name)
        return Outgoing(name, size, handle)

    def settle(self) -> None:
        """Return when every file is on disk. Raises `Finding` (`guard.out`)."""
        try:
            for handle in self._handles:
                os.fsync(handle)
        except OSError as error:
            raise Finding("guard.out", f"the rebuilt files can't be written: {error.strerror}") from None

    def close(self) -> None:
        """Let go of the files; they stay."""
        while self._handles:
            os.close(self._handles.pop())

    def clear(self) -> None:
        """Delete what was written."""
        for path in self._written:
            with suppress(OSError):
                path.unlink(missing_ok=True)


@contextmanager
def folder_for(path: Path | None) -> Iterator[Folder]:
    """The folder at `path`, made where it is absent; empty again where the block does not end well.

    Raises:
        Finding: `guard.out`: it is in use, or can't be made or written.
    """
    if path is not None:
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            if any(path.iterdir()):
                raise Finding("guard.out", "the folder for released files is not empty")
        except (OSError, ValueError) as error:
            raise Finding("guard.out", f"the folder for released files can't be made: {error}") from None
    folder, done = Folder(path), False
    try:
        yield folder
        folder.settle()
        done = True
    finally:
        folder.close()
        if not done:
            folder.clear()
