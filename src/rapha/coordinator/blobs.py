"""Content-addressed files. A file is under its name only once all its bytes are on disk and hashed."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, func, insert, select

from rapha.coordinator.config import sync_folder
from rapha.coordinator.schema import artifacts, blobs
from rapha.spec.refusals import Refused


class BlobStore:
    """A folder of files named by their SHA-256."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        self._arriving: Counter[str] = Counter()
        self._reserved: Counter[str] = Counter()

    @contextmanager
    def arriving(self, sha256: str) -> Iterator[None]:
        """Keep a blob from `discard` from its first byte until a table names it; then `discard` it."""
        with self._lock:
            self._arriving[sha256] += 1
        try:
            yield
        finally:
            with self._lock:
                self._arriving[sha256] -= 1
                self._arriving += Counter()  # drops what is at zero

    def discard(self, sha256: str, is_named: Callable[[str], bool]) -> None:
        """Delete a blob that no table names, unless the same bytes are arriving again just now.

        Args:
            is_named: whether a table names a digest, in a transaction of its own.
        """
        with self._lock:
            if sha256 not in self._arriving and not is_named(sha256):
                self.path(sha256).unlink(missing_ok=True)

    @contextmanager
    def reserve(self, size: int, rooms: Mapping[str, int]) -> Iterator[None]:
        """Set `size` bytes aside in each of `rooms` (whose → bytes that are free) while they are received.

        What parallel uploads have set aside counts as used.

        Raises:
            Refused: `budget.storage` if one of them hasn't as much room.
        """
        with self._lock:
            for whose, room in rooms.items():
                if size > room - self._reserved[whose]:
                    raise Refused("budget.storage", f"the quota of the {whose.partition(':')[0]} is used up")
            self._reserved.update(dict.fromkeys(rooms, size))
        try:
            yield
        finally:
            with self._lock:
                self._reserved.subtract(dict.fromkeys(rooms, size))
                self._reserved += Counter()

    def path(self, sha256: str) -> Path:
        """Where the blob `sha256` is, or would be."""
        return self._root / sha256[:2] / sha256

    def upload(self, expected: str, limit: int) -> Upload:
        """Begin to receive a blob of at most `limit` bytes."""
        return Upload(self._incoming / secrets.token_hex(16), self.path(expected), expected, limit)

    def sweep(self, kept: Collection[str]) -> None:
        """Delete what no table names: leftovers of uploads that a crash or a refusal cut short.

        Only for the start of the one serving process, when nothing is being received.
        """
        for path in self._incoming.iterdir():
            path.unlink()
        for path in self._root.glob("??/*"):
            if path.name not in kept:
                path.unlink()


class Upload:
    """A blob on its way in; a context manager that removes it unless it was kept."""

    def __init__(self, temporary: Path, target: Path, expected: str, limit: int) -> None:
        self._temporary, self._target = temporary, target
        self._expected, self._limit = expected, limit
        self._hash = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> Self:
        self._file = self._temporary.open("xb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()  # may flush once more, to a disk that is full
        except OSError:
            if error is None:
                raise
        finally:
            self._temporary.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            Refused: `schema.too_large` past the limit, `budget.storage` if the disk is full.
        """
        self.size += len(chunk)
        if self.size > self._limit:
            raise Refused("schema.too_large", f"the upload passes the limit of {self._limit} bytes")
        self._hash.update(chunk)
        try:
            self._file.write(chunk)
        except OSError as error:
            raise _no_room(error) from error

    def keep(self) -> None:
        """Put the blob under its name, durably.

        Raises:
            Refused: `image.digest_mismatch` if it isn't what its name says, `budget.storage`.
        """
        found = self._hash.hexdigest()
        if found != self._expected:
            raise Refused("image.digest_mismatch", f"received {found[:16]}…, named {self._expected[:16]}…")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._target.parent.mkdir(exist_ok=True, mode=0o700)
            self._temporary.replace(self._target)
            for folder in (self._target.parent, self._target.parent.parent):
                sync_folder(folder)
        except OSError as error:
            raise _no_room(error) from error


def owns(db: Connection, owner: str, sha256: str) -> bool:
    """Whether a developer has uploaded this very blob; another's doesn't count."""
    query = select(blobs.c.sha256).where(blobs.c.owner == owner, blobs.c.sha256 == sha256)
    return db.execute(query).one_or_none() is not None


def room(db: Connection, owner: str, quota: int) -> int:
    """Bytes that a developer may still upload."""
    used = select(func.coalesce(func.sum(blobs.c.size), 0)).where(blobs.c.owner == owner)
    return max(0, quota - int(db.execute(used).scalar_one()))


def grant(db: Connection, owner: str, sha256: str, size: int, *, quota: int) -> None:
    """Record a developer's blob. Raises `Refused` (`budget.storage`) past their quota."""
    if owns(db, owner, sha256):
        return
    if size > room(db, owner, quota):
        raise Refused("budget.storage", "your quota is used up")
    db.execute(insert(blobs).values(owner=owner, sha256=sha256, size=size))


def named(db: Connection, sha256: str) -> bool:
    """Whether some table names a digest."""
    tables = (select(t.c.sha256).where(t.c.sha256 == sha256).limit(1) for t in (blobs, artifacts))
    return any(db.execute(query).first() is not None for query in tables)


def referenced(db: Connection) -> set[str]:
    """Digests that some table names."""
    named = select(blobs.c.sha256).union(select(artifacts.c.sha256))
    return set(db.execute(named).scalars())


def _no_room(error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Refused("budget.storage", "the coordinator's disk is full")
    return error
