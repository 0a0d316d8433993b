"""Fields of varying length: through the ring and back, a slot at a time, and nothing uncounted is told."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rapha.runtime.broker import serve
from rapha.runtime.broker.meter import Meter
from rapha.runtime.broker.ring import Layout
from rapha.runtime.broker.serve import Broker
from rapha.runtime.broker.store import Field, Ragged, TableStore
from rapha.spec.refusals import Refused
from rapha_trainer.order import positions
from rapha_trainer.session import BrokerSource
from rapha_trainer.source import Arrays, Epoch
from rapha_trainer.source import Ragged as Received

KEY = bytes(range(32))


def column(lengths: list[int], shape: tuple[int, ...] = ()) -> Ragged:
    """Values of record i are i, i + 0.001, i + 0.002, …"""
    rows = [i + np.arange(length) / 1000 for i, length in enumerate(lengths)]
    flat = np.concatenate([np.zeros(0), *rows])
    values = np.broadcast_to(flat.reshape(-1, *[1] * len(shape)), (len(flat), *shape))
    return Ragged(np.ascontiguousarray(values), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def rows_of(got: Any) -> list[NDArray[Any]]:
    assert isinstance(got, Received)
    assert got.offsets.dtype == np.int32
    assert (got.offsets[0], got.offsets[-1]) == (0, len(got.values))
    return [got.values[a:b] for a, b in zip(got.offsets[:-1], got.offsets[1:], strict=True)]


@contextlib.contextmanager
def source(store: TableStore, path: Path, cap: int | None = None) -> Iterator[tuple[BrokerSource, Meter]]:
    meter = Meter.create(path, patients=store.patients, cap=len(store) if cap is None else cap, key=KEY)
    broker = Broker(store, {"train": range(len(store)), "test": range(0)}, meter)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stop = Event()
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        done = pool.submit(broker.serve, ours, stop=stop)
        reader = BrokerSource(theirs.fileno(), "train")
        try:
            yield reader, meter
        finally:
            reader.close()
            theirs.close()
            stop.set()
            done.result(20)
            meter.close()


def epoch(batch: int, **given: Any) -> Epoch:
    usual = {"shuffle": False, "seed": 3, "number": 0, "drop_last": False, "indices": None, "prefetch": None}
    return Epoch(batch, **{**usual, **given})


def table(lengths: list[int], shape: tuple[int, ...] = ()) -> TableStore:
    n = len(lengths)
    columns: dict[str, NDArray[Any] | Ragged] = {
        "id": np.arange(n),
        "notes": column(lengths, shape),
        "more": column(lengths[::-1]),
    }
    return TableStore(columns, np.arange(n))


def check(batches: list[Arrays], lengths: list[int], order: list[int], batch: int) -> None:
    """Each batch is whole, and each record has its own values."""
    ids = [len(b["id"]) for b in batches if isinstance(b["id"], np.ndarray)]
    assert ids == [min(batch, len(order) - start) for start in range(0, len(order), batch)]
    at = 0
    for got in batches:
        notes, more = rows_of(got["notes"]), rows_of(got["more"])
        assert isinstance(got["id"], np.ndarray)
        for identity, note, other in zip(got["id"], notes, more, strict=True):
            assert identity == order[at]
            assert len(note) == lengths[identity]
            assert len(other) == lengths[::-1][identity]
            assert (note.astype(int) == identity).all()
            at += 1
    assert at == len(order)


@pytest.fixture(autouse=True)
def small_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "RAGGED_BYTES", 1600)
    monkeypatch.setattr(serve, "_WANTED_RECORDS", 20)


LENGTHS = st.lists(st.sampled_from([0, 0, 1, 2, 7, 30, 100]), min_size=1, max_size=60)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=LENGTHS,
    batch=st.sampled_from([1, 3, 8, 64]),
    prefetch=st.sampled_from([None, 0, 2]),
    how=st.sampled_from(["stored", "shuffled", "indices"]),
    data=st.data(),
)
def test_every_batch_is_whole_whatever_the_lengths(
    tmp_path: Path, lengths: list[int], batch: int, prefetch: int | None, how: str, data: st.DataObject
) -> None:
    path = tmp_path / "journal"
    path.unlink(missing_ok=True)
    start = data.draw(st.integers(0, len(lengths)))
    records = len(lengths)
    asked = epoch(batch, shuffle=how == "shuffled", prefetch=prefetch, start=start)
    order = positions(records, 3, 0, 0, records) if how == "shuffled" else np.arange(records)
    if how == "indices":
        order = np.array(data.draw(st.lists(st.integers(0, records - 1), min_size=start, max_size=90)), int)
        asked = epoch(batch, prefetch=prefetch, start=start, indices=order.astype(np.uint32))
    with source(table(lengths), path) as (reader, meter):
        got = [{name: copied(value) for name, value in b.items()} for b in reader.batches(asked)]
        check(got, lengths, order[start:].tolist(), batch)
        usage = meter.usage()
        assert usage.unique_records == len(set(order[start:].tolist()))
    recovered = Meter.recover(path, patients=np.arange(records), key=KEY)
    assert recovered.usage().used_root == usage.used_root
    recovered.close()


def copied(value: Any) -> Any:
    return (
        Received(value.values.copy(), value.offsets.copy()) if isinstance(value, Received) else value.copy()
    )


def test_values_may_have_a_shape(tmp_path: Path) -> None:
    lengths = [3, 0, 5, 9] * 10
    with source(table(lengths, (2, 3)), tmp_path / "j") as (reader, _):
        assert reader.fields[1].shape == (2, 3)
        got = [{name: copied(value) for name, value in b.items()} for b in reader.batches(epoch(7))]
    check(got, lengths, list(range(40)), 7)


def test_what_did_not_come_is_not_counted(tmp_path: Path) -> None:
    lengths = [90] * 40
    with source(table(lengths), tmp_path / "j") as (reader, meter):
        batches = reader.batches(epoch(2, prefetch=0))
        for _ in range(3):
            next(batches)
        assert meter.usage().unique_records == 6


def test_the_cap_cuts_a_ragged_epoch_too(tmp_path: Path) -> None:
    with source(table([60] * 40), tmp_path / "j", cap=11) as (reader, meter):
        ids = [i for b in reader.batches(epoch(4)) for i in np.asarray(b["id"]).tolist()]
        assert ids == list(range(11))
        assert reader.capped
        assert meter.usage().unique_records == 11


def test_a_view_is_read_only(tmp_path: Path) -> None:
    with source(table([4, 4]), tmp_path / "j") as (reader, _):
        notes = next(reader.batches(epoch(2)))["notes"]
        assert isinstance(notes, Received)
        with pytest.raises(ValueError, match="read-only"):
            notes.values[0] = 1
        with pytest.raises(ValueError, match="read-only"):
            notes.offsets[0] = 1


def layout(*longest: int) -> Layout:
    fields = tuple(Field(str(i), "float64", (), False, True) for i in range(len(longest)))
    return Layout.plan(fields, 100, 2, longest)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(0, 50))
def test_how_many_fit_tells_nothing_of_the_record_that_stays_behind(lengths: list[int], other: int) -> None:
    fit = layout(50).fitting({0: np.array(lengths)})
    assert 1 <= fit <= len(lengths)
    assert sum(lengths[:fit]) <= 100
    if fit < len(lengths):
        changed = [*lengths[:fit], other, *lengths[fit + 1 :]]
        assert layout(50).fitting({0: np.array(changed)}) == fit


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), min_size=1, max_size=40))
def test_every_area_has_room_for_what_fits(lengths: list[tuple[int, int]]) -> None:
    both = np.array(lengths)
    fit = layout(50, 20).fitting({0: both[:, 0], 1: both[:, 1]})
    assert fit >= 1
    assert (both[:fit].sum(axis=0) <= [100, 40]).all()


def test_a_record_that_fits_no_slot_is_refused_by_name(tmp_path: Path) -> None:
    meter = Meter.create(tmp_path / "j", patients=np.arange(3), cap=3, key=KEY)
    for length, fits in ((200, True), (201, False)):
        store = TableStore({"id": np.arange(3), "notes": column([0, length, 1])}, np.arange(3))
        with contextlib.nullcontext() if fits else pytest.raises(Refused, match=r"dataset_invalid.*'notes'"):
            Broker(store, {"train": range(3), "test": range(0)}, meter)
    meter.close()


def test_the_ring_is_of_the_schema_alone() -> None:
    short, long = (TableStore({"x": column(lengths)}, np.arange(2)) for lengths in ([1, 0], [99, 100]))
    assert serve.plan(short.fields) == serve.plan(long.fields)


def test_no_fields_and_too_large_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no field"):
        serve.plan(())
    wide = Field("scan", "float64", (2**24,), False)
    with pytest.raises(Refused, match="'scan'"):
        serve.plan((wide,))
    with pytest.raises(Refused, match="'scan'"):
        serve.plan((Field("scan", "float64", (2**24,), False, True),))
    store = TableStore({"x": np.zeros(2), "y": column([1, 1])}, np.arange(2), ["y"])
    meter = Meter.create(tmp_path / "j", patients=store.patients, cap=3, key=KEY)
    with pytest.raises(Refused, match="a label"):
        Broker(store, {"train": range(2), "test": range(0)}, meter)
    meter.close()


BAD: dict[str, Ragged] = {
    "too few offsets": Ragged(np.zeros(3), np.array([0, 3])),
    "falling": Ragged(np.zeros(3), np.array([0, 3, 2, 3])),
    "not from 0": Ragged(np.zeros(3), np.array([1, 2, 3, 3])),
    "not to the end": Ragged(np.zeros(3), np.array([0, 1, 2, 2])),
    "beyond the end": Ragged(np.zeros(3), np.array([0, 1, 2, 4])),
    "int32 offsets": Ragged(np.zeros(3), np.array([0, 1, 2, 3], np.int32)),
    "text": Ragged(np.array(["a"] * 3), np.array([0, 1, 2, 3])),
    "objects": Ragged(np.array([None] * 3), np.array([0, 1, 2, 3])),
    "values of nothing": Ragged(np.zeros((3, 0)), np.array([0, 1, 2, 3])),
    "a matrix of offsets": Ragged(np.zeros(3), np.zeros((4, 1), np.int64)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_column_is_refused(name: str) -> None:
    with pytest.raises(Refused, match=r"node\.dataset_invalid"):
        TableStore({"x": BAD[name]}, np.arange(3))


@given(st.lists(st.sampled_from([0, 1, 5, 70, 200]), min_size=1, max_size=20), st.data())
def test_gather_puts_long_and_short_records_one_after_the_other(
    lengths: list[int], data: st.DataObject
) -> None:
    store = TableStore({"x": column(lengths)}, np.arange(len(lengths)))
    chosen = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=30)))
    out = np.full(int(store.lengths("x", chosen).sum()), -1.0)
    store.gather_values("x", chosen, out)
    expected = [i + k / 1000 for i in chosen.tolist() for k in range(lengths[i])]
    assert out.tolist() == expected
