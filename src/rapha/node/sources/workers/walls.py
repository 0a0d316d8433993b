"""The walls of a worker: it parses hostile files with decoders written in C, and may be taken over by one.

They go up in three steps. 1. `begin`, in the process that workers are forked from, before it imports a
decoder. 2. `enclose`, in that process, once everything is imported. 3. `shut`, in each worker, before it is
given its first byte. Every step raises where a wall can't be had.

Left out: a process namespace (its first child would have to be an init), since no system call that names
another process is left; a mount namespace, since Landlock takes all paths but those read; one domain for each
worker, since none can signal, trace or name its siblings.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from rapha.runtime.broker.memory import active_swaps, lock_all, may_lock
from rapha.runtime.sandbox.launcher import landlock, system

DESCRIPTORS: Final = 4096 + 64
_FILTERS: Final = Path(__file__).parent
_SOURCES: Final = Path(__file__).parents[4]
_CLONE_NEWIPC, _CLONE_NEWNET = 0x08000000, 0x40000000
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 4, 22, 2
_CAPABILITY_VERSION_3: Final = 0x20080522
_READ: Final = landlock.READ_FILE | landlock.READ_DIR
_OUTSIDE: Final = "/proc/self/status"
"""Readable by every process, and below no path that a worker may read."""


class WallError(Exception):
    """A wall can't be had on this kernel, or doesn't hold."""


@contextlib.contextmanager
def required() -> Iterator[None]:
    """What the kernel refuses in here is a wall that can't be had: `WallError`."""
    try:
        yield
    except OSError as error:
        what = f": {error.filename}" if error.filename else ""
        raise WallError(f"{error.strerror or error}{what}") from None


def begin(parent: int) -> None:
    """Die with `parent`, leave no core, be closed to debuggers, and be the first to go when memory is short.

    Raises:
        WallError, OSError.
    """
    with contextlib.suppress(OSError):  # where /proc is read-only; it is a wish
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)
    with contextlib.suppress(ValueError, OSError):  # needed only where the host swaps; `shut` then finds out
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.umask(0o077)
    _die_with(parent)


def enclose(parent: int, folder: int | None) -> None:
    """Keep reading: of `folder` (a descriptor), and of Python with its libraries. Nothing else, no network.

    Precondition: everything is imported; no thread was started.

    Raises:
        WallError, OSError.
    """
    if len(os.listdir("/proc/self/task")) != 1:  # noqa: PTH208  names only
        raise WallError("a thread runs already; Landlock and fork(2) hold for one only")
    readable = [*_python(), *([] if folder is None else [f"/proc/self/fd/{folder}"])]
    _leave_networks()
    _drop_capabilities()
    _die_with(parent)  # forgotten by the kernel when credentials change
    version = landlock.abi()
    if version == 0:
        raise WallError("this kernel has no Landlock")
    landlock.restrict(version, landlock.rights(version), [(path, _READ) for path in readable])
    _proven(lambda: os.close(os.open(_OUTSIDE, os.O_RDONLY | os.O_CLOEXEC)), errno.EACCES, "landlock")


def shut(parent: int, address_space: int, *, swapping: bool, program: bytes) -> None:
    """The rest, in the worker itself. After this no descriptor but a file is opened and nothing is started.

    Args:
        parent: the process it was forked from, which it dies with.
        address_space: bytes, all told.
        swapping: keep this process out of the host's swap.
        program: the filter of system calls.

    Raises:
        WallError, OSError.
    """
    _die_with(parent)
    if swapping:
        lock_all()
    _lower(resource.RLIMIT_AS, address_space)
    _lower(resource.RLIMIT_NPROC, 0)
    _lower(resource.RLIMIT_NOFILE, DESCRIPTORS)
    _filter(program)
    _proven(lambda: socket.socket(socket.AF_UNIX).close(), errno.EPERM, "seccomp")


def program() -> bytes:
    """The committed filter for this machine.

    Raises:
        WallError: there is none.
    """
    file = _FILTERS / f"{platform.machine()}.bpf"
    if not file.is_file():
        raise WallError(f"no seccomp filter for {platform.machine()}; x86_64 and aarch64 have one")
    return file.read_bytes()


def swapping() -> bool:
    """Whether a worker is to be kept out of this host's swap.

    Not where nobody may lock memory: production has refused such a host by then, and a demo was warned of it
    (`rapha.node.datasets.memory.check_swap`). Asked before capabilities are dropped.
    """
    return bool(active_swaps()) and may_lock()


def address_space() -> int:
    """Bytes of address space that this process has mapped."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()


def _die_with(parent: int) -> None:
    system.prctl(system.PR_SET_PDEATHSIG, signal.SIGKILL)
    system.prctl(_PR_SET_DUMPABLE, 0)
    if os.getppid() != parent:
        raise WallError("the parent is gone")


def _python() -> Iterable[str]:
    """Python, the packages, and the folders of shared libraries, for what is imported late."""
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, str(_SOURCES)}
    libraries = {os.path.realpath(path) for path in system.loaded_libraries()}
    wanted = prefixes | {str(Path(path).parent) for path in libraries} | {"/etc/ld.so.cache"}
    return sorted(path for path in wanted if Path(path).exists())


def _leave_networks() -> None:
    """An empty network of its own, where the host lets us; the filter of calls is what is relied on."""
    for flags in (system.CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC, _CLONE_NEWNET | _CLONE_NEWIPC):
        with contextlib.suppress(OSError):
            system.unshare(flags)
            return


class _CapabilityHead(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def _drop_capabilities() -> None:
    """capset(2): none effective, permitted or inheritable. no_new_privs keeps it so."""
    head, nothing = _CapabilityHead(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(ctypes.byref(head), ctypes.byref(nothing)):
        raise OSError(ctypes.get_errno(), "capset")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _filter(program: bytes) -> None:
    """prctl(2) PR_SET_SECCOMP; needs no_new_privs, which `enclose` set."""
    wrapped = _Program(len(program) // 8, program)
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(wrapped), ctypes.c_ulong(0))
    if libc.prctl(_PR_SET_SECCOMP, *arguments, ctypes.c_ulong(0)):
        raise OSError(ctypes.get_errno(), "seccomp")


def _proven(attempt: Callable[[], None], number: int, what: str) -> None:
    """The attempt fails, by this wall."""
    try:
        attempt()
    except OSError as error:
        if error.errno == number:
            return
        raise WallError(f"{what}: {error.strerror}") from None
    raise WallError(f"{what} does not hold")


def _lower(kind: int, value: int) -> None:
    """Set a limit for good, unless a lower one is in force already."""
    _, hard = resource.getrlimit(kind)
    most = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (most, most))
