"""Noise and fewer bits: what the plan asks for is what leaves, within the range, and it is said."""

from __future__ import annotations

import math
import os
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from rapha.runtime.guard.inspection import inspect
from rapha.runtime.guard.noise import gaussian
from rapha.runtime.guard.report import GuardReport
from rapha.runtime.guard.rounding import cast, quantise, scale_of, widened
from rapha.spec.release_plan import ReleasePlan

Array = npt.NDArray[Any]
COUNT = 200_000


def plan_of(dtype: str = "F32", low: float = -4, high: float = 4, **weights: Any) -> ReleasePlan:
    tensors = [
        {"name": "w", "dtype": dtype, "shape": [COUNT], "min": low, "max": high},
        {"name": "n", "dtype": "I32", "shape": [3], "min": 0, "max": 9},
    ]
    part = {"file": "w.safetensors", "release_dtype": "f32", "tensors": tensors, **weights}
    return ReleasePlan.parse({"version": 1, "max_bytes": 2**24, "weights": part})


def released(folder: Path, values: Array, plan: ReleasePlan) -> tuple[GuardReport, dict[str, Array]]:
    (folder / "in").mkdir(exist_ok=True)
    path = folder / "in/w.safetensors"
    safetensors.numpy.save_file({"w": values, "n": np.array([1, 2, 99], "<i4")}, path)
    report = inspect(folder / "in", plan, folder / "out")
    assert report.ok, report.checks
    tensors = safetensors.numpy.load_file(folder / "out/w.safetensors")
    (folder / "out/w.safetensors").unlink()
    return report, tensors


def test_deviates_are_standard_normal() -> None:
    drawn = gaussian(COUNT + 1)
    assert drawn.shape == (COUNT + 1,)
    assert abs(drawn.mean()) < 6 / math.sqrt(COUNT)
    assert abs(drawn.std() - 1) < 6 / math.sqrt(2 * COUNT)
    assert abs((np.abs(drawn) < 1).mean() - 0.6827) < 0.01
    assert abs((drawn**4).mean() - 3) < 0.2
    half = COUNT // 2
    assert abs(np.corrcoef(drawn[:half], drawn[half : 2 * half])[0, 1]) < 6 / math.sqrt(half)


@pytest.mark.parametrize("fill", [b"\x00", b"\xff", b"\x7f\xff"])
def test_no_draw_of_the_system_gives_an_infinity(fill: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda n: (fill * n)[:n])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = gaussian(9)
    assert np.isfinite(drawn).all()
    assert np.abs(drawn).max() < 6.7


def test_noise_has_the_planned_deviation_and_stays_in_range(tmp_path: Path) -> None:
    report, found = released(tmp_path, np.zeros(COUNT, "<f4"), plan_of(noise={"std": 0.25}))
    assert abs(found["w"].std() - 0.25) < 0.25 * 6 / math.sqrt(2 * COUNT)
    assert [t.noise_std for t in report.transforms] == [0.25, 0.0]
    assert "0.25" in report.checks[3].reason
    assert found["n"].tolist() == [1, 2, 9]
    _, wide = released(tmp_path, np.full(COUNT, 4.0, "<f4"), plan_of(noise={"std": 3.0}))
    assert wide["w"].max() == 4.0
    assert wide["w"].min() >= -4.0
    assert not np.signbit(wide["w"][wide["w"] == 0]).any()


def test_noise_is_drawn_anew(tmp_path: Path) -> None:
    plan, values = plan_of(noise={"std": 0.5}), np.zeros(COUNT, "<f4")
    first, second = (released(tmp_path, values, plan)[1]["w"] for _ in range(2))
    assert not (first == second).all()
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02


def test_a_scale_says_nothing_of_the_values_where_there_is_noise(tmp_path: Path) -> None:
    plan = plan_of(release_dtype="int8", noise={"std": 0.1})
    scales = {
        float(released(tmp_path, values, plan)[1]["w.scale"])
        for values in (np.zeros(COUNT, "<f4"), np.full(COUNT, 3.25, "<f4"))
    }
    assert scales == {float(np.float32(4 / 127))}


def test_noise_lowers_no_bound() -> None:
    for release in ("f32", "bf16", "f16", "int8"):
        quiet, noisy = plan_of(release_dtype=release), plan_of(release_dtype=release, noise={"std": 1.0})
        assert quiet.released_bits() == noisy.released_bits()


@pytest.mark.parametrize("bits", range(2, 9))
def test_fewer_bits_leave_fewer_values(tmp_path: Path, bits: int) -> None:
    values = np.random.default_rng(1).uniform(-5, 5, COUNT).astype("<f4")
    plan = plan_of(release_dtype="int8", bits=bits)
    report, found = released(tmp_path, values, plan)
    most = 2 ** (bits - 1) - 1
    assert set(np.unique(found["w"]).tolist()) == set(range(-most, most + 1))
    assert found["w"].dtype == np.int8
    clipped = np.clip(values, -4, 4)
    assert float(found["w.scale"]) == np.float32(np.abs(clipped).max() / most)
    assert np.abs(found["w"] * found["w.scale"] - clipped).max() <= float(found["w.scale"]) * 0.5001
    assert report.covert_bound_bits >= COUNT * math.log2(2 * most + 1) + 32
    assert report.covert_bound_bits <= COUNT * math.log2(2 * most + 1) + 32 + 3 * math.log2(10) + 5


@settings(deadline=None)
@given(st.floats(0, 2.0**127), st.integers(1, 127))
def test_scales_are_normal_numbers_that_reach_the_largest(largest: float, levels: int) -> None:
    scale = scale_of(largest, levels)
    assert 0 < scale < math.inf
    assert float(np.float32(scale)) == scale
    assert (quantise(np.array([largest, -largest, 0.0]), scale, levels)[2]) == 0
    assert abs(largest - scale * float(quantise(np.array([largest]), scale, levels)[0])) <= scale * 0.51


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1).filter(lambda b: b >> 23 & 0xFF not in (0xFE, 0xFF)))
def test_the_fast_cast_is_the_librarys(bits: int) -> None:
    import ml_dtypes

    value = np.frombuffer(struct.pack("<I", bits), "<f4")
    ours, theirs = cast(value, "BF16"), value.astype(ml_dtypes.bfloat16)
    assert float(ours[0]) == float(theirs[0])
    assert float(widened(ours)[0]) == float(ours[0])
    assert not (ours.view("<u2") == 0x8000).any()


def test_the_fast_cast_rounds_ties_to_even() -> None:
    ties = (np.arange(2**16, dtype="<u4") << 16 | 0x8000).view("<f4")
    ties = ties[np.isfinite(ties) & (np.abs(ties) < 3e38)]
    bits = cast(ties, "BF16").view("<u2")
    assert not (bits & 1).any()
