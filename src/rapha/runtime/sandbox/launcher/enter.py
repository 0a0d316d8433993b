"""From the launcher to bubblewrap: descriptors, limits, uid, arguments, in this order."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import socket
from typing import Final, NamedTuple, NoReturn

from rapha.runtime.sandbox.launcher import interpreter, landlock, lock, masks, oci, system
from rapha.runtime.sandbox.launcher.cgroup import Group
from rapha.runtime.sandbox.launcher.order import Order
from rapha.runtime.sandbox.launcher.rootfs import DEVICES
from rapha.runtime.sandbox.launcher.stage import INSIDE_ID, Stage

_ARGS_FD, _SECCOMP_FD, _STATUS_FD, _HOLD_FD = 10, 11, 12, 13
"""Above what a job expects to find open; bubblewrap closes all four before it starts the command."""
_COMMAND_FD, _LOCK_FD, _TCP_FD = 14, 15, 16
"""For `lock`, which closes them before it becomes the command."""
_USERNS_FD: Final = 16
"""For this child alone."""
_HIGH: Final = 64
_BOOKKEEPERS: Final = 2
"""bubblewrap's monitor and its init are tasks of the sandbox too."""
_GVISOR_TASKS: Final = 128
"""Threads of gVisor's own processes. It has one more for each of the job's, and one that waits on it."""


class Pipes(NamedTuple):
    """The child's ends."""

    stdout: int
    stderr: int
    status: int
    report: int
    """For what stands between bubblewrap and the command."""


def tasks(order: Order) -> int:
    """How many tasks of the host the sandbox may have."""
    return _BOOKKEEPERS + (2 * order.processes + _GVISOR_TASKS if order.runsc else order.processes)


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
            for fd in (1, 2):  # so that the job may also open them as /dev/stdout and /dev/stderr
                os.fchown(fd, stage.uid, stage.uid)
            os.setgroups([])
        if stage.userns >= 0:
            system.setns(_USERNS_FD, system.CLONE_NEWUSER)
            os.close(_USERNS_FD)
            _become(0)
        elif stage.uid is not None:
            _become(stage.uid)
        # After the change of uid, which clears it; and then ask whether the launcher died before it was set.
        system.prctl(system.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:
            os._exit(1)
        environment = {"LD_LIBRARY_PATH": stage.libraries} if stage.libraries else {}
        os.execve(stage.bwrap, arguments, environment)  # noqa: S606  no shell is the point
    except Exception as error:  # noqa: BLE001  this is the child: it may only report and exit
        os.write(2, f"launcher: {error!r}\n".encode())
    os._exit(1)


def _become(uid: int) -> None:
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _prefer_for_oom() -> None:
    """If the host runs out of memory, it is the job that the kernel kills."""
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(fd, b"1000")
    os.close(fd)


def _descriptors(order: Order, stage: Stage, pipes: Pipes) -> list[str]:
    """Arrange descriptors, close all others, and return bubblewrap's command line."""
    devnull = os.open("/dev/null", os.O_RDONLY)
    wanted = {0: devnull, 1: pipes.stdout, 2: pipes.stderr, _STATUS_FD: pipes.status}
    options = oci.fence(stage) if order.runsc else _walls(order, stage)
    options += ["--json-status-fd", str(_STATUS_FD)]
    if order.hold >= 0:
        wanted[_HOLD_FD] = order.hold
        options += ["--sync-fd", str(_HOLD_FD)]
    if order.broker >= 0:
        wanted[0 if order.runsc else 3] = order.broker  # gVisor hands on the first three alone
    if order.runsc:
        wanted[oci.LOG_FD], wanted[_USERNS_FD] = pipes.report, stage.userns
    else:
        wanted[_SECCOMP_FD] = _memory(bytes.fromhex(order.seccomp))
        wanted[_LOCK_FD] = pipes.report
        tcp = _tcp_socket() if landlock.rights(stage.landlock).tcp else -1
        if tcp >= 0:
            wanted[_TCP_FD] = tcp
        wanted[_COMMAND_FD] = _memory(lock.encode(stage.landlock, order.argv, order.env))
    # By descriptor and not as arguments: /proc/1/cmdline is the job's to read.
    wanted[_ARGS_FD] = _memory(b"".join(os.fsencode(option) + b"\0" for option in options))
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
    command = oci.command(order) if order.runsc else _lock(wanted)
    return ["bwrap", "--args", str(_ARGS_FD), "--", *command]


def _tcp_socket() -> int:
    """For `lock` to see TCP denied; -1 where the kernel has none."""
    try:
        return socket.socket(socket.AF_INET).detach()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return -1
        raise


def _lock(wanted: dict[int, int]) -> list[str]:
    return interpreter.command(_COMMAND_FD, _LOCK_FD, _TCP_FD if _TCP_FD in wanted else -1)


def _max_fd() -> int:
    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], (1 << 31) - 1)


def _memory(content: bytes) -> int:
    fd = os.memfd_create("rapha", os.MFD_CLOEXEC)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _walls(order: Order, stage: Stage) -> list[str]:
    """bubblewrap's options where it is the wall itself."""
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
    arguments += ["--setenv", "LC_ALL", "C"]  # the locale that is no file, and so no file of the root
    arguments += ["--ro-bind", stage.root, "/", "--proc", "/proc"]
    arguments += masks.arguments(stage.empty, stage.facades)
    for name in DEVICES:
        arguments += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for staged, dest in ((stage.tmp, "/tmp"), (stage.shm, "/dev/shm"), (stage.out, "/rapha/out")):  # noqa: S108
        arguments += ["--bind", staged, dest]
    return [*arguments, "--chdir", order.cwd, "--seccomp", str(_SECCOMP_FD)]


def _limits(order: Order) -> None:
    """Lower soft and hard limits; the sum over the tree is the supervisor's."""
    files, size = order.open_files, max(order.out_bytes, order.tmp_bytes)
    if order.runsc:  # whose memory is one file, and whose files are those of all processes inside
        files = size = resource.RLIM_INFINITY
    wanted = (
        (resource.RLIMIT_CPU, order.cpu_s + 1),
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_NPROC, tasks(order)),
        (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 64 << 10),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, 1024),
        (resource.RLIMIT_NICE, 0),
        (resource.RLIMIT_RTPRIO, 0),
    )
    for kind, value in wanted:
        hard = resource.getrlimit(kind)[1]
        limit = min((n for n in (value, hard) if n != resource.RLIM_INFINITY), default=value)
        resource.setrlimit(kind, (limit, limit))
