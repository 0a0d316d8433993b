"""What /proc would say about the host and its other processes, and what stands there instead.

What stays readable: the processor's description, kernel and driver names, the time since boot (which
`clock_gettime` tells anyway), and what sysinfo(2) tells of load and free memory, which the C library's sort
asks for. In /proc/self/mountinfo the job reads from which paths and devices of the host its read-only mounts
come, and their options: the kernel writes them for each process anew, and nothing can be mounted over a file
that every process has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

_FILES: Final = (
    "buddyinfo", "cgroups", "cmdline", "config.gz", "consoles", "diskstats", "interrupts", "iomem",
    "ioports", "kallsyms", "key-users", "keys", "kmsg", "kpagecgroup", "kpagecount", "kpageflags",
    "latency_stats", "loadavg", "locks", "mdstat", "modules", "mtrr", "pagetypeinfo", "partitions",
    "sched_debug", "schedstat", "slabinfo", "softirqs", "swaps", "timer_list", "version_signature",
    "vmallocinfo", "zoneinfo",
    "sys/fs/aio-nr", "sys/fs/dentry-state", "sys/fs/file-nr", "sys/fs/inode-nr", "sys/fs/inode-state",
    "sys/kernel/ns_last_pid", "sys/kernel/pty/nr", "sys/kernel/random/boot_id",
    "sys/kernel/random/entropy_avail",
)  # fmt: skip
_FOLDERS: Final = ("acpi", "asound", "bus", "driver", "fs", "irq", "pressure", "scsi", "tty", "1")
"""The last is bubblewrap's own init, of the job's uid: who writes its memory can undo its death signal, and
among its descriptors is the caller's `hold`. Landlock keeps a job from it; this does where there is none."""
_KIB: Final = 1024
_NOTHING: Final = ("Buffers", "Cached", "SwapCached", "Active", "Inactive", "SwapTotal", "SwapFree", "Shmem",
                   "Slab", "SReclaimable")  # fmt: skip


def facades(memory_bytes: int) -> dict[str, bytes]:
    """Files of /proc that programs need, with the job's own limits and no counts: name and content."""
    return {"meminfo": _meminfo(memory_bytes // _KIB), "stat": _stat(), "vmstat": b"pswpin 0\npswpout 0\n"}


def arguments(empty: str, staged: dict[str, str]) -> Iterator[str]:
    """bubblewrap's options.

    Args:
        empty: a staged directory with nothing in it.
        staged: where each of `facades` lies.
    """
    covers = [
        *((name, "/dev/null") for name in _FILES),
        *((name, empty) for name in _FOLDERS),
        *staged.items(),
    ]
    for name, cover in covers:
        if os.path.exists(f"/proc/{name}"):  # noqa: PTH110
            yield from ("--ro-bind", cover, f"/proc/{name}")


def _meminfo(total: int) -> bytes:
    sizes = dict.fromkeys(("MemTotal", "MemFree", "MemAvailable"), total) | dict.fromkeys(_NOTHING, 0)
    sizes["Hugepagesize"] = 2048
    return "".join(f"{name + ':':<16}{size:>8} kB\n" for name, size in sizes.items()).encode()


def _stat() -> bytes:
    # The C library counts processors by these lines.
    cpus = ["cpu ", *(f"cpu{n}" for n in range(os.cpu_count() or 1))]
    lines = [f"{cpu}{' 0' * 10}" for cpu in cpus]
    counts = ("intr 0", "ctxt 0", "btime 0", "processes 1", "procs_running 1", "procs_blocked 0", "softirq 0")
    return "".join(f"{line}\n" for line in (*lines, *counts)).encode()
