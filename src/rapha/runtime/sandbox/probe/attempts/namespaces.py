"""Into other namespaces and mounts: the ways in which a job could make itself a world with more in it."""

from __future__ import annotations

import errno
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
    Try,
    World,
    call,
    past,
)

NAMESPACES: Final = Catalogue()
_KINDS: Final = {
    "user": 0x10000000,
    "net": 0x40000000,
    "mnt": 0x00020000,
    "pid": 0x20000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
    "time": 0x00000080,
}
_CLONE_FORBIDS: Final = ("time",)
"""Its bit is part of the exit signal in clone(2)."""
_AT_FDCWD, _AT_RECURSIVE, _OPEN_TREE_CLONE = -100, 0x8000, 1
_MS_REMOUNT_BIND, _MS_BIND, _MNT_DETACH, _MNT_EXPIRE = 0x20 | 0x1000, 0x1000, 2, 4


def _unshare(kind: str) -> Try:
    return lambda _: f"unshare = {call('unshare', _KINDS[kind])}"


def _clone(kind: str) -> Try:
    def attempt(_: World) -> str:
        child = call("clone", _KINDS[kind] | signal.SIGCHLD, 0, 0, 0, 0)
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        return f"clone with a new {kind} namespace"

    return attempt


def _shares(kind: str) -> Try:
    def attempt(world: World) -> str:
        own = os.readlink(f"/proc/self/ns/{kind}")  # noqa: PTH115
        if own != world.namespaces[kind]:
            raise HeldError(f"in {own}")
        return f"in the host's {own}"

    return attempt


def _join(kind: str) -> Try:
    def attempt(world: World) -> str:
        fd = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            call("setns", fd, _KINDS[kind])
        finally:
            os.close(fd)
        return f"setns({kind})"

    return attempt


for _kind in _KINDS:
    NAMESPACES.add(
        f"namespaces.unshare_{_kind}",
        f"make a {_kind} namespace (unshare)",
        _unshare(_kind),
        place=SCRATCH,
        absent=frozenset({errno.EINVAL}),
    )
    if _kind not in _CLONE_FORBIDS:
        NAMESPACES.add(
            f"namespaces.clone_{_kind}", f"make a {_kind} namespace (clone)", _clone(_kind), place=SCRATCH
        )
for _kind in ("user", "net", "mnt", "pid", "ipc", "uts", "cgroup"):
    NAMESPACES.add(f"namespaces.shared_{_kind}", f"be in the host's {_kind} namespace", _shares(_kind))
for _kind in ("net", "ipc", "uts", "cgroup"):
    NAMESPACES.add(
        f"namespaces.setns_{_kind}", f"join a {_kind} namespace (setns)", _join(_kind), place=SCRATCH
    )
NAMESPACES.add(
    "namespaces.clone3",
    "make a process by clone3, whose flags no filter can read",
    lambda _: past({errno.EINVAL}, "clone3", None, 0),
    absent=ABSENT,
)


@NAMESPACES.attempt("namespaces.mount", "mount a file system", place=SCRATCH)
def _mount(world: World) -> str:
    call("mount", b"rapha", world.tmp.encode(), b"tmpfs", 0, None)
    call("umount2", world.tmp.encode(), _MNT_DETACH)
    return "mounted a tmpfs"


@NAMESPACES.attempt("namespaces.mount_proc", "mount a process table without covers", place=SCRATCH)
def _mount_proc(world: World) -> str:
    call("mount", b"proc", world.tmp.encode(), b"proc", 0, None)
    call("umount2", world.tmp.encode(), _MNT_DETACH)
    return "mounted proc"


@NAMESPACES.attempt("namespaces.mount_bind", "show a folder somewhere else (bind mount)", place=SCRATCH)
def _mount_bind(world: World) -> str:
    call("mount", b"/proc", world.tmp.encode(), None, _MS_BIND, None)
    call("umount2", world.tmp.encode(), _MNT_DETACH)
    return "bound /proc"


@NAMESPACES.attempt("namespaces.mount_cgroup", "mount the cgroup tree and its release_agent", place=SCRATCH)
def _mount_cgroup(world: World) -> str:
    call("mount", b"cgroup", world.tmp.encode(), b"cgroup2", 0, None)
    call("umount2", world.tmp.encode(), _MNT_DETACH)
    return "mounted cgroup2"


NAMESPACES.add(
    "namespaces.remount",
    "make what is read-only writable (remount)",
    lambda _: f"mount = {call('mount', None, b'/', None, _MS_REMOUNT_BIND, None)}",
    place=SCRATCH,
    root=True,
)
NAMESPACES.add(
    "namespaces.umount",
    "take a cover off (umount)",
    lambda _: past({errno.EAGAIN, errno.EBUSY, errno.EINVAL}, "umount2", b"/proc", _MNT_EXPIRE),
    place=SCRATCH,
)
NAMESPACES.add(
    "namespaces.pivot_root",
    "change the root (pivot_root)",
    lambda _: past({errno.EBUSY, errno.EINVAL}, "pivot_root", b"/", b"/"),
    place=SCRATCH,
)


@NAMESPACES.attempt("namespaces.chroot", "change the root (chroot)", place=SCRATCH)
def _chroot(world: World) -> str:
    os.chroot(world.tmp)
    return f"the root is {world.tmp}"


@NAMESPACES.attempt("namespaces.open_tree", "take a detached copy of the mounts (open_tree)", place=SCRATCH)
def _open_tree(_: World) -> str:
    os.close(call("open_tree", _AT_FDCWD, b"/", _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC))
    return "open_tree(OPEN_TREE_CLONE)"


@NAMESPACES.attempt("namespaces.fsopen", "open a file system to mount it (fsopen)", place=SCRATCH)
def _fsopen(_: World) -> str:
    os.close(call("fsopen", b"tmpfs", 1))
    return "fsopen(tmpfs)"


NAMESPACES.add(
    "namespaces.move_mount",
    "attach a mount (move_mount)",
    lambda _: past({errno.EBADF, errno.EINVAL, errno.ENOENT}, "move_mount", -1, b"", -1, b"", 0),
    place=SCRATCH,
)
NAMESPACES.add(
    "namespaces.mount_setattr",
    "change a mount's attributes (mount_setattr)",
    lambda _: (
        f"mount_setattr = {call('mount_setattr', _AT_FDCWD, b'/', 0, struct.pack('<4Q', 2, 0, 0, 0), 32)}"
    ),
    place=SCRATCH,
)


@NAMESPACES.attempt("namespaces.hostname", "change the host's name", place=SCRATCH)
def _hostname(_: World) -> str:
    socket.sethostname("rapha-probe")
    return f"the name is {socket.gethostname()}"


NAMESPACES.add(
    "namespaces.domainname",
    "change the host's domain name",
    lambda _: f"setdomainname = {call('setdomainname', b'rapha', 5)}",
    place=SCRATCH,
)


@NAMESPACES.attempt("namespaces.escape_chroot", "climb out of the root by an open folder", place=SCRATCH)
def _escape_chroot(world: World) -> str:
    top = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.chroot(world.tmp)
    os.fchdir(top)
    if not os.listdir("."):  # noqa: PTH208
        raise HeldError("nothing above the root")
    return "out of the root by fchdir"
