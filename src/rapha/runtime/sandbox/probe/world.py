"""The world outside that there is to be reached, made for one run of the suite and gone after it."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import secrets
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rapha.runtime.sandbox.interface import BROKER_FD, OUT, Limits
from rapha.runtime.sandbox.probe import listeners
from rapha.runtime.sandbox.probe.attempts import files, limits
from rapha.runtime.sandbox.probe.attempts.kit import HOST, INSIDE, World
from rapha.runtime.sandbox.probe.attempts.processes import SECRET_NAME, UID_MAP

SOURCES: Final = Path(__file__).parents[4]
"""The directory that holds the `rapha` package."""
_SECRET_BYTES: Final = 32
_RMID: Final = 0
_NAMES: Final = 8
_SAMPLE: Final = 200
_VICTIM: Final = """
import ctypes, os, sys
secret = ctypes.create_string_buffer(sys.stdin.buffer.read(64), 64)
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
file = os.open(sys.argv[1], os.O_RDONLY)
os.chdir('/')
print(ctypes.addressof(secret), file, flush=True)
import signal
signal.pause()
"""
"""Holds the secret in its memory, in its environment and open, and lets anyone of its uid trace it (Yama)."""


@dataclass(frozen=True, slots=True)
class Outside:
    """What the prober holds while the suite runs.

    Attributes:
        world: as a control on the host sees it.
        leaked: descriptors that the caller left inheritable; controls get them, sandboxes must not.
        capabilities: a mask of those that this process has over the machine itself.
    """

    world: World
    leaked: tuple[int, ...]
    capabilities: int

    @property
    def root(self) -> bool:
        """Whether the prober is root of the machine, and neither of a user namespace nor of a container."""
        return self.capabilities & _WANTED_MASK == _WANTED_MASK

    def inside(self, of: Limits) -> World:
        """The same world with the names that places have in a sandbox of these limits."""
        return replace(
            self.world,
            place=INSIDE,
            tmp="/tmp",  # noqa: S108  the sandbox's own
            shm="/dev/shm",  # noqa: S108
            out=OUT,
            broker=BROKER_FD,
            caps=caps(of),
        )

    def control(self, place: str, of: Limits, folder: Path, broker: int) -> World:
        """The same world for a control that may write in `folder` and has `broker` open."""
        for name in ("tmp", "shm", "out"):
            (folder / name).mkdir(exist_ok=True)
        tmp, shm, out = (str(folder / name) for name in ("tmp", "shm", "out"))
        return replace(self.world, place=place, tmp=tmp, shm=shm, out=out, broker=broker, caps=caps(of))


def caps(of: Limits) -> dict[str, int]:
    """The limits that attempts go past."""
    return {name: int(getattr(of, name)) for name in Limits.__slots__}


@contextlib.contextmanager
def made() -> Iterator[Outside]:
    """Make the world, and take it away again.

    Raises:
        OSError: this host gives no loopback, unix sockets or folder to make it with.
    """
    with contextlib.ExitStack() as kept:
        secret = secrets.token_hex(_SECRET_BYTES).encode()
        folder = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="rapha-probe-", dir="/var/tmp")))
        _furnish(folder, secret)
        kept.enter_context(_variable(SECRET_NAME, secret.decode()))
        ports = kept.enter_context(listeners.open_in(folder, secret))
        victim, address, victim_fd = kept.enter_context(_victim(folder / "secret", secret))
        leaked = kept.enter_context(_leaks(folder, secret))
        home = _home()
        world = World(
            place=HOST,
            secret=str(folder / "secret"),
            digest=hashlib.sha256(secret).hexdigest(),
            folder=str(folder),
            tmp=str(folder),
            shm=str(folder),
            out=str(folder),
            shared=str(kept.enter_context(_shared_file(secret))),
            **ports,
            abstract=folder.name,
            prober=os.getpid(),
            uid=os.geteuid(),
            victim=victim,
            address=address,
            victim_fd=victim_fd,
            leaked=leaked[0],
            leaked_folder=leaked[1],
            leaked_socket=leaked[2],
            broker=-1,
            segment=kept.enter_context(_segment(secret)),
            home=home,
            sources=str(SOURCES),
            prefix=sys.prefix,
            namespaces=_namespaces(),
            known=_known(),
            entries={
                path: _entries(path) for path in (home, str(SOURCES), sys.prefix, str(folder), *files.FOLDERS)
            },
            devices=_block_devices(),
            interfaces=[name for _, name in socket.if_nameindex() if name != "lo"],
            rounds=_rounds(),
            caps={},
        )
        yield Outside(world, leaked, capabilities())


_WANTED: Final = (2, 16, 17, 19, 21, 22, 23, 25, 27, 34)
"""Capabilities that the controls of `Attempt.root` use: from CAP_DAC_READ_SEARCH to CAP_SYSLOG."""
_WANTED_MASK: Final = sum(1 << capability for capability in _WANTED)


def capabilities() -> int:
    """The effective set of this process, 0 in a user namespace, where it is worth nothing on the machine."""
    table = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    if table != ["0", "0", "4294967295"]:
        return 0
    return next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))


def _furnish(folder: Path, secret: bytes) -> None:
    folder.chmod(0o1777)
    (folder / "secret").write_bytes(secret)
    (folder / "secret").chmod(0o644)
    os.mkfifo(folder / "fifo")
    (folder / "fifo").chmod(0o666)


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


@contextlib.contextmanager
def _victim(file: Path, secret: bytes) -> Iterator[tuple[int, int, int]]:
    """A process to be attacked: its pid, where its memory holds the secret, and its descriptor of `file`."""
    command = [sys.executable, "-I", "-S", "-c", _VICTIM, str(file)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as victim:  # type: ignore[call-overload]
        try:
            victim.stdin.write(secret)
            victim.stdin.close()
            address, descriptor = map(int, victim.stdout.readline().split())
            yield victim.pid, address, descriptor
        finally:
            victim.kill()


@contextlib.contextmanager
def _leaks(folder: Path, secret: bytes) -> Iterator[tuple[int, int, int]]:
    """Descriptors that a careless caller leaves inheritable: the secret's, a folder's, a connection's."""
    with contextlib.ExitStack() as kept:
        file = os.open(folder / "secret", os.O_RDONLY | os.O_CLOEXEC)
        kept.callback(os.close, file)
        parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        kept.callback(os.close, parent)
        ours, theirs = (kept.enter_context(end) for end in socket.socketpair())
        ours.send(secret)
        for fd in (file, parent, theirs.fileno()):
            os.set_inheritable(fd, True)
        yield file, parent, theirs.fileno()


@contextlib.contextmanager
def _shared_file(secret: bytes) -> Iterator[Path]:
    """A file in the host's /dev/shm, where the host has one."""
    if not os.access("/dev/shm", os.W_OK):  # noqa: S108
        yield Path("/dev/shm/none")  # noqa: S108
        return
    with tempfile.NamedTemporaryFile(prefix="rapha-probe-", dir="/dev/shm") as file:
        file.write(secret)
        file.flush()
        yield Path(file.name)


@contextlib.contextmanager
def _segment(secret: bytes) -> Iterator[int]:
    """A System V segment that all may read; -1 where the kernel has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    size = len(secret)
    segment = int(libc.shmget(0, ctypes.c_size_t(size), 0o1666))
    try:
        at = libc.shmat(segment, None, 0) if segment >= 0 else None
        if at not in {None, ctypes.c_void_p(-1).value}:
            ctypes.memmove(at, secret, size)
            libc.shmdt(ctypes.c_void_p(at))
        yield segment
    finally:
        if segment >= 0:
            libc.shmctl(segment, _RMID, None)


def _namespaces() -> dict[str, str]:
    kinds = ("user", "net", "mnt", "pid", "ipc", "uts", "cgroup")
    return {kind: str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in kinds}


def _known() -> dict[str, str]:
    known = {"mounts": hashlib.sha256(files.mount_points()).hexdigest()}
    for path in (*files.KNOWN_PATHS, UID_MAP):
        with contextlib.suppress(OSError):  # absent, or not for this user: the control will say so
            known[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return known


def _home() -> str:
    """The caller's home, or what else there is of the kind if nothing is in it."""
    return next(path for path in (str(Path.home()), "/home", "/usr") if _entries(path))


def _entries(path: str) -> list[str]:
    try:
        return sorted(entry.name for entry in Path(path).iterdir())[:_NAMES]
    except OSError:
        return []  # not for this user: the control will say so


def _rounds() -> int:
    """Rounds of `limits.spend` in a second, from a sample of them."""
    before = time.thread_time()
    limits.spend(_SAMPLE)
    return max(1, int(_SAMPLE / (time.thread_time() - before)))


def _block_devices() -> list[list[Any]]:
    found: list[list[Any]] = []
    for entry in sorted(Path("/dev").iterdir()):
        about = entry.lstat()
        if stat.S_ISBLK(about.st_mode):
            found.append([str(entry), os.major(about.st_rdev), os.minor(about.st_rdev)])
    return found
