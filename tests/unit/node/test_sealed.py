"""Released bytes on their way to the dataset process can't change, and nothing else is taken for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rapha.node.datasets.sealed import sealed, searchable, unsealed
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import ReleasePlan

TENSOR = {"name": "w", "dtype": "F32", "shape": [2], "min": -1, "max": 1}
PLAN = ReleasePlan.parse(
    {
        "version": 1,
        "weights": {"file": "w.safetensors", "release_dtype": "bf16", "tensors": [TENSOR]},
        "max_bytes": 4096,
    }
)


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 999])
def test_what_is_sealed_is_what_is_read(data: bytes) -> None:
    with sealed(memoryview(data)) as descriptor, unsealed(descriptor) as read:
        assert bytes(read) == data


def test_sealed_bytes_stay(tmp_path: Path) -> None:
    with sealed(memoryview(b"released")) as descriptor:
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"other", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 3)


def _file(folder: Path) -> int:
    (folder / "file").write_bytes(b"released")
    return os.open(folder / "file", os.O_RDONLY)


def _pipe(folder: Path) -> int:
    read, write = os.pipe()
    os.close(write)
    return read


def _memory(folder: Path) -> int:
    return os.memfd_create("released", os.MFD_ALLOW_SEALING)


@pytest.mark.parametrize("make", [_file, _pipe, _memory])
def test_anything_else_is_refused(make: Callable[[Path], int], tmp_path: Path) -> None:
    descriptor = make(tmp_path)
    try:
        with pytest.raises(Refused) as refused, unsealed(descriptor):
            raise AssertionError
        assert refused.value.code == "node.internal"
    finally:
        os.close(descriptor)


def test_no_descriptor_is_refused() -> None:
    with pytest.raises(Refused) as refused, unsealed(None):
        raise AssertionError
    assert refused.value.code == "node.internal"


def test_the_planned_header_is_not_searched() -> None:
    assert PLAN.weights
    header = PLAN.weights.released_header()
    head = len(header).to_bytes(8, "little") + header
    files = {"w.safetensors": head + b"abcd", "reported.json": b"{}"}
    told = [(name, content, bytes(data)) for name, content, data in searchable(files, PLAN)]
    assert told == [("w.safetensors", "numbers", b"abcd"), ("reported.json", "text", b"{}")]


@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"\x02\x00\x00\x00\x00\x00\x00\x00{}abcd"])
def test_another_header_is_refused(data: bytes) -> None:
    with pytest.raises(Refused) as refused:
        list(searchable({"w.safetensors": data}, PLAN))
    assert refused.value.code == "node.internal"
