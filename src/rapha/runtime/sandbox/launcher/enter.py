"""From the launcher to bubblewrap: descriptors, limits, uid, arguments, in this order."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
from typing import Final, NamedTuple, NoReturn

from rapha.runtime.sandbox.launcher import system
from rapha.runtime.sandbox.launcher.cgroup import Group
from rapha.runtime.sandbox.launcher.order import Order
from rapha.runtime.sandbox.launcher.stage import Stage

INSIDE_ID: Final = 65534
_ARGS_FD, _SECCOMP_FD, _STATUS_FD = 10, 11, 12
"""Above what a job expects to find open; bubblewrap closes all three before it starts the command."""
_HIGH: Final = 64
_DEVICES: Final = ("null", "full", "random", "urandom")
"""No `zero`: a shared mapping of it is memory that no supervisor can count. No terminal."""
_MASKED: Final = (
    "cmdline", "config.gz", "consoles", "diskstats", "interrupts", "iomem", "ioports", "kallsyms",
    "key-users", "keys", "kmsg", "kpagecgroup", "kpagecount", "kpageflags", "latency_stats", "loadavg",
    "locks", "mdstat", "modules", "partitions", "pagetypeinfo", "sched_debug", "schedstat", "slabinfo",
    "softirqs", "swaps", "timer_list", "version_signature", "vmallocinfo", "zoneinfo",
)  # fmt: skip
_MASKED_FOLDERS: Final = ("acpi", "asound", "bus", "driver", "fs", "irq", "pressure", "scsi", "tty")
"""What /proc says about the host and its other processes, and the kernel's doors to its drivers."""
BOOKKEEPERS: Final = 2
"""bubblewrap's monitor and its init are tasks of the sandbox too."""


class Pipes(NamedTuple):
    """The child's ends."""

    stdout: int
    stderr: int
    status: int


def exec_bubblewrap(order: Order, stage: Stage, group: Group | None, pipes: Pipes, launcher: int) -> NoReturn:
    """Become bubblewrap; called in the child after fork. On failure, says why on its stderr and exits."""
    try:
        os.dup2(pipes.stderr, 2)
        if group:
            group.enter(os.getpid())
        _prefer_for_oom()
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python, for itself
            signal.signal(ignored, signal.SIG_DFL)
        arguments = _descriptors(order, stage, pipes)
        _limits(order)
        if stage.uid is not None:
            os.setgroups([])
            os.setresgid(stage.uid, stage.uid, stage.uid)
            os.setresuid(stage.uid, stage.uid, stage.uid)
        # After the change of uid, which clears it; and then ask whether the launcher died before it was set.
        system.prctl(system.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:
            os._exit(1)
        environment = {"LD_LIBRARY_PATH": stage.libraries} if stage.libraries else {}
        os.execve(stage.bwrap, arguments, environment)  # noqa: S606  no shell is the point
    except Exception as error:  # noqa: BLE001  this is the child: it may only report and exit
        os.write(2, f"launcher: {error!r}\n".encode())
    os._exit(1)


def _prefer_for_oom() -> None:
    """If the host runs out of memory, it is the job that the kernel kills."""
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(fd, b"1000")
    os.close(fd)


def _descriptors(order: Order, stage: Stage, pipes: Pipes) -> list[str]:
    """Arrange descriptors, close all others, and return bubblewrap's command line."""
    devnull = os.open("/dev/null", os.O_RDONLY)
    wanted = {0: devnull, 1: pipes.stdout, 2: pipes.stderr, _STATUS_FD: pipes.status}
    wanted |= {
        _ARGS_FD: _memory(_arguments(order, stage)),
        _SECCOMP_FD: _memory(bytes.fromhex(order.seccomp)),
    }
    if order.broker >= 0:
        wanted[3] = order.broker
    # First all out of the way, so that no placement overwrites a descriptor that is still to be placed.
    moved = {place: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH) for place, fd in wanted.items()}
    for place, fd in moved.items():
        os.dup2(fd, place, inheritable=True)
    first = 0
    for place in sorted(wanted):
        if first < place:  # an empty range would close everything (CPython passes on high - 1)
            os.closerange(first, place)
        first = place + 1
    os.closerange(first, _max_fd())
    return ["bwrap", "--args", str(_ARGS_FD), "--", *order.argv]


def _max_fd() -> int:
    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], (1 << 31) - 1)


def _memory(content: bytes) -> int:
    fd = os.memfd_create("rapha", os.MFD_CLOEXEC)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _arguments(order: Order, stage: Stage) -> bytes:
    """bubblewrap's options, NUL-separated: sent by descriptor, since /proc/1/cmdline is the job's to read."""
    identity = str(INSIDE_ID)
    arguments = ["--unshare-user", "--uid", identity, "--gid", identity]
    arguments += ["--disable-userns", "--assert-userns-disabled"]
    arguments += [f"--unshare-{kind}" for kind in ("pid", "net", "ipc", "uts", "cgroup")]
    arguments += [
        "--hostname",
        "rapha",
        "--new-session",
        "--die-with-parent",
        "--cap-drop",
        "ALL",
        "--clearenv",
    ]
    for name, value in order.env.items():
        arguments += ["--setenv", name, value]
    for (_, dest), staged in zip(order.mounts, stage.sources, strict=True):
        arguments += ["--ro-bind", staged, dest]
    arguments += ["--proc", "/proc"]
    for names, cover in ((_MASKED, "/dev/null"), (_MASKED_FOLDERS, stage.empty)):
        for name in names:
            if os.path.exists(f"/proc/{name}"):  # noqa: PTH110
                arguments += ["--ro-bind", cover, f"/proc/{name}"]
    for name in _DEVICES:
        arguments += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        arguments += ["--symlink", f"/proc/self/fd{target}", f"/dev/{name}"]
    for staged, dest in ((stage.tmp, "/tmp"), (stage.shm, "/dev/shm"), (stage.out, "/rapha/out")):  # noqa: S108
        arguments += ["--bind", staged, dest]
    # The root is a tmpfs without a cap: nothing may be written to it.
    arguments += ["--remount-ro", "/", "--chdir", order.cwd]
    arguments += ["--seccomp", str(_SECCOMP_FD), "--json-status-fd", str(_STATUS_FD)]
    return b"".join(os.fsencode(argument) + b"\0" for argument in arguments)


def _limits(order: Order) -> None:
    """Lower soft and hard limits; the sum over the tree is the supervisor's."""
    wanted = (
        (resource.RLIMIT_CPU, order.cpu_s + 1),
        (resource.RLIMIT_NOFILE, order.open_files),
        (resource.RLIMIT_NPROC, order.processes + BOOKKEEPERS),
        (resource.RLIMIT_FSIZE, max(order.out_bytes, order.tmp_bytes)),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 64 << 10),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, 1024),
        (resource.RLIMIT_NICE, 0),
        (resource.RLIMIT_RTPRIO, 0),
    )
    for kind, value in wanted:
        hard = resource.getrlimit(kind)[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (limit, limit))
