"""The lock that says "a job lives", and how the helper asks whether anybody holds it.

A `flock` belongs to the open file, not to a process: the node, the launcher and the sandbox's init share one,
and it is free only when the last of them is gone, however they went.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from rapha.node.posture.airgap.model import Lock
from rapha.spec.refusals import Refused

_NAME: Final = "airgap.hold"
_WAIT_S: Final = 30.0
_PAUSE_S: Final = 0.05


@dataclass(slots=True)
class Hold:
    """A held lock. `fd` is given to the helper, to the launcher and to the sandbox's init."""

    path: Path
    fd: int

    @staticmethod
    def create(folder: Path) -> Hold:
        """Take the lock of this folder; waits while the helper still restores after an earlier job.

        Raises:
            Refused: `posture.seal_failed` if it can't be taken.
        """
        path = folder.absolute() / _NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _check_private(folder.resolve(strict=True))
            # Readable, since the helper runs as another user and must be able to ask; who may do that is
            # decided by the folder.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(path, flags, 0o644)
            os.fchmod(fd, 0o644)  # whatever the umask is
        except OSError as error:
            raise Refused("posture.seal_failed", f"{path}: {error.strerror}") from None
        deadline = time.monotonic() + _WAIT_S
        while not _locked(fd, fcntl.LOCK_SH):
            if time.monotonic() > deadline:
                os.close(fd)
                raise Refused(
                    "posture.seal_failed", f"{path}: the helper is still restoring after another job"
                )
            time.sleep(_PAUSE_S)
        return Hold(path, fd)

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Let go of this process's share; others' shares hold on."""
        if self.fd >= 0:
            # Closed, never unlocked: LOCK_UN would take the lock from everyone who shares the open file.
            os.close(self.fd)
            self.fd = -1


@dataclass(slots=True)
class Watch:
    """The helper's own opening of the file: with it the lock can be asked for, never shared."""

    fd: int

    @staticmethod
    def adopt(path: str, given: int) -> tuple[Lock, Watch]:
        """Check that the descriptor is the named file and that somebody holds it.

        Raises:
            Refused: `posture.seal_failed` if it is not a regular file, another one, or not held.
        """
        watch = Watch(_open(path))
        lock = Lock(path=path, identity=_identity(watch.fd))
        wrong = ""
        if _identity(given) != lock.identity:
            wrong = "the descriptor is not the file that the path names"
        elif watch.free():
            wrong = "nobody holds the lock"
        if wrong:
            watch.close()
            raise Refused("posture.seal_failed", f"hold: {wrong}")
        return lock, watch

    @staticmethod
    def reopen(lock: Lock) -> Watch:
        """Find the same file again after a restart.

        Raises:
            Refused: `posture.seal_failed` if it is gone or another: then nobody can say whether a job lives.
        """
        watch = Watch(_open(lock.path))
        if _identity(watch.fd) != lock.identity:
            watch.close()
            raise Refused("posture.seal_failed", f"{lock.path} is not the file that was locked")
        return watch

    def free(self) -> bool:
        """True if nobody held it; from then on this process does, so that nobody can take it meanwhile."""
        return _locked(self.fd, fcntl.LOCK_EX)

    def close(self) -> None:
        """Give up the file, and the lock with it."""
        os.close(self.fd)


def _check_private(folder: Path) -> None:
    # Who can open the file can lock it, and so keep a hospital dark for ever without a job.
    if all(one.stat().st_mode & stat.S_IXOTH for one in (folder, *folder.parents)):
        raise Refused("posture.seal_failed", f"{folder}: any user could hold the lock; close a folder of it")


def _open(path: str) -> int:
    try:
        # By its place first: opening a device does something, and the caller chose the path.
        place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(place).st_mode):
                raise Refused("posture.seal_failed", f"hold {path}: not a regular file")
            # Without waiting for whoever has a lease on it (fcntl(2), F_SETLEASE).
            return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(place)
    except OSError as error:
        raise Refused("posture.seal_failed", f"hold {path}: {error.strerror}") from None


def _identity(fd: int) -> str:
    status = os.fstat(fd)
    return f"{status.st_dev}:{status.st_ino}"


def _locked(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
