"""Memory that no process maps, and that a supervisor who walks over processes can't count."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from typing import Final

from rapha.runtime.sandbox.probe.attempts.kit import ABSENT, SCRATCH, Catalogue, World, call

MEMORY: Final = Catalogue()


@MEMORY.attempt("memory.memfd", "make a memory file")
def _memfd(_: World) -> str:
    os.close(os.memfd_create("x"))
    return "memfd_create"


@MEMORY.attempt("memory.memfd_secret", "make a secret memory file", absent=ABSENT)
def _memfd_secret(_: World) -> str:
    os.close(call("memfd_secret", 0))
    return "memfd_secret"


@MEMORY.attempt("memory.shared_memory", "share anonymous memory, which can be held unmapped")
def _shared_memory(_: World) -> str:
    mmap.mmap(-1, mmap.PAGESIZE).close()
    return "mmap(MAP_SHARED | MAP_ANONYMOUS)"


@MEMORY.attempt("memory.vmsplice", "pin pages in a pipe (vmsplice)")
def _vmsplice(_: World) -> str:
    reader, writer = os.pipe()
    page = ctypes.create_string_buffer(b"x" * 64)
    try:
        return f"{call('vmsplice', writer, struct.pack('<QQ', ctypes.addressof(page), 64), 1, 0)} bytes"
    finally:
        os.close(reader)
        os.close(writer)


@MEMORY.attempt("memory.xattr", "hang attributes on a file (setxattr)", absent=ABSENT | {errno.EOPNOTSUPP})
def _xattr(world: World) -> str:
    path = f"{world.tmp}/xattr-{os.getpid()}"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    try:
        os.setxattr(path, "user.rapha", b"x")
    finally:
        os.unlink(path)  # noqa: PTH108
    return "user.rapha is set"


MEMORY.add(
    "memory.sysv",
    "make System V shared memory",
    lambda _: f"segment {call('shmget', 0x52615068, 4096, 0o1600)}",
    place=SCRATCH,
    absent=ABSENT,
)
MEMORY.add(
    "memory.sysv_messages",
    "make a System V message queue",
    lambda _: f"queue {call('msgget', 0, 0o1600)}",
    place=SCRATCH,
    absent=ABSENT,
)
MEMORY.add(
    "memory.sysv_semaphores",
    "make System V semaphores",
    lambda _: f"set {call('semget', 0, 4, 0o1600)}",
    place=SCRATCH,
    absent=ABSENT,
)
MEMORY.add(
    "memory.posix_queue",
    "make a POSIX message queue",
    lambda _: f"queue {call('mq_open', b'rapha', os.O_CREAT | os.O_RDWR, 0o600, None)}",
    place=SCRATCH,
    absent=ABSENT,
)
