"""The metered loader against PyTorch's DataLoader, a bare memmap gather, and itself without a meter.

    python benchmarks/loader.py [--records N] [--epochs N] [--rounds N]

Records of 64 float32, batches of 256, shuffled, one machine, one run; the consumer reads one element of
each batch. Rounds of all contestants take turns, and medians count. One JSON line a comparison:
{"name", "ours", "theirs", "ratio", "unit"}; unit is million records a second.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rapha.runtime.broker.handover import Descriptor
from rapha.runtime.broker.meter import Meter, Walk
from rapha.runtime.broker.serve import Broker
from rapha.runtime.broker.store import TableStore
from rapha_trainer import RaphaDataLoader
from rapha_trainer import session as sessions

WIDTH, BATCH = 64, 256


class UnmeteredMeter(Meter):
    """Hands over without counting: what the loader would cost without its meter. Lives only here."""

    def advance(self, walk: Walk, count: int, about: Descriptor) -> NDArray[np.int64]:
        """The next records, uncounted."""
        start = walk.cursor
        walk.cursor += count
        return walk.order.dense(start, walk.cursor)


class PerItem(torch.utils.data.Dataset[torch.Tensor]):
    """The usual map-style dataset: one record an item."""

    def __init__(self, data: NDArray[np.float32]) -> None:
        self.data = torch.from_numpy(data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.data[index]


def through_broker(data: NDArray[np.float32], epochs: int, kind: type[Meter], folder: Path) -> float:
    """Million records a second through a broker in a process of its own."""
    records = len(data)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        theirs.close()
        patients = np.arange(records) // 2
        meter = kind.create(folder / f"{os.getpid()}", patients=patients, cap=records, key=bytes(range(32)))
        split = {"train": np.arange(records), "test": np.empty(0, np.int64)}
        usage = Broker(TableStore({"x": data}, patients), split, meter).serve(ours)
        os._exit(kind is Meter and usage.unique_records != records)
    ours.close()
    os.environ["RAPHA_BROKER_FD"] = str(theirs.fileno())
    loader = RaphaDataLoader(BATCH, shuffle=True, seed=1, epochs=epochs)
    speed = _speed(loader, lambda batch: batch["x"], epochs * records)
    for source in list(sessions._connected.values()):
        source.close()
    theirs.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the count is wrong"
    return speed


def memmap(path: Path, epochs: int) -> float:
    """Million records a second of a bare shuffled gather from a memory-mapped file."""
    data = np.load(path, mmap_mode="r")

    def batches() -> Any:
        for epoch in range(epochs):
            order = np.random.Generator(np.random.PCG64([1, epoch])).permutation(len(data))
            for start in range(0, len(data), BATCH):
                yield data[order[start : start + BATCH]]

    return _speed(batches(), lambda batch: batch, epochs * len(data))


def per_item(data: NDArray[np.float32]) -> float:
    """Million records a second of PyTorch's DataLoader over a map-style dataset, one epoch."""
    loader = torch.utils.data.DataLoader(PerItem(data), BATCH, shuffle=True)
    return _speed(loader, lambda batch: batch, len(data))


def _speed(batches: Any, field: Callable[[Any], Any], records: int) -> float:
    begun, total = time.perf_counter(), 0
    for batch in batches:
        array = field(batch)
        total += len(array) + 0 * int(array[0, 0])
    assert total == records
    return records / (time.perf_counter() - begun) / 1e6


def main() -> None:
    """Print one JSON line for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = np.random.default_rng(0).standard_normal((options.records, WIDTH), dtype=np.float32)
    speeds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "data.npy", data)
        for _ in range(options.rounds):
            for contestant, speed in (
                ("metered", through_broker(data, options.epochs, Meter, folder)),
                ("unmetered", through_broker(data, options.epochs, UnmeteredMeter, folder)),
                ("memmap", memmap(folder / "data.npy", options.epochs)),
                ("per-item", per_item(data)),
            ):
                speeds.setdefault(contestant, []).append(speed)
    for name, other in (
        ("loader.vs_pytorch_per_item", "per-item"),
        ("loader.vs_memmap_gather", "memmap"),
        ("loader.metering_on_vs_off", "unmetered"),
    ):
        ours, theirs = median(speeds["metered"]), median(speeds[other])
        figures = {"ours": round(ours, 3), "theirs": round(theirs, 3), "ratio": round(ours / theirs, 3)}
        print(json.dumps({"name": name, **figures, "unit": "Mrec/s"}))


if __name__ == "__main__":
    main()
