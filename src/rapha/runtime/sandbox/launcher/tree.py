"""The process tree of a sandbox as /proc shows it from outside: who lives, and what they hold."""

from __future__ import annotations

import os
import signal
from typing import Final, NamedTuple

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_HELD_KEYS: Final = ("RssAnon:", "VmSwap:", "HugetlbPages:")
_SEND_BUFFER: Final = "/proc/sys/net/core/wmem_default"
"""What each socket may send that nobody has received; the filter lets no job ask for more."""
_USUAL_SEND_BUFFER: Final = 212_992
"""Linux's own default (SK_WMEM_DEFAULT), where a network namespace does not show it."""
_INODE_BYTES: Final = 1024
"""What tmpfs itself reckons for an inode, and takes off for each KiB of extended attributes."""
_SHARE_KEYS: Final = ("Pss_Anon:", "SwapPss:", "Private_Hugetlb:", "Shared_Hugetlb:")
_TABLE_KEYS: Final = ("VmPTE:",)
"""Lines of /proc/PID/status and smaps_rollup.

File pages are left out, since the kernel takes those back when it needs them. So are shared pages: the filter
lets a job make them only in its tmpfs, whose size is added whole, mapped or not.
"""


class Use(NamedTuple):
    """A sum over a tree at one moment."""

    memory_bytes: int
    cpu_s: float


def can_walk() -> bool:
    """Whether this kernel lists children (CONFIG_PROC_CHILDREN); without it nobody can be counted."""
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")  # noqa: PTH110


def descendants(root: int) -> list[int]:
    """Every living or zombie process below `root`. Forks during the walk may be missed once."""
    found: list[int] = []
    queue = [root]
    while queue:
        parent = queue.pop()
        for thread in _list(f"/proc/{parent}/task"):
            children = [int(pid) for pid in _read(f"/proc/{parent}/task/{thread}/children").split()]
            found += children
            queue += children
    return found


def kill(root: int) -> None:
    """SIGKILL to everything below `root`."""
    for pid in descendants(root):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def measure(pids: list[int], limit_bytes: int) -> Use:
    """Memory and CPU of `pids`.

    Pages that a fork shares are first counted once for each process, which is cheap; only if that passes
    `limit_bytes` are they divided among their users, and that is returned.
    """
    memory = sum(_held(pid) for pid in pids)
    if memory > limit_bytes:
        memory = sum(_share(pid) for pid in pids)
    return Use(memory, sum(map(_cpu_s, pids)))


def _held(pid: int) -> int:
    return _kilobytes(f"/proc/{pid}/status", _HELD_KEYS + _TABLE_KEYS)


def _share(pid: int) -> int:
    # What can't be read is not free: then the larger number stands.
    share = _kilobytes(f"/proc/{pid}/smaps_rollup", _SHARE_KEYS)
    return share + _kilobytes(f"/proc/{pid}/status", _TABLE_KEYS) if share else _held(pid)


def tmpfs_bytes(path: str) -> int:
    """What the tmpfs at `path` holds, inodes included."""
    about = os.statvfs(path)
    inodes = (about.f_files - about.f_ffree) * _INODE_BYTES
    return (about.f_blocks - about.f_bfree) * about.f_frsize + inodes


def socket_bytes(pid: int) -> int:
    """The most that the sockets of the network namespace of `pid` can hold in the kernel; 0 if it is gone.

    A socket that was closed counts until the last message that it sent was received.
    """
    for line in _read(f"/proc/{pid}/net/sockstat").splitlines():
        name, _, rest = line.partition(": used ")
        if name == "sockets":
            # Twice, since one more message is admitted while there is any room.
            return int(rest) * 2 * int(_read(_SEND_BUFFER) or _USUAL_SEND_BUFFER)
    return 0


def host_is_short() -> bool:
    """Whether less than 1/32 of the host's memory is left to anyone (false where the kernel doesn't say)."""
    lines = (line.split() for line in _read("/proc/meminfo").splitlines())
    kilobytes = {words[0]: int(words[1]) for words in lines if len(words) > 1}
    return kilobytes.get("MemAvailable:", 1 << 60) * 32 < kilobytes.get("MemTotal:", 0)


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status as a table; empty if the process is gone."""
    lines = (line.partition(":") for line in _read(f"/proc/{pid}/status").splitlines())
    return {key: value.strip() for key, _, value in lines}


def namespace(pid: int | str, kind: str) -> str:
    """The identity of a namespace; empty if the process is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")  # noqa: PTH115
    except OSError:
        return ""


def _kilobytes(path: str, keys: tuple[str, ...]) -> int:
    total = 0
    for line in _read(path).splitlines():
        if line.startswith(keys):
            total += int(line.split()[1])
    return total * 1024


def _cpu_s(pid: int) -> float:
    # Fields 14 to 17: its own time and that of children it waited for. The name before may hold anything.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) * _TICK_S if fields else 0.0


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)  # noqa: PTH208
    except OSError:
        return []


def _read(path: str) -> str:
    """The text of a file of /proc, empty once its process is gone."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return ""
