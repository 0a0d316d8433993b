"""A task for the tests of the workers: it does to its worker what a decoder might that was taken over."""
# The plain calls are what is tried.
# ruff: noqa: PTH102, PTH104, PTH108, PTH208, PTH211, S103, S606

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import Mock

from rapha.node.sources.interface import Quarantine
from rapha.node.sources.workers import frames, walls
from rapha.node.sources.workers.interface import InParts, Unusable, Work
from rapha.runtime.sandbox.launcher import landlock, system

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> int:
    """A function of the C library; OSError when it fails."""
    result = int(getattr(libc, name)(*arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def syscall(number: int, *arguments: Any) -> int:
    return call("syscall", ctypes.c_long(number), *arguments)


def thread() -> None:
    try:
        threading.Thread(target=int).start()
    except RuntimeError:
        raise PermissionError(1, "thread") from None


SYSTEM: dict[str, Callable[[], object]] = {
    "unix socket": lambda: socket.socket(socket.AF_UNIX),
    "inet socket": lambda: socket.socket(socket.AF_INET),
    "netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "vsock": lambda: socket.socket(40, socket.SOCK_STREAM),
    "socketpair": socket.socketpair,
    "fork": os.fork,
    "thread": thread,
    "spawn": lambda: subprocess.Popen(["/bin/true"]),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "ptrace": lambda: call("ptrace", 16, os.getppid(), 0, 0),
    "kill the parent": lambda: os.kill(os.getppid(), 0),
    "kill itself": lambda: os.kill(os.getpid(), signal.SIGUSR1),
    "kill everyone": lambda: os.kill(-1, 0),
    "process_vm_readv": lambda: call("process_vm_readv", os.getppid(), None, 0, None, 0, 0),
    "pidfd": lambda: os.pidfd_open(os.getppid()),
    "memfd": lambda: os.memfd_create("x"),
    "unshare": lambda: call("unshare", 0x10000000),
    "mount": lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "chroot": lambda: os.chroot("/"),
    "raise a limit": lambda: call("setrlimit", resource.RLIMIT_CORE, bytes(16)),
    "outlive the parent": lambda: call("prctl", 1, 0, 0, 0, 0),
    "be dumpable": lambda: call("prctl", 4, 1, 0, 0, 0),
    "another seccomp": lambda: call("prctl", 22, 1, 0, 0, 0),
    "io_uring": lambda: syscall(425, 1, None),
    "landlock": lambda: syscall(444, None, 0, 1),
    "receive descriptors": lambda: call("recvmsg", 3, None, 0),
    "own the socket's signals": lambda: call("fcntl", 3, 8, os.getppid()),
    "ioctl": lambda: call("ioctl", 0, 0x5412, b"x"),
    "change mode": lambda: os.chmod(0, 0o777),
    "pipe": os.pipe,
    "eventfd": lambda: os.eventfd(0),
    "priority": lambda: os.nice(1),
    "affinity": lambda: os.sched_setaffinity(0, {0}),
}
"""Each must fail with EPERM, by the filter of calls."""


def paths(outside: str, folder: str) -> dict[str, Callable[[], object]]:
    """Each must fail with EACCES (Landlock) or EPERM (the filter)."""
    parent = os.getppid()
    return {
        "a file outside": lambda: Path(outside).read_bytes(),
        "a file by a link": lambda: Path(folder, "link").read_bytes(),
        "a file by ..": lambda: Path(folder, "..", Path(outside).name).read_bytes(),
        "list the root": lambda: os.listdir("/"),
        "accounts": lambda: Path("/etc/passwd").read_bytes(),
        "shared memory": lambda: os.listdir("/dev/shm"),
        "own maps": lambda: Path("/proc/self/maps").read_bytes(),
        "own memory": lambda: os.open("/proc/self/mem", os.O_RDWR),
        "the parent's memory": lambda: os.open(f"/proc/{parent}/mem", os.O_RDONLY),
        "the pool's files": lambda: os.listdir(f"/proc/{parent}/fd"),
        "a new file": lambda: os.open(f"{folder}/new", os.O_WRONLY | os.O_CREAT),
        "a changed file": lambda: os.open(f"{folder}/a", os.O_WRONLY),
        "a shorter file": lambda: os.truncate(f"{folder}/a", 0),
        "an unnamed file": lambda: os.open(folder, os.O_RDWR | os.O_TMPFILE),
        "remove": lambda: os.unlink(f"{folder}/a"),
        "rename": lambda: os.rename(f"{folder}/a", f"{folder}/b"),
        "mkdir": lambda: os.mkdir(f"{folder}/d"),
        "symlink": lambda: os.symlink("a", f"{folder}/l"),
        "fifo": lambda: os.mkfifo(f"{folder}/f"),
        "Python's files": lambda: os.open(__file__, os.O_RDONLY),
        "a package": lambda: os.open(f"{sys.prefix}/x", os.O_WRONLY | os.O_CREAT),
        "null, to write": lambda: os.open("/dev/null", os.O_WRONLY),
    }


def attempt(what: Callable[[], object]) -> int:
    """The errno it fails with, 0 where it works."""
    try:
        what()
    except OSError as error:
        return error.errno or -1
    return 0


def descriptors() -> list[int]:
    return [fd for fd in range(4200) if attempt(lambda fd=fd: os.fstat(fd)) == 0]  # type: ignore[misc]


def crash(_: Sequence[BinaryIO], __: memoryview) -> bytes:
    ctypes.string_at(0)
    return b""


def hang(_: Sequence[BinaryIO], __: memoryview) -> bytes:
    time.sleep(10_000)
    return b""


def leave(_: Sequence[BinaryIO], __: memoryview) -> bytes:
    os._exit(0)


def unplug(_: Sequence[BinaryIO], __: memoryview) -> bytes:
    os.close(3)
    time.sleep(10_000)
    return b""


def say(data: bytes) -> Callable[[Sequence[BinaryIO], memoryview], bytes]:
    """Write straight to the pool, then answer as usual."""

    def work(_: Sequence[BinaryIO], __: memoryview) -> bytes:
        os.write(3, data)
        return b"innocent"

    return work


def flood(_: Sequence[BinaryIO], __: memoryview) -> bytes:
    while True:
        os.write(3, bytes(2**20))


def eat(_: Sequence[BinaryIO], __: memoryview) -> bytes:
    held = [bytearray(2**20) for _ in range(2**14)]
    return bytes(len(held))


def unusable(_: Sequence[BinaryIO], __: memoryview) -> bytes:
    raise Unusable(Quarantine.SHAPE)


def no_reason(_: Sequence[BinaryIO], __: memoryview) -> bytes:
    raise Unusable(Quarantine.NONE)


def fail(_: Sequence[BinaryIO], __: memoryview) -> bytes:
    raise ValueError("a word of the record")


def recurse(stored: Sequence[BinaryIO], out: memoryview) -> bytes:
    return recurse(stored, out)


def stop(_: Sequence[BinaryIO], __: memoryview) -> bytes:
    raise SystemExit(3)


def fill(_: Sequence[BinaryIO], out: memoryview) -> bytes:
    out[:] = b"\xaa" * len(out)
    return b""


def shrink(_: Sequence[BinaryIO], out: memoryview) -> bytes:
    mapped = out.obj
    assert isinstance(mapped, mmap.mmap)
    out.release()
    mapped.resize(1)
    return b""


BAD: dict[bytes, Callable[[Sequence[BinaryIO], memoryview], bytes]] = {
    b"crash": crash,
    b"hang": hang,
    b"leave": leave,
    b"unplug": unplug,
    b"another item": say(frames.encode_answer(12345, Quarantine.NONE, b"")),
    b"twice": say(frames.encode_answer(0, Quarantine.NONE, b"")),
    b"unknown verdict": say(b"\0\0\0\0\x7f\0\0\0\0"),
    b"verdict and reply": say(b"\0\0\0\0\x08\x01\0\0\0x"),
    b"too long": say(b"\0\0\0\0\0\xff\xff\xff\xff"),
    b"garbage": say(b"\xff" * 50),
    b"flood": flood,
    b"eat": eat,
    b"unusable": unusable,
    b"no reason": no_reason,
    b"fail": fail,
    b"recurse": recurse,
    b"stop": stop,
    b"fill": fill,
    b"shrink": shrink,
    b"long reply": lambda _, __: bytes(frames.MAX_REPLY + 1),
    b"no bytes": lambda _, __: None,  # type: ignore[dict-item,return-value]
    b"nothing": lambda _, __: b"",
}


class Parts(InParts):
    """`first:…` goes wrong in the first part, `second:…` in the second; `poison` breaks all that follows."""

    def __init__(self) -> None:
        self._poisoned = False

    def begin(self, args: bytes, stored: Sequence[BinaryIO], out: memoryview) -> Callable[[], bytes]:
        part, _, what = args.partition(b":")
        if part == b"first":
            BAD[what](stored, out)
        if part == b"slow":
            time.sleep(0.3)
        poisoned, self._poisoned = self._poisoned, self._poisoned or part == b"poison"

        def second() -> bytes:
            if part == b"slow":
                time.sleep(0.3)
            return BAD[b"eat" if poisoned else what](stored, out) if part == b"second" or poisoned else args

        return second


WITHOUT: dict[bytes, tuple[Any, str, Callable[..., object] | None]] = {
    b"no landlock": (landlock, "abi", lambda: 0),
    b"landlock refused": (landlock, "restrict", None),
    b"leaky landlock": (landlock, "restrict", Mock()),
    b"seccomp refused": (walls, "_filter", None),
    b"leaky seccomp": (walls, "_filter", Mock()),
    b"capabilities refused": (walls, "_drop_capabilities", None),
    b"no network namespaces": (system, "unshare", None),
    b"no filter": (platform, "machine", lambda: "riscv64"),
}


def make(setup: bytes) -> Work:
    """What `setup` names goes wrong; the walls that it takes away are those of this process alone."""
    refuse = Mock(side_effect=OSError(22, "Invalid argument"))
    if setup in WITHOUT:
        target, name, broken = WITHOUT[setup]
        setattr(target, name, broken or refuse)
    if setup.startswith(b"swap"):
        setattr(walls, "active_swaps", lambda: ("/dev/sda2",))  # noqa: B010
        setattr(walls, "may_lock", lambda: setup != b"swap, no locking")  # noqa: B010
        setattr(walls, "lock_all", refuse)  # noqa: B010
    if setup == b"thread":
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    if setup == b"raise":
        raise ValueError("a word of the setup")
    if setup == b"die":
        os._exit(1)

    if setup == b"in parts":
        return Parts()
    poisoned: list[bytes] = []

    def work(args: bytes, stored: Sequence[BinaryIO], out: memoryview) -> bytes:
        kind, _, rest = args.partition(b":")
        match kind:
            case b"bad":
                return BAD[rest](stored, out)
            case b"system":
                return json.dumps({name: attempt(what) for name, what in SYSTEM.items()}).encode()
            case b"paths":
                outside, folder = json.loads(rest)
                return json.dumps({n: attempt(w) for n, w in paths(outside, folder).items()}).encode()
            case b"self":
                found = {"pid": os.getpid(), "env": sorted(os.environ), "fds": descriptors()}
                return json.dumps(found).encode()
            case b"last":
                out[: len(rest)] = rest
                os.write(3, frames.encode_answer(int(rest), Quarantine.NONE, rest))
                os._exit(1)
            case b"poison":
                poisoned.append(rest)
                return rest
            case _ if poisoned:
                return BAD[poisoned[0]](stored, out)
            case b"out":
                out[: len(rest)] = rest
                return rest
            case _:
                return args + b"|" + b",".join(file.read() for file in stored)

    return work
