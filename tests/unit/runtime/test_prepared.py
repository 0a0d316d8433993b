"""Prepared records in memory and in encrypted shards: the same answers, and nothing in clear on disk."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from typing_extensions import Buffer

from rapha.runtime.broker import prepared, shards
from rapha.runtime.broker.prepared import Builder, PreparedStore
from rapha.runtime.broker.shards import TAG_BYTES, Sealer, ShardColumn
from rapha.runtime.broker.store import Field, Ragged
from rapha.spec.refusals import Refused
from rapha.spec.transforms import Form

RECORDS = 40
FORMS = {"pixels": Form("float32", (3, 5)), "mask": Form("bool", (7,)), "one": Form("int16", ())}
MODES = {"memory": 2**20, "encrypted-shards": 500}
NONE = np.zeros(0, dtype=np.int64)


def values() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(7)
    return {
        "pixels": rng.normal(size=(RECORDS, 3, 5)).astype(np.float32),
        "mask": rng.random((RECORDS, 7)) < 0.5,
        "one": rng.integers(-9999, 9999, RECORDS).astype(np.int16),
    }


def put_all(builder: Builder, skip: tuple[int, ...] = ()) -> dict[str, NDArray[Any]]:
    given = values()
    for name, column in given.items():
        for ordinal in np.random.default_rng(3).permutation(RECORDS).tolist():
            if ordinal not in skip:
                builder.put(ordinal, name, memoryview(column[ordinal].tobytes()))
    return given


@pytest.fixture(params=sorted(MODES))
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def builder(mode: str, tmp_path: Path) -> Iterator[Builder]:
    made = Builder(FORMS, RECORDS, shards=tmp_path / "shards", memory_bytes=MODES[mode])
    yield made
    made.close()


def read(store: PreparedStore, field: str, indices: list[int]) -> NDArray[Any]:
    (described,) = [f for f in store.fields if f.name == field]
    out = np.zeros((len(indices), *described.shape), described.dtype)
    store.gather(field, np.array(indices, dtype=np.int64), out)
    return out


def test_what_was_put_comes_out(builder: Builder, mode: str) -> None:
    put = put_all(builder)
    keep = np.array([5, 39, 0, 17, 18], dtype=np.int64)
    age = np.arange(5, dtype=np.int32)
    labs = Ragged(np.arange(6, dtype=np.float32), np.array([0, 1, 1, 3, 6, 6]))
    store = builder.finish(keep, {"age": age, "y": age, "labs": labs}, np.arange(5), ["y"])
    assert store.confinement == mode == builder.confinement
    assert len(store) == 5
    assert store.fields == (
        Field("pixels", "float32", (3, 5), False),
        Field("mask", "bool", (7,), False),
        Field("one", "int16", (), False),
        Field("age", "int32", (), False),
        Field("y", "int32", (), True),
        Field("labs", "float32", (), False, True),
    )
    indices = [4, 0, 0, 2, 1, 3, 4]
    for name, column in put.items():
        assert np.array_equal(read(store, name, indices), column[keep[indices]])
    assert np.array_equal(read(store, "age", indices), age[indices])
    assert store.lengths("labs", np.array([0, 3])).tolist() == [1, 3]
    out = np.zeros(4, np.float32)
    store.gather_values("labs", np.array([3, 0]), out)
    assert out.tolist() == [3, 4, 5, 0]
    store.close()


def test_the_order_of_the_fields_is_the_caller_s(builder: Builder) -> None:
    put_all(builder)
    order = ("y", "one", "pixels", "mask")
    with pytest.raises(Refused, match="not an order of all"):
        builder.finish(np.arange(RECORDS), {"y": np.arange(RECORDS)}, np.arange(RECORDS), [], order=order[1:])
    store = builder.finish(
        np.arange(RECORDS), {"y": np.arange(RECORDS)}, np.arange(RECORDS), ["y"], order=order
    )
    assert tuple(field.name for field in store.fields) == order
    store.close()


def test_all_records_in_their_own_places(builder: Builder) -> None:
    put = put_all(builder)
    store = builder.finish(np.arange(RECORDS), {}, np.zeros(RECORDS, np.int64), [])
    for name, column in put.items():
        assert np.array_equal(read(store, name, list(range(RECORDS))), column)
    store.close()


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keep=st.lists(st.integers(0, RECORDS - 1), unique=True, min_size=1),
    picks=st.lists(st.integers(0, 10**6), max_size=60),
    memory=st.sampled_from([0, 1, 200, 900, 2000, 10**6]),
)
def test_any_choice_of_records(tmp_path: Path, keep: list[int], picks: list[int], memory: int) -> None:
    builder = Builder(FORMS, RECORDS, shards=tmp_path / "s", memory_bytes=memory)
    put = put_all(builder, tuple(set(range(RECORDS)) - set(keep)))
    store = builder.finish(np.array(keep, np.int64), {}, np.zeros(len(keep), np.int64), [])
    indices = [pick % len(keep) for pick in picks]
    for name, column in put.items():
        assert np.array_equal(read(store, name, indices), column[np.array(keep)[indices]])
    store.close()


def test_the_last_value_of_a_place_counts(builder: Builder) -> None:
    put_all(builder)
    for value in (1, 2, 3):
        builder.put(4, "one", memoryview(np.int16(value).tobytes()))
    store = builder.finish(np.arange(RECORDS), {}, np.arange(RECORDS), [])
    assert read(store, "one", [4, 4]).tolist() == [3, 3]
    store.close()


def test_values_of_other_shapes_of_memory(builder: Builder) -> None:
    put_all(builder)
    strided = np.arange(30, dtype=np.float32).reshape(3, 10)[:, ::2]
    builder.put(0, "pixels", memoryview(cast(Buffer, strided)))
    builder.put(1, "pixels", memoryview(cast(Buffer, np.ones((3, 5), np.float32))))
    builder.put(2, "one", memoryview(bytearray(b"\x01\x02")).toreadonly())
    store = builder.finish(np.arange(RECORDS), {}, np.arange(RECORDS), [])
    assert np.array_equal(read(store, "pixels", [0, 1]), np.stack([strided, np.ones((3, 5), np.float32)]))
    store.close()


@pytest.mark.parametrize(
    ("ordinal", "field", "size"),
    [(-1, "one", 2), (RECORDS, "one", 2), (0, "one", 1), (0, "one", 3), (0, "one", 0), (0, "none", 2)],
)
def test_a_value_without_a_place(builder: Builder, ordinal: int, field: str, size: int) -> None:
    with pytest.raises(Refused) as refused:
        builder.put(ordinal, field, memoryview(bytes(size)))
    assert refused.value.code == "node.internal"


@pytest.mark.parametrize("keep", [[-1], [RECORDS], [1, 1], [7], [[1]]])
def test_records_that_can_not_be_kept(builder: Builder, keep: list[int]) -> None:
    put_all(builder, skip=(7,))
    with pytest.raises(Refused) as refused:
        builder.finish(np.array(keep, np.int64), {}, np.zeros(len(keep), np.int64), [])
    assert refused.value.code == "node.internal"


@pytest.mark.parametrize(
    ("columns", "patients", "labels"),
    [
        ({"a": np.arange(2)}, np.zeros(3, np.int64), []),
        ({"a": np.arange(3)}, np.zeros(2, np.int64), []),
        ({"one": np.arange(3)}, np.zeros(3, np.int64), []),
        ({}, np.zeros(3, np.int64), ["a"]),
        ({}, np.zeros(3, np.int64), ["one"]),
        ({"a": np.array(["x"] * 3)}, np.zeros(3, np.int64), []),
    ],
)
def test_columns_that_do_not_fit(builder: Builder, columns: Any, patients: Any, labels: Any) -> None:
    put_all(builder)
    with pytest.raises(Refused) as refused:
        builder.finish(np.arange(3), columns, patients, labels)
    assert refused.value.code == "node.dataset_invalid"


def test_a_builder_is_spent_once(builder: Builder) -> None:
    put_all(builder)
    store = builder.finish(NONE, {}, NONE, [])
    assert len(store) == 0
    with pytest.raises(Refused, match="handed over already"):
        builder.finish(NONE, {}, NONE, [])
    with pytest.raises(Refused, match="has no place"):
        builder.put(0, "one", memoryview(bytes(2)))
    builder.close()
    store.close()


def test_a_closed_store_serves_nothing(builder: Builder) -> None:
    put_all(builder)
    store = builder.finish(np.arange(RECORDS), {"y": np.arange(RECORDS)}, np.arange(RECORDS), [])
    store.close()
    store.close()
    for field in ("one", "y"):
        with pytest.raises(Refused, match=r"node\.internal"):
            read(store, field, [0])
    for ask in (lambda: store.lengths("y", NONE), lambda: store.gather_values("y", NONE, NONE)):
        with pytest.raises(Refused, match=r"node\.internal"):
            ask()


def test_no_record_and_no_field(tmp_path: Path) -> None:
    store = Builder({}, 3, shards=tmp_path, memory_bytes=0).finish(
        np.array([2, 1]), {"a": np.array([1, 2])}, np.array([0, 0]), ["a"]
    )
    assert (store.confinement, read(store, "a", [1]).tolist()) == ("memory", [2])
    store.close()
    Builder(FORMS, 0, shards=tmp_path, memory_bytes=0).finish(NONE, {}, NONE, []).close()


@pytest.mark.parametrize(
    ("form", "records"),
    [
        (Form("int8", (2,), ragged=True), 1),
        (Form("int8", (0,)), 1),
        (Form("int8", ()), -1),
        (Form("int8", ()), 2**32),
    ],
)
def test_what_can_not_be_built(tmp_path: Path, form: Form, records: int) -> None:
    with pytest.raises(Refused) as refused:
        Builder({"x": form}, records, shards=tmp_path, memory_bytes=2**40)
    assert refused.value.code == "node.dataset_invalid"


def test_closing_wipes_the_memory(builder: Builder, mode: str) -> None:
    put_all(builder)
    held = list(builder._columns.values())
    store = builder.finish(np.arange(RECORDS), {}, np.arange(RECORDS), [])
    read(store, "pixels", [0, 1, 2])
    memories = [getattr(column, "_memory") for column in held]  # noqa: B009  of both kinds of column
    assert any(any(memory[:]) for memory in memories)
    store.close()
    assert not any(any(memory[:]) for memory in memories)
    if mode == "encrypted-shards":
        assert [getattr(column, "_fd") for column in held] == [-1] * 3  # noqa: B009


def test_no_room_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(size: int) -> None:
        raise MemoryError

    monkeypatch.setattr(prepared, "anonymous", full)
    with pytest.raises(Refused, match="no memory for the prepared records"):
        Builder(FORMS, RECORDS, shards=tmp_path, memory_bytes=2**20)


def test_no_room_for_the_cache_of_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(size: int) -> None:
        raise MemoryError

    monkeypatch.setattr(shards, "anonymous", full)
    with pytest.raises(Refused, match="no memory for the cache"):
        Builder(FORMS, RECORDS, shards=tmp_path, memory_bytes=0)


def column(folder: Path, records: int = 4, cache: int = 0) -> ShardColumn:
    return ShardColumn(Sealer(), 0, record_bytes=64, records=records, folder=folder, cache_bytes=cache)


def test_a_shard_has_no_name_and_nothing_in_clear(tmp_path: Path) -> None:
    shard = column(tmp_path)
    clear = bytes(range(64))
    for ordinal in range(4):
        shard.put(ordinal, memoryview(clear))
    found = os.fstat(shard._fd)
    assert (found.st_nlink, stat.S_IMODE(found.st_mode)) == (0, 0o600)
    assert list(tmp_path.iterdir()) == []
    written = os.pread(shard._fd, 10_000, 0)
    assert len(written) == 4 * (64 + TAG_BYTES)
    assert not any(clear[start : start + 8] in written for start in range(56))
    assert len({written[start : start + 80] for start in range(0, 320, 80)}) == 4
    shard.close()
    shard.close()


def test_without_unnamed_files_the_name_is_gone_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def old(path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", old)
    shard = column(tmp_path)
    assert os.fstat(shard._fd).st_nlink == 0
    assert stat.S_IMODE(os.fstat(shard._fd).st_mode) == 0o600
    assert list(tmp_path.iterdir()) == []
    shard.close()


def flip(fd: int, shard: ShardColumn) -> None:
    byte = os.pread(fd, 1, 100)
    os.pwrite(fd, bytes([byte[0] ^ 1]), 100)


def swap(fd: int, shard: ShardColumn) -> None:
    os.pwrite(fd, os.pread(fd, 80, 0), 80)


def roll_back(fd: int, shard: ShardColumn) -> None:
    old = os.pread(fd, 80, 80)
    shard.put(1, memoryview(bytes(64)))
    os.pwrite(fd, old, 80)


def cut(fd: int, shard: ShardColumn) -> None:
    os.ftruncate(fd, 150)


def blank(fd: int, shard: ShardColumn) -> None:
    os.pwrite(fd, bytes(80), 80)


@pytest.mark.parametrize("change", [flip, swap, roll_back, cut, blank])
def test_a_shard_that_was_changed_is_not_served(tmp_path: Path, change: Any) -> None:
    shard = column(tmp_path)
    for ordinal in range(4):
        shard.put(ordinal, memoryview(bytes([ordinal]) * 64))
    change(shard._fd, shard)
    out = np.zeros((1, 64), np.uint8)
    for _ in range(2):  # and it is not in the cache the second time
        with pytest.raises(Refused) as refused:
            shard.gather(np.array([1]), out)
        assert refused.value.code == "node.internal"
    assert not out.any()
    shard.close()


def test_a_record_that_was_never_written_does_not_verify(tmp_path: Path) -> None:
    shard = column(tmp_path)
    with pytest.raises(Refused, match=r"node\.internal"):
        shard.gather(np.array([2]), np.zeros((1, 64), np.uint8))
    shard.close()


def test_a_field_s_record_is_not_another_field_s() -> None:
    sealer, value, out = Sealer(), memoryview(bytes(10)), bytearray(10)
    sealed = memoryview(bytearray(26))
    number = sealer.seal(0, 5, value, sealed)
    sealer.open(number, 0, 5, sealed, memoryview(out))
    for where in ((number, 1, 5), (number, 0, 6), (number + 1, 0, 5)):
        with pytest.raises(Refused, match="does not verify"):
            sealer.open(*where, sealed, memoryview(out))
    with pytest.raises(Refused, match="does not verify"):
        Sealer().open(number, 0, 5, sealed, memoryview(out))


def test_a_nonce_is_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sealer, sealed = Sealer(), memoryview(bytearray(16))
    assert [sealer.seal(0, 0, memoryview(b""), sealed) for _ in range(5)] == [0, 1, 2, 3, 4]
    monkeypatch.setattr(shards, "_NEVER", 5)
    with pytest.raises(Refused, match="used up"):
        sealer.seal(0, 0, memoryview(b""), sealed)


def test_the_cache_holds_what_it_may_and_what_was_asked_for_last(tmp_path: Path) -> None:
    shard = column(tmp_path, records=10, cache=3 * (64 + shards._SLOT_BYTES) + 5)
    for ordinal in range(10):
        shard.put(ordinal, memoryview(bytes([ordinal]) * 64))
    out = np.zeros((1, 64), np.uint8)
    for ordinal in (0, 1, 2, 0, 3, 0, 4):
        shard.gather(np.array([ordinal]), out)
        assert out[0, 0] == ordinal
    assert list(shard._held) == [3, 0, 4]
    shard.put(0, memoryview(bytes([99]) * 64))
    shard.gather(np.array([0]), out)
    assert out[0, 0] == 99
    shard.close()


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "node.disk_full"), (errno.EDQUOT, "node.disk_full"),
                         (errno.EROFS, "node.internal")],
)  # fmt: skip
@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_disk_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str, call: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(Refused) as refused:
        shard = column(tmp_path)
        try:
            shard.put(0, memoryview(bytes(64)))
        finally:
            shard.close()
    assert refused.value.code == code


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name in ("a/b", "file"):
        with pytest.raises(Refused) as refused:
            column(tmp_path / name)
        assert refused.value.code == "node.internal"
