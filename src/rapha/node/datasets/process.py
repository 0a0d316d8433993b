"""The dataset process: the only process of a node that opens records.

    python -m rapha.node.datasets.process FD

FD is its one control socket (see `control`), inherited from the pipeline. It holds the records in memory,
runs the broker and computes trusted metrics, since it alone holds the labels. It dies with the pipeline,
leaves no core, can't be traced by its user, and says nothing of a record: replies are closed types,
refusals carry code and words that name no value, and a defect is logged by its class and place only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from typing import Any, Final

from rapha.node.datasets import control
from rapha.node.datasets.session import Session
from rapha.spec.refusals import Refused

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4


def main(fd: int) -> int:
    """Answer requests until `Close` or until the pipeline is gone. Returns the exit status."""
    _harden()
    with socket.socket(fileno=fd) as sock:
        sock.set_inheritable(False)
        process = _Process(sock)
        try:
            try:
                process.run()
            finally:
                process.session.close()
        except (control.Closed, Refused) as ended:
            _log_place(ended)
            return 1
    return 0


class _Process:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self.session = Session(self._first_record)

    def run(self) -> None:
        while True:
            frame, descriptor = control.receive(self._sock)
            try:
                closing = self._answer(frame, descriptor)
            finally:
                if descriptor is not None:
                    os.close(descriptor)
            if closing:
                return

    def _answer(self, frame: dict[str, Any], descriptor: int | None) -> bool:
        """Perform one request and send its reply; true when it was `Close`."""
        try:
            request = control.read_request(frame)
            done, passed = self._perform(request, descriptor)
        except Refused as refused:
            self._send(control.refusal_frame(refused))
            return False
        except Exception as error:  # noqa: BLE001  the words of an exception may quote a record
            _log_place(error)
            self._send(control.refusal_frame(Refused("node.internal", "the dataset process failed")))
            return False
        with passed or contextlib.nullcontext():
            self._send({"done": done.dump()}, passed)
        return isinstance(request, control.Close)

    def _perform(
        self, request: control.Request, descriptor: int | None
    ) -> tuple[control.Reply, socket.socket | None]:
        match request:
            case control.Resolve():
                return self.session.resolve(request), None
            case control.Describe():
                return self.session.describe(request), None
            case control.Serve(split=split):
                return control.Done(), self.session.serve(split)
            case control.Usage():
                return self.session.usage(), None
            case control.Score(metrics=metrics):
                return self.session.score(descriptor, metrics), None
            case control.Close():
                return control.Done(), None

    def _first_record(self) -> None:
        # Sent before the record is handed over, so that the pipeline knows even if this process is killed.
        self._send({"event": "first_record"})

    def _send(self, frame: dict[str, Any], passed: socket.socket | None = None) -> None:
        with self._sending:
            control.send(self._sock, frame, None if passed is None else passed.fileno())


def _harden() -> None:
    """Die with the pipeline, never dump a core, never be attached to.

    Raises:
        OSError: the kernel refused; the process ends before it has seen anything.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, int(value), 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
    sys.excepthook = lambda _kind, error, _trace: _log_place(error)


def _log_place(error: BaseException) -> None:
    """Write the class of `error` and where it was raised, never its words or arguments."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "nowhere"
    sys.stderr.write(f"dataset process: {type(error).__name__} at {place}\n")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
