"""The node's own log: append-only, hash-chained, synced before it is relied on.

One JSON line an entry. `previous` is the SHA-256 of the line before, so that a line can't be changed or
taken out unnoticed. The log stays in the hospital; nothing in it is a record.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from rapha.evidence import canonical
from rapha.spec.refusals import Refused
from rapha.spec.units import format_time

START: Final = "0" * 64


@dataclass(frozen=True, slots=True)
class Entry:
    """One event. `job` is empty for what concerns the node as a whole."""

    seq: int
    time: str
    job: str
    event: str
    data: dict[str, Any]


class Journal:
    """A single writer's log; opening it checks the whole chain.

    A torn last line (power cut in the middle of a write) is cut off: it was never relied on.
    """

    def __init__(self, path: Path) -> None:
        """Open or create.

        Raises:
            Refused: `node.busy` if another process writes it; `node.internal` if the chain is broken.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: what could not be written must not wait in a buffer for the next flush.
        self._file = path.open("ab+", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise Refused("node.busy", f"{path} is in use by a running node") from None
        try:
            self._entries, self._previous, good = _read(path.read_bytes())
        except Refused:
            self._file.close()
            raise
        self._file.truncate(good)
        _sync_folder(path.parent)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file and its lock."""
        self._file.close()

    def append(self, event: str, job: str = "", **data: Any) -> Entry:
        """Write one entry durably; it is on disk when this returns.

        Raises:
            Refused: `node.disk_full`.
        """
        entry = Entry(len(self._entries), format_time(datetime.now(UTC)), job, event, data)
        line = _line(entry, self._previous)
        start = self._file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(line):  # a raw write may stop short
                written += self._file.write(line[written:])
            os.fdatasync(self._file.fileno())
        except OSError as error:
            self._file.truncate(start)
            raise Refused("node.disk_full", f"the node's log: {error.strerror}") from None
        self._entries.append(entry)
        self._previous = hashlib.sha256(line).hexdigest()
        return entry

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries))

    def of(self, job: str) -> list[Entry]:
        """Entries of one job, oldest first."""
        return [e for e in self._entries if e.job == job]

    def last(self, job: str) -> Entry | None:
        """The newest entry of a job, or None if it was never here."""
        entries = self.of(job)
        return entries[-1] if entries else None


def read(path: Path) -> list[Entry]:
    """Entries of a log that another process may be writing.

    Raises:
        Refused: `node.internal` if the chain is broken.
    """
    return _read(path.read_bytes() if path.exists() else b"")[0]


def _line(entry: Entry, previous: str) -> bytes:
    value = {
        "seq": entry.seq,
        "time": entry.time,
        "job": entry.job,
        "event": entry.event,
        "data": entry.data,
        "previous": previous,
    }
    return canonical.dumps(value) + b"\n"


def _entry(line: bytes, number: int) -> Entry:
    try:
        value = canonical.loads_canonical(line[:-1])
        return Entry(value["seq"], value["time"], value["job"], value["event"], value["data"])
    except (Refused, KeyError, TypeError):
        raise Refused("node.internal", f"the node's log is damaged at entry {number}") from None


def _sync_folder(folder: Path) -> None:
    """Make a new file's name as durable as its content."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read(data: bytes) -> tuple[list[Entry], str, int]:
    entries: list[Entry] = []
    previous, good = START, 0
    # Only a line feed ends a line: `bytes.splitlines` also splits at CR, and an altered byte would then pass
    # for a torn end and take every later entry with it. What follows the last line feed is the torn end.
    for line in [part + b"\n" for part in data.split(b"\n")[:-1]]:
        entry = _entry(line, len(entries))
        if entry.seq != len(entries) or _line(entry, previous) != line:
            raise Refused("node.internal", f"the node's log was altered at entry {len(entries)}")
        entries.append(entry)
        previous = hashlib.sha256(line).hexdigest()
        good += len(line)
    return entries, previous, good
