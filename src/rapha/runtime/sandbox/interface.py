"""The sandbox as the rest of the node sees it (gates, section 1). One driver a file implements it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

from rapha.spec.refusals import Refused

BROKER_FD: Final = 3
"""Where a job finds its socket to the broker, unless its driver sets `RAPHA_BROKER_FD` to another."""
OUT: Final = "/rapha/out"
"""The one directory whose files are collected."""
MAX_FILES: Final = 64
EXIT_NOT_BUILT: Final = 125

_RESERVED: Final = ("/dev", "/proc", "/tmp", OUT)  # noqa: S108  names inside the sandbox
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Mount:
    """Part of the host, read-only, at `dest` inside; mounts below the source do not come with it.

    Attributes:
        source: a file or directory of the host; None is an empty directory, which hides what is under it.
        dest: absolute and normal. Later mounts of a spec lie over earlier ones.

    Raises:
        Refused: `node.config` for a `dest` that is not absolute and normal, or that the sandbox keeps.
    """

    source: Path | None
    dest: str

    def __post_init__(self) -> None:
        path = PurePosixPath(self.dest)
        plain = str(path) == self.dest and path.is_absolute() and ".." not in path.parts
        if not plain or self.dest.startswith("//") or len(path.parts) < 2 or "\0" in self.dest:
            raise Refused("node.config", f"mount {self.dest!r}: not an absolute, normal path below /")
        if any(path.is_relative_to(kept) or PurePosixPath(kept).is_relative_to(path) for kept in _RESERVED):
            raise Refused("node.config", f"mount {self.dest!r}: the sandbox keeps this path for itself")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a job may use. Every number is positive.

    Attributes:
        wall_s, cpu_s: seconds; CPU is summed over the process tree.
        memory_bytes: summed over the process tree, with its tmpfs.
        processes: tasks, that is processes and threads.
        open_files: descriptors of one process.
        out_bytes, tmp_bytes: sizes of the tmpfs at `/rapha/out`, and at each of `/tmp` and `/dev/shm`.
        log_bytes: of stdout and stderr together; the rest is read and dropped.

    Raises:
        Refused: `node.config` for a limit that is not positive.
    """

    wall_s: float = 60.0
    cpu_s: int = 600
    memory_bytes: int = 2 << 30
    processes: int = 512
    open_files: int = 1024
    out_bytes: int = 64 << 20
    tmp_bytes: int = 256 << 20
    log_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not 0 < getattr(self, name) < 1 << 53:
                raise Refused("node.config", f"limit {name}: {getattr(self, name)} is out of range")


@dataclass(frozen=True, slots=True)
class Spec:
    """One run.

    Attributes:
        argv: the command; a name without a slash is looked up in `env["PATH"]`.
        mounts: all that the job sees of the host.
        env: the whole environment.
        cwd: absolute, inside.
        broker: a socket of the caller, inherited as descriptor 3 (0 under gVisor, which hands on no other;
            `RAPHA_BROKER_FD` inside then says so); the caller still owns its copy.
        out: an empty host directory for what `/rapha/out` held, filled once the sandbox is dead and only if
            the command ended by itself. None: nothing is kept.
        log: where stdout and stderr go, capped; replaced if it exists. None: they are dropped.
        output_to_terminal: also pass stdout and stderr on to the caller's own.
        root: a host directory that becomes `/`, read-only, with `mounts` over it. Where a mount has no place
            in it, the nearest folder above must be empty. None: a root that holds the mounts alone.
        hold: a descriptor of the caller that the launcher and the sandbox's own init keep open until every
            process of the sandbox is dead, and that the job never sees: with a lock on it, "a job lives".

    Raises:
        Refused: `schema.field_invalid` for an argument or variable that no process can be given.
    """

    argv: tuple[str, ...]
    mounts: tuple[Mount, ...]
    env: Mapping[str, str]
    cwd: str
    limits: Limits
    broker: int | None = None
    out: Path | None = None
    log: Path | None = None
    output_to_terminal: bool = False
    root: Path | None = None
    hold: int | None = None

    def __post_init__(self) -> None:
        if not self.argv or not self.argv[0]:
            raise Refused("schema.field_invalid", "entrypoint: empty command")
        if not self.cwd.startswith("/"):
            raise Refused("schema.field_invalid", f"cwd: {self.cwd!r} is not absolute")
        for text in (*self.argv, *self.env.values(), self.cwd):
            if "\0" in text:
                raise Refused("schema.field_invalid", f"{text!r}: contains a NUL")
        for name in self.env:
            if not _ENV_NAME.fullmatch(name):
                raise Refused("schema.field_invalid", f"env: {name!r} is not a variable name")


class Ending(StrEnum):
    """How a run ended. `killed` is by `kill()`; what a signal ended has `exited` with 128 + signal."""

    exited = "exited"
    timeout = "timeout"
    memory = "memory"
    killed = "killed"
    failed_to_start = "failed_to_start"


@dataclass(frozen=True, slots=True)
class Output:
    """A file that was copied to `Spec.out`; `sha256` is of the copied bytes."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened, once every process of the sandbox is dead.

    Attributes:
        ending: how.
        exit_code: the command's own; 124 time, 137 memory or killed, 127 no such command inside, 125 the
            sandbox could not be built.
        wall_s, cpu_s: seconds; CPU of the whole tree.
        peak_memory_bytes: the largest sum seen (sampled where there is no cgroup).
        walls: what held, as observed and not as asked for.
        anomalies: what `/rapha/out` held and was not collected, each with its reason; the guard refuses on
            any. Names in it are the job's, escaped and cut.
        outputs: what was collected, by name.
        detail: why it did not start. It may quote the job; it stays on the node.
    """

    ending: Ending
    exit_code: int
    wall_s: float
    cpu_s: float
    peak_memory_bytes: int
    walls: Mapping[str, str]
    anomalies: tuple[str, ...] = ()
    outputs: tuple[Output, ...] = ()
    detail: str = field(default="")


class Running(Protocol):
    """A run in progress. Dropping it does not stop it; the node's death does."""

    @property
    def pid(self) -> int:
        """The host's pid of the process that holds the sandbox."""

    def wait(self) -> Outcome:
        """Block until every process is dead and outputs are collected. May be called again.

        Raises:
            Refused: `node.internal` if the supervisor itself was lost, `node.disk_full` if the host's disk
                did not take the outputs; either way nothing was collected.
        """

    def kill(self) -> None:
        """End the run now, with nothing collected. Idempotent; `wait` tells when it is done."""


class Sandbox(Protocol):
    """A driver."""

    @property
    def name(self) -> str:
        """As `--driver` takes it."""

    def check(self) -> Mapping[str, str]:
        """Start and end an empty sandbox; returns the walls that held.

        Raises:
            Refused: `node.sandbox_unavailable`, with what to set.
        """

    def start(self, spec: Spec) -> Running:
        """Start `spec`; returns as soon as the supervisor runs. Not idempotent: each call is a new run.

        Raises:
            Refused: `node.sandbox_unavailable`; `node.config` for a root, source, `out` or `log` of no use,
                and for a socket, FIFO or device below `/app` or `/rapha/in`.
        """
