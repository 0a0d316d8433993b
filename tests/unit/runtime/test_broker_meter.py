"""The meter counts exactly, whatever is asked for in whatever order, and after any crash."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rapha.runtime.broker import splits as splits_module
from rapha.runtime.broker.handover import Descriptor
from rapha.runtime.broker.meter import Meter
from rapha.runtime.broker.splits import Order, Shuffle, Split, make_splits
from rapha.runtime.broker.tally import Walk
from rapha.spec.refusals import Refused

KEY = bytes(range(32))
RECORDS = 40
PATIENTS = np.arange(RECORDS) // 3
TRAIN = np.array([i for i in range(RECORDS) if i // 3 % 4])
TEST = np.setdiff1d(np.arange(RECORDS), TRAIN)
SPLITS = make_splits({"train": TRAIN, "test": TEST}, PATIENTS)


def about(split: Split, *, batch_size: int = 4, start: int = 0) -> Descriptor:
    return Descriptor(split.code, False, batch_size, start=start)


def of_walk(walk: Walk, start: int) -> Descriptor:
    shuffle = walk.order.shuffle or Shuffle(0, 0)
    code, shuffled = walk.order.split.code, walk.order.shuffle is not None
    return Descriptor(code, shuffled, 4, shuffle.seed, shuffle.epoch, walk.first, start)


def begin(path: Path, **options: Any) -> Meter:
    meter = Meter.create(path, **{"patients": PATIENTS, "cap": RECORDS, "key": KEY, **options})
    for split in SPLITS.values():
        meter.register(split)
    return meter


def expected_root(used: set[int]) -> str:
    data = b"".join(i.to_bytes(4, "little") for i in sorted(used))
    text = b"rapha/broker/used/1\0" + RECORDS.to_bytes(8, "little") + data
    return hmac.new(KEY, text, hashlib.sha256).hexdigest()


class MeterAgainstSet(RuleBasedStateMachine):
    """A Python set and a list say what the meter must say; `recover` may come at any point."""

    @initialize(cap=st.integers(0, RECORDS + 5))
    def begin(self, cap: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "journal"
        self.cap, self.used, self.batches, self.capped = cap, set[int](), 0, False
        self.meter = begin(self.path, cap=cap)
        self.walks: list[Walk] = []

    def teardown(self) -> None:
        if hasattr(self, "meter"):
            self.meter.close()
            self.folder.cleanup()

    def prefix(self, dense: list[int]) -> list[int]:
        """Count `dense` in the model, one record at a time."""
        served: list[int] = []
        for record in dense:
            if record not in self.used and len(self.used) == self.cap:
                self.capped = True
                break
            self.used.add(record)
            served.append(record)
        return served

    @rule(split=st.sampled_from(["train", "test"]), seed=st.none() | st.integers(0, 3), data=st.data())
    def walk(self, split: str, seed: int | None, data: st.DataObject) -> None:
        order = Order(SPLITS[split], None if seed is None else Shuffle(seed, 0))
        first = data.draw(st.sampled_from([0, 0, 1, len(order.split) // 2, len(order.split)]))
        self.walks.append(self.meter.walk(order, first))

    @precondition(lambda self: self.walks)
    @rule(data=st.data(), count=st.integers(1, RECORDS))
    def advance(self, data: st.DataObject, count: int) -> None:
        walk = data.draw(st.sampled_from(self.walks))
        start = walk.cursor
        count = min(count, len(walk.order.split) - start)
        if not count:
            return
        expected = self.prefix(walk.order.dense(start, start + count).tolist())
        self.batches += sum((i - walk.first) % 4 == 0 for i in range(start, start + len(expected)))
        served = self.meter.advance(walk, count, of_walk(walk, start))
        assert served.tolist() == expected

    @rule(split=st.sampled_from(["train", "test"]), data=st.data())
    def take(self, split: str, data: st.DataObject) -> None:
        dense = list(SPLITS[split].dense)
        chosen = np.array(data.draw(st.lists(st.sampled_from(dense), min_size=1, max_size=30)))
        expected = self.prefix(chosen.tolist())
        self.batches += -(-len(expected) // 4)
        assert self.meter.take(chosen, about(SPLITS[split])).tolist() == expected

    @rule()
    def recover(self) -> None:
        before = self.meter.usage()
        self.meter.close()
        self.meter = Meter.recover(self.path, patients=PATIENTS, key=KEY)
        for split in SPLITS.values():
            self.meter.register(split)
        self.walks = []
        # What was told before a crash is not in the journal, so the worst is assumed.
        assert self.meter.usage() == replace(before, first_record_served=True)

    @rule()
    def look(self) -> None:
        usage = self.meter.usage()
        assert usage.unique_records == len(self.used)
        assert usage.unique_patients == len({int(PATIENTS[i]) for i in self.used})
        assert usage.batches == self.batches
        assert usage.used_root == expected_root(self.used)

    @invariant()
    def flags(self) -> None:
        # Read without `usage`, which enters a live walk into the bitmaps.
        if hasattr(self, "meter"):
            assert self.meter.first_record_served >= bool(self.used)

    @precondition(lambda self: hasattr(self, "meter"))
    @rule()
    def cap_is_told(self) -> None:
        assert self.meter.usage().capped == self.capped


TestMeterAgainstSet = MeterAgainstSet.TestCase
TestMeterAgainstSet.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def served(path: Path, blocks: int = 3) -> list[int]:
    """Write a journal of `blocks` frames; returns its size after each."""
    meter = begin(path)
    walk = meter.walk(Order(SPLITS["train"], None))
    sizes = [path.stat().st_size]
    for block in range(blocks):
        meter.advance(walk, 5, about(SPLITS["train"], start=5 * block))
        sizes.append(path.stat().st_size)
    meter.close()
    return sizes


def test_every_torn_tail_keeps_the_frames_before_it(path: Path) -> None:
    sizes = served(path)
    data = path.read_bytes()
    for cut in range(sizes[0], len(data) + 1):
        path.write_bytes(data[:cut])
        meter = Meter.recover(path, patients=PATIENTS, key=KEY)
        whole = sum(cut >= size for size in sizes[1:])
        assert meter.usage().unique_records == 5 * whole
        assert path.stat().st_size == sizes[whole]
        meter.close()


def test_every_changed_byte_is_found(path: Path) -> None:
    served(path)
    data = path.read_bytes()
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x40]) + data[position + 1 :])
        with pytest.raises(Refused, match=r"node\.journal_invalid"):
            Meter.recover(path, patients=PATIENTS, key=KEY)


def dropped_frame(data: bytes, sizes: list[int]) -> bytes:
    return data[: sizes[1]] + data[sizes[2] :]


def swapped_frames(data: bytes, sizes: list[int]) -> bytes:
    return data[: sizes[1]] + data[sizes[2] : sizes[3]] + data[sizes[1] : sizes[2]]


def repeated_frame(data: bytes, sizes: list[int]) -> bytes:
    return data + data[sizes[2] : sizes[3]]


def zeros_after(data: bytes, sizes: list[int]) -> bytes:
    return data + bytes(4096)


def no_header(data: bytes, sizes: list[int]) -> bytes:
    return data[:87]


def empty(data: bytes, sizes: list[int]) -> bytes:
    return b""


@pytest.mark.parametrize(
    "change", [dropped_frame, swapped_frames, repeated_frame, zeros_after, no_header, empty]
)
def test_a_changed_journal_is_refused(path: Path, change: Any) -> None:
    sizes = served(path)
    path.write_bytes(change(path.read_bytes(), sizes))
    with pytest.raises(Refused, match=r"node\.journal_invalid"):
        Meter.recover(path, patients=PATIENTS, key=KEY)


def test_another_key_or_other_patients_do_not_open_it(path: Path) -> None:
    served(path)
    for patients, key in ((PATIENTS, bytes(31) + b"x"), (PATIENTS + 1, KEY), (PATIENTS[:-1], KEY)):
        with pytest.raises(Refused, match=r"node\.journal_invalid"):
            Meter.recover(path, patients=patients, key=key)


@pytest.mark.parametrize("key", [b"", bytes(32), b"short", b"x" * 33])
def test_a_weak_key_is_refused(path: Path, key: bytes) -> None:
    with pytest.raises(Refused, match=r"node\.key_unsafe"):
        Meter.create(path, patients=PATIENTS, cap=1, key=key)
    assert not path.exists()


def test_a_journal_has_one_writer_and_is_never_replaced(path: Path) -> None:
    meter = Meter.create(path, patients=PATIENTS, cap=1, key=KEY)
    with pytest.raises(Refused, match=r"node\.internal"):
        Meter.create(path, patients=PATIENTS, cap=1, key=KEY)
    with pytest.raises(Refused, match=r"node\.internal"):
        Meter.recover(path, patients=PATIENTS, key=KEY)
    meter.close()
    meter.close()
    assert [p.name for p in path.parent.iterdir()] == ["journal"]


def test_a_missing_journal_or_a_link_is_refused(path: Path) -> None:
    with pytest.raises(Refused, match=r"node\.internal"):
        Meter.recover(path, patients=PATIENTS, key=KEY)
    served(path.with_name("real"))
    path.symlink_to("real")
    with pytest.raises(Refused, match=r"node\.internal"):
        Meter.recover(path, patients=PATIENTS, key=KEY)


def test_what_the_journal_does_not_take_is_not_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    meter = begin(path)
    meter.take(TRAIN[:4], about(SPLITS["train"]))
    size, write = path.stat().st_size, os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
        with pytest.raises(Refused, match=r"node\.disk_full"):
            meter.take(TRAIN[4:8], about(SPLITS["train"]))
    with pytest.raises(Refused, match=r"node\.internal"):
        meter.take(TRAIN[4:8], about(SPLITS["train"]))
    assert meter.usage().unique_records == 4
    assert path.stat().st_size == size
    meter.close()


def test_a_tail_that_could_not_be_cut_off_is_a_torn_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def fail(*_: int) -> None:
        raise OSError(errno.EIO, "no")

    meter = begin(path)
    meter.take(TRAIN[:4], about(SPLITS["train"]))
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(Refused, match=r"node\.disk_full"):
            meter.take(TRAIN[4:8], about(SPLITS["train"]))
    meter.close()
    with contextlib.closing(Meter.recover(path, patients=PATIENTS, key=KEY)) as recovered:
        assert recovered.usage().unique_records == 4


def test_a_journal_outlives_a_second_start_after_a_crash_in_the_first(path: Path) -> None:
    """A process that died when the journal had its name, and still had its first name too."""
    served(path)
    data = path.read_bytes()
    path.with_name("journal.new").hardlink_to(path)
    with pytest.raises(Refused, match=r"node\.internal"):
        Meter.create(path, patients=PATIENTS, cap=1, key=KEY)
    assert path.read_bytes() == data


@pytest.mark.parametrize("empty", [range(0), range(7, 7), range(RECORDS + 9, 3), range(-4, -4)])
def test_an_empty_split_comes_back_wherever_it_lies(path: Path, empty: range) -> None:
    splits = make_splits({"train": TRAIN, "test": empty}, PATIENTS)
    meter = Meter.create(path, patients=PATIENTS, cap=1, key=KEY)
    for split in splits.values():
        meter.register(split)
    before = meter.usage()
    meter.close()
    with contextlib.closing(Meter.recover(path, patients=PATIENTS, key=KEY)) as recovered:
        for split in splits.values():
            recovered.register(split)
        assert recovered.usage() == replace(before, first_record_served=True), "it was written again"


def test_whole_epochs_come_back_without_drawing_them_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = begin(path, cap=len(TRAIN))
    for epoch in range(3):
        walk = meter.walk(Order(SPLITS["train"], Shuffle(1, epoch)))
        for start in range(0, len(TRAIN), 10):
            meter.advance(walk, min(10, len(TRAIN) - start), of_walk(walk, start))
    before = meter.usage()
    meter.close()
    monkeypatch.setattr(splits_module, "positions", None)
    with contextlib.closing(Meter.recover(path, patients=PATIENTS, key=KEY)) as recovered:
        assert recovered.usage() == before


def test_a_walk_that_goes_on_beside_another_is_not_counted_twice(path: Path) -> None:
    meter = begin(path)
    train = SPLITS["train"]
    first, second = (meter.walk(Order(train, None)) for _ in range(2))
    meter.advance(second, 8, about(train))
    meter.advance(first, 12, about(train))
    assert meter.usage().unique_records == 12
    meter.close()


def test_hand_overs_are_limited(path: Path) -> None:
    meter = begin(path, limit=2)
    for _ in range(2):
        assert not meter.exhausted
        meter.take(TRAIN[:1], about(SPLITS["train"]))
    assert meter.exhausted
    meter.close()


def test_digests_depend_on_the_key_and_on_order(tmp_path: Path) -> None:
    def usage(name: str, key: bytes, order: list[int]) -> tuple[str, str]:
        meter = begin(tmp_path / name, key=key)
        for record in order:
            meter.take(np.array([record]), about(SPLITS["train"]))
        meter.close()
        return meter.usage().transcript, meter.usage().used_root

    transcript, root = usage("a", KEY, [3, 4])
    assert usage("b", KEY, [3, 4]) == (transcript, root)
    other_transcript, same_root = usage("c", KEY, [4, 3])
    assert (other_transcript != transcript, same_root) == (True, root)
    keyed = usage("d", KEY[::-1], [3, 4])
    assert keyed[0] != transcript
    assert keyed[1] != root


def test_a_split_is_the_same_in_every_session(path: Path) -> None:
    meter = begin(path)
    size = path.stat().st_size
    for split in make_splits({"train": TRAIN, "test": TEST}, PATIENTS).values():
        meter.register(split)
    assert path.stat().st_size == size
    for other in ({"train": TRAIN[:-1], "test": TEST}, {"train": TRAIN[::-1], "test": TEST}):
        with pytest.raises(Refused, match=r"node\.dataset_invalid"):
            meter.register(make_splits(other, PATIENTS)["train"])
    meter.close()


def test_a_walk_needs_a_split_that_the_journal_knows(path: Path) -> None:
    meter = Meter.create(path, patients=PATIENTS, cap=RECORDS, key=KEY)
    with pytest.raises(Refused, match=r"node\.internal"):
        meter.walk(Order(SPLITS["train"], None))
    meter.close()


def test_a_walk_costs_the_same_bytes_however_many_records_it_counts(tmp_path: Path) -> None:
    grown = []
    for count in (1, 20):
        path = tmp_path / str(count)
        meter = begin(path)
        before = path.stat().st_size
        meter.advance(meter.walk(Order(SPLITS["train"], Shuffle(1, 2))), count, about(SPLITS["train"]))
        grown.append(path.stat().st_size - before)
        meter.close()
    assert grown[0] == grown[1] < 200
