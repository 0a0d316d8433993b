"""The pipeline's side of the dataset process: typed, synchronous, and raising what the process refuses."""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from rapha.node.config import Preparation
from rapha.node.datasets import control, frames
from rapha.spec.dataset import DatasetManifest
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import TrustedMetric

_END_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.2

Tell = Callable[[control.Progress], None]
Stopped = Callable[[], bool]


class DatasetProcess:
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

    def resolve(self, request: control.Resolve) -> control.Resolved:
        """Gate 5: consent, cohort, cells. May be asked again until the first `serve`.

        Raises:
            Refused: `schema.cohort_field`, `consent.*`, `privacy.cohort_refused`, `node.*`.
        """
        return control.Resolved.parse(self._ask(request, long=True)[0])

    def describe(self, manifest: DatasetManifest, folder: Path, means: control.Means) -> control.Described:
        """Exact counts of usable records and their patients, opt-outs removed, and what fell out.

        Raises:
            Refused: `node.dataset_*`.
        """
        request = control.Describe(manifest=manifest, folder=str(folder.resolve()), means=means)
        return control.Described.parse(self._ask(request, long=True)[0])

    def prepare(self) -> control.Prepared:
        """Decode the resolved records; once, before `serve`.

        Raises:
            Refused: `privacy.cohort_refused` when too few patients are left, `policy.conflict`, `node.*`.
        """
        return control.Prepared.parse(self._ask(control.Prepare(), long=True)[0])

    def estimate(self, request: control.Estimate) -> control.Estimated:
        """Bucketed counts of a cohort, for its feasibility.

        Raises:
            Refused: `schema.cohort_field`, `node.*`.
        """
        return control.Estimated.parse(self._ask(request, long=True)[0])

    def serve(self, split: control.Split) -> socket.socket:
        """Serve a split of the prepared records, ending an earlier session; returns the job's end.

        Close it here once the job has its own copy: the session ends when the last copy is closed.

        Raises:
            Refused: `policy.conflict`, `node.*`, or what the earlier session failed with.
        """
        _, descriptor = self._ask(control.Serve(split=split))
        if descriptor is None:
            raise Refused("node.internal", "the dataset process gave no socket")
        return socket.socket(fileno=descriptor)

    def usage(self) -> control.Used:
        """Exact counts, after ending the session that runs.

        After a crash, resolve the same job in a new process and ask it: the answer is the journal's.

        Raises:
            Refused: `node.journal_invalid`, `node.*`, or what the session failed with.
        """
        return control.Used.parse(self._ask(control.Usage())[0])

    def score(self, predictions: Path | bytes, metrics: tuple[TrustedMetric, ...]) -> dict[str, float]:
        """Trusted metrics by name, rounded, over the test split in the order in which it was served.

        A value that rests on a small cell is left out (`rapha.runtime.metrics.evaluate`).

        Raises:
            Refused: `job.outputs` if they are not one finite float32 a record in the file, `schema.*`,
                `node.*`.
        """
        descriptor = _open_predictions(predictions)
        try:
            return control.Scored.parse(self._ask(control.Score(metrics=metrics), descriptor)[0]).values
        finally:
            os.close(descriptor)

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
                    frames.send(self._sock, control.request_frame(control.Close()))
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()

    def _ask(
        self, request: control.Request, descriptor: int | None = None, *, long: bool = False
    ) -> tuple[Mapping[str, Any], int | None]:
        """The reply; `long` work is given up when the node is told to stop."""
        try:
            frames.send(self._sock, control.request_frame(request), descriptor)
            deadline = time.monotonic() + self._limit_s
            while True:
                if long:
                    self._wait(deadline)
                frame, received = frames.receive(self._sock)
                if "event" in frame:
                    self._take_event(frame)
                    continue
                return control.read_reply(frame), received
        except frames.Closed:
            raise Refused("node.internal", "the dataset process ended") from None

    def _wait(self, deadline: float) -> None:
        """Until the process says something, the node is told to stop, or the time is up."""
        try:
            while True:
                # Asked before each look, not only after a vain one: progress may come as often as we look.
                if self._stopped and self._stopped():
                    raise Refused("node.stopped")
                if time.monotonic() > deadline:
                    raise Refused("node.dataset_slow", f"not done within {self._limit_s:.0f} s")
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


def means(allowed: Preparation, shards: Path) -> control.Means:
    """What a dataset process may spend; `shards` is the folder for what doesn't fit in memory."""
    workers = allowed.workers or len(os.sched_getaffinity(0))
    return control.Means(workers=workers, memory_bytes=allowed.memory_bytes, shards=str(shards))


def _open_predictions(predictions: Path | bytes) -> int:
    """A descriptor to pass. Raises `Refused` (`job.outputs`) where the job left something else."""
    if isinstance(predictions, bytes):
        descriptor = os.memfd_create("predictions", os.MFD_CLOEXEC)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(predictions)
        return descriptor
    try:
        # The job chose what lies there: a link must not be followed, a FIFO must not hang the node.
        return os.open(predictions, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Refused("job.outputs", f"predictions: {error.strerror}") from None
