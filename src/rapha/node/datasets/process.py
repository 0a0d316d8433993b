"""The dataset process: the only process of a node that opens records.

    python -m rapha.node.datasets.process FD

FD is its one control socket (see `control`), inherited from the pipeline. It holds the records in memory,
runs the broker and computes trusted metrics, since it alone holds the labels. It dies with the pipeline,
leaves no core, can't be traced by its user, and says nothing of a record: replies are closed types,
refusals carry code and words that name no value, and a defect is logged by its class and place only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from typing import Any, BinaryIO, Final

from rapha.node.datasets import control, frames, memory, wire
from rapha.node.datasets.ledger import messages
from rapha.node.datasets.ledger.view import inspect
from rapha.node.datasets.session import Session
from rapha.spec.disclosure import Balance
from rapha.spec.refusals import Refused

_PROGRESS_S: Final = 0.2


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
        except (frames.Closed, Refused) as ended:
            _log_place(ended)
            return 1
    return 0


class _Process:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self._told_at = 0.0
        self.session = Session(self._first_record, self._progress)

    def run(self) -> None:
        while True:
            frame, descriptor = frames.receive(self._sock)
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
            request = wire.read_request(frame)
            done, passed = self._perform(request, descriptor)
        except Refused as refused:
            self._send(wire.refusal_frame(refused))
            return False
        except Exception as error:  # noqa: BLE001  the words of an exception may quote a record
            _log_place(error)
            self._send(wire.refusal_frame(Refused("node.internal", "the dataset process failed")))
            return False
        with passed or contextlib.nullcontext():
            self._send({"done": done.dump()}, passed)
        return isinstance(request, control.Close)

    def _perform(
        self, request: control.Request, descriptor: int | None
    ) -> tuple[control.Reply, socket.socket | BinaryIO | None]:
        match request:
            case control.Resolve():
                return self.session.resolve(request), None
            case control.Describe():
                return self.session.describe(request), None
            case control.Prepare():
                return self.session.prepare(), None
            case control.Estimate():
                return self.session.estimate(request), None
            case control.Serve() | control.Groups():
                return control.Done(), self._handed_over(request)
            case control.Usage():
                return self.session.usage(), None
            case control.Score(metrics=metrics):
                return self.session.score(descriptor, metrics), None
            case control.Observe(shadow=shadow):
                return self.session.observe(descriptor, shadow), None
            case control.Audit():
                return self.session.audit(), None
            case control.Search(content=content):
                return self.session.search(descriptor, content), None
            case control.Close():
                return control.Done(), None
            case messages.Reserve() | messages.Settle() | messages.Inspect():
                return self._of_ledger(request), None

    def _handed_over(self, request: control.Serve | control.Groups) -> socket.socket | BinaryIO:
        match request:
            case control.Serve(split=split, shadow=shadow):
                return self.session.serve(split, shadow)
            case control.Groups(shadow=shadow):
                return self.session.groups(shadow)

    def _of_ledger(
        self, request: messages.Reserve | messages.Settle | messages.Inspect
    ) -> messages.Shown | Balance:
        match request:
            case messages.Reserve(price=price):
                return self.session.reserve(price)
            case messages.Settle(bits=bits, released=released):
                return self.session.settle(bits, released)
            case messages.Inspect():
                return inspect(request)

    def _first_record(self) -> None:
        # Sent before the record is handed over, so that the pipeline knows even if this process is killed.
        self._send({"event": "first_record"})

    def _progress(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._told_at >= _PROGRESS_S or done == total:
            self._told_at = now
            told = control.Progress(stage=stage, done=done, total=total)
            self._send({"event": "progress", **told.dump()})

    def _send(self, frame: dict[str, Any], passed: socket.socket | BinaryIO | None = None) -> None:
        with self._sending:
            frames.send(self._sock, frame, None if passed is None else passed.fileno())


def _harden() -> None:
    """As `memory.harden`, and no exception says more than where it was raised."""
    memory.harden()
    sys.excepthook = lambda _kind, error, _trace: _log_place(error)


def _log_place(error: BaseException) -> None:
    """Write the class of `error` and where it was raised, never its words or arguments."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "nowhere"
    sys.stderr.write(f"dataset process: {type(error).__name__} at {place}\n")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
