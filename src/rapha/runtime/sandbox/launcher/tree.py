"""The process tree of a sandbox as /proc shows it from outside: who lives, and what they hold."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Final

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_HELD_KEYS: Final = ("RssAnon:", "VmSwap:", "HugetlbPages:")
_SEND_BUFFER: Final = "/proc/sys/net/core/wmem_default"
"""What each socket may send that nobody has received; the filter lets no job ask for more."""
_USUAL_SEND_BUFFER: Final = 212_992
"""Linux's own default (SK_WMEM_DEFAULT), where a network namespace does not show it."""
_MAP_BYTES: Final = 320
"""A vm_area_struct, and its share of the tree that they hang in (x86-64, Linux 6)."""
_COUNTS_A_TICK: Final = 4
_ROUNDS: Final = 8
_USUAL_DESCRIPTORS: Final = 64
_DESCRIPTOR_BYTES: Final = 6144
"""Half of a pipe past the pages that a user may have in larger ones (pipe(7)): two pages, inode and files."""
_INODE_BYTES: Final = 1024
"""What tmpfs itself reckons for an inode, and takes off for each KiB of extended attributes."""
_SHARE_KEYS: Final = ("Pss_Anon:", "SwapPss:", "Private_Hugetlb:", "Shared_Hugetlb:")
_TABLE_KEYS: Final = ("VmPTE:",)
"""Lines of /proc/PID/status and smaps_rollup.

File pages are left out, since the kernel takes those back when it needs them. So are shared pages: the filter
lets a job make them only in its tmpfs, whose size is added whole, mapped or not.
"""


def can_walk() -> bool:
    """Whether this kernel lists children (CONFIG_PROC_CHILDREN); without it nobody can be counted."""
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")  # noqa: PTH110


def descendants(root: int) -> list[int]:
    """Every living or zombie process below `root`. Forks during the walk may be missed once."""
    found: list[int] = []
    queue = [root]
    while queue:
        children = _children(queue.pop())
        found += children
        queue += children
    return found


def _children(parent: int) -> list[int]:
    threads = listed(f"/proc/{parent}/task")
    return [int(pid) for tid in threads for pid in _read(f"/proc/{parent}/task/{tid}/children").split()]


def kill(root: int) -> None:
    """SIGKILL to everything below `root`."""
    for pid in descendants(root):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def memory_bytes(root: int, limit_bytes: int) -> int:
    """What everything below `root` holds.

    Pages that a fork shares are first counted once for each process, which is cheap; only if that passes
    `limit_bytes` are they divided among their users, and that is returned.
    """
    memory = _census(root, _held)
    return _census(root, _share) if memory > limit_bytes else memory


def _census(root: int, read: Callable[[int], int]) -> int:
    """The sum of `read` over everything below `root`, each process read in the moment that it is met.

    A process may pass all that it holds to a child and be gone before it is read: as often as one is found
    gone, those that were not met yet are looked for again.
    """
    met: dict[int, int] = {}
    for _ in range(_ROUNDS):
        gone, queue = False, [root]
        while queue:
            parent = queue.pop()
            for pid in reversed(_children(parent)):  # who came last is soonest gone
                if pid not in met:
                    met[pid] = read(pid)
                    gone |= not met[pid]
                queue.append(pid)
        if not gone:
            break
    return sum(met.values())


def _held(pid: int) -> int:
    return _kilobytes(f"/proc/{pid}/status", _HELD_KEYS + _TABLE_KEYS)


def _share(pid: int) -> int:
    # What can't be read is not free: then the larger number stands.
    share = _kilobytes(f"/proc/{pid}/smaps_rollup", _SHARE_KEYS)
    return share + _kilobytes(f"/proc/{pid}/status", _TABLE_KEYS) if share else _held(pid)


class Maps:
    """What the kernel keeps about the mappings of a tree: in no process's pages, and a cgroup counts it.

    A job may have 65,530 in each process, of a page each that it never touches. To count them is to read
    them, so a process is counted when it is first seen and then as often as `_COUNTS_A_TICK` allows, in turn.
    """

    def __init__(self) -> None:
        self._counted: dict[int, int] = {}

    def memory_bytes(self, pids: list[int], limit_bytes: int) -> int:
        """The sum over `pids`; what was never counted is taken to have as many as the largest, since a fork
        copies them, unless that would pass `limit_bytes`: then everything is counted."""
        self._counted = {pid: self._counted[pid] for pid in pids if pid in self._counted}
        unseen = [pid for pid in pids if pid not in self._counted]
        seen = list(self._counted)  # in the order of their last count
        for pid in [*unseen, *seen][:_COUNTS_A_TICK]:
            self._count(pid)
        if (guess := self._guess(pids)) <= limit_bytes:
            return guess
        certain = 0
        for pid in pids:
            certain += self._count(pid) * _MAP_BYTES
            if certain > limit_bytes:
                break
        return certain

    def _count(self, pid: int) -> int:
        self._counted.pop(pid, None)  # to the end
        self._counted[pid] = count = _read(f"/proc/{pid}/maps").count("\n")
        return count

    def _guess(self, pids: list[int]) -> int:
        largest = max(self._counted.values(), default=0)
        return sum(self._counted.get(pid, largest) for pid in pids) * _MAP_BYTES


class Times:
    """CPU time of a tree, what of it has ended included.

    The time of a child that nobody waits for (SIGCHLD ignored) is added to no parent's: what each process was
    last seen with is kept. What lives and dies between two counts is missed, where no cgroup counts it.
    """

    def __init__(self) -> None:
        self._living: dict[tuple[int, str], float] = {}
        self._ended_s = 0.0

    def cpu_s(self, pids: list[int]) -> float:
        """Seconds, at least: the living with whom they waited for, or all own times if that is more."""
        before, self._living = self._living, {}
        total = 0.0
        for pid in pids:
            # Fields 14 to 17 and 22 of proc_pid_stat(5): own time, that of children it waited for, and its
            # start, since numbers are used again. The name before may hold anything.
            fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
            if fields:
                own, waited = (sum(map(int, fields[at : at + 2])) * _TICK_S for at in (11, 13))
                total += own + waited
                self._living[pid, fields[19]] = own
        self._ended_s += sum(own for process, own in before.items() if process not in self._living)
        return max(total, self._ended_s + sum(self._living.values()))


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


def pipe_bytes(pids: list[int]) -> int:
    """What the pipes of `pids` can hold in the kernel, by the sizes of their tables of descriptors; the
    smallest is free."""
    sizes = (int(status(pid).get("FDSize", "0")) for pid in pids)
    return sum(max(0, size - _USUAL_DESCRIPTORS) * _DESCRIPTOR_BYTES for size in sizes)


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


def command(pid: int) -> str:
    """The arguments of a process, each ended by a NUL; empty if it is gone."""
    return _read(f"/proc/{pid}/cmdline")


def listed(path: str) -> list[str]:
    """The names in a directory of /proc, none once its process is gone."""
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
