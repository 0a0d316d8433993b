"""Values: rounding checked against exact arithmetic, and one output for every input that means the same."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rapha.runtime.guard.codes import Finding
from rapha.runtime.guard.inspection import inspect
from rapha.runtime.guard.reading import Held
from rapha.runtime.guard.rebuild import rebuild
from rapha.runtime.guard.released import folder_for
from rapha.runtime.guard.report import Transform
from rapha.runtime.guard.rounding import DTYPES
from rapha.runtime.guard.tensors import read
from rapha.spec.release_plan import ReleasePlan
from rapha.spec.weights import LARGEST_INT8, ORDER, WeightsPlan

Array = npt.NDArray[Any]
LIBRARY_DTYPES = DTYPES | {"BOOL": np.dtype(np.bool_)}
FINITE = st.floats(allow_nan=False, allow_infinity=False)
ELEMENTS = [
    (16, st.floats(allow_nan=False, allow_infinity=False, width=16)),
    (32, st.floats(allow_nan=False, allow_infinity=False, width=32)),
    (64, FINITE),
]
RANGES: dict[str, tuple[float, float]] = {"f32": (-1e38, 1e38), "bf16": (-1e38, 1e38), "f16": (-6e4, 6e4)}


def plan_of(dtype: str, count: int, low: float, high: float, release: str = "bf16") -> WeightsPlan:
    tensor = {"name": "w", "dtype": dtype, "shape": (count,), "min": low, "max": high}
    return WeightsPlan.parse({"file": "w.safetensors", "release_dtype": release, "tensors": [tensor]})


def rebuilt(raw: dict[str, bytes], plan: WeightsPlan) -> tuple[bytes, tuple[Transform, ...]]:
    """The released file, from tensors without a header, by checks 3 to 5."""
    begins = dict(zip(raw, np.cumsum([0, *map(len, raw.values())]).tolist(), strict=False))
    with tempfile.TemporaryDirectory() as folder:
        with folder_for(Path(folder)) as out:
            outgoing = out.file(plan.file, plan.released_bytes)
            done = rebuild(Held(b"".join(raw.values())), begins, plan, outgoing)
            said = outgoing.finish()
        data = (Path(folder) / plan.file).read_bytes()
    assert said.sha256 == hashlib.sha256(data).hexdigest()
    return data, done


def released(array: Array, plan: WeightsPlan) -> dict[str, Array]:
    """What a reader sees, by the reference library."""
    data, _ = rebuilt({"w": array.tobytes()}, plan)
    tensors = load(data)
    assert data == safetensors.numpy.save(tensors)
    return tensors


def load(data: bytes) -> dict[str, Array]:
    """The reference library's reading; its numpy half has no bfloat16."""
    return {
        name: np.frombuffer(bytes(entry["data"]), LIBRARY_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    }


def nearest_even(value: float, release: str) -> float:
    """Round to nearest even at the release dtype's precision, by exact rational arithmetic."""
    precision, smallest = {"bf16": (8, -133), "f16": (11, -24), "f32": (24, -149)}[release]
    exponent = max(math.frexp(value)[1] - precision, smallest)
    step = Fraction(2) ** exponent
    return float(round(Fraction(value) / step) * step)


@pytest.mark.parametrize("release", ["bf16", "f16", "f32"])
@settings(deadline=None)
@given(data=st.data())
def test_floats_are_clipped_and_rounded_once(release: str, data: st.DataObject) -> None:
    width, elements = data.draw(st.sampled_from(ELEMENTS))
    values = data.draw(st.lists(elements, min_size=1))
    low, high = RANGES[release]
    array = np.array(values, f"<f{width // 8}")
    result = released(array, plan_of(f"F{width}", len(values), low, high, release))["w"]
    bounds = np.array([low, high], np.float64 if width == 64 else np.float32).astype(float)
    for value, got in zip(array.astype(float), result.astype(float), strict=True):
        assert got == nearest_even(min(max(value, bounds[0]), bounds[1]), release)
        assert got != 0 or math.copysign(1, got) == 1


def test_no_double_rounding_from_f64() -> None:
    just_above_a_tie = 1 + 2**-8 + 2**-40
    result = released(np.array([just_above_a_tie, -just_above_a_tie]), plan_of("F64", 2, -2, 2))["w"]
    assert result.astype(float).tolist() == [1 + 2**-7, -1 - 2**-7]


def test_negative_zero_and_what_rounds_to_it() -> None:
    array = np.array([-0.0, -1e-45, -1e-40, 0.0], "<f4")
    for release in ("f32", "bf16", "f16"):
        result = released(array, plan_of("F32", 4, -1, 1, release))["w"]
        assert not np.signbit(result[[0, 3]]).any()
        assert not (np.signbit(result) & (result == 0)).any()


def test_low_bits_do_not_survive_bf16() -> None:
    draw = np.random.default_rng(0)
    base = draw.standard_normal(5000).astype(ml_dtypes.bfloat16).astype("<f4")
    payload = (base.view("<u4") | draw.integers(0, 2**14, 5000).astype("<u4")).view("<f4")
    plan = plan_of("F32", 5000, -16, 16)
    assert (released(payload, plan)["w"] == released(base, plan)["w"]).all()


@settings(deadline=None)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=50))
def test_int8_is_symmetric_and_close(values: list[float]) -> None:
    array = np.array(values, "<f4")
    result = released(array, plan_of("F32", len(values), -(2.0**100), 2.0**100, "int8"))
    scale, whole = float(result["w.scale"]), result["w"].astype(float)
    assert result["w"].dtype == np.int8
    assert np.abs(whole).max() <= 127
    assert scale > 0
    assert np.abs(whole * scale - array.astype(float)).max() <= max(scale, 1.2e-36) * 0.5001


def test_int8_at_the_largest_bound_stays_finite() -> None:
    largest = LARGEST_INT8
    result = released(np.array([largest, -largest, 1.0]), plan_of("F64", 3, -largest, largest, "int8"))
    assert np.isfinite(result["w"].astype("<f4") * result["w.scale"]).all()


def test_int8_of_zeros_has_scale_one() -> None:
    result = released(np.zeros(3, "<f4"), plan_of("F32", 3, -1, 1, "int8"))
    assert (float(result["w.scale"]), result["w"].tolist()) == (1.0, [0, 0, 0])


@pytest.mark.parametrize("dtype", ["I64", "I32", "I16", "I8", "U8"])
def test_integers_keep_their_dtype_and_are_clipped(dtype: str) -> None:
    info = np.iinfo(DTYPES[dtype])
    array = np.array([info.min, 0, 5, 9, info.max], DTYPES[dtype])
    result = released(array, plan_of(dtype, 5, 3, 7))["w"]
    assert (result.dtype, result.tolist()) == (DTYPES[dtype], [3, 3, 5, 7, 7])


def test_booleans_pass_and_other_bytes_refuse() -> None:
    plan = plan_of("BOOL", 2, 0, 1)
    assert released(np.array([1, 0], "u1"), plan)["w"].tolist() == [True, False]
    with pytest.raises(Finding, match=r"guard\.boolean"):
        released(np.array([1, 255], "u1"), plan)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_refuses_wherever_it_is(dtype: str, bad: float) -> None:
    array = np.zeros(2**18 + 3, DTYPES[dtype])
    array[-1] = bad
    with pytest.raises(Finding, match=r"guard\.not_finite"):
        rebuilt({"w": array.tobytes()}, plan_of(dtype, len(array), -1, 1))


def test_large_tensors_go_in_chunks() -> None:
    array = np.random.default_rng(3).standard_normal(2**18 + 5).astype("<f4") * 3
    _, (done,) = rebuilt({"w": array.tobytes()}, plan_of("F32", len(array), -1, 1))
    assert done.clipped == int((np.abs(array) > 1).sum())
    assert 0 < done.largest_error <= 2**-9
    assert (
        released(array, plan_of("F32", len(array), -1, 1))["w"] == np.clip(array, -1, 1).astype("bfloat16")
    ).all()


TENSORS = st.lists(
    st.tuples(st.sampled_from(ORDER), st.lists(st.integers(1, 4), max_size=3)), min_size=1, max_size=6
)


@settings(deadline=None)
@given(shapes=TENSORS, release=st.sampled_from(["f32", "bf16", "f16", "int8"]), seed=st.integers(0, 99))
def test_released_headers_are_the_librarys(
    shapes: list[tuple[str, list[int]]], release: str, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    tensors: list[dict[str, Any]] = []
    raw: dict[str, bytes] = {}
    for i, (dtype, shape) in enumerate(shapes):
        high = 1 if dtype == "BOOL" else 100
        tensors.append({"name": f"t{i}", "dtype": dtype, "shape": tuple(shape), "min": 0, "max": high})
        raw[f"t{i}"] = draw.integers(0, high + 1, shape).astype(DTYPES[dtype]).tobytes()
    plan = WeightsPlan.parse({"file": "w.safetensors", "release_dtype": release, "tensors": tuple(tensors)})
    data, _ = rebuilt(raw, plan)
    assert len(data) == plan.released_bytes
    assert data == safetensors.numpy.save(load(data))
    for name, begin in _offsets(data).items():
        width = DTYPES[plan_dtype(plan, name)].itemsize
        assert begin % width == 0


def plan_dtype(plan: WeightsPlan, name: str) -> str:
    return next(dtype for released_name, dtype, _ in plan.released if released_name == name)


def _offsets(data: bytes) -> dict[str, int]:
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=400) | st.binary(max_size=60).map(lambda b: struct.pack("<Q", len(b)) + b))
def test_the_reader_refuses_noise_without_an_exception(data: bytes) -> None:
    with pytest.raises(Finding):
        read(Held(data), [("w", "F32", (4,))])


GOOD = safetensors.numpy.save({"w": np.array([1.0, -2.0, 0.5, 3.0], "<f4")})


@settings(deadline=None, max_examples=400)
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=3),
    st.integers(0, 3),
    st.sampled_from([b"", b" ", b"\x00", b"{}"]),
)
def test_any_accepted_mutation_gives_exactly_the_planned_bytes(
    edits: list[tuple[int, int]], cut: int, tail: bytes
) -> None:
    data = bytearray(GOOD[: len(GOOD) - cut] + tail)
    for at, byte in edits:
        if at < len(data):
            data[at] = byte
    plan = plan_of("F32", 4, -4, 4)
    try:
        begin = read(Held(bytes(data)), [("w", "F32", (4,))])["w"]
        out, _ = rebuilt({"w": bytes(data[begin:])}, plan)
    except Finding:
        return
    values = np.clip(np.frombuffer(bytes(data[begin:]), "<f4"), -4, 4).astype(ml_dtypes.bfloat16)
    expected = safetensors.numpy.save({"w": np.where(values == 0, values.dtype.type(0), values)})
    assert out == expected


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(values=st.lists(FINITE, min_size=1, max_size=20), seed=st.integers(0, 2**16))
def test_inputs_that_mean_the_same_leave_the_same(tmp_path: Path, values: list[float], seed: int) -> None:
    """Header style, and bits below the release dtype, are gone from the output."""
    folder = tmp_path / f"{seed}"
    folder.mkdir(exist_ok=True)
    path = folder / "w.safetensors"
    base = np.clip(np.array(values), -8, 8).astype(ml_dtypes.bfloat16).astype("<f4")
    noisy = base * np.float32(1 + 2**-12)
    plan_json = {"version": 1, "max_bytes": 4096, "weights": plan_of("F32", len(values), -8, 8).dump()}
    plan = ReleasePlan.parse(plan_json)
    digests = set()
    for array in (base, noisy):
        data = safetensors.numpy.save({"w": np.ascontiguousarray(array)})
        for style in (data, _respaced(data)):
            path.write_bytes(style)
            report = inspect(folder, plan)
            assert report.ok
            digests.add(report.released[0].sha256)
    assert len(digests) == 1


def _respaced(data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(json.loads(data[8 : 8 + length])).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :]
