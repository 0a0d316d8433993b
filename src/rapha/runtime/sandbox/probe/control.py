"""The same attempts with the sandbox off: each shows that what is tried inside works."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rapha.runtime.sandbox.interface import Limits
from rapha.runtime.sandbox.probe.attempts.kit import HOST, SCRATCH, Attempt, World
from rapha.runtime.sandbox.probe.verdict import Result, Tried, read
from rapha.runtime.sandbox.probe.world import SOURCES, Outside

TIMEOUT_S: Final = 60.0
_BOOT: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]);"
    " from rapha.runtime.sandbox.probe.attempts import run; run.{entry}(sys.argv[2:])"
)
_WORDS: Final = 200


def arguments(sources: str, world: World, attempts: Sequence[Attempt], entry: str = "main") -> list[str]:
    """After the interpreter: isolated, without site packages, and with `sources` to import from."""
    ids = ",".join(attempt.id for attempt in attempts)
    return ["-I", "-S", "-c", _BOOT.format(entry=entry), sources, json.dumps(asdict(world)), ids]


@contextlib.contextmanager
def broker() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a socket as a job and the broker have them."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def together(outside: Outside, attempts: Sequence[Attempt], limits: Limits, folder: Path) -> dict[str, Tried]:
    """Try `attempts` on the host, or in scratch namespaces, as each of them asks; by id."""
    found: dict[str, Tried] = {}
    for place in (HOST, SCRATCH):
        mine = [attempt for attempt in attempts if attempt.place == place]
        if mine:
            with broker() as (_, theirs):
                found |= _run(outside, mine, limits, place, folder / place, theirs)
    return found


def alone(outside: Outside, attempt: Attempt, limits: Limits, folder: Path) -> tuple[Tried, int, bool]:
    """Try one attempt by itself.

    Returns:
        What came of it, the size of its output, and whether a process of it was still there afterwards.
    """
    with broker() as (ours, theirs):
        found = _run(outside, [attempt], limits, HOST, folder, theirs, "alone")
        theirs.close()
        return found[attempt.id], (folder / "said").stat().st_size, still_open(ours)


def still_open(ours: socket.socket) -> bool:
    """Whether anybody holds the other end."""
    ours.setblocking(False)
    try:
        return ours.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


def _run(
    outside: Outside,
    attempts: Sequence[Attempt],
    limits: Limits,
    place: str,
    folder: Path,
    theirs: socket.socket,
    entry: str = "main",
) -> dict[str, Tried]:
    folder.mkdir()
    world = outside.control(place, limits, folder, theirs.fileno())
    command = [sys.executable, *arguments(str(SOURCES), world, attempts, entry)]
    said, words = folder / "said", folder / "words"
    with said.open("wb") as stdout, words.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=folder,
            pass_fds=(*outside.leaked, theirs.fileno()),
        )
        with process, contextlib.suppress(subprocess.TimeoutExpired):
            try:
                process.wait(TIMEOUT_S)
            finally:
                process.kill()
    found = read(said.read_bytes(), [attempt.id for attempt in attempts])
    missing = Tried(Result.broken, 0, _last(words.read_bytes()))
    return {attempt.id: found.get(attempt.id, missing) for attempt in attempts}


def _last(words: bytes) -> str:
    lines = words.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:_WORDS] if lines else "said nothing"
