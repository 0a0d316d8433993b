"""The pool's end of the process that workers are forked from."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from typing import Final

from rapha.node.sources.workers import frames
from rapha.node.sources.workers.worker import FORK, Order
from rapha.runtime.guard.process import ENVIRONMENT
from rapha.spec.refusals import Refused

_START_S: Final = 60.0
_END_S: Final = 5.0
_COMMAND: Final = ("-I", "-B", "-m", "rapha.node.sources.workers.worker")


class Template:
    """Started with a fixed environment, in `/`, with one socket and the folder; dies with this process.

    It must be started by a thread that outlives it: a death signal is tied to the thread.

    Raises:
        Refused: `node.sandbox_unavailable` where a wall can't be had; `node.internal` where the task
            doesn't start.
    """

    def __init__(self, order: Order, setup: bytes, folder: int | None) -> None:
        self._up = False
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_START_S)
        with theirs:
            command = [sys.executable, *_COMMAND, str(theirs.fileno()), str(os.getpid())]
            null = subprocess.DEVNULL
            try:
                self._process = subprocess.Popen(
                    command, stdin=null, stdout=null, stderr=null, env=ENVIRONMENT, cwd="/",
                    start_new_session=True, pass_fds=(theirs.fileno(),),
                )  # fmt: skip
            except OSError as error:
                self._control.close()
                raise Refused("node.internal", f"the workers don't start: {error.strerror}") from None
        body = order.encode(setup)
        with contextlib.suppress(OSError):  # where it ended already, `wait` says why
            socket.send_fds(self._control, [body[:8]], [] if folder is None else [folder])
            self._control.sendall(body[8:])

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait(self) -> None:
        """Until the task is imported and the walls are up. Raises as the class does. Idempotent."""
        if self._up:
            return
        said = b""
        with contextlib.suppress(OSError):
            said = self._control.recv(4096)
        if said != frames.READY:
            raise start_refusal(said[1:])
        self._up = True

    def fork(self, pool: socket.socket, memory: int | None) -> int:
        """A worker that uses `pool` and the output `memory`; returns its pidfd, the caller's to close."""
        try:
            socket.send_fds(self._control, [FORK], [pool.fileno(), *([] if memory is None else [memory])])
            said, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
        except OSError:
            said, descriptors = b"", []
        if said != FORK or len(descriptors) != 1:
            raise Refused("node.internal", "the workers' process is gone")
        return descriptors[0]

    def close(self) -> None:
        """Kill it, and by its death its workers. Idempotent."""
        self._control.close()
        self._process.kill()
        self._process.wait()


def start_refusal(line: bytes) -> Refused:
    """What a process that didn't get as far as a record said of it; `wall: …` or `task: …`."""
    text = "".join(c for c in line.decode(errors="replace")[:300] if c.isprintable())
    if text.startswith("wall: "):
        return Refused("node.sandbox_unavailable", f"a worker's walls: {text[6:]}")
    return Refused("node.internal", f"the workers don't start: {text or 'no word'}")


def kill(pidfd: int) -> bool:
    """Kill what `pidfd` stands for; whether it is gone by now (a process in a dead mount may not be)."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    return bool(waiting.poll(_END_S * 1000))
