"""The hospital's PHI keys: one that new jobs get, and every older one, so that old jobs stay verifiable.

    keys/phi.key         the current key
    keys/phi/ID.key      each key that a job may have used, the current one included; ID is the key's own

A job is tied to the key that was current when its cohort was resolved, by its id in the node's journal, and
keeps it to its end, whatever is rotated meanwhile. A rotation writes the new key beside the others and then
renames a second copy over `phi.key`: whenever it is cut off, `phi.key` is a whole key, the old or the new.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rapha.evidence.keys import write_private
from rapha.node.datasets.pseudonyms import HospitalKey
from rapha.spec.refusals import Refused

CURRENT: Final = "phi.key"
KEPT: Final = "phi"
_NAME: Final = re.compile(r"[0-9a-f]{32}")
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Kept:
    """A key that is there: its id, and when it was put there (Unix seconds)."""

    id: str
    since: float
    current: bool


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys below `folder`. Making one reads nothing."""

    folder: Path

    def current(self) -> HospitalKey:
        """The key that a new job gets.

        Raises:
            Refused: `node.key_unsafe`, as `HospitalKey.load`, or where others may write in the folder and
                so could put another key there.
        """
        _check_folder(self.folder)
        return HospitalKey.load(self.folder / CURRENT)

    def enlist(self) -> tuple[str, Path]:
        """The current key's id, and the file in which it stays when another becomes current. Idempotent.

        Raises:
            Refused: `node.key_unsafe`, `node.disk_full`.
        """
        with self._locked():
            key = self.current()
            return key.id, self._keep(key)

    def rotate(self) -> HospitalKey:
        """Make a new key current and keep the old one. Jobs under way go on with theirs.

        Raises:
            Refused: `node.key_unsafe`, `node.disk_full`; the old key is current then.
        """
        with self._locked():
            self._keep(self.current())
            fresh = HospitalKey.generate()
            self._keep(fresh)
            _put(self.folder, CURRENT, fresh)
            return fresh

    def path_of(self, key_id: str) -> Path:
        """The file of the key with that id.

        Raises:
            Refused: `node.key_unsafe` if it is not there, is unsafe, or holds another key.
        """
        if not _NAME.fullmatch(key_id):
            raise Refused("node.key_unsafe", "not a key's id")
        kept = self.folder / KEPT
        if not kept.exists():
            raise Refused("node.key_unsafe", f"no key was kept under the id {key_id}")
        _check_folder(kept)
        path = kept / f"{key_id}.key"
        if HospitalKey.load(path).id != key_id:
            raise Refused("node.key_unsafe", f"{path} holds another key than its name says")
        return path

    def __iter__(self) -> Iterator[Kept]:
        """Every kept key, oldest first. Raises `Refused` (`node.key_unsafe`) for one that is not safe."""
        current = self.current().id
        kept, ids = self.folder / KEPT, list[str]()
        if kept.is_symlink() or kept.exists():  # a link to nowhere doesn't "exist"
            _check_folder(kept)
            ids = [p.stem for p in kept.glob("*.key") if _NAME.fullmatch(p.stem)]
        since = {key_id: self.path_of(key_id).stat().st_mtime for key_id in ids}
        since.setdefault(current, (self.folder / CURRENT).stat().st_mtime)
        for key_id in sorted(since, key=lambda key_id: (since[key_id], key_id)):
            yield Kept(key_id, since[key_id], key_id == current)

    def _keep(self, key: HospitalKey) -> Path:
        if not (self.folder / KEPT / f"{key.id}.key").exists():
            _put(self.folder / KEPT, f"{key.id}.key", key)
        return self.path_of(key.id)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One rotation at a time, and none between a job's look at the key and its being kept."""
        _check_folder(self.folder)
        kept = self.folder / KEPT
        try:
            kept.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(kept, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:  # a file of that name, a link to nowhere, a full or read-only disk
            code = "node.disk_full" if error.errno == errno.ENOSPC else "node.key_unsafe"
            raise Refused(code, f"{kept}: {error.strerror}") from None
        try:
            _check_folder(kept)  # before a key is written there
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _put(folder: Path, name: str, key: HospitalKey) -> None:
    """Write a whole key under `name`, durably, in one step. Precondition: the lock is held."""
    new = folder / ".key.new"  # one name for all, so that what a rotation left that was cut off is found
    try:
        new.unlink(missing_ok=True)
        write_private(new, key.secret)
        new.replace(folder / name)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise Refused("node.disk_full", f"{folder}: {error.strerror}") from None


def _check_folder(folder: Path) -> None:
    try:
        info = folder.stat()
    except OSError as error:
        raise Refused("node.key_unsafe", f"{folder}: {error.strerror}") from None
    if not stat.S_ISDIR(info.st_mode) or info.st_mode & _OTHERS_WRITE or info.st_uid not in (os.geteuid(), 0):
        raise Refused("node.key_unsafe", f"others may write in {folder} (chmod 700)")
