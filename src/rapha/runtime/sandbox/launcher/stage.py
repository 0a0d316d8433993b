"""A mount namespace of the launcher's own, and in it all that the sandbox will see of the host.

Sources are bound here first, by the launcher's own rights, so that bubblewrap can run as a uid that could
never reach them by path (a source under a 0700 home, say).
"""

from __future__ import annotations

import errno
import os
from typing import Final, NamedTuple

from rapha.runtime.sandbox.launcher import interpreter, landlock, masks, oci, system
from rapha.runtime.sandbox.launcher.order import Order
from rapha.runtime.sandbox.launcher.rootfs import Root

ROOT: Final = "/tmp"  # noqa: S108  covered by a tmpfs that only this namespace sees; bubblewrap needs it to exist
_QUIET: Final = system.MS_NOSUID | system.MS_NODEV
_INODE_BYTES: Final = 4096
"""One inode for each page of a tmpfs, so that empty files are no way around its size."""
_SPARE_UIDS: Final = 1_879_048_192
"""No distribution and no manager of containers hands out uids from here on (systemd's table of UIDs)."""
_JOB_UIDS: Final = 1 << 22
"""How far above its sandbox's uid a job's own lies where it has one; no pid is larger."""
_NOBODY: Final = 65534
INSIDE_ID: Final = 65534
_UID_MAP: Final = "/proc/self/uid_map"


class StageError(Exception):
    """The host does not let the sandbox be built; the text says what failed."""


class Stage(NamedTuple):
    """Where things lie in the launcher's namespace."""

    root: str
    """What becomes `/`, with every source at its place."""
    bwrap: str
    libraries: str
    runsc: str
    bundle: str
    """The directory of gVisor's OCI spec; empty for bubblewrap's own walls, as `runsc` is."""
    out: str
    tmp: str
    shm: str
    empty: str
    facades: dict[str, str]
    """By name in /proc, what stands there instead of the host's."""
    uid: int | None
    """What bubblewrap runs as; None where the launcher has no right to change it."""
    userns: int
    """A user namespace for bubblewrap to start in, -1 to make its own."""
    landlock: int
    """The kernel's ABI; 0 where there is none."""
    walls: dict[str, str]


def build(order: Order) -> Stage:
    """Make the namespace and everything in it.

    Raises:
        StageError: a source is missing, or the kernel refuses a namespace or a mount.
    """
    uid, walls = _enter_namespace()
    try:
        runner = [] if order.runsc else interpreter.parts()
        loader = b"" if order.runsc else interpreter.loader()
        given, ours = (
            [(_open(source) if source else -1, dest) for source, dest in parts]
            for parts in (order.mounts, runner)
        )
        image = _open(order.root) if order.root else -1
        programs = [_open(path) if path else -1 for path in (order.bwrap, order.libraries, *order.runsc[:1])]
        job = _identity(order, uid)
        owners = -1 if uid is None else _userns(*[f"0 {job.files} 1"] * 2)
        system.mount("none", "/", "", system.MS_REC | system.MS_PRIVATE)
        system.mount("rapha", ROOT, "tmpfs", _QUIET, "mode=0755,size=4m,nr_inodes=16384")
        places = [_bind(fd, f"{ROOT}/program{n}", owners) for n, fd in enumerate(programs)]
        if loader:
            ours.append((_open(_file("loader", loader)), interpreter.LOADER))
        return Stage(
            root=_root(image, given, ours, order.cwd, owners),
            bwrap=places[0],
            libraries=places[1] if order.libraries else "",
            runsc=places[2] if order.runsc else "",
            bundle=_bundle(order, job.inside) if order.runsc else "",
            out=_tmpfs("out", order.out_bytes, job.files, system.MS_NOEXEC),
            tmp=_tmpfs("tmp", order.tmp_bytes, job.files, 0),
            shm=_tmpfs("shm", order.tmp_bytes, job.files, 0),
            empty=_bind(-1, f"{ROOT}/empty"),
            facades={name: _file(name, text) for name, text in masks.facades(order.memory_bytes).items()},
            uid=uid,
            userns=job.userns,
            landlock=landlock.abi(),
            walls=walls | ({"job_uid": str(job.inside)} if order.runsc else {}),
        )
    except OSError as error:
        raise StageError(f"staging: {error.strerror}: {error.filename}") from None
    except interpreter.LayoutError as error:
        raise StageError(str(error)) from None


class _Identity(NamedTuple):
    """`files`: who owns what the job may write, here; `inside`: whom the job sees itself as."""

    files: int
    inside: int
    userns: int = -1


def _identity(order: Order, uid: int | None) -> _Identity:
    """With gVisor, the sandbox's uid is root in a user namespace that maps one more uid, the job's.

    Where only one can be mapped (a node that is not root), files that are its own are root's inside, and the
    job is root without a capability: nothing it could do with the name.
    """
    outer = os.geteuid() if uid is None else uid
    if not order.runsc:
        return _Identity(outer, INSIDE_ID)
    job = outer + _JOB_UIDS
    if uid is None or not _mapped(job):
        return _Identity(outer, 0, _userns(f"0 {outer} 1", f"0 {_group(outer)} 1"))
    return _Identity(job, INSIDE_ID, _userns(*[f"0 {outer} 1\n{INSIDE_ID} {job} 1"] * 2))


def _group(uid: int) -> int:
    """The gid that goes with `uid`: the same number, but for the node's own."""
    return os.getegid() if uid == os.geteuid() else uid


_Opened = list[tuple[int, str]]
"""A descriptor, -1 for an empty directory, and where it goes."""


def _root(image: int, given: _Opened, ours: _Opened, cwd: str, owners: int) -> str:
    root = Root(_bind(image, f"{ROOT}/root", owners))
    try:
        root.furnish(image >= 0)
        _fill(root, given, owners)
        if ours:
            # Python and its loader look beside themselves (pyvenv.cfg, python311.zip, glibc-hwcaps): what the
            # image has there would run before the wall stands.
            root.empty(interpreter.HOME[1:])
        _fill(root, ours, owners)
        root.need_folder(cwd)  # here, since gVisor says nothing of what it lacks
    finally:
        root.close()
    return root.path


def _fill(root: Root, opened: _Opened, owners: int) -> None:
    for fd, dest in opened:
        folder = fd < 0 or os.path.isdir(f"/proc/self/fd/{fd}")  # noqa: PTH112
        _attach(fd, root.place(dest[1:], folder), owners)


def _file(name: str, content: bytes) -> str:
    target = f"{ROOT}/{name}"
    with open(target, "xb") as file:  # noqa: PTH123
        os.fchmod(file.fileno(), 0o555)
        file.write(content)
    return target


def _bundle(order: Order, inside: int) -> str:
    target = f"{ROOT}/bundle"
    os.mkdir(target, 0o755)  # noqa: PTH102
    with open(f"{target}/config.json", "xb") as file:  # noqa: PTH123
        file.write(oci.config(order, inside))
    return target


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
    for uid in (wanted, _NOBODY):
        if _mapped(uid):
            return uid
    raise StageError("this user namespace maps no unprivileged uid: map 65534, or do not run as root")


def _mapped(uid: int) -> bool:
    with open(_UID_MAP, encoding="ascii") as table:  # noqa: PTH123  pathlib takes 10 ms to import
        ranges = [tuple(map(int, line.split())) for line in table]
    return any(first <= uid < first + count for first, _, count in ranges)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _open(source: str) -> int:
    return os.open(source, os.O_PATH | os.O_CLOEXEC)


def _bind(fd: int, target: str, owners: int = -1) -> str:
    """`_attach` at `target`, which is made."""
    if fd < 0 or os.path.isdir(f"/proc/self/fd/{fd}"):  # noqa: PTH112
        os.mkdir(target, 0o755)  # noqa: PTH102
    else:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444))
    if fd >= 0:
        _attach(fd, target, owners)
    return target


def _attach(fd: int, target: str, owners: int) -> None:
    """Show what `fd` names read-only at `target`, without mounts below it; -1 is an empty directory."""
    if fd < 0:
        system.mount("rapha", target, "tmpfs", _QUIET, "mode=0555,size=4k,nr_inodes=2")
        return
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


def _userns(uids: str, gids: str) -> int:
    """A user namespace with these tables (user_namespaces(7)).

    Mounts take one, to show root's files as the job's, so that a 0700 folder of the node can be mounted. The
    mapping lives in the read-only mounts alone: outside them the job's uid owns nothing.
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
        _write(f"/proc/{child}/uid_map", uids)
        _write(f"/proc/{child}/gid_map", gids)
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for fd in (ready[0], *hold):
            os.close(fd)
        os.waitpid(child, 0)


def _tmpfs(name: str, size: int, uid: int, flags: int) -> str:
    target = f"{ROOT}/{name}"
    os.mkdir(target, 0o700)  # noqa: PTH102
    inodes = max(64, size // _INODE_BYTES)
    options = f"mode=0700,uid={uid},gid={_group(uid)},size={size},nr_inodes={inodes}"
    system.mount("rapha", target, "tmpfs", _QUIET | flags, options)
    return target
