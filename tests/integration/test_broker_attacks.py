"""A hostile job against a broker in a process of its own: name, attack, and what the count must be after it.

Whatever is done, the count is what was handed over, to the record; the broker ends in order and stays
small; and another broker on the same host serves on.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import hashlib
import hmac
import json
import mmap
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import pytest

from rapha.runtime.broker import wire
from rapha.runtime.broker.meter import Meter
from rapha.runtime.broker.wire import End, FaultCode, Kind, Op

KEY: Final = bytes(range(32))
RECORDS: Final = 5000
CAP: Final = 3000
NOBODY: Final = 65534
GROWTH_MB: Final = 48
"""The ring has 16 MiB."""

BROKER = """
import dataclasses, json, socket, sys
import numpy as np
from pathlib import Path
from rapha.runtime.broker.meter import Meter
from rapha.runtime.broker.serve import Broker
from rapha.runtime.broker.store import Ragged, TableStore

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(key))

ids = np.arange(5000)
notes = Ragged(np.repeat(ids, ids % 5), np.concatenate([[0], np.cumsum(ids % 5)]))
store = TableStore({"id": ids, "notes": notes}, ids // 2)
meter = Meter.create(Path(sys.argv[2]), patients=store.patients, cap=3000, key=bytes(range(32)))
broker = Broker(store, {"train": range(4000), "test": range(4000, 5000)}, meter)
before = memory("VmRSS")
with socket.socket(fileno=int(sys.argv[1])) as sock:
    usage = broker.serve(sock)
meter.close()
print(json.dumps({**dataclasses.asdict(usage), "grown": memory("VmHWM") - before}))
"""


class Ended(Exception):  # noqa: N818  what an attack may lead to
    """The broker has closed the session."""


class Job:
    """The hostile end. `seen` is what was handed over, by what the shared memory says at each reply."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(10)
        self.sock, self.seen = sock, set[int]()
        self.ring = -1
        self.memory: mmap.mmap | None = None
        self.described: dict[str, Any] = {}

    def send(
        self, op: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, *, flags: int = 0, split: int = 0,
        version: int = 2, tail: bytes = b"",
    ) -> None:  # fmt: skip
        self.raw(wire.STRUCT.pack(version, op, split, flags, 7, a, b, c, d) + tail)

    def raw(self, message: bytes) -> None:
        try:
            self.sock.send(message)
        except (BrokenPipeError, ConnectionError):
            raise Ended from None

    def reply(self) -> tuple[int, int, int, int]:
        """Kind, code, a and b; what comes in a batch is noted."""
        try:
            message = self.sock.recv(1 << 18)
        except ConnectionError:
            raise Ended from None
        if not message:
            raise Ended
        _, kind, code, _, _, a, b, _, _ = wire.STRUCT.unpack_from(message)
        if kind == Kind.BATCH:
            self.seen |= set(self.ids(a, b))
        return kind, code, a, b

    def ask(self, op: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, **rest: Any) -> tuple[int, ...]:
        self.send(op, a, b, c, d, **rest)
        return self.reply()

    def hello(self) -> None:
        self.send(Op.HELLO)
        message, fds, _, _ = socket.recv_fds(self.sock, 1 << 18, 1)
        self.ring = fds[0]
        self.described = json.loads(message[wire.STRUCT.size :])
        self.memory = mmap.mmap(self.ring, os.fstat(self.ring).st_size, prot=mmap.PROT_READ)

    def epoch(self, batch: int = 4, **rest: Any) -> tuple[int, ...]:
        return self.ask(Op.EPOCH, batch, **rest)

    def next(self, records: int = 4, slot: int = wire.NO_SLOT) -> tuple[int, ...]:
        return self.ask(Op.NEXT, records, slot)

    def indices(self, chosen: list[int], slot: int = wire.NO_SLOT) -> tuple[int, ...]:
        tail = struct.pack(f"<{len(chosen)}I", *chosen)
        return self.ask(Op.INDICES, 4, slot, len(chosen), tail=tail)

    def ids(self, slot: int, count: int) -> list[int]:
        assert self.memory is not None
        base = slot * self.described["slot_bytes"] + self.described["fields"][0]["offset"]
        found: list[int] = np.frombuffer(self.memory, np.int64, count, base).tolist()
        return found

    def legit(self) -> None:
        """The session still works: four records more."""
        self.epoch()
        assert self.next()[0] == Kind.BATCH


def faulted(answer: tuple[int, ...], code: FaultCode) -> None:
    assert answer[:2] == (Kind.FAULT, code), answer


HUGE = [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 2]


def wrong_messages(job: Job) -> None:
    good = wire.STRUCT.pack(2, Op.COUNT, 0, 0, 7, 0, 0, 0, 0)
    for size in (0, 1, 31, 39, 41, 200, wire.MAX_MESSAGE + 1):
        job.raw((good + bytes(size))[:size])
        faulted(job.reply(), FaultCode.LENGTH)
    for version in (0, 1, 3, 255):
        faulted(job.ask(Op.COUNT, version=version), FaultCode.VERSION)
    for op in (0, 6, 99, 255):
        faulted(job.ask(op), FaultCode.OP)
    for op in (Op.HELLO, Op.NEXT, Op.INDICES, Op.COUNT):
        faulted(job.ask(op, flags=1, c=0), FaultCode.UNUSED)
    for split in (1, 2, 255):
        faulted(job.ask(Op.EPOCH, 4, split=split), FaultCode.SPLIT)
    faulted(job.ask(Op.HELLO, 0, 0, 0, 1), FaultCode.UNUSED)


def huge_numbers(job: Job) -> None:
    job.epoch()
    for huge in HUGE:
        if huge >= 2**31:
            faulted(job.epoch(huge), FaultCode.RANGE)
            job.epoch()
            faulted(job.next(huge), FaultCode.RANGE)
        faulted(job.next(4, huge), FaultCode.SLOT)
        faulted(job.ask(Op.INDICES, 4, wire.NO_SLOT, huge, tail=bytes(8)), FaultCode.LENGTH)
        faulted(job.ask(Op.COUNT, huge), FaultCode.UNUSED)


def indices_beyond_the_end(job: Job) -> None:
    for index in (4000, 4999, 5000, 2**31 - 1, 2**31, 2**32 - 1):
        faulted(job.indices([0, 1, index]), FaultCode.RANGE)
    faulted(job.indices([]), FaultCode.RANGE)


def resumed_beyond_the_end(job: Job) -> None:
    for start in (4001, 5000, *HUGE):
        faulted(job.ask(Op.EPOCH, 4, 0, 0, start), FaultCode.RANGE)
    faulted(job.next(), FaultCode.STATE)
    assert job.ask(Op.EPOCH, 4, 0, 0, 4000)[0] == Kind.STARTED
    assert job.next()[:2] == (Kind.END, End.EPOCH)


def resumed_near_the_end(job: Job) -> None:
    job.ask(Op.EPOCH, 4, 0, 0, 3998)
    assert job.next(2**31 - 1)[3] == 2
    assert job.seen == {3998, 3999}


def seeds_of_any_size(job: Job) -> None:
    for seed, epoch in ((0, 0), (2**64 - 1, 2**64 - 1), (2**63, 1)):
        job.ask(Op.EPOCH, 4, seed, epoch, flags=wire.SHUFFLE)
        job.next(100)


def slots_given_back_that_were_not_lent(job: Job) -> None:
    job.epoch()
    for slot in range(6):
        faulted(job.next(4, slot), FaultCode.SLOT)
    lent = job.next()[2]
    assert job.next(4, lent)[2] == lent
    faulted(job.next(4, (lent + 1) % 4), FaultCode.SLOT)


def a_slot_given_back_twice(job: Job) -> None:
    job.epoch()
    lent = [job.next()[2] for _ in range(4)]
    assert sorted(lent) == [0, 1, 2, 3]
    faulted(job.next(), FaultCode.SLOT)
    # Returned with a request that is refused for something else, and then once more.
    faulted(job.indices([4000], lent[0]), FaultCode.RANGE)
    assert job.next(4, lent[0])[2] == lent[0]
    faulted(job.next(), FaultCode.SLOT)


def replays(job: Job) -> None:
    for _ in range(30):
        job.ask(Op.EPOCH, 4, 9, 9, flags=wire.SHUFFLE)
        job.next(50)
        job.indices([7, 7, 7, 8])
    assert len(job.seen) == len({*job.seen})


def the_cap_is_met(job: Job) -> None:
    job.epoch()
    code, slot = 0, wire.NO_SLOT
    while not code:
        kind, code, slot, _ = job.next(700, slot)
        assert kind == Kind.BATCH
    assert (code, len(job.seen)) == (End.CAP, CAP)
    assert job.next(4, slot)[:2] == (Kind.END, End.CAP)
    job.epoch()
    assert job.indices([3999])[:2] == (Kind.END, End.CAP)
    assert job.indices([0, 1, 3999, 2])[3] == 2


def the_ring_is_written(job: Job) -> None:
    size = os.fstat(job.ring).st_size
    path = f"/proc/self/fd/{job.ring}"
    attempts: list[Callable[[], Any]] = [
        lambda: mmap.mmap(job.ring, size),
        lambda: mmap.mmap(job.ring, size, mmap.MAP_SHARED, mmap.PROT_WRITE),
        lambda: os.pwrite(job.ring, b"x", 0),
        lambda: os.ftruncate(job.ring, 0),
        lambda: os.ftruncate(job.ring, 2 * size),
        lambda: os.posix_fallocate(job.ring, 0, 2 * size),
        lambda: fcntl.fcntl(job.ring, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
        lambda: fcntl.fcntl(job.ring, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK),
        lambda: os.pwrite(os.open(path, os.O_RDWR), b"x", 0),
        lambda: os.open(path, os.O_WRONLY | os.O_TRUNC),
    ]
    if os.getuid() == NOBODY:
        # In a sandbox the ring is another user's.
        attempts += [
            lambda: os.fchmod(job.ring, 0o777),
            lambda: os.setxattr(job.ring, "user.a", bytes(60_000)),
            lambda: os.open(path, os.O_RDWR),
        ]
    for attempt in attempts:
        with pytest.raises(OSError, match=r"not permitted|denied|Text file busy"):
            attempt()


def the_ring_is_read_ahead(job: Job) -> None:
    """Shared memory holds nothing that was not handed over."""
    job.epoch()
    job.next(10)
    slots, notes = range(job.described["slots"]), job.described["fields"][1]
    assert {i for slot in slots for i in job.ids(slot, job.described["slot_records"])} == job.seen
    assert job.memory is not None
    for slot in slots:
        base = slot * job.described["slot_bytes"] + notes["offset"]
        assert set(np.frombuffer(job.memory, np.int64, notes["values"], base).tolist()) <= job.seen


def refused_by_kernel(send: Callable[[], Any]) -> bool:
    """Whether the kernel keeps descriptors from the broker: from Linux 6.16 on, on every try."""
    try:
        send()
    except PermissionError:
        return True
    return False


def descriptors_are_passed(job: Job) -> None:
    inside, outside = os.pipe()
    packed = wire.STRUCT.pack(2, Op.COUNT, 0, 0, 7, 0, 0, 0, 0)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [outside] * 253))]
    for _ in range(20):
        if refused_by_kernel(lambda: job.sock.sendmsg([packed], ancillary)):
            continue
        assert job.reply()[0] == Kind.STARTED
    os.close(outside)
    assert os.read(inside, 1) == b"", "the broker holds a copy"


def its_own_socket_is_passed(job: Job) -> None:
    packed = wire.STRUCT.pack(2, Op.COUNT, 0, 0, 7, 0, 0, 0, 0)
    if not refused_by_kernel(lambda: socket.send_fds(job.sock, [packed], [job.sock.fileno()] * 100)):
        assert job.reply()[0] == Kind.STARTED


def a_lingering_connection_is_passed(job: Job) -> None:
    """To drop the last reference to it takes a minute, in which nothing else would be answered."""
    listening = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(listening.getsockname())
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(1 << 16))
    packed = wire.STRUCT.pack(2, Op.COUNT, 0, 0, 7, 0, 0, 0, 0)
    if refused_by_kernel(lambda: socket.send_fds(job.sock, [packed], [job.sock.fileno()])):
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
        with pytest.raises(PermissionError):
            socket.send_fds(job.sock, [packed], [ours.fileno()])
        # Its own end is not to take a minute either.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
    else:
        assert job.reply()[0] == Kind.STARTED
    job.legit()


def the_ring_is_asked_for_and_never_read(job: Job) -> None:
    """Descriptors on their way are limited for all of the node's brokers together."""
    job.sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(1_000_000):
            job.send(Op.HELLO)


def forks_ask_at_once(job: Job) -> tuple[int, int]:
    """Each record is asked for once, by one of four processes on one socket."""
    job.hello()
    inside, outside = os.pipe()
    children = []
    for child in range(4):
        children.append(os.fork())
        if children[-1]:
            continue
        handed = 0
        for record in range(child * 60, child * 60 + 60):
            # Replies go to whoever reads first, so only their sum is known.
            job.send(Op.EPOCH, 4)
            handed += job.sock.recv(4096)[1] == Kind.BATCH
            job.send(Op.INDICES, 4, wire.NO_SLOT, 1, tail=struct.pack("<I", record))
            handed += job.sock.recv(4096)[1] == Kind.BATCH
        os.write(outside, struct.pack("<I", handed))
        os._exit(0)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    handed = sum(struct.unpack("<4I", os.read(inside, 16)))
    return handed, handed


def threads_ask_at_once(job: Job) -> tuple[int, int]:
    """One walk, one thousand requests from four threads; positions never repeat, so replies add up."""
    job.epoch()
    job.sock.setblocking(True)
    counts = [0] * 4

    def ask(thread: int) -> None:
        for _ in range(40):
            job.send(Op.NEXT, 3, wire.NO_SLOT)
            message = job.sock.recv(4096)
            counts[thread] += message[1] == Kind.BATCH

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 4, "there are four slots, and none was given back"
    return 12, 12


def nothing_is_read(job: Job) -> None:
    """Until the socket is full both ways; requests that were not answered may not have been counted."""
    job.sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(1_000_000):
            job.send(Op.COUNT)


def records_are_asked_for_and_never_read(job: Job) -> tuple[int, int]:
    job.epoch()
    for _ in range(50):
        job.send(Op.NEXT, 10, wire.NO_SLOT)
    # Four slots, so four batches at most, whatever was asked for; closing comes before some are answered.
    return 0, 40


def closed_after_hello(job: Job) -> None:
    job.sock.close()


def closed_after_asking(job: Job) -> tuple[int, int]:
    job.epoch()
    job.send(Op.NEXT, 10, wire.NO_SLOT)
    job.sock.close()
    return 0, 10


def closed_for_writing(job: Job) -> None:
    job.legit()
    job.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(Ended):
        job.legit()


def closed_for_reading(job: Job) -> tuple[int, int]:
    job.epoch()
    job.sock.shutdown(socket.SHUT_RD)
    with contextlib.suppress(Ended):
        for _ in range(3):
            job.send(Op.NEXT, 10, wire.NO_SLOT)
    # The shared memory is there without the socket, so what was written into it counts.
    return 0, 10


def killed_in_the_middle(job: Job) -> NoReturn:
    job.epoch()
    job.next(10)
    tell(job.seen, (10, 10))
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def garbage_until_the_end(job: Job) -> None:
    job.legit()
    with pytest.raises(Ended):
        for _ in range(2000):
            job.ask(99)


def random_messages(job: Job) -> None:
    rng = random.Random(5)
    for _ in range(400):
        fields = [rng.choice([0, 1, 4, 100, 3999, 4000, *HUGE, wire.NO_SLOT]) for _ in range(4)]
        head = (2, rng.randrange(7), rng.choice([0, 0, 0, 1]), rng.randrange(5), 7)
        tail = b"".join(struct.pack("<I", rng.randrange(4100)) for _ in range(rng.randrange(4)))
        job.raw(wire.STRUCT.pack(*head, *fields) + tail)
        job.reply()


def a_second_program_begins_anew(job: Job) -> None:
    for _ in range(20):
        os.close(job.ring)
        job.hello()
        job.legit()
    assert len(job.seen) == 4


Attack = Callable[[Job], "tuple[int, int] | None"]
ATTACKS: dict[str, Attack] = {
    attack.__name__.replace("_", " "): attack
    for attack in (
        wrong_messages, huge_numbers, indices_beyond_the_end, resumed_beyond_the_end, resumed_near_the_end,
        seeds_of_any_size, slots_given_back_that_were_not_lent, a_slot_given_back_twice, replays,
        the_cap_is_met, the_ring_is_written, the_ring_is_read_ahead, descriptors_are_passed,
        its_own_socket_is_passed, a_lingering_connection_is_passed, the_ring_is_asked_for_and_never_read,
        forks_ask_at_once, threads_ask_at_once, nothing_is_read,
        records_are_asked_for_and_never_read, closed_after_hello, closed_after_asking, closed_for_writing,
        closed_for_reading, killed_in_the_middle, garbage_until_the_end, random_messages,
        a_second_program_begins_anew,
    )
}  # fmt: skip
"""An attack returns the fewest and the most records that may be counted; None: exactly those it saw."""

_told = -1


def tell(seen: set[int], bounds: tuple[int, int] | None) -> None:
    os.write(_told, json.dumps([sorted(seen), bounds]).encode())


def hostile(attack: Attack, sock: socket.socket, told: int) -> NoReturn:
    """What the job's process does."""
    global _told  # noqa: PLW0603
    _told = told
    status = 1
    try:
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        job = Job(sock)
        job.hello()
        tell(job.seen, attack(job)) if attack is not killed_in_the_middle else attack(job)
        status = 0
    except BaseException:  # noqa: BLE001  it is told by the exit status, in another process
        traceback.print_exc()
    finally:
        os._exit(status)


@dataclass
class Node:
    """A broker process and the job's end of its socket."""

    journal: Path

    def __post_init__(self) -> None:
        ours, self.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            self.process = subprocess.Popen(
                [sys.executable, "-c", BROKER, str(ours.fileno()), str(self.journal)],
                pass_fds=[ours.fileno()], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip

    def usage(self) -> dict[str, Any]:
        self.sock.close()
        out, _ = self.process.communicate(timeout=30)
        assert self.process.returncode == 0
        usage: dict[str, Any] = json.loads(out)
        return usage

    def close(self) -> None:
        self.sock.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def bystander(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Another job's broker, which serves throughout."""
    node = Node(tmp_path_factory.mktemp("bystander") / "journal")
    try:
        job = Job(node.sock)
        job.hello()
        yield job
        assert node.usage()["unique_records"] == len(job.seen)
    finally:
        node.close()


def root(seen: set[int]) -> str:
    data = np.array(sorted(seen), dtype="<u4").tobytes()
    return hmac.new(
        KEY, b"rapha/broker/used/1\0" + struct.pack("<Q", RECORDS) + data, hashlib.sha256
    ).hexdigest()


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_changes_no_count(tmp_path: Path, bystander: Job, name: str) -> None:
    node = Node(tmp_path / "journal")
    inside, outside = os.pipe()
    try:
        pid = os.fork()
        if not pid:
            hostile(ATTACKS[name], node.sock, outside)
        os.close(outside)
        node.sock.close()
        with os.fdopen(inside) as file:
            seen, bounds = json.loads(file.read() or "null")
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, -signal.SIGKILL)
        usage = node.usage()
        low, high = bounds or (len(seen), len(seen))
        assert low <= usage["unique_records"] <= high <= CAP
        if bounds is None:
            assert usage["used_root"] == root(set(seen))
            assert usage["unique_patients"] == len({record // 2 for record in seen})
        assert usage["grown"] < GROWTH_MB
        recovered = Meter.recover(node.journal, patients=np.arange(RECORDS) // 2, key=KEY)
        assert recovered.usage().used_root == usage["used_root"]
        assert recovered.usage().transcript == usage["transcript"]
        recovered.close()
        bystander.legit()
    finally:
        node.close()


def transcript(path: Path, seed: int = 1, last: int = 9, start: int = 0) -> str:
    node = Node(path)
    try:
        job = Job(node.sock)
        job.hello()
        job.ask(Op.EPOCH, 4, seed, 0, start, flags=wire.SHUFFLE)
        slot = job.next(40)[2]
        job.next(30, slot)
        job.indices([1, 2, last])
        told: str = node.usage()["transcript"]
        return told
    finally:
        node.close()


def test_the_transcript_is_of_every_request_and_of_nothing_else(tmp_path: Path) -> None:
    first = transcript(tmp_path / "a")
    assert transcript(tmp_path / "b") == first
    assert transcript(tmp_path / "c", seed=2) != first
    assert transcript(tmp_path / "d", last=10) != first
    assert transcript(tmp_path / "e", start=4) != first
