"""Home and node hand out the same bytes: the same records through a real broker and through a file."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch

import rapha.runtime.broker.order
import rapha_trainer.order
from rapha.runtime.broker.meter import Meter, Usage
from rapha.runtime.broker.serve import Broker
from rapha.runtime.broker.store import Ragged, TableStore
from rapha_trainer import RaphaDataLoader
from rapha_trainer import session as sessions

RECORDS = 700
RNG = np.random.default_rng(1)
TEST = np.sort(RNG.choice(RECORDS, 60, replace=False))
TRAIN = np.setdiff1d(np.arange(RECORDS), TEST)


def ragged(values: np.ndarray[Any, Any], mean: int) -> Ragged:
    counts = RNG.poisson(mean, RECORDS)
    counts[::7] = 0
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Ragged(np.resize(values, (offsets[-1], *values.shape[1:])), offsets)


# An image fills 16 KiB, so that a slot of the ring holds some 250 records and larger batches span slots.
COLUMNS: dict[str, Any] = {
    "id": np.arange(RECORDS),
    "pixels": RNG.random((RECORDS, 64, 64), dtype="f4"),
    "mask": RNG.random((RECORDS, 5)) < 0.5,
    "labs": ragged(RNG.normal(size=997), 8),
    "boxes": ragged(RNG.integers(-99, 99, (501, 2, 2), dtype="i2"), 2),
    "y": np.arange(RECORDS) % 3,
}


class Node:
    """A broker in a thread, and the same records in a file."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, cap: int) -> None:
        self.patch = patch
        arrays: dict[str, Any] = {"__labels__": np.array(["y"]), "__test__": TEST}
        for name, column in COLUMNS.items():
            if isinstance(column, Ragged):
                arrays |= {name: column.values, f"{name}__offsets": column.offsets}
            else:
                arrays[name] = column
        np.savez(folder / "home.npz", **arrays)
        patch.setenv("RAPHA_HOME_DATA", str(folder / "home.npz"))
        patients = np.arange(RECORDS)
        self.meter = Meter.create(folder / "journal", patients=patients, cap=cap, key=bytes(range(32)))
        self.broker = Broker(TableStore(COLUMNS, patients, ["y"]), {"train": TRAIN, "test": TEST}, self.meter)
        self.threads = ThreadPoolExecutor(1)
        self.ends: list[socket.socket] = []

    def at_home(self) -> None:
        self.patch.delenv("RAPHA_BROKER_FD", raising=False)

    def on_node(self, split: str = "train") -> Future[Usage]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ends += [ours, theirs]
        self.patch.setenv("RAPHA_BROKER_FD", str(theirs.fileno()))
        return self.threads.submit(self.broker.serve, ours, split)

    def leave(self) -> None:
        for source in list(sessions._connected.values()):
            source.close()
        for end in self.ends:
            end.close()
        self.threads.shutdown()
        self.meter.close()


@pytest.fixture
def cap() -> int:
    return RECORDS


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: int) -> Iterator[Node]:
    node = Node(tmp_path, monkeypatch, cap)
    yield node
    node.leave()


def seen(batches: Iterable[dict[str, Any]]) -> list[Any]:
    """What was handed out, to the byte."""
    return [{name: as_bytes(value) for name, value in batch.items()} for batch in batches]


def as_bytes(value: Any) -> Any:
    if isinstance(value, pyarrow.Array):
        value.validate(full=True)
        return str(value.type), [repr(item) for item in value.to_pylist()]
    if isinstance(value, torch.Tensor):
        parts = value.unbind() if value.is_nested else [value]
        return value.is_nested, [as_bytes(part.numpy()) for part in parts]
    return value.dtype.str, value.shape, value.tobytes()


CASES: dict[str, dict[str, Any]] = {
    "plain": {"batch_size": 32},
    "one batch": {"batch_size": 1000},
    "one by one": {"batch_size": 1, "indices": range(20)},
    "beyond a slot": {"batch_size": 400, "epochs": 2},
    "shuffled": {"batch_size": 64, "shuffle": True, "seed": 7, "epochs": 2},
    "shuffled beyond a slot": {"batch_size": 301, "shuffle": True, "seed": 2**64 - 1},
    "drop_last": {"batch_size": 100, "drop_last": True, "shuffle": True},
    "indices": {"batch_size": 50, "indices": [5, 5, 609, 0, *range(300, 20, -1)], "epochs": 2},
    "indices, drop_last": {"batch_size": 33, "indices": range(400), "drop_last": True},
    "no prefetch": {"batch_size": 64, "shuffle": True, "prefetch": 0},
    "tensors": {"batch_size": 64, "shuffle": True, "as_torch": True},
    "renamed": {"batch_size": 64, "rename": {"pixels": "image"}},
    "test": {"batch_size": 64, "split": "test"},
    "nothing": {"indices": []},
}


@pytest.mark.parametrize("kwargs", CASES.values(), ids=CASES.keys())
def test_the_batches_are_the_same(node: Node, kwargs: dict[str, Any]) -> None:
    node.at_home()
    loader = RaphaDataLoader(**kwargs)
    home, fields, batches = seen(loader), loader.fields, len(loader)
    node.on_node(kwargs.get("split", "train"))
    loader = RaphaDataLoader(**kwargs)
    assert (loader.fields, len(loader)) == (fields, batches)
    assert seen(loader) == home
    assert len(home) == batches


@pytest.mark.parametrize("taken", [1, 3, 9, 10])
@pytest.mark.parametrize("case", ["plain", "shuffled", "drop_last", "indices", "shuffled beyond a slot"])
def test_a_state_from_home_goes_on_at_the_node(node: Node, case: str, taken: int) -> None:
    kwargs = CASES[case]
    node.at_home()
    whole = seen(RaphaDataLoader(**kwargs))
    taken = min(taken, len(whole) - 1)
    loader = RaphaDataLoader(**kwargs)
    list(itertools.islice(loader, taken))
    state = loader.state_dict()
    used = node.on_node()
    loader = RaphaDataLoader(**{**kwargs, "prefetch": 0})
    loader.load_state_dict(state)
    assert seen(loader) == whole[taken:]
    node_state = loader.state_dict()
    node.ends[-1].shutdown(socket.SHUT_RDWR)
    left = {part for batch in whole[taken:] for part in np.frombuffer(batch["id"][2], "i8").tolist()}
    # What was read before the state was taken is not asked for again, so not counted here.
    assert used.result(timeout=20).unique_records == len(left)
    node.at_home()
    loader = RaphaDataLoader(**kwargs)
    loader.load_state_dict(node_state)
    assert loader.epoch == kwargs.get("epochs", 1)


@pytest.mark.parametrize("cap", [630])
def test_the_cap_ends_the_epoch(node: Node) -> None:
    node.on_node()
    loader = RaphaDataLoader(100, prefetch=0)
    with pytest.warns(RuntimeWarning, match="max_records is used up"):
        assert [len(batch["id"]) for batch in loader] == [100] * 6 + [30]
    assert (loader.epoch, loader.state_dict()["position"]) == (1, 0)


def test_both_draw_the_same_order() -> None:
    node, job = rapha.runtime.broker.order.positions, rapha_trainer.order.positions
    for records, seed, epoch in ((0, 0, 0), (1, 7, 3), (1000, 2**64 - 1, 2**63), (2**32 - 1, 1, 1)):
        stop = min(records, 1000)
        assert (node(records, seed, epoch, 0, stop) == job(records, seed, epoch, 0, stop)).all()
