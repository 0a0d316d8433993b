"""Memory for records: anonymous, out of core files, locked where the host allows it, wiped when done."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from pathlib import Path
from typing import Final

_SWAPS: Final = Path("/proc/swaps")
_MLOCK_ONFAULT: Final = 1
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_CAP_IPC_LOCK: Final = 14
_libc: Final = ctypes.CDLL(None, use_errno=True)


def anonymous(size: int) -> mmap.mmap:
    """Private zeroed memory of `size` bytes, at least one.

    Private and without a descriptor, where a memfd could be opened again through /proc and counts as a file
    of tmpfs. Left out of core files and of children; locked against swap as far as the limits allow, which
    `node.datasets.memory` checks.

    Raises:
        MemoryError: the host has no room.
    """
    try:
        memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no room for {size} bytes: {error.strerror}") from None
    memory.madvise(mmap.MADV_DONTDUMP)
    memory.madvise(mmap.MADV_DONTFORK)
    # Locked page by page as it is filled, so that room is not taken before it is used.
    _libc.mlock2(ctypes.c_void_p(_address(memory)), ctypes.c_size_t(len(memory)), _MLOCK_ONFAULT)
    return memory


def wipe(memory: mmap.mmap) -> None:
    """Overwrite with zeros; by memset(3), which touches the pages themselves and makes no copy."""
    ctypes.memset(_address(memory), 0, len(memory))


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def active_swaps(table: Path = _SWAPS) -> tuple[str, ...]:
    """What this host swaps to, as /proc/swaps names it; empty where it doesn't.

    A kernel without swap has no such file.
    """
    try:
        lines = table.read_text("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ()
    return tuple(line.split()[0] for line in lines[1:] if line.strip())


def may_lock() -> bool:
    """Whether this process may lock any amount of memory: by CAP_IPC_LOCK, or without a limit."""
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        return True
    for line in Path("/proc/self/status").read_text("ascii", errors="replace").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_IPC_LOCK & 1)
    return False


def lock_all() -> None:
    """Keep everything this process has and will have out of swap, page by page as it is used.

    Raises:
        OSError: the kernel refuses. Without `may_lock` it may agree now and fail an allocation later.
    """
    if _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "mlockall")
