"""What the attempts are made of: the catalogue, the world that there is to be reached, and raw system calls.

An attempt returns where it got through. `OSError` or `HeldError` says that a wall stopped it; anything else
is a defect of the attempt, and shows nothing.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, Final

INSIDE: Final = "inside"
HOST, SCRATCH = "host", "scratch"
"""Where a control runs: on the host as it is, or as root of fresh namespaces, which its traces die with."""
ABSENT: Final = frozenset(
    {errno.ENOSYS, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.ENODEV}
)
"""How a kernel says that it was built without something."""
_NUMBERS: Final = {
    # name: (x86_64, aarch64); from 424 on all architectures agree
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clone": (56, 220),
    "clone3": (435, 435),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsopen": (430, 430),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, -1),
    "iopl": (172, -1),
    "kcmp": (312, 272),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "modify_ldt": (154, -1),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "semget": (64, 190),
    "setdomainname": (171, 162),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmget": (29, 194),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vmsplice": (278, 75),
}
_COLUMN: Final = 1 if platform.machine() == "aarch64" else 0


class HeldError(Exception):
    """A wall answered, and not with an error number: what was reached for is not there."""


@dataclass(frozen=True)
class World:
    """What there is to be reached, and the same places' names on this side.

    Attributes:
        place: `inside`, or where this control runs.
        secret, digest: a file that anyone on the host may read, and the hex SHA-256 of what is in it; the
            listeners, the victim's memory and what leaks hold the same.
        folder: world-writable, on the host, with `named` and `datagram` (unix sockets), `fifo` in it.
        tmp, shm, out: `/tmp`, `/dev/shm`, `/rapha/out` inside; scratch folders of a control.
        shared: a file below the host's /dev/shm.
        tcp4, tcp6, udp4, udp6: ports on the host's loopback; UDP answers anything, DNS included.
        abstract: an abstract unix listener's name.
        victim, address: a process of the prober's uid, and where its memory holds the secret.
        victim_fd, leaked: descriptors of the secret file: the victim's, and one left inheritable.
        leaked_folder, leaked_socket: two more that the caller left inheritable.
        broker: the descriptor of a socket like the broker's, which a job is meant to have.
        segment: a System V shared memory segment, readable by all.
        namespaces: kind to the identity that the prober sees.
        known: path to the hex SHA-256 of what the host reads there.
        entries: path of a folder to some names that the host finds in it.
        devices: block devices of the host, as (path, major, minor).
        interfaces: of the host, without loopback.
        rounds: of `limits.spend`, in a second of this processor's time.
        caps: bytes and counts that the sandbox was given, by name of the limit.
    """

    place: str
    secret: str
    digest: str
    folder: str
    tmp: str
    shm: str
    out: str
    shared: str
    tcp4: int
    tcp6: int
    udp4: int
    udp6: int
    abstract: str
    prober: int
    uid: int
    victim: int
    address: int
    victim_fd: int
    leaked: int
    leaked_folder: int
    leaked_socket: int
    broker: int
    segment: int
    home: str
    sources: str
    prefix: str
    namespaces: dict[str, str]
    known: dict[str, str]
    entries: dict[str, list[str]]
    devices: list[list[Any]]
    interfaces: list[str]
    rounds: int
    caps: dict[str, int]


Try = Callable[[World], object]


@dataclass(frozen=True)
class Attempt:
    """One way out.

    Attributes:
        id: `family.name`, stable.
        what: for the table.
        run: tries it; see the module.
        place: where its control runs.
        root: whether only root of the host can do it outside, so that only root can show a control.
        capability: one more that this root needs, which some machines take even from root; -1 is none.
        absent: error numbers by which a kernel says that it was built without the thing.
        x86: whether it is a door of x86-64 alone.
    """

    id: str
    what: str
    run: Try
    place: str = HOST
    root: bool = False
    capability: int = -1
    absent: frozenset[int] = frozenset()
    x86: bool = False

    @property
    def family(self) -> str:
        return self.id.partition(".")[0]


class Catalogue:
    """Attempts in the order in which they were written, each under an id of its own."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []

    def add(self, id: str, what: str, run: Try, **more: Any) -> None:  # noqa: A002
        """Add one attempt; `more` as `Attempt`."""
        if any(known.id == id for known in self.attempts):
            raise ValueError(f"two attempts called {id}")
        self.attempts.append(Attempt(id, what, run, **more))

    def attempt(self, id: str, what: str, **more: Any) -> Callable[[Try], Try]:  # noqa: A002
        """Decorator of a function that is one attempt."""

        def enter(run: Try) -> Try:
            self.add(id, what, run, **more)
            return run

        return enter


libc: Final = ctypes.CDLL(None, use_errno=True)


def number(name: str) -> int:
    """The system call's number here; OSError ENOSYS where the architecture has none."""
    found = _NUMBERS[name][_COLUMN]
    if found < 0:
        raise OSError(errno.ENOSYS, f"{name}: not on {platform.machine()}")
    return found


def call(name: str, *arguments: object) -> int:
    """A raw system call; its result, or OSError."""
    return checked(libc.syscall(ctypes.c_long(number(name)), *map(_word, arguments)), name)


def checked(result: int, what: str) -> int:
    """What a C function returned, or OSError if that is negative."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _word(argument: object) -> object:
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def past(codes: Container[int], name: str, *arguments: object) -> str:
    """A call that would do harm if it could, made with arguments that can do none.

    One of `codes` says that the kernel had let the caller through and only then minded the arguments.
    """
    try:
        return f"{name} = {call(name, *arguments)}"
    except OSError as error:
        if error.errno is not None and error.errno in codes:
            return f"{name} got as far as {errno.errorcode[error.errno]}"
        raise


def proof(data: bytes, world: World) -> str:
    """That `data` is the host's secret.

    Raises:
        HeldError: it is something else.
    """
    if hashlib.sha256(data).hexdigest() != world.digest:
        raise HeldError(f"{len(data)} bytes that are not the host's")
    return "read the host's secret"


def read(path: str, limit: int = 1 << 20) -> bytes:
    """What is in a file; not through `open`, so that nothing but the calls in question is made."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    data = b""
    try:
        while len(data) < limit and (chunk := os.read(fd, limit - len(data))):
            data += chunk
    finally:
        os.close(fd)
    return data


def touch(path: str, flags: int = os.O_WRONLY) -> str:
    """Open a file for writing, and write nothing."""
    os.close(os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC))
    return f"{path} opened for writing"


def other(pid: int) -> int:
    """`pid`, unless a process of our own bears that number.

    Raises:
        HeldError: it does, and what happens to it says nothing about the host's.
    """
    if pid in {1, os.getpid(), os.getppid()}:
        raise HeldError(f"{pid} is a process of one's own here")
    return pid
