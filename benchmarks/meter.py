"""Exact counts at any size: shuffled epochs, duplicates, an interrupted walk, kill -9, and recovery.

    python benchmarks/meter.py [--records N]

A broker in a process of its own holds N records of one byte; a job walks through them, and a bit for each
record says what it should have counted. Every way of asking is followed by a restart of the broker from its
journal, once by kill -9 in the middle of a walk. One JSON line: {"name", "records", "exact", "ratio",
"memory_mb", "limit_mb", "seconds", "recovery_seconds"}. `memory_mb` is the most that any broker grew by
beside the store's own arrays, in counting, serving and recovering; `ratio` is limit ÷ memory.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Process, Queue
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapha.runtime.broker.meter import Meter
from rapha.runtime.broker.serve import Broker
from rapha.runtime.broker.store import TableStore
from rapha_trainer.session import BrokerSource
from rapha_trainer.source import Epoch

KEY = bytes(range(32))
LIMIT_MB = 64
BATCH = 1 << 15

Bits = NDArray[np.uint8]


def _memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def broker(records: int, journal: Path, ours: socket.socket, told: Queue[dict[str, Any]]) -> None:
    """Serve until the job's end is closed; tell the usage and by how much memory grew beside the store."""
    # A record is its number modulo 251: every batch shows that it is the right one.
    data = np.resize(np.arange(251, dtype=np.uint8), records)
    patients = np.arange(records, dtype=np.int64)
    patients //= 2
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew (proc(5))
    before, begun = _memory("VmRSS"), time.perf_counter()
    store = TableStore({"x": data}, patients)
    if journal.exists():
        meter = Meter.recover(journal, patients=patients, key=KEY)
    else:
        meter = Meter.create(journal, patients=patients, cap=records, key=KEY)
    recovered = meter.usage()
    took = time.perf_counter() - begun
    usage = Broker(store, {"train": range(records), "test": range(0)}, meter).serve(ours)
    meter.close()
    told.put(
        {
            "at_start": (recovered.unique_records, recovered.unique_patients),
            "at_end": (usage.unique_records, usage.unique_patients),
            "grown": _memory("VmHWM") - before,
            "recovery": took,
        }
    )


@dataclass
class Job:
    """The other end, with a bit for each record that it saw."""

    records: int
    journal: Path
    seen: Bits
    grown: int = 0
    recovery: float = 0.0

    def run(self, ask: Callable[[Job, BrokerSource, Process], None]) -> None:
        """Serve one session, and check what the broker says before and after it."""
        told: Queue[dict[str, Any]] = Queue()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = Process(target=_child, args=(self.records, self.journal, ours, theirs, told))
        process.start()
        ours.close()
        at_start = self.counts()
        source = BrokerSource(theirs.fileno(), "train")
        ask(self, source, process)
        source.close()
        theirs.close()
        if not process.is_alive() or process.exitcode is not None:
            return
        answer = told.get(timeout=600)
        process.join()
        assert answer["at_start"] == at_start, (answer, at_start)
        assert answer["at_end"] == self.counts(), (answer, self.counts())
        self.grown = max(self.grown, answer["grown"])
        self.recovery = max(self.recovery, answer["recovery"])

    def read(self, source: BrokerSource, epoch: Epoch, order: NDArray[np.int64] | None, stop: int) -> None:
        """Read `stop` records of an epoch; marks what was asked for, and checks what came."""
        from rapha_trainer.order import positions

        at = epoch.start
        for batch in source.batches(epoch):
            values = np.asarray(batch["x"])
            until = at + len(values)
            walked = positions(self.records, epoch.seed, epoch.number, at, until)
            expected = (
                order[at:until] if order is not None else walked if epoch.shuffle else np.arange(at, until)
            )
            assert np.array_equal(values, expected % 251)
            self.mark(expected)
            at = until
            if at >= stop:
                break

    def mark(self, records: NDArray[np.int64]) -> None:
        """These were handed over."""
        np.bitwise_or.at(self.seen, records >> 3, (1 << (records & 7)).astype(np.uint8))

    def counts(self) -> tuple[int, int]:
        """Unique records and patients: two neighbours are one patient's."""
        pairs = self.seen | self.seen >> 1
        return int(np.bitwise_count(self.seen).sum()), int(np.bitwise_count(pairs & 0x55).sum())


def _child(
    records: int, journal: Path, ours: socket.socket, theirs: socket.socket, told: Queue[dict[str, Any]]
) -> None:
    theirs.close()
    broker(records, journal, ours, told)


def _epoch(**given: Any) -> Epoch:
    usual = {"batch_size": BATCH, "shuffle": True, "seed": 1, "number": 0, "drop_last": False}
    return Epoch(**{**usual, "indices": None, "prefetch": 0, **given})


def duplicates(job: Job, source: BrokerSource, _: Process) -> None:
    """Explicit indices, many of them twice."""
    chosen = np.random.default_rng(0).integers(0, job.records, min(job.records, 10**6) // 2)
    chosen = np.concatenate([chosen, chosen[::-2]]).astype(np.uint32)
    job.read(source, _epoch(indices=chosen, shuffle=False), chosen.astype(np.int64), len(chosen))


def interrupted(job: Job, source: BrokerSource, _: Process) -> None:
    """A shuffled walk, left after a third, and another one over it."""
    job.read(source, _epoch(), None, job.records // 3)
    job.read(source, _epoch(number=1), None, job.records // 10)


def resumed(job: Job, source: BrokerSource, _: Process) -> None:
    """An epoch that is taken up behind its middle."""
    job.read(source, _epoch(number=2, start=job.records // 2), None, job.records // 2 + job.records // 10)


def killed(job: Job, source: BrokerSource, process: Process) -> None:
    """kill -9 between two batches of a walk."""
    job.read(source, _epoch(number=3), None, job.records // 4)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def whole(job: Job, source: BrokerSource, _: Process) -> None:
    """Two whole epochs."""
    for number in (4, 5):
        job.read(source, _epoch(number=number), None, job.records)


def fresh_killed(job: Job, source: BrokerSource, process: Process) -> None:
    """kill -9 in the first walk of all, which has looked up no record yet."""
    killed(job, source, process)


SCENARIOS = (
    (fresh_killed, duplicates, interrupted, resumed, killed, whole),
    (whole, duplicates),
)


def main() -> None:
    """Print the JSON line; fails where a count is off by one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10**8)
    options = parser.parse_args()
    begun, grown, recovery = time.perf_counter(), 0, 0.0
    for scenario in SCENARIOS:
        with tempfile.TemporaryDirectory() as name:
            job = Job(options.records, Path(name) / "journal", np.zeros(options.records // 8 + 1, np.uint8))
            for ask in scenario:
                job.run(ask)
            job.run(lambda job, source, process: None)
        grown, recovery = max(grown, job.grown), max(recovery, job.recovery)
    line = {
        "name": "meter.exact",
        "records": options.records,
        "exact": True,
        "ratio": round(LIMIT_MB * 2**20 / grown, 3),
        "memory_mb": round(grown / 2**20, 1),
        "limit_mb": LIMIT_MB,
        "seconds": round(time.perf_counter() - begun, 1),
        "recovery_seconds": round(recovery, 2),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
