"""The few system calls that Python 3.11 does not wrap."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000

MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38

# Calls from 424 on have one number on every architecture.
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_OPENAT2: Final = 437
_SYS_MOUNT_SETATTR: Final = 442
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_READ_ONLY: Final = 0x1 | 0x2 | 0x4  # MOUNT_ATTR_RDONLY, NOSUID, NODEV
_IDMAP: Final = 0x00100000
_RESOLVE: Final = 0x01 | 0x02 | 0x04 | 0x08  # NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH
_NO_XDEV, _NO_SYMLINKS = 0x01, 0x04
_IN_ROOT: Final = 0x10 | 0x02  # and NO_MAGICLINKS

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def unshare(flags: int) -> None:
    """unshare(2); OSError if the kernel refuses."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, kind: int) -> None:
    """setns(2), which Python wraps from 3.12 on; OSError if the kernel refuses."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), "setns")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2); OSError names the target."""
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags))
    _check(_libc.mount(*arguments, options.encode()), target)


class _MountAttributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns"))


def call(number: int, what: str, *arguments: Any) -> int:
    return _check(int(_libc.syscall(ctypes.c_long(number), *arguments)), what)


def clone_mount(fd: int, name: str) -> int:
    """A detached copy of what `fd` names, without the mounts below it; `name` is for the error."""
    flags = ctypes.c_uint(_OPEN_TREE_CLONE | _AT_EMPTY_PATH | os.O_CLOEXEC)
    return call(_SYS_OPEN_TREE, name, ctypes.c_int(fd), b"", flags)


def restrict_mount(tree: int, name: str, userns: int = -1) -> None:
    """Make a detached mount read-only, and show its files' owners through `userns` unless that is -1.

    Raises:
        OSError: EINVAL where the file system has no id-mapped mounts; ENOSYS before Linux 5.12.
    """
    idmap = userns >= 0
    attributes = _MountAttributes(_READ_ONLY | (_IDMAP if idmap else 0), 0, 0, userns if idmap else 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    at = (ctypes.c_int(tree), b"", ctypes.c_uint(_AT_EMPTY_PATH))
    call(_SYS_MOUNT_SETATTR, name, *at, ctypes.byref(attributes), size)


def attach_mount(tree: int, target: str) -> None:
    """Put a detached mount on `target`, which exists."""
    flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
    call(_SYS_MOVE_MOUNT, target, ctypes.c_int(tree), b"", ctypes.c_int(-100), os.fsencode(target), flags)


def prctl(option: int, value: int) -> None:
    """prctl(2) for the options that take one number."""
    arguments = [ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3]
    _check(_libc.prctl(ctypes.c_int(option), *arguments), f"prctl {option}")


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(directory: int, name: str, flags: int) -> int:
    """openat2(2) that follows no link and leaves neither `directory` nor its file system.

    Raises:
        OSError: ELOOP for a symbolic link, EXDEV for a way out, ENOSYS before Linux 5.6.
    """
    return _openat2(directory, name, flags, _RESOLVE)


def open_in(directory: int, name: str, flags: int) -> int:
    """As `open_beneath`, and into what is mounted below `directory` too."""
    return _openat2(directory, name, flags, _RESOLVE & ~_NO_XDEV)


def open_under(root: int, name: str, flags: int) -> int:
    """openat2(2) with `root` as `/`: links are followed as a process inside would."""
    return _openat2(root, name, flags, _IN_ROOT)


def _openat2(directory: int, name: str, flags: int, resolve: int) -> int:
    follow = os.O_NOFOLLOW if resolve & _NO_SYMLINKS else 0
    how = _OpenHow(flags | os.O_CLOEXEC | follow, 0, resolve)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    return call(_SYS_OPENAT2, name, ctypes.c_int(directory), os.fsencode(name), ctypes.byref(how), size)


def default_signal(number: int) -> None:
    """Give a signal its default action, without the `signal` module and its milliseconds."""
    _libc.signal(ctypes.c_int(number), ctypes.c_void_p(0))


def execvp(argv: list[bytes]) -> None:
    """execvp(3): the command by `PATH` of `os.environb`; returns only by OSError."""
    vector = (ctypes.c_char_p * (len(argv) + 1))(*argv, None)
    _check(_libc.execvp(ctypes.c_char_p(argv[0]), vector), "execvp")


class _Loaded(ctypes.Structure):
    """The head of struct dl_phdr_info."""

    _fields_ = (("address", ctypes.c_size_t), ("name", ctypes.c_char_p))


def loaded_libraries() -> list[str]:
    """Paths of the shared libraries of this process, as the loader opened them, the loader's own included."""
    found: list[str] = []

    def visit(loaded: Any, size: int, _data: int | None) -> int:
        name = loaded.contents.name
        if name.startswith(b"/"):
            found.append(os.fsdecode(name))
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Loaded), ctypes.c_size_t, ctypes.c_void_p)
    _libc.dl_iterate_phdr(callback(visit), None)
    return found
