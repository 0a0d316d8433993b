"""Whatever two sessions of a job ask for, in whatever order: a naive model foretells each reply and count."""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from rapha.runtime.broker import serve, wire
from rapha.runtime.broker.meter import Meter, Usage
from rapha.runtime.broker.order import positions
from rapha.runtime.broker.serve import Broker
from rapha.runtime.broker.store import Ragged, TableStore
from rapha.runtime.broker.wire import End, FaultCode, Kind, Op

KEY = bytes(range(32))
Reply = tuple[int, int, int, int, int]


@dataclass
class Epoch:
    """The model's: what is left of it, from where, and why no more of it comes."""

    order: list[int]
    batch: int
    origin: int
    at: int
    ended: End | None = None


@dataclass
class Session:
    """A session: the broker's half in a thread, the job's half here, and the model of it."""

    code: int
    dense: list[int]
    sock: socket.socket
    stop: Event
    done: Future[Usage]
    epoch: Epoch | None = None
    lent: set[int] = field(default_factory=set)

    def hello(self) -> None:
        self.sock.send(wire.STRUCT.pack(2, Op.HELLO, self.code, 0, 5, 0, 0, 0, 0))
        message, fds, _, _ = socket.recv_fds(self.sock, 1 << 18, 1)
        self.memory = mmap.mmap(fds[0], os.fstat(fds[0]).st_size, prot=mmap.PROT_READ)
        os.close(fds[0])
        self.about = json.loads(message[wire.STRUCT.size :])
        self.epoch, self.lent = None, set()

    def ask(self, op: Op, *numbers: int, flags: int = 0, tail: bytes = b"") -> Reply:
        a, b, c, d = [*numbers, 0, 0, 0, 0][:4]
        self.sock.send(wire.STRUCT.pack(2, op, self.code, flags, 5, a, b, c, d) + tail)
        _, kind, code, _, _, x, y, z, _ = wire.STRUCT.unpack_from(self.sock.recv(1 << 18))
        return kind, code, x, y, z

    def rows(self, slot: int, count: int) -> tuple[list[int], list[list[int]]]:
        """Number and notes of each record in a slot."""
        numbers, notes = self.about["fields"]
        base = slot * self.about["slot_bytes"]
        ids = np.ndarray(count, np.int64, self.memory, base + numbers["offset"])
        ends = np.ndarray(count + 1, np.int32, self.memory, base + notes["index"])
        values = np.ndarray(notes["values"], np.int64, self.memory, base + notes["offset"])
        assert 0 == ends[0] <= ends[-1] <= notes["values"]
        return ids.tolist(), [values[a:b].tolist() for a, b in pairwise(ends)]

    def close(self) -> Usage:
        self.sock.close()
        self.stop.set()
        return self.done.result(10)


class BrokerAgainstModel(RuleBasedStateMachine):
    """Records, their notes' lengths, splits and cap are drawn; so is what the job does, and crashes."""

    @initialize(
        records=st.sampled_from([60, 17, 2, 1]),
        seed=st.integers(0, 99),
        share=st.sampled_from([0.7, 0.4, 1, 0]),
        room=st.sampled_from([2, 1, 0.6, 0.2, 0]),
        backwards=st.booleans(),
    )
    def begin(self, records: int, seed: int, share: float, room: float, backwards: bool) -> None:
        # The longest note is half a slot's; a slot has room for 50 records.
        small: dict[str, Any] = {
            "RAGGED_BYTES": 400,
            "_WANTED_RECORDS": 4,
            "SLOT_BYTES": 800,
            "_RAGGED_RECORD": 8,
        }
        self.patch = mock.patch.multiple(serve, **small)
        self.patch.start()
        lengths = np.random.default_rng(seed).choice([0, 0, 1, 3, 25, 50], records).tolist()
        cap = int(room * records)
        ids, cut = np.arange(records), round(share * records) // 2 * 2
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        columns: dict[str, Any] = {"id": ids, "notes": Ragged(np.repeat(ids, lengths), offsets)}
        self.lengths, self.store = lengths, TableStore(columns, ids // 2)
        self.splits = [ids[:cut][:: -1 if backwards else 1], ids[cut:]]
        self.folder = tempfile.TemporaryDirectory()
        self.path, self.cap, self.pool = Path(self.folder.name) / "journal", cap, ThreadPoolExecutor(4)
        self.used, self.batches, self.capped = set[int](), 0, False
        self.sessions: dict[int, Session] = {}
        self.use(Meter.create(self.path, patients=self.store.patients, cap=cap, key=KEY))
        self.connect(0)

    def use(self, meter: Meter) -> None:
        self.meter = meter
        self.broker = Broker(self.store, dict(zip(("train", "test"), self.splits, strict=True)), meter)

    def teardown(self) -> None:
        if hasattr(self, "meter"):
            self.end_sessions()
            self.check()
            self.meter.close()
            assert Meter.root_of(self.path, KEY)[1] == len(self.used)
            self.pool.shutdown()
            self.folder.cleanup()
            self.patch.stop()

    def end_sessions(self) -> None:
        for session in self.sessions.values():
            session.close()
        self.sessions.clear()

    @rule(code=st.integers(0, 1))
    def connect(self, code: int) -> None:
        if code in self.sessions:
            self.sessions.pop(code).close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.settimeout(10)
        stop = Event()

        def run() -> Usage:
            with ours:
                return self.broker.serve(ours, ("train", "test")[code], stop=stop)

        done = self.pool.submit(run)
        self.sessions[code] = Session(code, self.splits[code].tolist(), theirs, stop, done)
        self.sessions[code].hello()

    def session(self, data: st.DataObject) -> Session:
        return self.sessions[data.draw(st.sampled_from(sorted(self.sessions)))]

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def second_program(self, data: st.DataObject) -> None:
        self.session(data).hello()

    @precondition(lambda self: self.sessions)
    @rule(
        data=st.data(),
        batch=st.sampled_from([1, 2, 3, 7, 2**31 - 1]),
        flags=st.integers(0, 3),
        seed=st.sampled_from([0, 1, 2**64 - 1]),
    )
    def start(self, data: st.DataObject, batch: int, flags: int, seed: int) -> None:
        session = self.session(data)
        total = len(session.dense)
        first = data.draw(st.sampled_from([0, 0, 1, total // 2, total, total + 1]))
        reply = session.ask(Op.EPOCH, batch, seed, 3, first, flags=flags)
        if flags & wire.SHUFFLE and session.code:
            assert reply[:2] == (Kind.FAULT, FaultCode.ORDER)
        elif first > total:
            assert reply[:2] == (Kind.FAULT, FaultCode.RANGE)
        else:
            end = total - (total - first) % batch if flags & wire.DROP_LAST else total
            assert reply == (Kind.STARTED, 0, end, total, 0)
            walk = positions(total, seed, 3, 0, total) if flags & wire.SHUFFLE else range(total)
            session.epoch = Epoch([session.dense[i] for i in walk][:end], batch, first, first)
            session.lent = set()
            self.take(session, data, 5)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), count=st.sampled_from([5, 1, 100, 2**31 - 1]))
    def next(self, data: st.DataObject, count: int) -> None:
        self.take(self.session(data), data, count)

    def take(self, session: Session, data: st.DataObject, count: int) -> None:
        slot = self.returned(data, session)
        epoch, reply = session.epoch, session.ask(Op.NEXT, count, slot)
        if epoch is None:
            assert reply[:2] == (Kind.FAULT, FaultCode.STATE)
        elif self.lends(session, slot, reply):
            asked = epoch.order[epoch.at : epoch.at + count][: session.about["slot_records"]]
            if not asked:
                epoch.ended = epoch.ended or End.EPOCH
            if epoch.ended:
                assert reply[:2] == (Kind.END, epoch.ended)
                return
            came, cut = self.came(session, reply, asked, epoch.at, epoch.at - epoch.origin, epoch.batch)
            epoch.at += came
            epoch.ended = End.CAP if cut else None

    @precondition(lambda self: 0 in self.sessions and len(self.splits[0]) > 0)
    @rule(data=st.data(), batch=st.sampled_from([1, 4, 9]))
    def indices(self, data: st.DataObject, batch: int) -> None:
        session = self.sessions[0]
        chosen = data.draw(st.lists(st.integers(0, len(session.dense) - 1), min_size=1, max_size=12))
        slot = self.returned(data, session)
        tail = struct.pack(f"<{len(chosen)}I", *chosen)
        reply = session.ask(Op.INDICES, batch, slot, len(chosen), tail=tail)
        if self.lends(session, slot, reply):
            self.came(session, reply, [session.dense[i] for i in chosen], 0, 0, batch)

    def returned(self, data: st.DataObject, session: Session) -> int:
        return int(data.draw(st.sampled_from([*sorted(session.lent), wire.NO_SLOT])))

    def lends(self, session: Session, slot: int, reply: Reply) -> bool:
        """Whether there is a slot to lend, once `slot` is given back."""
        if slot == wire.NO_SLOT and len(session.lent) == serve.SLOTS:
            assert reply[:2] == (Kind.FAULT, FaultCode.SLOT)
            return False
        session.lent.discard(slot)
        return True

    def came(
        self, session: Session, reply: Reply, asked: list[int], position: int, offset: int, batch: int
    ) -> tuple[int, bool]:
        """Check what came of `asked`; how many records, and whether the cap cut them."""
        fitting = self.fitting(asked, session.about["fields"][1]["values"] // 2)
        expected: list[int] = []
        for record in fitting:
            if record not in self.used and len(self.used) == self.cap:
                self.capped = True
                break
            self.used.add(record)
            expected.append(record)
        kind, code, slot, count, first = reply
        cut = len(expected) < len(fitting)
        if not expected:
            assert (kind, code) == (Kind.END, End.CAP)
            return 0, True
        assert (kind, code, count, first) == (Kind.BATCH, End.CAP if cut else 0, len(expected), position)
        assert slot not in session.lent
        session.lent.add(slot)
        assert session.rows(slot, count) == (expected, [[i] * self.lengths[i] for i in expected])
        self.batches += sum(i % batch == 0 for i in range(offset, offset + count))
        return count, cut

    def fitting(self, asked: list[int], half: int) -> list[int]:
        values, fit = 0, 0
        while fit < len(asked) and values <= half:
            values += self.lengths[asked[fit]]
            fit += 1
        return asked[:fit]

    @rule()
    def check(self) -> None:
        usage = self.meter.usage()
        assert usage.unique_records == len(self.used)
        assert usage.unique_patients == len({record // 2 for record in self.used})
        assert (usage.batches, usage.capped) == (self.batches, self.capped)

    @rule()
    def recover(self) -> None:
        before = self.meter.usage()
        self.end_sessions()
        self.meter.close()
        self.use(Meter.recover(self.path, patients=self.store.patients, key=KEY))
        after = self.meter.usage()
        assert (after.used_root, after.transcript) == (before.used_root, before.transcript)
        self.check()


TestBrokerAgainstModel: Any = BrokerAgainstModel.TestCase
TestBrokerAgainstModel.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
