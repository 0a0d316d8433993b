"""What of the host's files can be read, written or made."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from typing import Final

from rapha.runtime.sandbox.probe.attempts.kit import (
    SCRATCH,
    Catalogue,
    HeldError,
    Try,
    World,
    proof,
    read,
    touch,
)

FILES: Final = Catalogue()
_KNOWN: Final = {
    # id: (path, what); held unless the very bytes of the host are read
    "passwd": ("/etc/passwd", "read the host's users"),
    "hosts": ("/etc/hosts", "read the host's network names"),
    "machine_id": ("/etc/machine-id", "read the host's identity"),
    "cmdline": ("/proc/cmdline", "read the kernel's command line"),
    "partitions": ("/proc/partitions", "read the host's disks and partitions"),
    "modules": ("/proc/modules", "read the kernel's modules"),
    "devices": ("/proc/iomem", "read the machine's memory map"),
    "swaps": ("/proc/swaps", "read the host's swap files"),
}
_ROOT_KNOWN: Final = {"shadow": ("/etc/shadow", "read the host's password hashes")}
KNOWN_PATHS: Final = tuple(path for path, _ in (_KNOWN | _ROOT_KNOWN).values())
"""Files whose digests `World.known` holds."""
_KERNEL_FILES: Final = {
    # id: (path, what); anything at all that is read is too much
    "kallsyms": ("/proc/kallsyms", "read the kernel's addresses", False),
    "keys": ("/proc/key-users", "read who has keys in the kernel", False),
    "kcore": ("/proc/kcore", "read the kernel's memory", True),
    "kpage": ("/proc/kpagecount", "read who shares the machine's pages", True),
    "timers": ("/proc/timer_list", "read every process's timers", True),
    "slab": ("/proc/slabinfo", "read the kernel's allocations", True),
    "vmalloc": ("/proc/vmallocinfo", "read the kernel's address ranges", True),
    "dmesg": ("/dev/kmsg", "read the kernel's log", True),
}
_WRITES: Final = {
    # id: (path, what); opened, never written
    "core_pattern": ("/proc/sys/kernel/core_pattern", "have the kernel start a program on a crash"),
    "modprobe": ("/proc/sys/kernel/modprobe", "have the kernel start a program for a module"),
    "sysctl": ("/proc/sys/vm/overcommit_memory", "change the kernel's settings"),
    "sysrq": ("/proc/sysrq-trigger", "crash the machine by sysrq"),
    "uevent": ("/sys/kernel/uevent_helper", "have the kernel start a program for a device"),
}
FOLDERS: Final = ("/sys/kernel", "/var")
_NO_ENTRY: Final = frozenset({errno.ENOENT})


def _same(path: str) -> Try:
    def attempt(world: World) -> str:
        data = read(path)
        if hashlib.sha256(data).hexdigest() != world.known.get(path):
            raise HeldError(f"{path} is not the host's")
        return f"read {path}"

    return attempt


def _any(path: str) -> Try:
    def attempt(_: World) -> str:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not os.read(fd, 8192):
                raise HeldError(f"{path} is empty")
        finally:
            os.close(fd)
        return f"read {path}"

    return attempt


def _lists(which: str) -> Try:
    def attempt(world: World) -> str:
        path = getattr(world, which, which)
        seen = set(os.listdir(path)) & set(world.entries.get(path, ()))  # noqa: PTH208
        if not seen:
            raise HeldError(f"{path} is not the host's")
        return f"saw {min(seen)} in {path}"

    return attempt


for _id, (_path, _what) in _KNOWN.items():
    FILES.add(f"files.{_id}", _what, _same(_path), absent=_NO_ENTRY)
for _id, (_path, _what) in _ROOT_KNOWN.items():
    FILES.add(f"files.{_id}", _what, _same(_path), root=True, absent=_NO_ENTRY)
for _id, (_path, _what, _root) in _KERNEL_FILES.items():
    FILES.add(f"files.{_id}", _what, _any(_path), root=_root, absent=_NO_ENTRY)
for _id, (_path, _what) in _WRITES.items():
    FILES.add(f"files.{_id}", _what, lambda _, path=_path: touch(path), root=True, absent=_NO_ENTRY)  # type: ignore[misc]
for _id, _where, _what in (
    ("home", "home", "list the caller's home"),
    ("sources", "sources", "list Rapha's own sources"),
    ("environment", "prefix", "list the node's Python environment"),
    ("folder", "folder", "list a folder that all of the host may read"),
    ("sys", FOLDERS[0], "list /sys"),
    ("var", FOLDERS[1], "list /var"),
):
    FILES.add(f"files.{_id}", _what, _lists(_where))

FILES.add(
    "files.secret", "read a file of the host by its path", lambda world: proof(read(world.secret), world)
)
FILES.add(
    "files.up",
    "read it through ..",
    lambda world: proof(read(f"{'../' * 20}{world.secret}"), world),
)
FILES.add(
    "files.own_root",
    "read it through /proc/self/root",
    lambda world: proof(read(f"/proc/self/root{world.secret}"), world),
)
FILES.add(
    "files.shared_memory",
    "read a file of the host's /dev/shm",
    lambda world: proof(read(world.shared), world),
    absent=_NO_ENTRY,
)


@FILES.attempt("files.any_root", "read it through the root of any process there is")
def _any_root(world: World) -> str:
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                return proof(read(f"/proc/{entry}/root{world.secret}"), world)
            except OSError:
                continue
    raise HeldError("through none of them")


@FILES.attempt("files.link", "read it through a symbolic link of one's own")
def _link(world: World) -> str:
    name = f"{world.tmp}/link-{os.getpid()}"
    os.symlink(world.secret, name)  # noqa: PTH211
    try:
        return proof(read(name), world)
    finally:
        os.unlink(name)  # noqa: PTH108


@FILES.attempt("files.hard_link", "give it a second name (hard link)")
def _hard_link(world: World) -> str:
    os.link(world.secret, f"{world.folder}/second-{world.place}")
    return "linked"


@FILES.attempt("files.write", "write into a folder that all of the host may write to")
def _write(world: World) -> str:
    with open(f"{world.folder}/written-{world.place}", "w", encoding="ascii") as file:  # noqa: PTH123
        file.write("x")
    return "wrote a file"


@FILES.attempt("files.fifo", "write to a FIFO of the host")
def _fifo(world: World) -> str:
    os.close(os.open(f"{world.folder}/fifo", os.O_RDWR | os.O_NONBLOCK))
    return "opened it"


@FILES.attempt("files.root", "write below /", root=True)
def _root_folder(_: World) -> str:
    name = f"/rapha-probe-{os.getpid()}"
    os.mkdir(name)  # noqa: PTH102
    os.rmdir(name)  # noqa: PTH106
    return f"made {name}"


FILES.add("files.python", "change the Python library", lambda _: touch(os.__file__), root=True)
FILES.add("files.given", "change a file that was given", lambda _: touch(__file__), root=True)


@FILES.attempt("files.library", "overwrite the C library that runs", root=True)
def _library(_: World) -> str:
    with open("/proc/self/maps", encoding="utf-8") as maps:  # noqa: PTH123
        loaded = [line.split()[-1] for line in maps if "/libc.so" in line or "/libc-" in line]
    return touch(loaded[0])


@FILES.attempt("files.cgroup", "write to the cgroup tree", root=True, absent=_NO_ENTRY)
def _cgroup(_: World) -> str:
    for folder, _folders, names in os.walk("/sys/fs/cgroup"):
        for name in ("release_agent", "cgroup.procs"):
            if name in names:
                return touch(f"{folder}/{name}")
    raise OSError(errno.ENOENT, "no cgroup is to be seen")


@FILES.attempt("files.mounts", "see where the host's file systems are mounted")
def _mounts(world: World) -> str:
    if hashlib.sha256(mount_points()).hexdigest() != world.known["mounts"]:
        raise HeldError("other mounts than the host's")
    return "sees the host's mounts"


def mount_points() -> bytes:
    """Mount points alone: the rest of a line changes by itself."""
    with open("/proc/self/mountinfo", "rb") as table:  # noqa: PTH123
        return b"\n".join(sorted(line.split()[4] for line in table))


@FILES.attempt("files.block_device", "read a disk of the host", root=True, absent=_NO_ENTRY)
def _block_device(world: World) -> str:
    if not world.devices:
        raise OSError(errno.ENOENT, "no block device")
    path, _, _ = world.devices[0]
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    return f"opened {path}"


def _node(world: World, kind: int, device: int) -> str:
    path = f"{world.tmp}/node-{kind}"
    os.mknod(path, kind | 0o600, device)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    finally:
        os.unlink(path)  # noqa: PTH108
    return "made it and opened it"


FILES.add(
    "files.character_node",
    "make a device node (mknod)",
    lambda world: _node(world, stat.S_IFCHR, os.makedev(1, 3)),
    root=True,
)


@FILES.attempt("files.block_node", "make a node for a disk and read it (mknod)", root=True)
def _block_node(world: World) -> str:
    _, major, minor = world.devices[0] if world.devices else ("", 7, 0)
    return _node(world, stat.S_IFBLK, os.makedev(major, minor))


@FILES.attempt("files.owner", "give a file to another user", place=SCRATCH, root=True)
def _owner(world: World) -> str:
    path = f"{world.tmp}/owned-{os.getpid()}"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    try:
        os.chown(path, 12345, 12345)
    finally:
        os.unlink(path)  # noqa: PTH108
    return "chown"


@FILES.attempt("files.terminal", "make a terminal")
def _terminal(_: World) -> str:
    for fd in os.openpty():
        os.close(fd)
    return "openpty"
