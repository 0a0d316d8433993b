"""What the broker serves from: tables, splits, layouts, shared memory, and the form of messages."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.runtime.broker import wire
from rapha.runtime.broker.ring import ALIGNMENT, SEALS, Layout, Ring
from rapha.runtime.broker.splits import Order, Shuffle, make_splits
from rapha.runtime.broker.store import Field, TableStore
from rapha.spec.refusals import Refused

PATIENTS = np.array([0, 0, 1, 2])

BAD_TABLES: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "objects": ({"x": np.array([None] * 4)}, PATIENTS, ()),
    "text": ({"x": np.array(["a"] * 4)}, PATIENTS, ()),
    "dates": ({"x": np.array(["2020-01-01"] * 4, dtype="M8[D]")}, PATIENTS, ()),
    "records of a struct": ({"x": np.zeros(4, dtype="i4,f4")}, PATIENTS, ()),
    "complex": ({"x": np.zeros(4, dtype=complex)}, PATIENTS, ()),
    "other byte order": ({"x": np.zeros(4, dtype=">f4")}, PATIENTS, ()),
    "too short": ({"x": np.zeros(3)}, PATIENTS, ()),
    "scalar": ({"x": np.array(1.0)}, PATIENTS, ()),
    "records of nothing": ({"x": np.zeros((4, 0))}, PATIENTS, ()),
    "label not there": ({"x": np.zeros(4)}, PATIENTS, ("y",)),
    "negative patient": ({"x": np.zeros(4)}, np.array([0, 1, 2, -1]), ()),
    "patient beyond 32 bits": ({"x": np.zeros(4)}, np.array([0, 1, 2, 2**32]), ()),
    "patients as floats": ({"x": np.zeros(4)}, PATIENTS.astype(float), ()),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_refused(name: str) -> None:
    columns, patients, labels = BAD_TABLES[name]
    with pytest.raises(Refused, match=r"node\.dataset_invalid"):
        TableStore(columns, patients, labels)


def test_gather_copies_rows_in_the_order_asked_for() -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    store = TableStore({"x": np.asfortranarray(x)}, PATIENTS, ["x"])
    out = np.zeros((3, 2, 3), dtype=np.float32)
    store.gather("x", np.array([2, 0, 2]), out)
    assert (out == x[[2, 0, 2]]).all()
    assert store.fields == (Field("x", "float32", (2, 3), True),)
    assert len(store) == 4


BAD_SPLITS: dict[str, dict[str, Any]] = {
    "missing": {"train": np.array([0])},
    "unknown": {"train": np.array([0]), "test": np.array([2]), "dev": np.array([3])},
    "twice": {"train": np.array([0, 0]), "test": np.array([2])},
    "out of range": {"train": np.array([0]), "test": np.array([4])},
    "negative": {"train": np.array([-1]), "test": np.array([2])},
    "floats": {"train": np.array([0.0]), "test": np.array([2])},
    "record on both sides": {"train": np.array([0, 2]), "test": np.array([2, 3])},
    "patient on both sides": {"train": np.array([0]), "test": np.array([1, 2])},
    "a matrix": {"train": np.array([[0, 1]]), "test": np.array([2])},
}


@pytest.mark.parametrize("name", BAD_SPLITS)
def test_a_bad_split_is_refused(name: str) -> None:
    with pytest.raises(Refused, match=r"node\.dataset_invalid"):
        make_splits(BAD_SPLITS[name], PATIENTS)


SHAPES: dict[str, Any] = {
    "consecutive": np.arange,
    "a range": range,
    "backwards": lambda n: np.arange(n)[::-1],
    "a stepped range": lambda n: range(0, n, 2),
    "scattered": lambda n: np.random.default_rng(n).permutation(n).astype(np.uint32),
}


@pytest.mark.parametrize("shape", SHAPES)
@given(n=st.integers(1, 60), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**64 - 1), data=st.data())
def test_an_order_walks_each_record_once(
    shape: str, n: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    given_as = SHAPES[shape](n)
    split = make_splits({"train": given_as, "test": range(0)}, np.arange(n))["train"]
    start = data.draw(st.integers(0, len(split)))
    stop = data.draw(st.integers(start, len(split)))
    for shuffle in (None, Shuffle(seed, epoch)):
        order = Order(split, shuffle)
        whole = order.dense(0, len(split)).tolist()
        assert sorted(whole) == sorted(int(i) for i in given_as)
        assert order.dense(start, stop).tolist() == whole[start:stop]
    assert Order(split, None).dense(0, len(split)).tolist() == [int(i) for i in given_as]
    assert set(split.records) == {int(i) for i in given_as}


def test_consecutive_records_take_no_memory() -> None:
    split = make_splits({"train": np.arange(10, 90), "test": np.array([], int)}, np.arange(100))["train"]
    assert split.dense == range(10, 90)


@given(
    st.lists(
        st.tuples(st.sampled_from(["uint8", "float32", "int64"]), st.lists(st.integers(1, 5), max_size=3)),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 100),
)
def test_fields_of_a_slot_are_aligned_and_apart(kinds: list[tuple[str, list[int]]], records: int) -> None:
    fields = tuple(Field(str(i), dtype, tuple(shape), False) for i, (dtype, shape) in enumerate(kinds))
    layout = Layout.plan(fields, records, 2)
    ends = [
        o + records * f.record_bytes
        for o, f in zip([area.offset for area in layout.areas], fields, strict=True)
    ]
    offsets = [area.offset for area in layout.areas]
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    assert all(end <= start for end, start in zip(ends, [*offsets[1:], layout.slot_bytes], strict=True))


@pytest.fixture
def ring() -> Any:
    ring = Ring(Layout.plan((Field("x", "int32", (2,), False),), 8, 3))
    yield ring
    ring.close()
    ring.close()


def test_the_ring_is_sealed(ring: Ring) -> None:
    assert fcntl.fcntl(ring.fd, fcntl.F_GET_SEALS) == SEALS
    size = os.fstat(ring.fd).st_size
    for change in (
        lambda: mmap.mmap(ring.fd, size),
        lambda: os.ftruncate(ring.fd, 0),
        lambda: os.ftruncate(ring.fd, 2 * size),
        lambda: os.pwrite(ring.fd, b"x", 0),
        lambda: fcntl.fcntl(ring.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    ):
        with pytest.raises(PermissionError):
            change()


def test_the_ring_is_nobody_elses_to_change(ring: Ring) -> None:
    # Extended attributes of a memfd are bounded by nothing but this.
    assert stat.S_IMODE(os.fstat(ring.fd).st_mode) == 0o444


def test_what_is_written_to_a_view_is_read_by_the_job(ring: Ring) -> None:
    ring.view(2, 0, 3)[:] = 7
    job = mmap.mmap(ring.fd, os.fstat(ring.fd).st_size, prot=mmap.PROT_READ)
    seen = np.frombuffer(job, np.int32, 8, 2 * ring.layout.slot_bytes).tolist()
    assert seen == [7] * 6 + [0, 0]


GOOD = wire.STRUCT.pack(2, wire.Op.NEXT, 0, 0, 9, 1, 0, 0, 0)
BAD_MESSAGES = {
    "empty": (b"", wire.FaultCode.LENGTH),
    "short": (GOOD[:-1], wire.FaultCode.LENGTH),
    "long": (GOOD + b"\0", wire.FaultCode.LENGTH),
    "huge": (bytes(wire.MAX_MESSAGE + 1), wire.FaultCode.LENGTH),
    "version 0": (b"\0" + GOOD[1:], wire.FaultCode.VERSION),
    "version 1": (b"\1" + GOOD[1:], wire.FaultCode.VERSION),
    "op 0": (GOOD[:1] + b"\0" + GOOD[2:], wire.FaultCode.OP),
    "op 255": (GOOD[:1] + b"\xff" + GOOD[2:], wire.FaultCode.OP),
    "flags": (wire.STRUCT.pack(2, wire.Op.NEXT, 0, 1, 9, 1, 0, 0, 0), wire.FaultCode.UNUSED),
    "unknown flag": (wire.STRUCT.pack(2, wire.Op.EPOCH, 0, 4, 9, 1, 0, 0, 0), wire.FaultCode.UNUSED),
    "unused field": (wire.STRUCT.pack(2, wire.Op.HELLO, 0, 0, 9, 1, 0, 0, 0), wire.FaultCode.UNUSED),
    "list shorter than said": (
        wire.STRUCT.pack(2, wire.Op.INDICES, 0, 0, 9, 1, 0, 2, 0) + bytes(4),
        wire.FaultCode.LENGTH,
    ),
    "2^31 indices": (wire.STRUCT.pack(2, wire.Op.INDICES, 0, 0, 9, 1, 0, 2**31, 0), wire.FaultCode.LENGTH),
    "2^62 indices": (wire.STRUCT.pack(2, wire.Op.INDICES, 0, 0, 9, 1, 0, 2**62, 0), wire.FaultCode.LENGTH),
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_a_bad_message_is_a_fault(name: str) -> None:
    message, code = BAD_MESSAGES[name]
    with pytest.raises(wire.Fault) as caught:
        wire.parse(message)
    assert caught.value.code is code


@given(st.binary(max_size=80))
def test_any_bytes_parse_or_fault(message: bytes) -> None:
    try:
        request = wire.parse(message)
    except wire.Fault:
        return
    assert len(message) == wire.STRUCT.size + len(request.tail)
    assert wire.tag_of(message) == request.tag
