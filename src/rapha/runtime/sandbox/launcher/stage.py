"""A mount namespace of the launcher's own, and in it all that the sandbox will see of the host.

Sources are bound here first, by the launcher's own rights, so that bubblewrap can run as a uid that could
never reach them by path (a source under a 0700 home, say).
"""

from __future__ import annotations

import errno
import os
from typing import Final, NamedTuple

from rapha.runtime.sandbox.launcher import system
from rapha.runtime.sandbox.launcher.order import Order

ROOT: Final = "/tmp"  # noqa: S108  covered by a tmpfs that only this namespace sees; bubblewrap needs it to exist
_QUIET: Final = system.MS_NOSUID | system.MS_NODEV
_INODE_BYTES: Final = 4096
"""One inode for each page of a tmpfs, so that empty files are no way around its size."""
_SPARE_UIDS: Final = 1_879_048_192
"""No distribution and no manager of containers hands out uids from here on (systemd's table of UIDs)."""
_NOBODY: Final = 65534
_UID_MAP: Final = "/proc/self/uid_map"


class StageError(Exception):
    """The host does not let the sandbox be built; the text says what failed."""


class Stage(NamedTuple):
    """Where things lie in the launcher's namespace."""

    sources: list[str]
    bwrap: str
    libraries: str
    out: str
    tmp: str
    shm: str
    empty: str
    uid: int | None
    """What bubblewrap runs as; None where the launcher has no right to change it."""
    walls: dict[str, str]


def build(order: Order) -> Stage:
    """Make the namespace and everything in it.

    Raises:
        StageError: a source is missing, or the kernel refuses a namespace or a mount.
    """
    uid, walls = _enter_namespace()
    try:
        opened = [_open(source) if source else -1 for source, _ in order.mounts]
        programs = [_open(order.bwrap), _open(order.libraries) if order.libraries else -1]
        owners = -1 if uid is None else _owners_as(uid)
        system.mount("none", "/", "", system.MS_REC | system.MS_PRIVATE)
        system.mount("rapha", ROOT, "tmpfs", _QUIET, "mode=0755,size=1m,nr_inodes=8192")
        bwrap, libraries = (_bind(fd, f"{ROOT}/program{n}", owners) for n, fd in enumerate(programs))
        return Stage(
            sources=[_bind(fd, f"{ROOT}/source{n}", owners) for n, fd in enumerate(opened)],
            bwrap=bwrap,
            libraries=libraries if order.libraries else "",
            out=_tmpfs("out", order.out_bytes, uid, system.MS_NOEXEC),
            tmp=_tmpfs("tmp", order.tmp_bytes, uid, 0),
            shm=_tmpfs("shm", order.tmp_bytes, uid, 0),
            empty=_bind(-1, f"{ROOT}/empty"),
            uid=uid,
            walls=walls,
        )
    except OSError as error:
        raise StageError(f"staging: {error.strerror}: {error.filename}") from None


def _enter_namespace() -> tuple[int | None, dict[str, str]]:
    try:
        if os.geteuid() == 0:
            system.unshare(system.CLONE_NEWNS)
            uid = _spare_uid()
            return uid, {"host_uid": f"{uid} (dropped from root)"}
        uid, gid = os.geteuid(), os.getegid()
        system.unshare(system.CLONE_NEWUSER | system.CLONE_NEWNS)
        _write("/proc/self/setgroups", "deny")
        _write(_UID_MAP, f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
    except OSError as error:
        raise StageError(f"namespaces: {error.strerror}") from None
    return None, {"host_uid": f"{uid} (the node's own)"}


def _spare_uid() -> int:
    """A uid that nobody else has, or `nobody` where this user namespace maps few of them.

    One of its own for each sandbox keeps sandboxes from signalling one another after an escape, and lets
    RLIMIT_NPROC count this one alone.
    """
    wanted = _SPARE_UIDS + os.getpid()
    with open(_UID_MAP, encoding="ascii") as table:  # noqa: PTH123  pathlib takes 10 ms to import
        ranges = [tuple(map(int, line.split())) for line in table]
    for uid in (wanted, _NOBODY):
        if any(first <= uid < first + count for first, _, count in ranges):
            return uid
    raise StageError("this user namespace maps no unprivileged uid: map 65534, or do not run as root")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _open(source: str) -> int:
    return os.open(source, os.O_PATH | os.O_CLOEXEC)


def _bind(fd: int, target: str, owners: int = -1) -> str:
    """Show what `fd` names read-only at `target`, without mounts below it; -1 is an empty directory."""
    if fd < 0:
        os.mkdir(target, 0o555)  # noqa: PTH102
        return target
    if os.path.isdir(f"/proc/self/fd/{fd}"):  # noqa: PTH112
        os.mkdir(target, 0o555)  # noqa: PTH102
    else:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444))
    name = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
    tree = system.clone_mount(fd, name)
    try:
        system.restrict_mount(tree, name, owners)
    except OSError as error:
        if owners < 0 or error.errno != errno.EINVAL:
            raise
        system.restrict_mount(tree, name)  # no id-mapping here: the job sees what anyone may read
    system.attach_mount(tree, target)
    os.close(tree)
    os.close(fd)
    return target


def _owners_as(uid: int) -> int:
    """A user namespace that shows root's files as `uid`'s, so that a 0700 folder of the node can be mounted.

    The mapping lives in the read-only mounts alone: outside them `uid` owns nothing.
    """
    ready, hold = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            system.unshare(system.CLONE_NEWUSER)
            os.write(ready[1], b"+")
            os.close(hold[1])
            os.read(hold[0], 1)
        finally:
            os._exit(0)
    try:
        os.close(ready[1])
        if os.read(ready[0], 1) != b"+":
            raise StageError("namespaces: no user namespace could be made")
        _write(f"/proc/{child}/uid_map", f"0 {uid} 1")
        _write(f"/proc/{child}/gid_map", f"0 {uid} 1")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for fd in (ready[0], *hold):
            os.close(fd)
        os.waitpid(child, 0)


def _tmpfs(name: str, size: int, uid: int | None, flags: int) -> str:
    target = f"{ROOT}/{name}"
    os.mkdir(target, 0o700)  # noqa: PTH102
    owner, group = (os.geteuid(), os.getegid()) if uid is None else (uid, uid)
    inodes = max(64, size // _INODE_BYTES)
    options = f"mode=0700,uid={owner},gid={group},size={size},nr_inodes={inodes}"
    system.mount("rapha", target, "tmpfs", _QUIET | flags, options)
    return target
