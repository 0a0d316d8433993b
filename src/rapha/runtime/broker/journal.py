"""The meter's journal: an append-only file of frames, each bound to all before it by a keyed digest.

    file   = header, MAC0, frame*
    frame  = length u32, check u32, payload, MAC          (little-endian)
    check  = CRC-32 of length and the previous MAC
    MAC    = HMAC-SHA256(key, previous MAC || payload)

A frame reaches the kernel in one write before its records are handed over, so it survives the death of
any process. The check tells a torn tail (the length is right, bytes are missing) from a corrupt length,
which could otherwise hide the frames behind it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hmac
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from rapha.spec.refusals import Refused

_HEADER: Final = struct.Struct("<8sQQ32s")
_MAGIC: Final = b"RAPHAJ2\n"
_FRAME: Final = struct.Struct("<II")
_MAC: Final = 32
MAX_PAYLOAD: Final = 1 << 20
KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Header:
    """What the counts are about: number of records, the cap, SHA-256 of the patient column."""

    records: int
    cap: int
    patients: bytes


class Journal:
    """An open journal, locked against a second writer. Make one with `create` or `reopen`."""

    def __init__(self, fd: int, key: bytes, head: bytes = b"") -> None:
        self._fd, self._size = fd, 0
        # Copied for each frame: setting a key up costs more than the frame does.
        self._keyed = hmac.new(key, digestmod="sha256")
        self._writable = False
        self.head = head
        """MAC of the last frame: a digest of everything so far, in order."""

    @classmethod
    def create(cls, path: Path, header: Header, key: bytes) -> Self:
        """Start a journal at `path`, which must not exist; its header is on disk when this returns.

        Raises:
            Refused: `node.key_unsafe`, `node.disk_full`, or `node.internal` (it exists, or can't be written).
        """
        key = _own_key(key)
        text = _HEADER.pack(_MAGIC, header.records, header.cap, header.patients)
        head = hmac.digest(key, text, "sha256")
        fresh = path.with_name(path.name + ".new")
        try:
            # After a crash between the two, the name for the new one may be another name of this one.
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            # Linked into place whole, so that no reader ever meets half a header.
            fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            journal = cls(fd, key, head)
            try:
                journal._lock()
                journal._write(text + head)
                journal.sync()
                os.link(fresh, path)
                journal._writable = True
            except BaseException:
                os.close(fd)
                raise
            finally:
                fresh.unlink()
            _sync_folder(path.parent)
        except OSError as error:
            raise _refusal(error) from None
        return journal

    @classmethod
    def reopen(cls, path: Path, key: bytes) -> tuple[Header, Self]:
        """Open the journal at `path`. Read its `frames` to the end before anything is appended.

        Raises:
            Refused: `node.journal_invalid` when the header is not what was written with `key`;
                `node.internal` when the file can't be read or another process writes it.
        """
        key = _own_key(key)
        try:
            journal = cls(os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC), key)
            try:
                journal._lock()
                return journal._read_header(), journal
            except BaseException:
                journal.close()
                raise
        except OSError as error:
            raise _refusal(error) from None

    def frames(self) -> Iterator[bytes]:
        """The payloads, oldest first; then a torn tail is cut off and the journal can be appended to.

        Raises:
            Refused: `node.journal_invalid` when any byte before the tail is not what was written.
        """
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(self._size)
            while (payload := self._read_frame(file)) is not None:
                yield payload
        os.ftruncate(self._fd, self._size)
        self._writable = True

    def append(self, payload: bytes) -> None:
        """Write one frame; when this returns it survives the death of any process.

        Raises:
            Refused: `node.disk_full` or `node.internal`; nothing was added then, and nothing can be.
        """
        if not self._writable:
            raise Refused("node.internal", "the journal takes no more frames")
        length = struct.pack("<I", len(payload))
        check = zlib.crc32(length + self.head)
        head = self._mac(self.head + payload)
        try:
            self._write(b"".join((length, struct.pack("<I", check), payload, head)))
        except OSError as error:
            self._writable = False
            # What can't be cut off now is a torn tail, which `frames` cuts off.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise _refusal(error) from None
        self.head = head

    def sync(self) -> None:
        """Wait until all frames are on disk (a checkpoint against power loss).

        Raises:
            Refused: `node.disk_full` or `node.internal`.
        """
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._writable = False
            raise _refusal(error) from None

    def close(self) -> None:
        """Release the file and its lock. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self._writable = -1, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _write(self, data: bytes) -> None:
        written = os.write(self._fd, data)
        if written != len(data):
            # A short write to a file means that there is no room for the rest.
            raise OSError(errno.ENOSPC, "short write")
        self._size += written

    def _mac(self, data: bytes) -> bytes:
        mac = self._keyed.copy()
        mac.update(data)
        return mac.digest()

    def _read_header(self) -> Header:
        size = _HEADER.size + _MAC
        data = os.pread(self._fd, size, 0)
        text, head = data[: _HEADER.size], data[_HEADER.size :]
        if len(data) != size or not hmac.compare_digest(head, self._mac(text)):
            raise Refused("node.journal_invalid", "the header does not verify with this job's key")
        magic, records, cap, patients = _HEADER.unpack(text)
        if magic != _MAGIC:
            raise Refused("node.journal_invalid", "the file is not a journal of this version")
        self.head, self._size = head, size
        return Header(records, cap, patients)

    def _read_frame(self, file: BinaryIO) -> bytes | None:
        """The next payload; None at the end, whether clean or torn."""
        start = file.read(_FRAME.size)
        if len(start) != _FRAME.size:
            return None
        length, check = _FRAME.unpack(start)
        if length > MAX_PAYLOAD or check != zlib.crc32(start[:4] + self.head):
            raise Refused("node.journal_invalid", f"the frame at byte {self._size} has a wrong length")
        payload, head = file.read(length), file.read(_MAC)
        if len(payload) + len(head) != length + _MAC:
            return None
        if not hmac.compare_digest(head, self._mac(self.head + payload)):
            raise Refused("node.journal_invalid", f"the frame at byte {self._size} does not verify")
        self.head, self._size = head, self._size + _FRAME.size + length + _MAC
        return payload


def _own_key(key: bytes) -> bytes:
    if len(key) != KEY_BYTES or not any(key):
        raise Refused("node.key_unsafe", f"the job's key must be {KEY_BYTES} random bytes")
    return hmac.digest(key, b"rapha/broker/journal/2", "sha256")


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _refusal(error: OSError) -> Refused:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return Refused("node.disk_full" if full else "node.internal", f"journal: {error.strerror}")
