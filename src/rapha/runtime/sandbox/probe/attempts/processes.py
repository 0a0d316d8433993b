"""Other processes, what they hold, and who one is."""

from __future__ import annotations

import array
import ctypes
import hashlib
import os
import resource
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
    checked,
    libc,
    other,
    proof,
    read,
)

PROCESSES: Final = Catalogue()
SECRET_NAME: Final = "RAPHA_PROBE_SECRET"  # noqa: S105  a name, and of nothing real
"""A variable of the prober's and of the victim's."""
UID_MAP: Final = "/proc/self/uid_map"
"""The same number is another user where this says so."""
_PTRACE_SEIZE: Final = 0x4206
_MARK: Final = SECRET_NAME.encode() + b"="


@PROCESSES.attempt("processes.signal", "signal a process of the host")
def _signal(world: World) -> str:
    os.kill(other(world.victim), 0)
    return "kill"


@PROCESSES.attempt("processes.pidfd", "get hold of a process of the host (pidfd_open)")
def _pidfd(world: World) -> str:
    os.close(os.pidfd_open(other(world.victim)))
    return "pidfd_open"


@PROCESSES.attempt("processes.pidfd_getfd", "copy an open file out of a process of the host")
def _pidfd_getfd(world: World) -> str:
    fd = call("pidfd_getfd", os.pidfd_open(other(world.victim)), world.victim_fd, 0)
    return proof(os.pread(fd, 4096, 0), world)


@PROCESSES.attempt("processes.list", "see a process of the host in /proc")
def _list(world: World) -> str:
    if str(other(world.victim)) not in os.listdir("/proc"):  # noqa: PTH208
        raise HeldError("not in /proc")
    return f"/proc/{world.victim}"


@PROCESSES.attempt("processes.environment", "read the environment of a process of the host")
def _environment(world: World) -> str:
    return _variable(read(f"/proc/{other(world.victim)}/environ"), world)


def _variable(environment: bytes, world: World) -> str:
    for entry in environment.split(b"\0"):
        if entry.startswith(_MARK):
            return proof(entry.removeprefix(_MARK), world)
    raise HeldError("not in it")


def _search(pattern: str, what: str) -> str:
    """Any process at all whose environment tells the secret."""
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                data = read(f"/proc/{entry}/{pattern}")
            except OSError:
                continue
            if what.encode() in data:
                return f"found in process {entry}"
    raise HeldError("in no process that is to be seen")


PROCESSES.add(
    "processes.any_environment",
    "search every process's environment for a secret",
    lambda _: _search("environ", SECRET_NAME),
)


@PROCESSES.attempt("processes.memory_file", "read another's memory through /proc")
def _memory_file(world: World) -> str:
    fd = os.open(f"/proc/{other(world.victim)}/mem", os.O_RDONLY)
    try:
        return proof(os.pread(fd, 64, world.address), world)
    finally:
        os.close(fd)


@PROCESSES.attempt("processes.memory_write", "open another's memory for writing through /proc")
def _memory_write(world: World) -> str:
    os.close(os.open(f"/proc/{other(world.victim)}/mem", os.O_RDWR))
    return "opened for writing"


@PROCESSES.attempt("processes.vm_read", "read another's memory (process_vm_readv)", absent=ABSENT)
def _vm_read(world: World) -> str:
    copy = ctypes.create_string_buffer(64)
    local = struct.pack("<QQ", ctypes.addressof(copy), 64)
    call("process_vm_readv", other(world.victim), local, 1, struct.pack("<QQ", world.address, 64), 1, 0)
    return proof(copy.raw, world)


@PROCESSES.attempt("processes.ptrace", "attach to a process of the host (ptrace)")
def _ptrace(world: World) -> str:
    call("ptrace", _PTRACE_SEIZE, other(world.victim), 0, 0)
    return "attached"


PROCESSES.add(
    "processes.open_file",
    "open a file through another's descriptor in /proc",
    lambda world: proof(read(f"/proc/{other(world.victim)}/fd/{world.victim_fd}"), world),
)
PROCESSES.add(
    "processes.other_root",
    "read a file through another's root in /proc",
    lambda world: proof(read(f"/proc/{other(world.victim)}/root{world.secret}"), world),
)
PROCESSES.add(
    "processes.other_folder",
    "read a file through another's working folder in /proc",
    lambda world: proof(read(f"/proc/{other(world.victim)}/cwd{world.secret}"), world),
)


@PROCESSES.attempt("processes.limits", "change a limit of a process of the host (prlimit)")
def _limits(world: World) -> str:
    now = resource.prlimit(other(world.victim), resource.RLIMIT_CORE)
    resource.prlimit(world.victim, resource.RLIMIT_CORE, now)
    return "prlimit"


@PROCESSES.attempt("processes.affinity", "pin a process of the host to a processor")
def _affinity(world: World) -> str:
    os.sched_setaffinity(world.victim, os.sched_getaffinity(other(world.victim)))
    return "sched_setaffinity"


@PROCESSES.attempt("processes.segment", "attach the host's System V shared memory", absent=ABSENT)
def _segment(world: World) -> str:
    libc.shmat.restype = ctypes.c_void_p
    at = libc.shmat(world.segment, None, 0o10000)  # SHM_RDONLY
    if at in {None, ctypes.c_void_p(-1).value}:
        checked(-1, "shmat")
    return proof(ctypes.string_at(at, 64), world)


# Descriptors.


@PROCESSES.attempt("descriptors.file", "read a file that the caller left open")
def _leaked(world: World) -> str:
    return proof(os.pread(world.leaked, 4096, 0), world)


@PROCESSES.attempt("descriptors.folder", "climb out by a folder that the caller left open")
def _leaked_folder(world: World) -> str:
    fd = os.open(f"{'../' * 20}{world.secret}".replace("//", "/"), os.O_RDONLY, dir_fd=world.leaked_folder)
    try:
        return proof(os.read(fd, 4096), world)
    finally:
        os.close(fd)


@PROCESSES.attempt("descriptors.socket", "use a connection that the caller left open")
def _leaked_socket(world: World) -> str:
    with socket.socket(fileno=os.dup(world.leaked_socket)) as end:
        end.settimeout(1.0)
        return proof(end.recv(64, socket.MSG_PEEK), world)


@PROCESSES.attempt("descriptors.more", "find any descriptor beside the three and the broker's")
def _more(world: World) -> str:
    found = [fd for fd in FOUND_OPEN if fd > 2 and fd != world.broker]
    if not found:
        raise HeldError(f"{FOUND_OPEN} and no other")
    return f"found {', '.join(map(str, found))}"


FOUND_OPEN: list[int] = []
"""What was open when this process began; `run` fills it in."""


@PROCESSES.attempt("descriptors.peer", "name the host's process behind the broker's socket")
def _peer(world: World) -> str:
    with socket.socket(fileno=os.dup(world.broker)) as broker:
        answer = array.array("i", broker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if answer[0] != world.prober:
        raise HeldError(f"the kernel names {answer[0] or 'none'} here")
    return f"process {answer[0]}"


@PROCESSES.attempt("descriptors.fd_folder", "find a folder behind the descriptors one has")
def _fd_folder(_: World) -> str:
    for fd in FOUND_OPEN:
        try:
            os.close(os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd))
        except OSError:
            continue
        return f"descriptor {fd} is a folder"
    raise HeldError("none of them is a folder")


# Identity.


@PROCESSES.attempt("identity.uid", "be the caller's user")
def _uid(world: World) -> str:
    table = hashlib.sha256(read(UID_MAP)).hexdigest()
    if os.geteuid() != world.uid or table != world.known.get(UID_MAP):
        raise HeldError(f"uid {os.geteuid()}")
    return f"uid {world.uid}"


@PROCESSES.attempt("identity.setuid", "become root (setuid)", place=SCRATCH)
def _setuid(_: World) -> str:
    os.setuid(0)
    return "uid 0"


@PROCESSES.attempt("identity.setresuid", "become another user (setresuid)", place=SCRATCH, root=True)
def _setresuid(_: World) -> str:
    os.setresuid(12345, 12345, 12345)
    return "uid 12345"


@PROCESSES.attempt("identity.groups", "choose one's groups (setgroups)", place=SCRATCH, root=True)
def _groups(_: World) -> str:
    os.setgroups([0, 42])
    return "groups 0 and 42"


def _capabilities(kind: str) -> Try:
    def attempt(_: World) -> str:
        status = read("/proc/self/status").decode("utf-8", "replace").splitlines()
        value = next((line.split()[1] for line in status if line.startswith(f"{kind}:")), "0")
        if not int(value, 16):
            raise HeldError("none")
        return value

    return attempt


for _kind, _what in (("CapEff", "use"), ("CapPrm", "take up"), ("CapBnd", "ever get")):
    PROCESSES.add(
        f"identity.{_kind.lower()}",
        f"have a capability that one may {_what}",
        _capabilities(_kind),
        place=SCRATCH,
    )


@PROCESSES.attempt("identity.variable", "find a secret in one's environment")
def _own_variable(world: World) -> str:
    return proof(os.environb.get(SECRET_NAME.encode(), b""), world)


@PROCESSES.attempt("identity.first_environment", "find it in the environment one was started with")
def _started_with(world: World) -> str:
    return _variable(read("/proc/self/environ"), world)


@PROCESSES.attempt("identity.capset", "give oneself a capability (capset)", place=SCRATCH)
def _capset(_: World) -> str:
    header = struct.pack("<Ii", 0x20080522, 0)
    checked(libc.capset(header, struct.pack("<6I", 1, 1, 0, 0, 0, 0)), "capset")
    return "capset"
