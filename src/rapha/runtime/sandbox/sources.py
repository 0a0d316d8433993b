"""What a mount may hold: files, folders and links. A socket, a FIFO or a device is a way to a process or a
driver of the host, which no mount's being read-only closes."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from rapha.spec.refusals import Refused

_UNTRUSTED: Final = ("/app", "/rapha/in")
"""Where others' files are mounted; the rest is the node's own runtime."""
_MAX_ENTRIES: Final = 200_000
_KINDS: Final = {
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def check(source: Path, dest: str) -> None:
    """Look through `source`, an existing path without links, if `dest` is where others' files go.

    Raises:
        Refused: `node.config`: it holds what is neither file, folder nor link, or more than can be looked at.
        OSError: part of it can't be read.
    """
    mode = source.stat().st_mode
    _refuse(mode, str(source))
    if stat.S_ISDIR(mode) and any(dest == top or dest.startswith(f"{top}/") for top in _UNTRUSTED):
        _walk(source)


def _walk(source: Path) -> None:
    queue, seen = [str(source)], 0
    while queue:
        with os.scandir(queue.pop()) as entries:
            for entry in entries:
                seen += 1
                if seen > _MAX_ENTRIES:
                    raise Refused("node.config", f"mount source {source}: more than {_MAX_ENTRIES} entries")
                if entry.is_dir(follow_symlinks=False):
                    queue.append(entry.path)
                elif not entry.is_file(follow_symlinks=False) and not entry.is_symlink():
                    _refuse(entry.stat(follow_symlinks=False).st_mode, entry.path)


def _refuse(mode: int, path: str) -> None:
    if kind := _KINDS.get(stat.S_IFMT(mode)):
        raise Refused("node.config", f"mount source {path!a}: a {kind} is never mounted")
