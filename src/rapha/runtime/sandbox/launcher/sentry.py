"""gVisor's processes as the host's kernel shows them: whether they are walled in, and what they hold.

`sentry` is the second kernel, which runs the job in children of its own; `gofer` opens files for it.
"""

from __future__ import annotations

import json
import os
import stat
from typing import Final, NamedTuple

from rapha.runtime.sandbox.launcher import tree
from rapha.runtime.sandbox.launcher.observe import NAMESPACES, WallMissingError

_SENTRY, _GOFER = "runsc-sandbox", "runsc-gofer"
_FILTERED: Final = "2"
_MEMORY: Final = "/memfd:"
_BLOCK: Final = 512
_EXECUTION: Final = ("error finding executable", "failed to load")
"""What gVisor says of a command that is not there, or no program."""


def walls(root: int, uid: int) -> dict[str, str]:
    """What holds for gVisor's processes below `root`, and so for a job that escapes into one.

    Returns:
        Empty while the job does not run yet, or once it is gone.

    Raises:
        WallMissingError: the job runs, and something is not as it should be.
    """
    pids = tree.descendants(root)
    named = {name: pid for pid in pids if (name := _name(pid)) in {_SENTRY, _GOFER}}
    if set(named) != {_SENTRY, _GOFER} or not tree.descendants(named[_SENTRY]):
        return {}  # the second kernel's children are what the job runs in
    about = {name: tree.status(pid) for name, pid in named.items()}
    spaces = {name: {kind: tree.namespace(pid, kind) for kind in NAMESPACES} for name, pid in named.items()}
    if any(status.get("Seccomp") != _FILTERED for status in about.values()):
        return {}  # the filters come last
    if not all(all(theirs.values()) for theirs in spaces.values()):
        return {}
    for name, status in about.items():
        _expect(f"{name}: namespaces", _apart(spaces[name]), NAMESPACES)
        _expect(f"{name}: no_new_privs", status.get("NoNewPrivs"), "1")
        _expect(f"{name}: host uid", set(status.get("Uid", "").split()), {str(uid)})
    if spaces[_SENTRY]["user"] == tree.namespace("self", "user"):
        raise WallMissingError("the second kernel has capabilities on this host")
    return {
        "namespaces": ",".join(NAMESPACES),
        "no_new_privs": "yes",
        "capabilities": "none",
        "seccomp": "loaded",
    }


def memory_bytes(pids: list[int]) -> int:
    """What the memory files of `pids` hold: the job's own memory is one, which no process's anonymous pages
    show. A file that nobody may write is the broker's, and not counted."""
    seen = {}
    for pid in pids:
        for fd in tree.listed(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{fd}"
            try:
                if not os.readlink(path).startswith(_MEMORY):  # noqa: PTH115
                    continue
                about = os.stat(path)  # noqa: PTH116
            except OSError:
                continue
            if about.st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
                seen[about.st_dev, about.st_ino] = about.st_blocks * _BLOCK
    return sum(seen.values())


class Failure(NamedTuple):
    """What `runsc` says went wrong, out of the job's reach.

    `absent`: there is no such command, or it can't be executed.
    """

    detail: str = ""
    absent: bool = False


def failure(report: bytes) -> Failure:
    """Read what came through `oci.LOG_FD`; an empty `detail` is no failure."""
    text = report.decode("utf-8", "replace").strip()
    try:
        said = str(json.JSONDecoder().raw_decode(text)[0]["msg"])
    except (ValueError, KeyError, TypeError):
        return Failure(text)
    return Failure(said, any(step in said for step in _EXECUTION))


def _name(pid: int) -> str:
    return tree.command(pid).partition("\0")[0]


def _apart(theirs: dict[str, str]) -> tuple[str, ...]:
    return tuple(kind for kind in NAMESPACES if theirs[kind] != tree.namespace("self", kind))


def _expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise WallMissingError(f"{what}: found {found!r}, expected {wanted!r}")
