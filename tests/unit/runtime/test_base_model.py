"""The base model of a job: found by its digest alone, and tensors from the first byte to the last."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load, save

from rapha.runtime import base_model
from rapha.runtime.base_model import check, find
from rapha.spec.refusals import Refused

PLAIN = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def encoded(header: object, data: bytes = bytes(8), *, pad: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) + len(pad)).to_bytes(8, "little") + text + pad + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"w": {**PLAIN["w"], **changes}}


def checked(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with path.open("rb") as file:
        check(file)


def why(data: bytes, tmp_path: Path) -> str:
    with pytest.raises(Refused) as caught:
        checked(data, tmp_path)
    assert caught.value.code == "image.base_invalid"
    return caught.value.detail


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


TAKEN = {
    "what the library writes": save({"b": np.zeros(3, np.float32), "a": np.ones((2, 2), np.float16)}),
    "one tensor by hand": encoded(PLAIN),
    "padded with spaces": encoded(PLAIN, pad=b" " * 9),
    "a scalar": encoded(entry(shape=[], data_offsets=[0, 4]), bytes(4)),
    "an empty tensor": encoded(
        {**PLAIN, "none": {"dtype": "F32", "shape": [0, 4], "data_offsets": [8, 8]}}, bytes(8)
    ),
    "entries in another order than the data": encoded(
        {
            "b": {"dtype": "U8", "shape": [3], "data_offsets": [2, 5]},
            "a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
        },
        bytes(5),
    ),
}
REFUSED = {
    "nothing": (b"", "length"),
    "a few bytes": (b"\x01\x02", "length"),
    "a pickle": (pickle.dumps({"w": [0.0] * 64}), "length"),
    "a header longer than the file": (encoded(PLAIN)[:30], "length"),
    "a header over 1 MiB": (encoded(PLAIN, pad=b" " * 2**20), "length"),
    "no object": (encoded([1, 2]), "{"),
    "white space first": (encoded(b" " + json.dumps(PLAIN).encode()), "{"),
    "two objects": (encoded(b"{}{}"), "strict JSON"),
    "no UTF-8": (encoded(b'{"\xff": 1}'), "strict JSON"),
    "a lone surrogate": (encoded(b'{"\\ud800": 1}'), "strict JSON"),
    "a key twice": (encoded(b'{"w": {}, "w": {}}'), "duplicate key"),
    "a key twice in an entry": (
        encoded(b'{"w":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
        "duplicate key",
    ),
    "nested deeply": (encoded(b'{"w":' * 100 + b"1" + b"}" * 100), "deeper"),
    "metadata": (encoded({"__metadata__": {"format": "pt"}, **PLAIN}), "__metadata__"),
    "no tensor": (encoded({}, b""), "0 tensors"),
    "a name of 600": (encoded({"w" * 600: PLAIN["w"]}), "name"),
    "an empty name": (encoded({"": PLAIN["w"]}), "name"),
    "a NUL in a name": (encoded({"w\0": PLAIN["w"]}), "name"),
    "an entry of another kind": (encoded({"w": [0, 8]}), "an entry"),
    "a field more": (encoded(entry(extra=1)), "an entry"),
    "a field less": (encoded({"w": {"dtype": "F32", "shape": [2]}}), "an entry"),
    "an unknown dtype": (encoded(entry(dtype="OBJECT")), "dtype"),
    "a dtype that is no text": (encoded(entry(dtype=["F32"])), "dtype"),
    "a negative shape": (encoded(entry(shape=[-2])), "shape"),
    "a shape of true": (encoded(entry(shape=[True, 2])), "shape"),
    "a shape of 2.0": (encoded(entry(shape=[2.0])), "shape"),
    "a shape beyond 2^53": (encoded(entry(shape=[2**60])), ""),
    "a product that overflows": (encoded(entry(shape=[2**40] * 16)), "length"),
    "rank 17": (encoded(entry(shape=[1] * 16 + [2])), "shape"),
    "three offsets": (encoded(entry(data_offsets=[0, 8, 8])), "data_offsets"),
    "offsets that fall": (encoded(entry(data_offsets=[8, 0])), "length"),
    "offsets of another length": (encoded(entry(data_offsets=[0, 4])), "length"),
    "a gap at the start": (encoded(entry(data_offsets=[8, 16]), bytes(16)), "gap"),
    "a gap in the middle": (
        encoded({**PLAIN, "v": {"dtype": "U8", "shape": [1], "data_offsets": [9, 10]}}, bytes(10)),
        "gap",
    ),
    "an overlap": (
        encoded({**PLAIN, "v": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}),
        "overlap",
    ),
    "data cut short": (encoded(PLAIN, bytes(7)), "8 bytes"),
    "a ZIP behind it": (encoded(PLAIN, bytes(8) + b"PK\x05\x06" + bytes(18)), "30"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_plain_tensors_are_taken(name: str, tmp_path: Path) -> None:
    checked(TAKEN[name], tmp_path)
    load(TAKEN[name])


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_refused(name: str, tmp_path: Path) -> None:
    data, says = REFUSED[name]
    assert says in why(data, tmp_path)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 200), st.sampled_from(list(TAKEN.values())))
def test_what_is_taken_is_what_the_library_reads(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int, base: bytes
) -> None:
    data = base[:at] + noise + base[at + len(noise) :]
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(data)
    try:
        with path.open("rb") as file:
            check(file)
    except Refused as refused:
        assert refused.code == "image.base_invalid"
        return
    try:
        load(data)
    except SafetensorError as error:  # what it lacks is a kind of tensor, never a defence
        raise AssertionError(error) from None


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = {}
    for name, data in (
        ("app/model.safetensors", encoded(PLAIN)),
        ("app/other.safetensors", encoded(PLAIN, b"otherone")),
        ("app/train.py", encoded(PLAIN)),
    ):
        made[name] = tmp_path / Path(name).name
        made[name].write_bytes(data)
    return made


def test_it_is_found_by_its_digest_alone(files: dict[str, Path]) -> None:
    assert find(files, digest(encoded(PLAIN))) == files["app/model.safetensors"]
    assert find(files, digest(encoded(PLAIN, b"otherone"))) == files["app/other.safetensors"]


def test_one_that_is_not_there_is_refused_with_what_is(files: dict[str, Path]) -> None:
    with pytest.raises(Refused) as caught:
        find(files, "0" * 64)
    assert caught.value.code == "image.base_missing"
    assert f"app/model.safetensors is {digest(encoded(PLAIN))}" in caught.value.detail
    assert "train.py" not in caught.value.detail
    with pytest.raises(Refused, match="there is none"):
        find({"app/train.py": files["app/train.py"]}, digest(encoded(PLAIN)))


def test_a_refusal_stays_short_however_many_there_are(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(encoded(PLAIN))
    many = {f"app/{n:04d}.safetensors": path for n in range(500)}
    for wanted in ("0" * 64, digest(encoded(PLAIN))):
        with pytest.raises(Refused, match=r"image\.base_missing") as caught:
            find(many, wanted)
        assert "app/0007.safetensors" in caught.value.detail and "492 more" in caught.value.detail
        assert len(caught.value.detail) < 1000


def test_one_that_is_there_twice_is_refused(files: dict[str, Path]) -> None:
    files["app/copy.safetensors"] = files["app/model.safetensors"]
    with pytest.raises(Refused) as caught:
        find(files, digest(encoded(PLAIN)))
    assert caught.value.code == "image.base_missing"
    assert "app/copy.safetensors and as app/model.safetensors" in caught.value.detail


def test_the_right_digest_of_the_wrong_thing_is_refused(files: dict[str, Path]) -> None:
    data = pickle.dumps(print)
    files["app/model.safetensors"].write_bytes(data)
    with pytest.raises(Refused, match=r"image\.base_invalid"):
        find(files, digest(data))


@pytest.mark.parametrize("kind", ["link", "fifo", "gone"])
def test_only_a_plain_file_is_opened(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    if kind == "link":
        path.symlink_to(files["app/model.safetensors"])
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(Refused, match=r"image\.base_"):
        find({"app/x.safetensors": path}, digest(encoded(PLAIN)))


def test_a_large_one_is_refused_before_it_is_read(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_model, "MAX_BYTES", 10)
    with pytest.raises(Refused, match="larger than 10 bytes"):
        find(files, digest(encoded(PLAIN)))
