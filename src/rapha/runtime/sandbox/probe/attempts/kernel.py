"""Calls that widen what a job can do to the kernel, whatever file or socket they are for."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
from typing import Final

from rapha.runtime.sandbox.probe.attempts.kit import (
    ABSENT,
    SCRATCH,
    Catalogue,
    HeldError,
    World,
    call,
    checked,
    libc,
    past,
)

KERNEL: Final = Catalogue()
_PTRACE_SEIZE, _PTRACE_TRACEME = 0x4206, 0
_THREAD_KEYRING, _GET_KEYRING_ID = -1, 0
_PR_SET_SECUREBITS, _PR_GET_NO_NEW_PRIVS = 28, 39
_TIOCSTI, _TIOCLINUX, _FIOSETOWN = 0x5412, 0x541C, 0x8901
_NO_SUCH: Final = b"/nonexistent/rapha"
_ADDR_NO_RANDOMIZE: Final = 0x0040000


@KERNEL.attempt("kernel.bpf", "load a BPF map", root=True, absent=ABSENT)
def _bpf(_: World) -> str:
    os.close(call("bpf", 0, struct.pack("<4I", 2, 4, 8, 1) + bytes(112), 128))  # BPF_MAP_CREATE, an array
    return "bpf(BPF_MAP_CREATE)"


@KERNEL.attempt("kernel.perf", "open a performance counter", root=True, absent=ABSENT)
def _perf(_: World) -> str:
    os.close(call("perf_event_open", struct.pack("<IIQ", 1, 128, 0) + bytes(112), 0, -1, -1, 0))
    return "perf_event_open"


@KERNEL.attempt("kernel.userfaultfd", "handle page faults oneself (userfaultfd)", absent=ABSENT)
def _userfaultfd(_: World) -> str:
    os.close(call("userfaultfd", os.O_CLOEXEC | 1))
    return "userfaultfd"


KERNEL.add(
    "kernel.add_key",
    "put a key on a kernel keyring",
    lambda _: f"key {call('add_key', b'user', b'rapha-probe', b'x', 1, _THREAD_KEYRING)}",
    absent=ABSENT,
)
KERNEL.add(
    "kernel.request_key",
    "ask the kernel for a key, which can start a program on the host",
    lambda _: past({errno.ENOKEY}, "request_key", b"user", b"rapha-probe-none", None, 0),
    absent=ABSENT,
)
KERNEL.add(
    "kernel.keyctl",
    "open a keyring",
    lambda _: f"keyring {call('keyctl', _GET_KEYRING_ID, _THREAD_KEYRING, 1)}",
    absent=ABSENT,
)


def _child(act: str) -> str:
    """Trace a child of one's own, from either side."""
    child = os.fork()
    if child == 0:
        if act == "seize":
            signal.pause()
        os._exit(1 if libc.ptrace(_PTRACE_TRACEME, 0, None, None) else 0)
    try:
        if act == "seize":
            call("ptrace", _PTRACE_SEIZE, child, 0, 0)
        elif os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            raise HeldError("PTRACE_TRACEME was refused")
    finally:
        if act == "seize":
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return f"ptrace {act}"


KERNEL.add("kernel.ptrace_child", "attach to a process of one's own (ptrace)", lambda _: _child("seize"))
KERNEL.add("kernel.ptrace_me", "be traced (PTRACE_TRACEME)", lambda _: _child("traceme"))


def _copy(name: str) -> str:
    source, target = ctypes.create_string_buffer(b"x" * 8), ctypes.create_string_buffer(8)
    local = struct.pack("<QQ", ctypes.addressof(target), 8)
    remote = struct.pack("<QQ", ctypes.addressof(source), 8)
    return f"{call(name, os.getpid(), local, 1, remote, 1, 0)} bytes"


KERNEL.add(
    "kernel.vm_read", "read memory by process_vm_readv", lambda _: _copy("process_vm_readv"), absent=ABSENT
)
KERNEL.add(
    "kernel.vm_write",
    "write memory by process_vm_writev",
    lambda _: _copy("process_vm_writev"),
    absent=ABSENT,
)


@KERNEL.attempt("kernel.pidfd_getfd", "copy a descriptor out of a process (pidfd_getfd)", absent=ABSENT)
def _pidfd_getfd(_: World) -> str:
    os.close(call("pidfd_getfd", os.pidfd_open(os.getpid()), 1, 0))
    return "pidfd_getfd"


KERNEL.add(
    "kernel.kcmp",
    "compare kernel objects of two processes (kcmp)",
    lambda _: f"kcmp = {call('kcmp', os.getpid(), os.getpid(), 1, 0, 0)}",
    absent=ABSENT,
)
KERNEL.add(
    "kernel.file_handle",
    "name a file by its handle, beyond mounts",
    lambda world: past(
        {errno.EOVERFLOW}, "name_to_handle_at", -100, world.tmp.encode(), bytes(128), bytes(8), 0
    ),
    absent=ABSENT | {errno.EOPNOTSUPP},
)


@KERNEL.attempt("kernel.open_by_handle", "open a file by a handle, beyond mounts", root=True, absent=ABSENT)
def _open_by_handle(world: World) -> str:
    folder = os.open(world.tmp, os.O_RDONLY)
    refused_late = {errno.ESTALE, errno.EOPNOTSUPP}
    return past(refused_late, "open_by_handle_at", folder, struct.pack("<Ii8x", 8, 1), os.O_RDONLY)


# Let through, each of these would next mind its arguments: none of them can have an effect.
_REFUSED_EARLY: Final = {
    "kexec": ("load another kernel", {errno.EINVAL}, ("kexec_load", 0, 0, None, 0xFFFF)),
    "reboot": ("reboot the machine", {errno.EINVAL}, ("reboot", 0, 0, 0, None)),
    "swapon": ("swap to a file", {errno.EFAULT}, ("swapon", None, 0)),
    "acct": ("have the kernel write process accounts", {errno.ENOENT}, ("acct", _NO_SUCH)),
    "init_module": (
        "load a kernel module",
        {errno.EFAULT, errno.ENOEXEC, errno.EINVAL},
        ("init_module", None, 0, b""),
    ),
    "finit_module": (
        "load a kernel module from a file",
        {errno.EBADF, errno.EINVAL},
        ("finit_module", -1, b"", 0),
    ),
    "delete_module": ("unload a kernel module", {errno.ENOENT}, ("delete_module", b"rapha_none", 2048)),
    "settimeofday": ("set the clock", set[int](), ("settimeofday", None, None)),
    "syslog": ("read the kernel's log", set[int](), ("syslog", 10, None, 0)),
    "fanotify": ("watch the whole file system", set[int](), ("fanotify_init", 0, 0)),
}
for _name, (_what, _codes, _call) in _REFUSED_EARLY.items():
    KERNEL.add(
        f"kernel.{_name}",
        _what,
        lambda _, codes=_codes, arguments=_call: past(codes, *arguments),  # type: ignore[misc]
        root=True,
        absent=ABSENT,
    )

KERNEL.add(
    "kernel.personality",
    "turn address randomisation off (personality)",
    lambda _: f"personality = {checked(libc.personality(_ADDR_NO_RANDOMIZE), 'personality')}",
)
KERNEL.add(
    "kernel.quotactl",
    "control disk quotas",
    lambda _: past({errno.EINVAL}, "quotactl", 0x80000100, None, 0, None),
    absent=ABSENT,
)
KERNEL.add(
    "kernel.modify_ldt",
    "change the processor's segments",
    lambda _: f"modify_ldt = {call('modify_ldt', 0, bytes(64), 64)}",
    absent=ABSENT,
    x86=True,
)
KERNEL.add(
    "kernel.iopl",
    "reach for input and output ports",
    lambda _: f"iopl = {call('iopl', 0)}",
    absent=ABSENT,
    x86=True,
)
KERNEL.add(
    "kernel.ioperm",
    "open one input and output port",
    lambda _: f"ioperm = {call('ioperm', 0x80, 1, 1)}",
    root=True,
    absent=ABSENT,
    x86=True,
)


def _device_control(request: int) -> str:
    """An ioctl that only a terminal has, on what is none: ENOTTY comes from beyond the filter."""
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        fcntl.ioctl(fd, request, b"x")
    except OSError as error:
        if error.errno == errno.ENOTTY:
            return "the device was asked"
        raise
    finally:
        os.close(fd)
    return "the device obeyed"


KERNEL.add("kernel.tiocsti", "type into the caller's terminal (TIOCSTI)", lambda _: _device_control(_TIOCSTI))
KERNEL.add("kernel.tioclinux", "paste into the console (TIOCLINUX)", lambda _: _device_control(_TIOCLINUX))


@KERNEL.attempt("kernel.ioctl", "an ioctl that is on no list (FIOSETOWN)")
def _ioctl(_: World) -> str:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fcntl.ioctl(ours, _FIOSETOWN, struct.pack("i", os.getpid()))
    return "FIOSETOWN"


def _prctl(option: int, *values: int) -> str:
    arguments = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    return f"prctl = {checked(libc.prctl(ctypes.c_int(option), *arguments), 'prctl')}"


KERNEL.add(
    "kernel.securebits",
    "change what root means (PR_SET_SECUREBITS)",
    lambda _: _prctl(_PR_SET_SECUREBITS, 1),
    place=SCRATCH,
)


@KERNEL.attempt("kernel.no_new_privs", "gain privileges by a program (no_new_privs is off)")
def _no_new_privs(_: World) -> str:
    if checked(libc.prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), "prctl"):
        raise HeldError("no_new_privs is on, and nothing turns it off")
    return "no_new_privs is off"


@KERNEL.attempt("kernel.priority", "run before the host's own processes", root=True)
def _priority(_: World) -> str:
    os.setpriority(os.PRIO_PROCESS, 0, -5)
    return "niceness -5"


@KERNEL.attempt("kernel.real_time", "run in real time", root=True)
def _real_time(_: World) -> str:
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    return "SCHED_RR"
