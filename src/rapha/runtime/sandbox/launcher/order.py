"""What the driver tells the launcher, and what it hears back: one JSON object each way."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Order(NamedTuple):
    """A checked `Spec`, with every path resolved and every descriptor open.

    Descriptors are numbers in the launcher, -1 where there is none.
    """

    argv: list[str]
    env: dict[str, str]
    cwd: str
    mounts: list[list[str]]
    """[source, dest], later ones over earlier ones; an empty source is an empty directory."""
    root: str
    """A directory that becomes `/`, or empty."""
    bwrap: str
    libraries: str
    """A directory of bwrap's own shared libraries, or empty."""
    seccomp: str
    """The filter, in hex; with `runsc`, the JSON of the OCI spec's section."""
    runsc: list[str]
    """gVisor's program and its flags, which bubblewrap then only fences; empty for bubblewrap's own walls."""
    parent: int
    control: int
    out: int
    log: int
    broker: int
    hold: int
    terminal: bool
    max_files: int
    wall_s: float
    cpu_s: int
    memory_bytes: int
    processes: int
    open_files: int
    out_bytes: int
    tmp_bytes: int
    log_bytes: int


class Report(NamedTuple):
    """What came of an order; the driver makes it an `Outcome`."""

    ending: str
    exit_code: int
    wall_s: float
    cpu_s: float
    peak_memory_bytes: int
    walls: dict[str, str]
    anomalies: list[str]
    outputs: list[list[Any]]
    """[name, size, sha256] of each file."""
    detail: str
    no_room: str = ""
    """Why the host's disk did not take the outputs; empty if it did."""


def encode(message: Order | Report) -> bytes:
    """UTF-8 JSON of a message."""
    return json.dumps(message._asdict(), ensure_ascii=True, allow_nan=False).encode()


def read_order(data: bytes) -> Order:
    """The order in `data` (ValueError or TypeError if it is not one)."""
    return Order(**json.loads(data))


def read_report(data: bytes) -> Report:
    """The report in `data` (ValueError or TypeError if it is not one)."""
    return Report(**json.loads(data))
