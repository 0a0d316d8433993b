"""Fresh namespaces for controls that would otherwise change the host; everything in them dies with them."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from typing import Final, NoReturn

from rapha.runtime.sandbox.probe.attempts import names, network
from rapha.runtime.sandbox.probe.attempts.kit import World, call, checked, libc

_NEW: Final = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000 | 0x02000000
"""Mount, uts, ipc, pid, net and cgroup namespaces."""
_NEW_USER: Final = 0x10000000
_PRIVATE: Final = 0x4000 | 0x40000
_PR_SET_PDEATHSIG: Final = 1
_ETC: Final = {
    "resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
    "nsswitch.conf": "hosts: files dns\n",
    "hosts": "127.0.0.1 localhost\n",
}
_NAME_PORT: Final = 53


def enter(world: World) -> None:
    """Go on as the first process of fresh namespaces, root of them, with a name server on their loopback.

    Raises:
        OSError: the kernel gives none to this user.
    """
    try:
        call("unshare", _NEW)
    except PermissionError:
        _unshare_as_user()
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    checked(libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0), "prctl")
    call("mount", None, b"/", None, _PRIVATE, None)
    network.bring_up_loopback()
    _serve_names()


def _unshare_as_user() -> None:
    uid, gid = os.geteuid(), os.getegid()
    call("unshare", _NEW | _NEW_USER)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"0 {uid} 1")
    _write("/proc/self/gid_map", f"0 {gid} 1")


def _serve_names() -> None:
    """Cover /etc, and answer on port 53 from a process that lives as long as the namespaces."""
    call("mount", b"rapha", b"/etc", b"tmpfs", 0, b"size=64k")
    for name, text in _ETC.items():
        _write(f"/etc/{name}", text)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", _NAME_PORT))
    if os.fork() == 0:
        _answer(server)
    server.close()


def _answer(server: socket.socket) -> NoReturn:
    while True:
        query, whence = server.recvfrom(512)
        server.sendto(names.answer(query), whence)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
