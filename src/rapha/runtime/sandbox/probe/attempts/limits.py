"""Past the caps. Outside, the same attempt goes just past what the cap is inside, and works."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import threading
import time
from typing import Final

from rapha.runtime.sandbox.probe.attempts.kit import Catalogue, HeldError, Try, World

LIMITS: Final = Catalogue()
"""Attempts that a wall answers with an error, and that may share a sandbox with others."""
ENDINGS: Final = Catalogue()
"""Attempts whose wall is the end of the sandbox: each needs one of its own."""
MIB: Final = 1 << 20
_LOG_MARK: Final = b"\0"
_CAP_SYS_RESOURCE: Final = 24


def _fill(which: str, cap: str) -> Try:
    """In three files, so that what ends it is the folder's cap and not a file's."""

    def attempt(world: World) -> str:
        paths = [f"{getattr(world, which)}/fill-{n}" for n in range(3)]
        try:
            for path in paths:
                _write(path, world.caps[cap] // 2)
        finally:
            for path in filter(os.path.exists, paths):
                os.unlink(path)  # noqa: PTH108
        return f"{3 * (world.caps[cap] // 2)} bytes"

    return attempt


def _write(path: str, size: int) -> None:
    with open(path, "wb", buffering=0) as file:  # noqa: PTH123
        while size > 0:
            size -= file.write(bytes(min(size, MIB)))


for _which, _cap in (("tmp", "tmp_bytes"), ("shm", "tmp_bytes"), ("out", "out_bytes")):
    LIMITS.add(f"limits.fill_{_which}", f"write more than /{_which} may hold", _fill(_which, _cap))


@LIMITS.attempt("limits.sparse", "make a file larger than any may be, without writing it")
def _sparse(world: World) -> str:
    path = f"{world.out}/sparse"
    size = max(world.caps["tmp_bytes"], world.caps["out_bytes"]) + MIB
    try:
        with open(path, "wb") as file:  # noqa: PTH123
            os.ftruncate(file.fileno(), size)
    finally:
        os.unlink(path)  # noqa: PTH108
    return f"{size} bytes"


@LIMITS.attempt("limits.names", "make more files than a folder's memory allows")
def _names(world: World) -> str:
    folder, wanted = f"{world.out}/names", world.caps["out_bytes"] // 4096 + 64
    os.mkdir(folder)  # noqa: PTH102
    made = 0
    try:
        while made < wanted:
            os.close(os.open(f"{folder}/{made}", os.O_CREAT | os.O_WRONLY))
            made += 1
    finally:
        for name in range(made):
            os.unlink(f"{folder}/{name}")  # noqa: PTH108
        os.rmdir(folder)  # noqa: PTH106
    return f"{made} files"


@LIMITS.attempt("limits.open_files", "open more files than a process may")
def _open_files(world: World) -> str:
    held: list[int] = []
    try:
        while len(held) <= world.caps["open_files"]:
            held.append(os.dup(0))
    finally:
        for fd in held:
            os.close(fd)
    return f"{len(held)} descriptors"


@ENDINGS.attempt("limits.processes", "start more processes than there may be (fork bomb)")
def _processes(world: World) -> str:
    reader, writer = os.pipe()
    children: list[int] = []
    try:
        while len(children) <= world.caps["processes"]:
            child = os.fork()
            if child == 0:
                os.close(writer)
                os.read(reader, 1)  # until the parent is done
                os._exit(0)
            children.append(child)
    finally:
        os.close(writer)
        os.close(reader)
        for child in children:
            os.waitpid(child, 0)
    return f"{len(children)} processes"


@ENDINGS.attempt("limits.threads", "start more threads than there may be")
def _threads(world: World) -> str:
    done, threads = threading.Event(), []
    try:
        for _ in range(world.caps["processes"] + 1):
            thread = threading.Thread(target=done.wait)
            thread.start()
            threads.append(thread)
    except RuntimeError as error:  # what threading makes of EAGAIN
        raise OSError(errno.EAGAIN, str(error)) from None
    finally:
        done.set()
        for thread in threads:
            thread.join()
    return f"{len(threads)} threads"


def _raise_limit(kind: int) -> Try:
    def attempt(_: World) -> str:
        soft, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY:
            return "there is no limit"
        try:
            resource.setrlimit(kind, (soft, hard + 1))
        except ValueError as error:  # what Python makes of EPERM
            raise OSError(errno.EPERM, str(error)) from None
        if resource.getrlimit(kind)[1] != hard + 1:
            raise HeldError("taken back")
        return f"{hard + 1}"

    return attempt


for _name, _kind in (
    ("open_files", resource.RLIMIT_NOFILE),
    ("processes", resource.RLIMIT_NPROC),
    ("file_size", resource.RLIMIT_FSIZE),
    ("cpu", resource.RLIMIT_CPU),
):
    LIMITS.add(
        f"limits.raise_{_name}",
        f"raise a limit oneself ({_name.replace('_', ' ')})",
        _raise_limit(_kind),
        root=True,
        capability=_CAP_SYS_RESOURCE,
    )


@LIMITS.attempt("limits.core", "have a core file written on a crash")
def _core(_: World) -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == 0:
        raise HeldError("none may be written")
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    return f"up to {hard} bytes"


def _touched(size: int) -> bytearray:
    """Memory that is really there: each page is written to."""
    memory = bytearray(size)
    memory[::4096] = b"x" * len(range(0, size, 4096))
    return memory


_HOLD_S: Final = 1.0
"""Longer than a supervisor needs to count."""


@ENDINGS.attempt("limits.memory", "use more memory than the job may")
def _memory(world: World) -> str:
    held = [_touched(8 * MIB) for _ in range(world.caps["memory_bytes"] // (8 * MIB) + 4)]
    time.sleep(_HOLD_S)
    return f"{8 * len(held)} MiB"


@ENDINGS.attempt("limits.memory_children", "the same, shared out over children")
def _memory_children(world: World) -> str:
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            os.setsid()
            held = _touched(world.caps["memory_bytes"] // 4 + 8 * MIB)
            time.sleep(_HOLD_S)
            os._exit(0 if held else 1)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise HeldError(f"they ended with {codes}")
    return "four children held it"


@ENDINGS.attempt("limits.memory_files", "the same, in files of memory")
def _memory_files(world: World) -> str:
    each = world.caps["memory_bytes"] // 2
    paths = [f"{folder}/hoard" for folder in (world.tmp, world.shm, world.out)]
    try:
        for path in paths:
            _write(path, each)
        time.sleep(_HOLD_S)
    finally:
        for path in filter(os.path.exists, paths):
            os.unlink(path)  # noqa: PTH108
    return f"{3 * each} bytes in files"


@ENDINGS.attempt("limits.memory_sockets", "the same, in messages that nobody receives")
def _memory_sockets(world: World) -> str:
    held, kept = [], 0
    for _ in range(world.caps["memory_bytes"] // 100_000):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        kept += theirs.send(bytes(150_000))
        theirs.close()
        held.append(ours)
    time.sleep(_HOLD_S)
    return f"{kept} bytes in {len(held)} sockets"


def spend(rounds: int) -> None:
    """Use processor time; how much a round takes is measured outside.

    A sandbox's own clock can't tell: gVisor's runs on while the host gives the processor to others.
    """
    for _ in range(rounds):
        sum(range(10_000))


@ENDINGS.attempt("limits.cpu", "use more processor time than the job may")
def _cpu(world: World) -> str:
    spend(2 * world.caps["cpu_s"] * world.rounds)
    return f"{2 * world.caps['cpu_s']} s"


@ENDINGS.attempt("limits.cpu_children", "the same, shared out over children")
def _cpu_children(world: World) -> str:
    for _ in range(2):
        child = os.fork()
        if child == 0:
            spend(world.caps["cpu_s"] * world.rounds)
            os._exit(0)
        os.waitpid(child, 0)
    return f"two children used {2 * world.caps['cpu_s']} s"


@ENDINGS.attempt("limits.wall", "run longer than the job may, deaf to signals")
def _wall(world: World) -> str:
    time.sleep(world.caps["wall_s"] + 0.5)
    return f"{world.caps['wall_s'] + 0.5} s"


@ENDINGS.attempt("limits.log", "write more words than are kept")
def _log(world: World) -> str:
    left = world.caps["log_bytes"] + 65536
    while left > 0:
        left -= os.write(1, _LOG_MARK * min(left, 65536))
    return f"{world.caps['log_bytes'] + 65536} bytes"


@ENDINGS.attempt("limits.outlive", "leave a process behind")
def _outlive(world: World) -> str:
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.write(writer, b"%d" % os.getpid())
        os.close(writer)
        # With the broker's socket open, by which the prober sees that it lives, and until the prober leaves.
        poller = select.poll()
        poller.register(world.broker, select.POLLIN)
        poller.poll(60_000)
        os._exit(0)
    return f"process {os.read(reader, 20).decode()} stays"
