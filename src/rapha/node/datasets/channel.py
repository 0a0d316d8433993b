"""A dataset process and the socket to it: started, asked, listened to, ended."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import IO, Any, Final, Self

from rapha.node.datasets import control, frames, wire
from rapha.spec.refusals import Refused

_END_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.2

Tell = Callable[[control.Progress], None]
Stopped = Callable[[], bool]


class Channel:
    """One dataset process for one job. A context manager; leaving it ends the process.

    The process dies with the thread that made it (PR_SET_PDEATHSIG is per thread), so make it on the
    thread that runs the job. Methods are not safe for concurrent use.

    Args:
        log: where its stderr goes; by default the pipeline's own.
        tell: called with the progress of long work, while a request waits for its reply.
        stopped: asked a few times a second meanwhile; true ends the process, and the request with
            `node.stopped`. It may raise `Refused` itself.
        limit_s: the longest that opening, counting or decoding may take; then the process is ended.
    """

    def __init__(
        self,
        log: IO[bytes] | None = None,
        tell: Tell | None = None,
        stopped: Stopped | None = None,
        limit_s: float = math.inf,
    ) -> None:
        self._tell, self._stopped, self._limit_s = tell, stopped, limit_s
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._first_record_served = False
        with theirs:
            self._process = subprocess.Popen(
                # -I: neither the environment nor the working folder decides what is imported.
                [sys.executable, "-I", "-m", "rapha.node.datasets.process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=(theirs.fileno(),),
                env={"LANG": "C.UTF-8"},
                cwd="/",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def first_record_served(self) -> bool:
        """Whether the job may have seen a record: once true, a failure may no longer name its cause."""
        with contextlib.suppress(frames.Closed):
            while select.select([self._sock], [], [], 0)[0]:
                self._take_event(frames.receive(self._sock)[0])
        return self._first_record_served

    def kill(self) -> None:
        """End the process at once; counts stay in the journal. Idempotent."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process in order, or by force if it does not end by itself. Idempotent."""
        with self._sock:
            if self._sock.fileno() >= 0:
                self._sock.settimeout(_END_SECONDS)
                with contextlib.suppress(frames.Closed, TimeoutError):
                    frames.send(self._sock, wire.request_frame(control.Close()))
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()

    def _ask(
        self,
        request: control.Request,
        descriptor: int | None = None,
        *,
        long: bool = False,
        limit_s: float = math.inf,
    ) -> tuple[Mapping[str, Any], int | None]:
        """The reply; `long` work is given up when the node is told to stop, or after `limit_s`."""
        try:
            frames.send(self._sock, wire.request_frame(request), descriptor)
            begun, limit_s = time.monotonic(), min(limit_s, self._limit_s)
            while True:
                if long:
                    self._wait(begun, limit_s)
                frame, received = frames.receive(self._sock)
                if "event" in frame:
                    self._take_event(frame)
                    continue
                return wire.read_reply(frame), received
        except frames.Closed:
            raise Refused("node.internal", "the dataset process ended") from None

    def _wait(self, begun: float, limit_s: float) -> None:
        """Until the process says something, the node is told to stop, or the time is up."""
        try:
            while True:
                # Asked before each look, not only after a vain one: progress may come as often as we look.
                if self._stopped and self._stopped():
                    raise Refused("node.stopped")
                if time.monotonic() > begun + limit_s:
                    raise Refused("node.dataset_slow", f"not done within {limit_s:.0f} s")
                if select.select([self._sock], [], [], _LOOK_SECONDS)[0]:
                    return
        except Refused:
            self.kill()
            raise

    def _take_event(self, frame: dict[str, Any]) -> None:
        match frame:
            case {"event": "first_record", **rest} if not rest:
                self._first_record_served = True
            case {"event": "progress", **rest}:
                told = control.Progress.parse(rest, "progress")
                if self._tell:
                    self._tell(told)
            case _:
                raise Refused("node.internal", "the dataset process sent an unknown event")
