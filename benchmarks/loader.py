"""The metered loader against PyTorch's DataLoader, a bare memmap gather, and itself without a meter.

    python benchmarks/loader.py [--records N] [--rounds N] [--rag N]

Records of 64 float32, batches of 256, shuffled, one machine, one run; the consumer reads one element of
each batch. In each round both contestants read one epoch, taking turns at beginning; the ratio is the
median over rounds. PyTorch's per-item loader is the better of 0 and 2 workers, and reads a few rounds only.
`start` is the first epoch of a job, when each record is new to the meter, with what is done once a job (one
journal, on disk); `fresh` is the same over ten times the records. One JSON line a comparison:
{"name", "ours", "theirs", "ratio", "unit"}; unit is million records a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rapha.runtime.broker.handover import Descriptor
from rapha.runtime.broker.meter import Meter
from rapha.runtime.broker.serve import Broker
from rapha.runtime.broker.splits import Order
from rapha.runtime.broker.store import Ragged, TableStore
from rapha.runtime.broker.tally import Run, Walk
from rapha_trainer import RaphaDataLoader
from rapha_trainer import session as sessions

WIDTH, BATCH = 64, 256
ITEM_ROUNDS = 3
FRESH_ROUNDS, FRESH_TIMES = 15, 10

Epoch = Callable[[int], float]
"""Reads one epoch, given its number; returns million records a second."""


class UnmeteredMeter(Meter):
    """Hands over without counting: what the loader would cost without its meter. Lives only here."""

    def walk(self, order: Order, first: int = 0) -> Walk:
        """A walk that no tally knows."""
        return Walk(order, Run.USED, first)

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


@contextlib.contextmanager
def through_broker(columns: dict[str, Any], records: int, kind: type[Meter], folder: Path) -> Iterator[Epoch]:
    """Epochs through a broker in a process of its own, whose count is checked at the end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        theirs.close()
        patients = np.arange(records) // 2
        meter = kind.create(folder / f"{os.getpid()}", patients=patients, cap=records, key=bytes(range(32)))
        split = {"train": range(records), "test": range(0)}
        usage = Broker(TableStore(columns, patients), split, meter).serve(ours)
        os._exit(kind is Meter and usage.unique_records != records)
    ours.close()

    def epoch(number: int) -> float:
        os.environ["RAPHA_BROKER_FD"] = str(theirs.fileno())
        return _speed(RaphaDataLoader(BATCH, shuffle=True, seed=number), lambda batch: batch["x"], records)

    yield epoch
    sessions._connected[theirs.fileno()].close()
    # Processes that were forked since, such as PyTorch's workers, have copies of it.
    theirs.shutdown(socket.SHUT_RDWR)
    theirs.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the count is wrong"


def memmap(path: Path) -> Epoch:
    """A bare shuffled gather from a memory-mapped file."""
    data = np.load(path, mmap_mode="r")

    def batches(number: int) -> Iterator[Any]:
        order = np.random.Generator(np.random.PCG64([1, number])).permutation(len(data))
        for start in range(0, len(data), BATCH):
            yield data[order[start : start + BATCH]]

    return lambda number: _speed(batches(number), lambda batch: batch, len(data))


def per_item(data: NDArray[np.float32], workers: int) -> Epoch:
    """PyTorch's DataLoader over a map-style dataset."""
    loader = torch.utils.data.DataLoader(
        PerItem(data), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda number: _speed(loader, lambda batch: batch, len(data))


def _speed(batches: Any, field: Callable[[Any], Any], records: int) -> float:
    begun, total = time.perf_counter(), 0
    for batch in batches:
        array = field(batch)
        total += len(array) + 0 * int(array[0, 0])
    assert total == records
    return records / (time.perf_counter() - begun) / 1e6


def race(name: str, ours: Epoch, theirs: Epoch, rounds: range) -> None:
    """Print the comparison."""
    speeds: tuple[list[float], list[float]] = ([], [])
    for number in rounds:
        for side in (0, 1) if number % 2 else (1, 0):
            speeds[side].append((ours, theirs)[side](number))
    mine, other = median(speeds[0]), median(speeds[1])
    ratio = median(a / b for a, b in zip(*speeds, strict=True))
    figures = {"ours": round(mine, 3), "theirs": round(other, 3), "ratio": round(ratio, 3)}
    print(json.dumps({"name": name, **figures, "unit": "Mrec/s"}))


def race_of_meters(columns: dict[str, Any], records: int, rounds: int, folder: Path) -> None:
    """With and without counting: in later epochs, and in the first one of each of many jobs."""

    def first(kind: type[Meter]) -> Epoch:
        def epoch(number: int) -> float:
            with through_broker(columns, records, kind, folder) as begun:
                return begun(number)

        return epoch

    pairs: list[tuple[Epoch, Epoch]] = []
    with contextlib.ExitStack() as stack:
        # Two brokers of each kind: the process that was begun first is a little slower whichever it is.
        for kinds in ((Meter, UnmeteredMeter), (UnmeteredMeter, Meter)):
            begun = {k: stack.enter_context(through_broker(columns, records, k, folder)) for k in kinds}
            pairs.append((begun[Meter], begun[UnmeteredMeter]))
        for epoch in (epoch for pair in pairs for epoch in pair):
            epoch(0)
        metered, unmetered = (
            lambda number, side=side: pairs[number // 2 % 2][side](number) for side in (0, 1)
        )
        race("loader.metering_on_vs_off", metered, unmetered, range(1, rounds + 1))
    race("loader.metering_on_vs_off.start", first(Meter), first(UnmeteredMeter), range(FRESH_ROUNDS))
    # What a job pays once is what `start` shows; here the first epoch is long enough for what a record costs.
    columns, records = (
        {name: np.tile(c, (FRESH_TIMES, 1)) for name, c in columns.items()},
        FRESH_TIMES * records,
    )
    race("loader.metering_on_vs_off.fresh", first(Meter), first(UnmeteredMeter), range(FRESH_ROUNDS))


def race_of_loaders(data: NDArray[np.float32], rounds: int, folder: Path) -> None:
    """Against PyTorch and a bare gather."""
    np.save(folder / "data.npy", data)
    items = {workers: per_item(data, workers) for workers in (0, 2)}
    best = items[max(items, key=lambda workers: items[workers](0))]
    with through_broker({"x": data}, len(data), Meter, folder) as metered:
        metered(0)
        race("loader.vs_pytorch_per_item", metered, best, range(1, ITEM_ROUNDS + 1))
        race("loader.vs_memmap_gather", metered, memmap(folder / "data.npy"), range(rounds))


def race_of_ragged(records: int, rounds: int, folder: Path) -> None:
    """Records of 0 to 128 float32: what varying length costs beside one of 64."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 2 * WIDTH + 1, records))])
    values = rng.standard_normal(int(offsets[-1]), dtype=np.float32)
    fixed = np.zeros((records, WIDTH), np.float32)
    columns = {"x": fixed[:, :1], "values": Ragged(values, offsets)}
    with (
        through_broker(columns, records, Meter, folder) as ragged,
        through_broker({"x": fixed}, records, Meter, folder) as plain,
    ):
        race("loader.ragged_vs_fixed", ragged, plain, range(rounds))


def main() -> None:
    """Print one JSON line for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--rag", type=int, default=5, help="rounds with records of varying length")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = np.random.default_rng(0).standard_normal((options.records, WIDTH), dtype=np.float32)
    with tempfile.TemporaryDirectory() as name:
        race_of_loaders(data, options.rounds, Path(name))
        race_of_meters({"x": data}, options.records, options.rounds, Path(name))
        race_of_ragged(options.records, options.rag, Path(name))


if __name__ == "__main__":
    main()
