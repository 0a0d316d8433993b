"""A cgroup for the sandbox, where the host lets us make one; version 2 if it can, else version 1.

It counts what no walk over processes sees (kernel memory, unmapped pages) and never overshoots. Where there
is none, the supervisor's sum is all there is, and the walls say so.
"""

from __future__ import annotations

import errno
import os
from typing import Final, NamedTuple

from rapha.runtime.sandbox.launcher import tree

PREFIX: Final = "rapha-sandbox-"
_SWAP_FILES: Final = ("memory.swap.max", "memory.memsw.limit_in_bytes")


class Files(NamedTuple):
    """The names that the two versions give to one thing."""

    limit: str
    peak: str
    events: str
    tasks: str
    cpu: str


_V1: Final = Files(
    "memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control", "pids.max", "cpuacct.usage"
)
_V2: Final = Files("memory.max", "memory.peak", "memory.events", "pids.max", "cpu.stat")


class Group(NamedTuple):
    """The directories of one sandbox: one for version 2, one a controller for version 1."""

    paths: tuple[str, ...]
    files: Files
    held: tuple[str, ...] = ()
    """Which of `memory` and `pids` the kernel accepted a limit for."""

    @property
    def mechanism(self) -> str:
        """For the walls: which version limits what."""
        return f"cgroup-v{2 if self.files is _V2 else 1}({','.join(self.held)})"

    def enter(self, pid: int) -> None:
        """Move `pid` in; what it forks from now on is born inside."""
        for path in self.paths:
            _put(f"{path}/cgroup.procs", str(pid))

    def killed_for_memory(self) -> bool:
        """Whether the kernel has killed a process of this group for memory."""
        text = self._get(self.files.events)
        return any(line.startswith("oom_kill ") and not line.endswith(" 0") for line in text.splitlines())

    def peak(self) -> int:
        """The largest memory use in bytes, 0 where it is not counted."""
        text = self._get(self.files.peak).strip()
        return int(text) if text.isdigit() else 0

    def cpu_s(self) -> float:
        """Seconds of CPU, also of processes that nobody waited for; 0 where they are not counted."""
        words = self._get(self.files.cpu).split()
        if words[:1] == ["usage_usec"]:
            return int(words[1]) / 1e6
        return int(words[0]) / 1e9 if words and words[0].isdigit() else 0.0

    def remove(self) -> None:
        """Delete the directories, all of whose processes are dead."""
        for path in self.paths:
            _rmdir(path)

    def _get(self, name: str) -> str:
        for path in self.paths:
            try:
                return _read(f"{path}/{name}")
            except FileNotFoundError:
                continue
        return ""


def make(memory_bytes: int, tasks: int) -> Group | None:
    """A limited cgroup below the caller's own, or None where the host offers none that we may write."""
    for files, parents in _parents():
        made = [path for path in (_make(parent) for parent in parents) if path]
        group = Group(tuple(made), files)
        group = group._replace(held=_limit(group, memory_bytes, tasks))
        if "memory" in group.held:  # which is what a cgroup is wanted for
            return group
        group.remove()
    return None


def _parents() -> list[tuple[Files, list[str]]]:
    """Where a cgroup could be made: the caller's own in version 2, then in version 1's three controllers."""
    own: dict[str, str] = {}
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    v1: list[str] = []
    v2: list[str] = []
    for line in _read("/proc/self/mountinfo").splitlines():
        fields, _, tail = line.partition(" - ")
        root, point = fields.split(" ")[3:5]
        kind, _, options = tail.split(" ", 2)
        named = (
            [c for c in ("memory", "pids", "cpuacct") if c in options.split(",")]
            if kind == "cgroup"
            else [""]
        )
        if kind not in {"cgroup", "cgroup2"} or not named or named[0] not in own:
            continue
        path = f"{point}/{own[named[0]].removeprefix(root.rstrip('/'))}".replace("//", "/").rstrip("/")
        (v2 if kind == "cgroup2" else v1).append(path)
    return [(_V2, v2), (_V1, v1)]


def _make(parent: str) -> str:
    """A new directory in `parent`, and away with those that a killed launcher left; empty if we may not."""
    try:
        for name in os.listdir(parent):  # noqa: PTH208
            if name.startswith(PREFIX) and _dead(name.removeprefix(PREFIX)):
                _rmdir(f"{parent}/{name}")
        path = f"{parent}/{PREFIX}{os.getpid()}"
        os.mkdir(path, 0o755)  # noqa: PTH102
    except OSError:
        return ""
    return path


def _dead(pid: str) -> bool:
    return not pid.isdigit() or tree.status(int(pid)).get("State", "X")[0] in "ZX"


def _limit(group: Group, memory_bytes: int, tasks: int) -> tuple[str, ...]:
    """Set the limits, and return which of them the kernel took."""
    held = []
    for path in group.paths:
        if _try(f"{path}/{group.files.limit}", memory_bytes):
            held.append("memory")
        if _try(f"{path}/{group.files.tasks}", tasks):
            held.append("pids")
        for name, value in zip(_SWAP_FILES, (0, memory_bytes), strict=True):
            _try(
                f"{path}/{name}", value
            )  # where the kernel counts no swap, the supervisor's sum of it remains
    return tuple(held)


def _try(path: str, value: int) -> bool:
    try:
        _put(path, str(value))
    except OSError:
        return False
    return True


def _rmdir(path: str) -> None:
    try:
        os.rmdir(path)  # noqa: PTH106
    except OSError as error:
        if error.errno not in {errno.EBUSY, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS}:
            raise


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="surrogateescape") as file:  # noqa: PTH123
        return file.read()


def _put(path: str, text: str) -> None:
    # Without O_CREAT: a missing control file must fail, also where the directory is no cgroup.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
