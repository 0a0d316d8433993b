"""The one tree that becomes `/` inside: every source of an order bound at its place, whatever the driver.

Places are looked up from the root without following a link, so that a hostile image can't have a mount, or a
folder that is made for it, land elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from rapha.runtime.sandbox.launcher import system

DEVICES: Final = ("null", "full", "random", "urandom")
"""No `zero`: a shared mapping of it is memory that no supervisor can count. No terminal."""
_LINKS: Final = (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2"))
_FOLDERS: Final = ("proc", "dev", "tmp", "rapha/out")
_COVER: Final = "mode=0755,size=64k,nr_inodes=4096"
_QUIET: Final = system.MS_NOSUID | system.MS_NODEV


class Root:
    """A tree being built at `path`, which exists: an empty folder, or an image's, read-only already."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def furnish(self, image: bool) -> None:
        """Make what every sandbox has: places for its own mounts, and the few devices."""
        for folder in _FOLDERS:
            self.place(folder, folder=True)
        if image:
            self._cover("dev")
        os.mkdir(f"{self.path}/dev/shm", 0o755)  # noqa: PTH102, S108
        for name in DEVICES:
            _touch(f"{self.path}/dev/{name}")
        for name, target in _LINKS:
            os.symlink(f"/proc/self/fd{target}", f"{self.path}/dev/{name}")  # noqa: PTH211

    def place(self, dest: str, folder: bool) -> str:
        """Where to mount at `dest` (relative), a folder or a file; made if it is not there.

        A place that is missing in a read-only tree is made in a small tmpfs over the nearest folder above,
        if that is empty: then the mount hides nothing.

        Raises:
            OSError: there is none, a link lies on the way, or it is of the other kind.
        """
        found = self._kind(dest)
        if found is None:
            self._make(dest, folder)
        elif stat.S_IFMT(found) != (stat.S_IFDIR if folder else stat.S_IFREG):
            number = errno.ENOTDIR if folder else errno.EISDIR if stat.S_ISDIR(found) else errno.ELOOP
            raise OSError(number, os.strerror(number), f"/{dest}")
        return f"{self.path}/{dest}"

    def empty(self, dest: str) -> None:
        """Make the folder `dest` (relative) one of our own with nothing in it, whatever the image has there.

        Raises:
            OSError: as `place`.
        """
        self.place(dest, folder=True)
        self._cover(dest)

    def need_folder(self, path: str) -> None:
        """OSError if a process inside could not change to `path`."""
        os.close(system.open_under(self._fd, path, os.O_PATH | os.O_DIRECTORY))

    def close(self) -> None:
        """Let go of the tree, so that it can be moved."""
        os.close(self._fd)

    def _kind(self, name: str) -> int | None:
        """The mode of what is at `name`; None for nothing."""
        try:
            fd = system.open_in(self._fd, name or ".", os.O_PATH)
        except FileNotFoundError:
            return None
        try:
            return os.fstat(fd).st_mode
        finally:
            os.close(fd)

    def _make(self, dest: str, folder: bool) -> None:
        parts = dest.split("/")
        depth = next(n for n in reversed(range(len(parts))) if self._kind("/".join(parts[:n])) is not None)
        above = "/".join(parts[:depth])
        try:
            self._fill(parts, depth, folder)
        except OSError as error:
            if error.errno != errno.EROFS or os.listdir(f"{self.path}/{above}"):  # noqa: PTH208
                raise OSError(error.errno, f"no place for a mount: {error.strerror}", f"/{dest}") from None
            self._cover(above)
            self._fill(parts, depth, folder)

    def _fill(self, parts: list[str], depth: int, folder: bool) -> None:
        for end in range(depth + 1, len(parts) + 1):
            path = f"{self.path}/{'/'.join(parts[:end])}"
            if end < len(parts) or folder:
                os.mkdir(path, 0o755)  # noqa: PTH102
            else:
                _touch(path)

    def _cover(self, name: str) -> None:
        if not name:
            raise OSError(errno.EROFS, "the root itself is empty", "/")
        system.mount("rapha", f"{self.path}/{name}", "tmpfs", _QUIET, _COVER)


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o444))
