"""The other doors into the kernel of an x86-64 processor, behind which calls have other numbers."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from typing import Final

from rapha.runtime.sandbox.probe.attempts.kit import ABSENT, Catalogue, HeldError, World, checked, libc

DOORS: Final = Catalogue()


def _machine_code(code: bytes) -> int:
    """Run bytes as a function that returns an int."""
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
    page.write(code)
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())


@DOORS.attempt(
    "abi.int80",
    "enter by the 32-bit door, whose numbers differ",
    x86=True,
    absent=frozenset({-signal.SIGSEGV}),
)
def _int80(_: World) -> str:
    if _machine_code(bytes.fromhex("b814000000cd80c3")) != os.getpid():
        raise HeldError("the door leads nowhere")
    return "getpid by int 0x80"


@DOORS.attempt(
    "abi.int80_socket",
    "make a socket by the 32-bit door",
    x86=True,
    absent=frozenset({-signal.SIGSEGV}),
)
def _int80_socket(_: World) -> str:
    # mov eax, 359 (socket); mov ebx, 2 (AF_INET); mov ecx, 1; xor edx, edx; int 0x80, with rbx kept
    code = "53b867010000bb02000000b90100000031d2cd805bc3"
    fd = _machine_code(bytes.fromhex(code))
    if fd < 0:
        raise HeldError(f"socket = {fd}")
    os.close(fd)
    return "socket by int 0x80"


DOORS.add(
    "abi.x32",
    "enter by the x32 door, whose numbers differ",
    lambda _: f"getpid = {checked(libc.syscall(ctypes.c_long(0x40000000 | 39)), 'x32 getpid')}",
    x86=True,
    absent=ABSENT,
)
