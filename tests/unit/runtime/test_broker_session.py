"""A hostile job with a raw socket: whatever it sends, the count is what it was handed; the broker lives."""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rapha.runtime.broker import channel, wire
from rapha.runtime.broker import session as sessions
from rapha.runtime.broker.meter import Meter, Usage
from rapha.runtime.broker.serve import Broker
from rapha.runtime.broker.store import TableStore
from rapha.runtime.broker.wire import End, FaultCode, Kind, Op
from rapha.spec.refusals import Refused
from rapha_trainer.session import BrokerSource
from rapha_trainer.source import Epoch

KEY = bytes(range(32))
RECORDS = 30
TEST = np.arange(20, 30)
TRAIN = np.arange(20)[::-1]


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def of_split(job: Job, code: int) -> Any:
    job.split = code
    return job.epoch()


class Job:
    """The hostile end: sends any bytes, and remembers which records it saw."""

    def __init__(self, sock: socket.socket, train: bool) -> None:
        self.sock, self.split = sock, 0 if train else 1
        self.seen: set[int] = set()
        self.memory: mmap.mmap | None = None
        self.described: dict[str, Any] = {}

    def ask(
        self, op: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, *, flags: int = 0, tail: bytes = b""
    ) -> Any:
        self.sock.send(wire.STRUCT.pack(2, op, self.split, flags, 1, a, b, c, d) + tail)
        return self.reply()

    def reply(self) -> Any:
        _, kind, code, _, _, a, b, c, _ = wire.STRUCT.unpack_from(self.sock.recv(1 << 18))
        if kind == Kind.BATCH:
            self.seen |= set(self.rows(a, b)["id"].tolist())
        return kind, code, a, b, c

    def hello(self) -> dict[str, Any]:
        self.sock.send(wire.STRUCT.pack(2, Op.HELLO, self.split, 0, 1, 0, 0, 0, 0))
        message, fds, _, _ = socket.recv_fds(self.sock, 1 << 18, 1)
        self.memory = mmap.mmap(fds[0], os.fstat(fds[0]).st_size, prot=mmap.PROT_READ)
        os.close(fds[0])
        self.described = json.loads(message[wire.STRUCT.size :])
        return self.described

    def rows(self, slot: int, count: int) -> dict[str, Any]:
        assert self.memory is not None
        base = slot * self.described["slot_bytes"]
        return {
            f["name"]: np.ndarray((count, *f["shape"]), f["dtype"], self.memory, base + f["offset"])
            for f in self.described["fields"]
        }

    def epoch(self, batch: int = 4, *, seed: int = 0, number: int = 0, start: int = 0, flags: int = 0) -> Any:
        return self.ask(Op.EPOCH, batch, seed, number, start, flags=flags)

    def next(self, records: int = 4, slot: int = wire.NO_SLOT) -> Any:
        return self.ask(Op.NEXT, records, slot)

    def indices(self, chosen: list[int], slot: int = wire.NO_SLOT) -> Any:
        return self.ask(Op.INDICES, 4, slot, len(chosen), tail=struct.pack(f"<{len(chosen)}I", *chosen))


class Served:
    """A broker in a thread and the job's end of its socket."""

    def __init__(self, meter: Meter, split: str = "train", **options: Any) -> None:
        store = TableStore(
            {"id": np.arange(RECORDS), "x": np.ones((RECORDS, 3), np.float32), "y": np.arange(RECORDS) % 2},
            meter.patients,
            ["y"],
        )
        self.broker = Broker(store, {"train": TRAIN, "test": TEST}, meter)
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.settimeout(10)
        self.stop = threading.Event()
        self.job = Job(theirs, split == "train")
        self.pool = ThreadPoolExecutor(1)
        self.done: Future[Usage] = self.pool.submit(
            self.broker.serve, self.ours, split=split, stop=self.stop, **options
        )

    def end(self) -> Usage:
        self.job.sock.close()
        return self.done.result(10)

    def close(self) -> None:
        self.stop.set()
        self.job.sock.close()
        self.pool.shutdown()
        self.ours.close()


@pytest.fixture
def make_meter(tmp_path: Path) -> Iterator[Callable[..., Meter]]:
    made: list[Meter] = []

    def make(cap: int = RECORDS, **options: Any) -> Meter:
        path = tmp_path / f"journal-{len(made)}"
        made.append(Meter.create(path, patients=np.arange(RECORDS) // 2, cap=cap, key=KEY, **options))
        return made[-1]

    yield make
    for meter in made:
        meter.close()


@contextlib.contextmanager
def serving(meter: Meter, split: str = "train", **options: Any) -> Iterator[Served]:
    served = Served(meter, split, **options)
    try:
        yield served
    finally:
        served.close()


def test_an_epoch_is_served_and_counted(make_meter: Any) -> None:
    with serving(make_meter()) as served:
        job = served.job
        described = job.hello()
        assert (described["split"], described["slots"]) == ("train", 4)
        assert "records" not in described, "HELLO tells no number of records"
        assert job.epoch(8) == (Kind.STARTED, 0, 20, 20, 0)
        kind, code, slot, count, start = job.next(8)
        assert (kind, code, count, start) == (Kind.BATCH, 0, 8, 0)
        assert job.rows(slot, 8)["id"].tolist() == TRAIN[:8].tolist()
        assert job.next(1000, slot)[3] == 12
        assert job.next()[:2] == (Kind.END, End.EPOCH)
        usage = served.end()
    assert (usage.unique_records, usage.unique_patients, usage.batches) == (20, 10, 3)
    assert usage.first_record_served
    assert not usage.capped


@pytest.mark.parametrize("start", [0, 7, 16, 17, 20])
def test_an_epoch_is_taken_up_anywhere(make_meter: Any, start: int) -> None:
    """What lies before is neither handed over nor counted; the last batch is dropped as seen from there."""
    with serving(make_meter()) as served:
        job = served.job
        job.hello()
        assert job.epoch(start=start) == (Kind.STARTED, 0, 20, 20, 0)
        if start < 20:
            _, _, slot, count, first = job.next(100)
            assert (job.rows(slot, count)["id"].tolist(), first) == (TRAIN[start:].tolist(), start)
        assert job.next()[:2] == (Kind.END, End.EPOCH)
        assert job.epoch(8, start=start, flags=wire.DROP_LAST)[2] == start + (20 - start) // 8 * 8
        usage = served.end()
    assert usage.unique_records == 20 - start
    assert usage.batches == -(-(20 - start) // 4)


def test_a_start_beyond_the_end_is_refused_and_the_epoch_goes_on(make_meter: Any) -> None:
    with serving(make_meter()) as served:
        job = served.job
        job.hello()
        job.epoch()
        job.next(4)
        for start in (21, 2**31, 2**63, 2**64 - 1):
            assert job.epoch(start=start)[:2] == (Kind.FAULT, FaultCode.RANGE)
        assert job.next(4)[4] == 4
        assert served.end().unique_records == 8


def test_the_test_split_has_no_labels_and_one_order(make_meter: Any) -> None:
    with serving(make_meter(), "test") as served:
        job = served.job
        assert [f["name"] for f in job.hello()["fields"]] == ["id", "x"]
        assert job.epoch(flags=wire.SHUFFLE)[:2] == (Kind.FAULT, FaultCode.ORDER)
        assert job.indices([0])[:2] == (Kind.FAULT, FaultCode.ORDER)
        job.epoch()
        assert job.rows(job.next(10)[2], 10)["id"].tolist() == TEST.tolist()
        assert served.end().unique_records == 10


def test_labels_can_be_hidden_in_training_too(make_meter: Any) -> None:
    with serving(make_meter(), hide_labels=True) as served:
        assert [f["name"] for f in served.job.hello()["fields"]] == ["id", "x"]


def test_both_sessions_count_on_one_meter(make_meter: Any) -> None:
    meter = make_meter(cap=25)
    with serving(meter) as served:
        served.job.hello()
        served.job.epoch()
        served.job.next(20)
        assert served.end().unique_records == 20
    with serving(meter, "test") as served:
        served.job.hello()
        served.job.epoch()
        assert served.job.next(10)[:4] == (Kind.BATCH, End.CAP, 3, 5)
        assert served.job.next(10)[:2] == (Kind.END, End.CAP)
        usage = served.end()
    assert (usage.unique_records, usage.capped) == (25, True)


def test_the_cap_cuts_and_what_was_counted_may_come_again(make_meter: Any) -> None:
    with serving(make_meter(cap=6)) as served:
        job = served.job
        job.hello()
        job.epoch()
        first = job.next(4)[2]
        assert job.next(4, first)[:4] == (Kind.BATCH, End.CAP, first, 2)
        assert job.next(4, first)[:2] == (Kind.END, End.CAP)
        assert job.indices([0, 5, 0, 6, 1])[:4] == (Kind.BATCH, End.CAP, first, 3)
        assert job.indices([19], first)[:2] == (Kind.END, End.CAP)
        assert job.seen == set(TRAIN[:6].tolist())
        usage = served.end()
    assert (usage.unique_records, usage.capped) == (6, True)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (lambda j: j.ask(Op.NEXT, 4, wire.NO_SLOT), FaultCode.STATE),
        (lambda j: j.ask(99), FaultCode.OP),
        (lambda j: j.epoch(0), FaultCode.RANGE),
        (lambda j: j.epoch(2**31), FaultCode.RANGE),
        (lambda j: j.epoch(2**63), FaultCode.RANGE),
        (lambda j: (j.epoch(), j.next(0))[1], FaultCode.RANGE),
        (lambda j: (j.epoch(), j.next(2**31))[1], FaultCode.RANGE),
        (lambda j: (j.epoch(), j.next(4, 0))[1], FaultCode.SLOT),
        (lambda j: (j.epoch(), j.next(4, 4))[1], FaultCode.SLOT),
        (lambda j: (j.epoch(), j.next(4, 2**31))[1], FaultCode.SLOT),
        (lambda j: (j.epoch(), j.next(4, 2**64 - 2))[1], FaultCode.SLOT),
        (lambda j: j.indices([]), FaultCode.RANGE),
        (lambda j: j.indices([20]), FaultCode.RANGE),
        (lambda j: j.indices([2**32 - 1]), FaultCode.RANGE),
        (lambda j: j.indices([0], 7), FaultCode.SLOT),
        (lambda j: j.ask(Op.INDICES, 0, wire.NO_SLOT, 1, tail=bytes(4)), FaultCode.RANGE),
        (lambda j: j.ask(Op.INDICES, 1, wire.NO_SLOT, 2**31, tail=bytes(4)), FaultCode.LENGTH),
        (lambda j: j.ask(Op.NEXT, 1, wire.NO_SLOT, tail=bytes(70_000)), FaultCode.LENGTH),
        (lambda j: (j.sock.send(b""), j.reply())[1], FaultCode.LENGTH),
        (lambda j: of_split(j, 1), FaultCode.SPLIT),
        (lambda j: of_split(j, 200), FaultCode.SPLIT),
    ],
)
def test_a_wrong_message_is_refused_and_changes_nothing(make_meter: Any, message: Any, code: Any) -> None:
    with serving(make_meter()) as served:
        job = served.job
        job.hello()
        assert message(job)[:2] == (Kind.FAULT, code)
        job.split = 0
        job.epoch()
        assert job.next(4)[0] == Kind.BATCH
        usage = served.end()
    assert (usage.unique_records, usage.batches) == (4, 1)


def test_a_slot_is_not_written_while_it_is_lent(make_meter: Any) -> None:
    with serving(make_meter()) as served:
        job = served.job
        job.hello()
        job.epoch()
        lent = [job.next(2)[2] for _ in range(4)]
        assert sorted(lent) == [0, 1, 2, 3]
        before = [job.rows(slot, 2)["id"].tolist() for slot in lent]
        assert job.next(2)[:2] == (Kind.FAULT, FaultCode.SLOT)
        assert [job.rows(slot, 2)["id"].tolist() for slot in lent] == before
        assert job.next(2, lent[1])[2] == lent[1]
        assert served.end().unique_records == 10


@pytest.mark.parametrize("refused", [True, False])
def test_passed_descriptors_are_dropped(
    make_meter: Any, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """By the kernel, where it can; else by having no room for them."""
    if not refused:
        monkeypatch.setattr(channel, "_refuse_descriptors", lambda _: None)
    with serving(make_meter()) as served:
        served.job.hello()
        inside, outside = os.pipe()
        before = open_descriptors()
        for _ in range(20):
            message = wire.STRUCT.pack(2, Op.EPOCH, 0, 0, 1, 4, 0, 0, 0)
            try:
                socket.send_fds(served.job.sock, [message], [outside] * 50)
            except PermissionError:
                assert refused
                continue
            served.job.reply()
        assert open_descriptors() == before
        os.close(outside)
        assert os.read(inside, 1) == b"", "a copy of the pipe's other end is still open somewhere"
        os.close(inside)


def test_many_faults_end_the_session(make_meter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_FAULTS", 50)
    with serving(make_meter()) as served:
        with pytest.raises((OSError, struct.error)):
            for _ in range(51):
                served.job.ask(99)
        assert served.done.result(10).unique_records == 0


def test_hand_overs_end_at_their_limit(make_meter: Any) -> None:
    """In every session of the job, and said as such."""
    meter = make_meter(limit=5)
    with serving(meter) as served:
        job = served.job
        job.hello()
        for _ in range(5):
            assert job.indices([3], 3 if job.seen else wire.NO_SLOT)[0] == Kind.BATCH
        assert job.indices([3], 3)[:2] == (Kind.END, End.LIMIT)
        job.epoch()
        assert job.next()[:2] == (Kind.END, End.LIMIT)
        usage = served.end()
    with serving(meter, "test") as served:
        served.job.hello()
        served.job.epoch()
        assert served.job.next()[:2] == (Kind.END, End.LIMIT)
        assert served.end() == usage
    assert (usage.unique_records, usage.batches) == (1, 5)


def test_a_loader_says_that_the_limit_is_reached(make_meter: Any) -> None:
    with serving(make_meter(limit=2)) as served:
        served.job.sock.settimeout(None)
        source = BrokerSource(served.job.sock.fileno(), "train")
        epoch = Epoch(4, False, 0, 0, False, None, 0)
        with pytest.raises(RuntimeError, match="larger batches"):
            list(source.batches(epoch))
        source.close()
        assert served.end().unique_records == 8


def test_one_descriptor_at_most_is_on_its_way_to_a_job_that_does_not_read(make_meter: Any) -> None:
    """They are limited for all of a user's processes together, brokers of other jobs among them."""
    with serving(make_meter()) as served:
        job = served.job
        job.sock.settimeout(0.3)
        for _ in range(20):
            job.sock.send(wire.STRUCT.pack(2, Op.HELLO, 0, 0, 1, 0, 0, 0, 0))
        served.stop.wait(0.2)
        served.stop.set()
        served.done.result(10)
        fds = []
        with contextlib.suppress(TimeoutError):
            while (got := socket.recv_fds(job.sock, 1 << 18, 4))[0]:
                fds += got[1]
        for fd in fds:
            os.close(fd)
        assert len(fds) == 1


def test_descriptors_of_others_in_flight_only_delay_a_job(
    make_meter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [OSError(errno.ETOOMANYREFS, "too many references")] * 2
    send = socket.send_fds

    def crowded(*args: Any) -> int:
        if refusals:
            raise refusals.pop()
        return send(*args)

    with serving(make_meter()) as served:
        monkeypatch.setattr(socket, "send_fds", crowded)
        assert served.job.hello()["split"] == "train"
        assert not refusals


def test_a_job_that_never_reads_does_not_hang_the_broker(make_meter: Any) -> None:
    with serving(make_meter()) as served:
        served.job.sock.setblocking(False)
        message = wire.STRUCT.pack(2, Op.EPOCH, 0, 0, 1, 4, 0, 0, 0)
        with pytest.raises(BlockingIOError):
            for _ in range(100_000):
                served.job.sock.send(message)
        served.stop.set()
        assert served.done.result(10).unique_records == 0


@pytest.mark.parametrize(
    ("how", "counted"),
    # Without a reader the batch is still in the shared memory, so it counts.
    [(socket.SHUT_RD, 8), (socket.SHUT_WR, 4), (socket.SHUT_RDWR, 4)],
)
def test_a_half_closed_socket_ends_the_session(make_meter: Any, how: int, counted: int) -> None:
    with serving(make_meter()) as served:
        served.job.hello()
        served.job.epoch()
        served.job.next(4)
        served.job.sock.shutdown(how)
        with contextlib.suppress(OSError):
            served.job.sock.send(wire.STRUCT.pack(2, Op.NEXT, 0, 0, 1, 4, wire.NO_SLOT, 0, 0))
        assert served.done.result(10).unique_records == counted


def test_a_second_program_starts_over(make_meter: Any) -> None:
    with serving(make_meter()) as served:
        job = served.job
        for _ in range(3):
            job.hello()
            job.epoch()
            assert [job.next(5)[3] for _ in range(4)] == [5, 5, 5, 5]
        assert served.end().unique_records == 20


def test_the_first_record_is_announced_before_it_is_there(make_meter: Any) -> None:
    calls: list[int] = []
    meter = make_meter()
    with serving(meter, on_first_record=lambda: calls.append(len(calls))) as served:
        job = served.job
        job.hello()
        assert calls == []
        assert not meter.first_record_served, "HELLO tells nothing of the records"
        job.epoch()
        assert calls == [0]
        assert meter.first_record_served, "how many there are is something"
        job.next(4)
        job.next(4)
        assert calls == [0]
        served.end()
    with serving(meter, "test", on_first_record=lambda: calls.append(9)) as served:
        served.job.hello()
        served.job.epoch()
        served.job.next(4)
        assert calls == [0]


def test_nothing_is_handed_over_when_the_announcement_fails(make_meter: Any) -> None:
    def fail() -> None:
        raise Refused("node.internal", "the pipeline is gone")

    with serving(make_meter(), on_first_record=fail) as served:
        served.job.hello()
        with pytest.raises((OSError, struct.error)):
            served.job.epoch()
        with pytest.raises(Refused, match="the pipeline is gone"):
            served.done.result(10)
        assert not served.job.rows(3, 4)["id"].any()


def test_what_does_not_fit_together_is_refused(make_meter: Any) -> None:
    meter = make_meter()
    columns = {"y": np.zeros(RECORDS)}
    split = {"train": TRAIN, "test": TEST}
    with pytest.raises(Refused, match="other records"):
        Broker(TableStore(columns, meter.patients + 1), split, meter)
    broker = Broker(TableStore(columns, meter.patients, ["y"]), split, meter)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stream, other = socket.socketpair()
    with ours, theirs, stream, other:
        with pytest.raises(Refused, match="no field is left"):
            broker.serve(ours, split="test")
        with pytest.raises(Refused, match="no split"):
            broker.serve(ours, split="dev")
        with pytest.raises(Refused, match="SOCK_SEQPACKET"):
            broker.serve(stream)


NUMBERS = st.sampled_from([0, 1, 2, 4, 5, 19, 20, 21, 2**31 - 1, 2**31, 2**32 - 1, 2**63, wire.NO_SLOT])
MESSAGES = st.one_of(
    st.binary(max_size=100),
    st.builds(
        lambda op, split, flags, a, b, c, d, tail: (
            wire.STRUCT.pack(2, op, split, flags, 1, a, b, c, d) + tail
        ),
        st.integers(0, 5),
        st.sampled_from([0, 0, 0, 1, 7]),
        st.sampled_from([0, 0, 1, 2, 3, 4]),
        NUMBERS,
        NUMBERS,
        NUMBERS,
        st.one_of(st.just(0), NUMBERS),
        st.lists(st.integers(0, 25), max_size=5).map(lambda x: struct.pack(f"<{len(x)}I", *x)),
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(MESSAGES, max_size=40), cap=st.integers(0, 25))
def test_whatever_is_sent_the_count_is_what_was_seen(tmp_path: Path, messages: list[bytes], cap: int) -> None:
    path = tmp_path / "fuzzed"
    path.unlink(missing_ok=True)
    meter = Meter.create(path, patients=np.arange(RECORDS) // 2, cap=cap, key=KEY)
    with serving(meter) as served:
        job = served.job
        job.hello()
        for message in messages:
            job.sock.send(message)
            job.reply()
        usage = served.end()
    meter.close()
    assert usage.unique_records == len(job.seen) <= cap
    assert usage.unique_patients == len({i // 2 for i in job.seen})
    recovered = Meter.recover(path, patients=np.arange(RECORDS) // 2, key=KEY)
    assert replace(recovered.usage(), first_record_served=usage.first_record_served) == usage
    recovered.close()
