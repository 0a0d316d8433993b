"""Broker and job as separate processes: exact batches, exact counts, and exact counts after kill -9."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rapha.runtime.broker import wire
from rapha.runtime.broker.meter import Meter, Usage
from rapha_trainer import RaphaDataLoader
from rapha_trainer import session as sessions
from rapha_trainer.order import positions

KEY = bytes(range(32))
RECORDS = 5000
PATIENTS = np.arange(RECORDS) // 2
TRAIN, TEST = np.arange(4000), np.arange(4000, RECORDS)

BROKER = """
import dataclasses, json, socket, sys
import numpy as np
from pathlib import Path
from rapha.runtime.broker.meter import Meter
from rapha.runtime.broker.serve import Broker
from rapha.runtime.broker.store import TableStore

fd, cap, width = map(int, sys.argv[1:4])
journal, split = sys.argv[4:]
ids = np.arange(5000)
x = np.repeat(ids[:, None], width, axis=1).astype("f4")
store = TableStore({"id": ids, "x": x, "y": ids % 2}, ids // 2, ["y"])
meter = Meter.create(Path(journal), patients=store.patients, cap=cap, key=bytes(range(32)))
broker = Broker(store, {"train": ids[:4000], "test": ids[4000:]}, meter)
with socket.socket(fileno=fd) as sock:
    usage = broker.serve(sock, split)
meter.close()
print(json.dumps(dataclasses.asdict(usage)))
"""


class Node:
    """A broker process; the job's end of its socket is named in the environment of this process."""

    def __init__(self, journal: Path, split: str, cap: int, width: int) -> None:
        self.journal = journal
        ours, self.job = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            self.process = subprocess.Popen(
                [sys.executable, "-c", BROKER, *map(str, (ours.fileno(), cap, width, journal, split))],
                pass_fds=[ours.fileno()],
                stdout=subprocess.PIPE,
            )

    def leave(self) -> None:
        for source in list(sessions._connected.values()):
            source.close()
        self.job.close()

    def usage(self) -> Usage:
        """End the session and ask the broker."""
        self.leave()
        out, _ = self.process.communicate(timeout=20)
        return Usage(**json.loads(out))

    def recovered(self) -> Usage:
        meter = Meter.recover(self.journal, patients=PATIENTS, key=KEY)
        usage = meter.usage()
        meter.close()
        return usage


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    nodes: list[Node] = []

    def start(split: str = "train", cap: int = RECORDS, width: int = 16) -> Node:
        node = Node(tmp_path / f"journal-{len(nodes)}", split, cap, width)
        monkeypatch.setenv("RAPHA_BROKER_FD", str(node.job.fileno()))
        nodes.append(node)
        return node

    yield start
    for node in nodes:
        node.leave()
        node.process.kill()
        node.process.communicate()


def ids(batches: Any) -> list[int]:
    """The ids of all batches; each batch must be whole and of one mind."""
    result: list[int] = []
    for batch in batches:
        assert (batch["x"] == batch["id"][:, None]).all()
        result += batch["id"].tolist()
    return result


# A slot holds all records of width 16 and 1018 of width 1024: batches within a slot, and beyond one.
@pytest.mark.parametrize(("batch", "width"), [(7, 16), (64, 16), (4000, 16), (64, 1024), (1500, 1024)])
def test_every_batch_of_every_epoch_is_exact(start: Any, batch: int, width: int) -> None:
    node = start(width=width)
    loader = RaphaDataLoader(batch, shuffle=True, seed=5, epochs=2)
    batches = [{n: a.copy() for n, a in b.items()} for b in loader]
    assert [len(b["id"]) for b in batches[: len(loader) // 2]] == [
        min(batch, 4000 - i) for i in range(0, 4000, batch)
    ]
    assert len(batches) == len(loader)
    assert ids(batches) == [p for epoch in (0, 1) for p in positions(4000, 5, epoch, 0, 4000).tolist()]
    usage = node.usage()
    assert (usage.unique_records, usage.unique_patients, usage.batches) == (4000, 2000, len(loader))
    assert node.recovered() == usage


def test_indices_in_any_order_are_exact(start: Any) -> None:
    node = start()
    chosen = np.random.default_rng(0).integers(0, 500, 3000)
    assert ids(RaphaDataLoader(50, indices=chosen, epochs=2)) == [*chosen.tolist()] * 2
    assert node.usage().unique_records == len(set(chosen.tolist()))


def test_drop_last_leaves_those_records_uncounted(start: Any) -> None:
    node = start()
    loader = RaphaDataLoader(300, drop_last=True)
    assert ids(loader) == list(range(3900))
    assert node.usage().unique_records == 3900


def test_looking_is_free_and_a_short_visit_is_cheap(start: Any) -> None:
    node = start()
    loader = RaphaDataLoader(10)
    assert (loader.records, len(loader), len(loader.fields)) == (4000, 400, 3)
    for number, _ in enumerate(loader):
        if number == 0:
            break
    assert node.usage().unique_records == 20


def test_without_prefetch_only_what_was_read_counts(start: Any) -> None:
    node = start()
    for number, _ in enumerate(RaphaDataLoader(10, prefetch=0)):
        if number == 36:
            break
    assert node.usage().unique_records == 370


def test_the_cap_ends_the_loop_with_a_warning(start: Any) -> None:
    node = start(cap=1005)
    with pytest.warns(RuntimeWarning, match="max_records"):
        seen = ids(RaphaDataLoader(64, epochs=3))
    assert seen == list(range(1005))
    usage = node.usage()
    assert (usage.unique_records, usage.capped) == (1005, True)


def test_the_test_split_comes_in_order_without_labels(start: Any) -> None:
    node = start("test")
    with pytest.raises(RuntimeError, match="does not serve split='train'"):
        RaphaDataLoader()
    loader = RaphaDataLoader(split="test")
    assert [f.name for f in loader.fields] == ["id", "x"]
    assert ids(loader) == TEST.tolist()
    with pytest.raises(RuntimeError, match="a run of its own"):
        RaphaDataLoader()
    assert node.usage().unique_records == 1000


def test_tensors_are_views_only_when_asked_for(start: Any) -> None:
    start()
    first = next(iter(RaphaDataLoader(8, as_torch=True)))
    first["x"] += 1
    views = [b["x"].data_ptr() for b in RaphaDataLoader(8, as_torch=True, copy=False)]
    assert len(set(views)) <= 2000
    batch = next(iter(RaphaDataLoader(8, as_torch=True, copy=False)))
    assert torch.equal(batch["x"][:, 0], torch.arange(8.0))


def test_a_batch_can_not_be_written(start: Any) -> None:
    start()
    batch = next(iter(RaphaDataLoader(8)))
    with pytest.raises(ValueError, match="read-only"):
        batch["x"][0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        batch["x"].flags.writeable = True


def test_an_older_iteration_says_that_it_is_over(start: Any) -> None:
    start()
    older = iter(RaphaDataLoader(8))
    next(older)
    next(iter(RaphaDataLoader(8)))
    with pytest.raises(RuntimeError, match="another iteration"):
        next(older)


def test_a_worker_process_is_told_what_to_do(start: Any) -> None:
    node = start()
    batches = iter(RaphaDataLoader(8))
    next(batches)
    pid = os.fork()
    if pid == 0:
        try:
            next(batches)
        except RuntimeError as error:
            os._exit(int("num_workers=0" in str(error)))
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert node.usage().unique_records == 16


def test_forks_that_all_ask_are_all_counted(start: Any) -> None:
    node = start()
    RaphaDataLoader()
    children, pipe = [], os.pipe()
    for child in range(4):
        children.append(os.fork())
        if children[-1]:
            continue
        served = 0
        for record in range(child * 100, child * 100 + 100):
            for message in (
                wire.STRUCT.pack(2, wire.Op.EPOCH, 0, 0, 1, 4, 0, 0, 0),
                wire.STRUCT.pack(2, wire.Op.INDICES, 0, 0, 1, 4, wire.NO_SLOT, 1, 0)
                + struct.pack("<I", record),
            ):
                node.job.send(message)
                served += node.job.recv(4096)[1] == wire.Kind.BATCH
        os.write(pipe[1], struct.pack("<I", served))
        os._exit(0)
    for pid in children:
        os.waitpid(pid, 0)
    served = sum(struct.unpack("<4I", os.read(pipe[0], 16)))
    for fd in pipe:
        os.close(fd)
    assert node.usage().unique_records == served > 0


def test_kill_9_between_batches_loses_and_adds_nothing(start: Any) -> None:
    node = start()
    seen: set[int] = set()
    for number, batch in enumerate(RaphaDataLoader(16, shuffle=True, seed=1, prefetch=0)):
        seen |= set(batch["id"].tolist())
        if number == 100:
            break
    node.process.send_signal(signal.SIGKILL)
    node.process.wait()
    usage = node.recovered()
    assert usage.unique_records == len(seen) == 101 * 16
    assert usage.unique_patients == len({i // 2 for i in seen})


@pytest.mark.parametrize("after", [1, 40, 170])
def test_kill_9_in_the_middle_counts_all_that_was_seen(start: Any, after: int) -> None:
    node = start()
    seen: set[int] = set()
    with pytest.raises(ConnectionError):
        for number, batch in enumerate(RaphaDataLoader(16, shuffle=True, seed=2, epochs=1000)):
            if number == after:
                node.process.send_signal(signal.SIGKILL)
            seen |= set(batch["id"].tolist())
    node.process.wait()
    # What was on its way at that moment is counted, and no more was ever asked for than twice what was read.
    assert len(seen) <= node.recovered().unique_records <= min(2 * len(seen), 4000)


def test_kill_9_of_the_job_leaves_the_broker_with_exact_counts(start: Any) -> None:
    node = start()
    source = (
        "import os, signal\nfrom rapha_trainer import RaphaDataLoader\n"
        "for n, batch in enumerate(RaphaDataLoader(8, prefetch=0)):\n"
        "    if n == 24: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    job = subprocess.run(
        [sys.executable, "-c", source], pass_fds=[node.job.fileno()], env=dict(os.environ), timeout=20
    )
    assert job.returncode == -signal.SIGKILL
    assert node.usage().unique_records == 200


def test_an_epoch_goes_on_where_it_was_left(start: Any) -> None:
    node = start()
    state: dict[str, Any] = {}
    first = RaphaDataLoader(64, shuffle=True, seed=5, prefetch=0)
    seen: list[int] = []
    for batch in first:
        seen += batch["id"].tolist()
        if len(seen) == 640:
            state = first.state_dict()
            break
    second = RaphaDataLoader(64, shuffle=True, seed=5)
    second.load_state_dict(state)
    assert [*seen, *ids(second)] == positions(4000, 5, 0, 0, 4000).tolist()
    assert node.usage().unique_records == 4000


@pytest.mark.parametrize("records", [10**6, pytest.param(10**8, marks=pytest.mark.slow)])
def test_counts_are_exact_at_any_size_in_little_memory(records: int) -> None:
    bench = Path(__file__).parents[2] / "benchmarks" / "meter.py"
    done = subprocess.run(
        [sys.executable, str(bench), "--records", str(records)], capture_output=True, check=True, timeout=1200
    )
    line = json.loads(done.stdout)
    assert line["exact"]
    assert line["memory_mb"] <= 64
