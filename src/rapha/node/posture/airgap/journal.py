"""The helper's journal: one small file that is whole or is not there.

Written beside, synced, renamed, and the folder synced: a power cut leaves the old text or the new. A digest
stands beside the record, so that a damaged one is never acted on.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Final, TypeVar

from rapha.evidence import canonical
from rapha.node.posture.airgap.model import Outcome, Record
from rapha.spec.base import Model
from rapha.spec.refusals import Refused

RECORD, LAST = "airgap.json", "last.json"
_LOCK: Final = "helper.lock"
_LIMIT: Final = 16 << 20
_WAIT_S: Final = 5.0

M = TypeVar("M", bound=Model)


class Journal:
    """The folder of one helper. Only its owner may read it; only one process writes it."""

    def __init__(self, folder: Path) -> None:
        """Open the folder and take it for this process.

        Raises:
            Refused: `node.busy` if another helper runs on it; `posture.seal_failed` if it can't be used.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._lock = os.open(_LOCK, flags, 0o600, dir_fd=self._folder)
        except OSError as error:
            raise Refused("posture.seal_failed", f"{folder}: {error.strerror}") from None
        self._take(folder)

    def close(self) -> None:
        """Let another helper in."""
        os.close(self._lock)
        os.close(self._folder)

    def give_to(self, uid: int) -> None:
        """Make a user its owner, before this process becomes that user."""
        for fd in (self._folder, self._lock):
            os.fchown(fd, uid, -1)
        for name in (RECORD, LAST):
            if self._has(name):
                os.chown(name, uid, -1, dir_fd=self._folder, follow_symlinks=False)

    def record(self) -> Record | None:
        """The gap that is under way, or None.

        Raises:
            Refused: `posture.seal_failed` if there is one that can't be read.
        """
        return self._read(RECORD, Record)

    def last(self) -> Outcome | None:
        """How the last gap ended, or None.

        Raises:
            Refused: `posture.seal_failed` if it can't be read.
        """
        return self._read(LAST, Outcome)

    def write(self, record: Record) -> None:
        """Replace the record; it is on disk when this returns.

        Raises:
            Refused: `posture.seal_failed` if it could not be written.
        """
        self._write(RECORD, record)

    def end(self, outcome: Outcome) -> None:
        """Keep the outcome, then drop the record: a crash between leaves both, and is restored again.

        Raises:
            Refused: `posture.seal_failed` if it could not be written.
        """
        self._write(LAST, outcome)
        os.unlink(RECORD, dir_fd=self._folder)
        os.fsync(self._folder)

    def set_aside(self, name: str) -> None:
        """Rename a file that can't be used, for the operator to look at; nothing if there is none."""
        if self._has(name):
            os.rename(name, f"{name}.set-aside", src_dir_fd=self._folder, dst_dir_fd=self._folder)
            os.fsync(self._folder)

    def _take(self, folder: Path) -> None:
        deadline = time.monotonic() + _WAIT_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    self.close()
                    raise Refused("node.busy", f"another air-gap helper runs on {folder}") from None
                time.sleep(0.05)
            else:
                return

    def _has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _read(self, name: str, model: type[M]) -> M | None:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Refused("posture.seal_failed", f"the journal {name}: {error.strerror}") from None
        with os.fdopen(fd, "rb") as file:
            data = file.read(_LIMIT + 1)
        try:
            value = canonical.loads_canonical(data, limit=_LIMIT)
            if set(value) != {"content", "sha256"} or canonical.digest(value["content"]) != value["sha256"]:
                raise Refused("posture.seal_failed", "its digest is of something else")
            return model.parse(value["content"])
        except (Refused, TypeError) as error:
            reason = error.detail if isinstance(error, Refused) else "not an object"
            raise Refused("posture.seal_failed", f"the journal {name} is damaged: {reason}") from None

    def _write(self, name: str, content: Model) -> None:
        value = content.dump()
        data = canonical.dumps({"content": value, "sha256": canonical.digest(value)})
        if len(data) > _LIMIT:
            raise Refused("posture.seal_failed", "more routes than the journal holds: use mode nftables")
        beside = f"{name}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(beside, flags, 0o600, dir_fd=self._folder)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(beside, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            os.fsync(self._folder)
        except OSError as error:
            raise Refused("posture.seal_failed", f"the journal {name}: {error.strerror}") from None
