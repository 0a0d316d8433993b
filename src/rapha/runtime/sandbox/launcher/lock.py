"""The last step inside, between bubblewrap and the command: the Landlock domain.

Run by the node's interpreter in the finished sandbox, under its seccomp filter, with an environment of its
own: what the job may set (LD_PRELOAD, say) takes effect with the job, and not before the wall stands.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from rapha.runtime.sandbox.launcher import domain, landlock, system

READY: Final = "ready"
NOT_EXECUTED: Final = "not executed"
"""What is told beside the parts of Landlock that were seen to hold, a line each."""
_IGNORED_BY_PYTHON: Final = (13, 25)
"""SIGPIPE and SIGXFSZ; to be ignored is inherited."""
_EXIT_NOT_EXECUTED: Final = 127


def encode(version: int, argv: list[str], env: dict[str, str]) -> bytes:
    """What `main` reads: NUL-separated, the ABI, the number of arguments, arguments, `name=value`s."""
    fields = [str(version), str(len(argv)), *argv, *(f"{name}={value}" for name, value in env.items())]
    return b"\0".join(map(os.fsencode, fields))


def decode(data: bytes) -> tuple[int, list[bytes], dict[bytes, bytes]]:
    """ABI, arguments and environment, from `encode`'s bytes."""
    version, count, *rest = data.split(b"\0")
    split = (pair.partition(b"=") for pair in rest[int(count) :])
    return int(version), rest[: int(count)], {name: value for name, _, value in split}


def failure(version: int, told: bytes, said: str) -> tuple[str, bool]:
    """Why the command was not started, from what came through the pipe; empty if it was.

    Args:
        version: the kernel's ABI, all of whose parts must have been seen to hold.
        told: all that was told.
        said: what came on stderr.

    Returns:
        The reason, and whether it is that there is no such command.
    """
    lines = set(told.decode("ascii", "replace").splitlines())
    missing = sorted({*landlock.rights(version).names, READY} - lines)
    if not missing and NOT_EXECUTED not in lines:
        return "", False
    return said or f"landlock was not seen to hold: {', '.join(missing)}", NOT_EXECUTED in lines


def main(order: int, report: int, tcp: int) -> None:
    """Read the order, restrict this process, prove it, tell `report`, and become the command.

    None of the descriptors outlives this; `tcp` is `domain.enter`'s. Exits 127 if there is no such command.

    Raises:
        UnprovenError, OSError: the wall does not stand.
    """
    os.set_inheritable(report, False)
    with open(order, "rb") as file:
        version, argv, env = decode(file.read())
    held = domain.enter(version, tcp) if version else ()
    if tcp >= 0:
        os.close(tcp)
    _tell(report, (*held, READY))
    os.environb.clear()
    os.environb.update(env)
    for number in _IGNORED_BY_PYTHON:
        system.default_signal(number)
    try:
        system.execvp(argv)
    except OSError as error:
        name = os.fsdecode(argv[0])
        os.write(2, f"rapha: execvp {name}: {error.strerror}\n".encode("utf-8", "backslashreplace"))
        _tell(report, [NOT_EXECUTED])
    os._exit(_EXIT_NOT_EXECUTED)


def _tell(report: int, lines: Iterable[str]) -> None:
    os.write(report, "".join(f"{line}\n" for line in lines).encode())
