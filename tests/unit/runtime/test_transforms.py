"""What transforms compute, and that what comes out always has the form that was announced."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from rapha.runtime import resizing
from rapha.runtime import transforms as module
from rapha.runtime.broker.store import Ragged
from rapha.runtime.casting import cast
from rapha.runtime.transforms import apply_column, apply_one
from rapha.spec.refusals import Refused
from rapha.spec.transforms import ITEM_BYTES, Form, Step, form_after

DTYPES = sorted(ITEM_BYTES)
Array = NDArray[Any]


def steps(*given_: dict[str, Any]) -> tuple[Step, ...]:
    return tuple(Step.parse(step) for step in given_)


def one(value: Any, dtype: str, *given_: dict[str, Any]) -> Array:
    array = np.asarray(value, dtype=dtype)
    return apply_one(array, Form(dtype, array.shape), steps(*given_))


def fixed(column: Array | Ragged) -> Array:
    assert not isinstance(column, Ragged)
    return column


class TestBlocks:
    """However few records are worked on at a time, the result is the same."""

    @pytest.fixture(autouse=True)
    def one_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_AT_ONCE", 1)

    def test_of_one_shape(self) -> None:
        column = np.arange(60, dtype=np.int16).reshape(5, 3, 4)
        given_ = steps({"resize": [6, 2]}, {"normalise": {"mean": 1, "scale": 2}})
        form = Form("int16", (3, 4))
        expected = np.stack([apply_one(value, form, given_) for value in column])
        assert np.array_equal(fixed(apply_column(column, form, given_)), expected)
        assert fixed(apply_column(column[:0], form, given_)).shape == (0, 6, 2)

    def test_of_any_length(self) -> None:
        column = Ragged(np.arange(6, dtype=np.int16), np.array([0, 2, 2, 6]))
        result = apply_column(column, Form("int16", (), True), steps({"length": {"size": 3, "pad": -1}}))
        assert fixed(result).tolist() == [[0, 1, -1], [-1, -1, -1], [2, 3, 4]]


class TestSteps:
    def test_a_window_maps_its_edges_to_0_and_1_and_clips(self) -> None:
        result = one([-100, 0, 40, 80, 500], "int16", {"window": {"center": 40, "width": 80}})
        assert result.dtype == np.float32
        assert result.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]

    @pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "int32"])
    def test_normalise_is_float32_of_value_minus_mean_over_scale(self, dtype: str) -> None:
        result = one([1, 2, 3], dtype, {"normalise": {"mean": 2, "scale": 4}})
        assert result.dtype == np.float32
        assert result.tolist() == [-0.25, 0.0, 0.25]

    def test_an_extreme_scale_gives_no_infinity_of_finite_values(self) -> None:
        result = one([-1, 0, 1], "float32", {"normalise": {"mean": 0, "scale": 1e-300}})
        assert np.isfinite(result).all()
        assert result[1] == 0

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("scale", [1e-30, 1.0])
    def test_the_largest_values_stay_finite(self, dtype: str, scale: float) -> None:
        extremes = [np.finfo(dtype).max, np.finfo(dtype).min, np.inf, 0]
        result = one(extremes, dtype, {"normalise": {"mean": 1e30, "scale": scale}})
        assert np.isfinite(result).tolist() == [True, True, False, True]
        assert result[0] > 0 > result[1]

    @pytest.mark.parametrize(
        ("dtype", "value", "mean", "scale"),
        [
            ("uint16", 40000, 40000.3, 0.001),
            ("float32", 16777218, 16777217, 1),
            ("float32", 1e6, 1e6 + 0.3, 1),
        ],
    )
    def test_close_to_a_long_mean_the_difference_is_right(
        self, dtype: str, value: float, mean: float, scale: float
    ) -> None:
        result = one([value], dtype, {"normalise": {"mean": mean, "scale": scale}})
        assert result[0] == pytest.approx((value - mean) / scale, rel=1e-6)

    def test_nan_stays_nan_in_floats(self) -> None:
        result = one([math.nan, 1], "float32", {"window": {"center": 0, "width": 2}})
        assert np.isnan(result[0])
        assert result[1] == 1

    def test_clip_keeps_the_dtype_and_bounds_that_it_cannot_hold_saturate(self) -> None:
        result = one([0, 7, 255], "uint8", {"clip": {"min": -5, "max": 1e6}})
        assert result.dtype == np.uint8
        assert result.tolist() == [0, 7, 255]
        assert one([0, 7, 255], "uint8", {"clip": {"min": 300, "max": 400}}).tolist() == [255] * 3

    def test_steps_run_in_order(self) -> None:
        halved = {"normalise": {"mean": 0, "scale": 2}}
        capped = {"clip": {"min": 0, "max": 10}}
        assert one([30], "float32", halved, capped).tolist() == [10]
        assert one([30], "float32", capped, halved).tolist() == [5]


class TestCast:
    @pytest.mark.parametrize(
        ("value", "dtype", "expected"),
        [
            (0.5, "int8", 0), (1.5, "int8", 2), (2.5, "int8", 2), (-0.5, "int8", 0), (-1.5, "int8", -2),
            (127.6, "int8", 127), (-1e9, "int8", -128), (math.inf, "int16", 32767),
            (-math.inf, "int16", -32768), (math.nan, "uint8", 0), (math.nan, "int64", 0),
            (1e30, "int64", 2**63 - 1), (-1e30, "int64", -(2**63)), (3e9, "int32", 2**31 - 1),
            (-3e9, "int32", -(2**31)), (5e9, "uint32", 2**32 - 1), (-1.0, "uint32", 0),
            (0.4, "bool", False), (0.6, "bool", True), (7.0, "bool", True), (-3.0, "bool", False),
            (1e6, "float16", 65504.0), (-1e6, "float16", -65504.0), (math.inf, "float16", math.inf),
            (1e300, "float32", float(np.finfo(np.float32).max)),
        ],
    )  # fmt: skip
    def test_rounds_half_to_even_and_saturates(self, value: float, dtype: str, expected: float) -> None:
        assert cast(np.array([value]), dtype).tolist() == [expected]

    @pytest.mark.parametrize(
        ("source", "value", "dtype", "expected"),
        [
            ("int64", 2**40, "int32", 2**31 - 1), ("int64", -1, "uint32", 0),
            ("uint32", 2**32 - 1, "int32", 2**31 - 1), ("int64", 2**62 + 1, "int64", 2**62 + 1),
            ("uint8", 200, "int8", 127), ("int8", -1, "uint8", 0), ("int32", 100_000, "float16", 65504.0),
            ("int64", -(2**63), "int16", -(2**15)), ("bool", True, "int16", 1),
            ("int16", -4, "bool", False), ("float32", 2.0**31, "int32", 2**31 - 1),
        ],
    )  # fmt: skip
    def test_of_every_width(self, source: str, value: Any, dtype: str, expected: Any) -> None:
        assert cast(np.array([value], dtype=source), dtype).tolist() == [expected]

    @given(hnp.arrays(st.sampled_from([np.dtype(d) for d in DTYPES]), 5), st.sampled_from(DTYPES))
    @settings(max_examples=150, deadline=None)
    def test_agrees_with_exact_arithmetic(self, value: Array, dtype: str) -> None:
        result = cast(value, dtype)
        assert result.dtype == dtype
        if np.dtype(dtype).kind != "f":
            assert result.tolist() == [_exact(item, dtype) for item in value.tolist()]
        else:
            assert (np.isfinite(result) == np.isfinite(value)).all()


def _exact(item: float, dtype: str) -> int:
    low, high = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if isinstance(item, float):
        if not math.isfinite(item):
            return 0 if math.isnan(item) else (high if item > 0 else low)
        item = round(item)
    return min(max(int(item), low), high)


class TestResize:
    def test_the_same_size_is_the_same_values(self) -> None:
        value = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)
        assert (one(value, "float32", {"resize": [7, 5]}) == value).all()

    def test_shrinking_is_the_mean_of_the_area(self) -> None:
        value = np.arange(64, dtype=np.float32).reshape(8, 8)
        expected = value.reshape(2, 4, 4, 2).mean(axis=(1, 3))
        assert np.allclose(one(value, "float32", {"resize": [2, 4]}), expected)

    def test_shrinking_by_a_fraction_weighs_shared_pixels(self) -> None:
        assert np.allclose(one([0, 3, 6], "float32", {"resize": [2]}), [1.0, 5.0])

    def test_growing_is_linear_between_pixel_centres_and_holds_the_edges(self) -> None:
        assert np.allclose(one([0, 10], "float32", {"resize": [4]}), [0, 2.5, 7.5, 10])

    @pytest.mark.parametrize(("old", "new"), [(47, 13), (512, 100), (9, 8), (30, 1)])
    def test_shrinking_is_exact_coverage(self, old: int, new: int) -> None:
        value = np.random.default_rng(2).normal(size=(3, old))
        expected = np.repeat(value, new, axis=1).reshape(3, new, old).mean(axis=2)
        assert np.allclose(one(value, "float64", {"resize": [new]}), expected, rtol=0, atol=1e-12)

    def test_growing_is_what_pillow_does(self) -> None:
        from PIL import Image

        value = np.random.default_rng(2).normal(size=(33, 47)).astype(np.float32)
        expected = np.asarray(Image.fromarray(value).resize((90, 70), Image.Resampling.BILINEAR))
        assert np.abs(one(value, "float32", {"resize": [70, 90]}) - expected).max() < 1e-5

    def test_integers_are_rounded(self) -> None:
        result = one([[0, 1], [1, 1]], "int16", {"resize": [1, 1]})
        assert result.dtype == np.int16
        assert result.tolist() == [[1]]

    def test_only_the_last_axes_change(self) -> None:
        value = np.arange(2 * 3 * 8 * 8, dtype=np.float32).reshape(2, 3, 8, 8)
        result = one(value, "float32", {"resize": [4, 4]})
        assert result.shape == (2, 3, 4, 4)
        assert np.allclose(result[1, 2], one(value[1, 2], "float32", {"resize": [4, 4]}))

    def test_what_is_not_finite_stays_where_it_is(self) -> None:
        value = np.ones((8, 8), dtype=np.float32)
        value[0, 0] = np.nan
        value[7, 7] = np.inf
        small = one(value, "float32", {"resize": [4, 4]})
        assert np.isnan(small[0, 0])
        assert np.isinf(small[3, 3])
        assert np.isfinite(small).sum() == 14

    @given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(["float32", "float64", "int16", "bool"]))
    @settings(max_examples=60, deadline=None)
    def test_a_constant_stays_constant(self, old: int, new: int, dtype: str) -> None:
        assert np.allclose(one(np.full(old, 1), dtype, {"resize": [new]}), 1)

    @pytest.mark.parametrize(("old", "new"), [(512, 1), (65535, 1), (65535, 3)])
    def test_a_mean_of_many_is_as_exact_as_of_few(self, old: int, new: int) -> None:
        result = one([1000.1] * old, "float32", {"resize": [new]})
        assert np.allclose(result, np.float32(1000.1), rtol=1e-7, atol=0)

    @pytest.mark.parametrize(("old", "new"), [(7, 3), (3, 7), (10, 9), (100, 101), (150, 1)])
    @pytest.mark.parametrize("sign", [1, -1])
    def test_the_largest_float_is_not_rounded_up_to_infinity(self, old: int, new: int, sign: int) -> None:
        value = np.full(old, sign * np.finfo(np.float32).max, dtype=np.float32)
        assert np.allclose(one(value, "float32", {"resize": [new]}), value[0])

    def test_an_empty_axis_cannot_be_resized(self) -> None:
        with pytest.raises(ValueError, match="empty"):
            apply_one(np.zeros((0, 4), np.float32), Form("float32", (0, 4)), steps({"resize": [2, 2]}))


class TestRagged:
    column = Ragged(np.array([1, 2, 3, 4, 5, 6], dtype=np.int16), np.array([0, 2, 2, 6], dtype=np.int64))
    form = Form("int16", (), ragged=True)

    def test_length_cuts_and_pads(self) -> None:
        result = apply_column(self.column, self.form, steps({"length": {"size": 3, "pad": -1}}))
        assert isinstance(result, np.ndarray)
        assert result.dtype == np.int16
        assert result.tolist() == [[1, 2, -1], [-1, -1, -1], [3, 4, 5]]

    def test_without_length_it_stays_ragged(self) -> None:
        result = apply_column(self.column, self.form, steps({"normalise": {"mean": 0, "scale": 2}}))
        assert isinstance(result, Ragged)
        assert result.values.tolist() == [0.5, 1, 1.5, 2, 2.5, 3]
        assert (result.offsets == self.column.offsets).all()

    def test_steps_go_on_after_length(self) -> None:
        given_ = steps({"length": {"size": 4}}, {"resize": [2]}, {"dtype": "float32"})
        result = apply_column(self.column, self.form, given_)
        assert isinstance(result, np.ndarray)
        assert result.tolist() == [[2, 0], [0, 0], [4, 6]]

    def test_a_pad_saturates(self) -> None:
        result = apply_column(self.column, self.form, steps({"length": {"size": 3, "pad": 1e9}}))
        assert isinstance(result, np.ndarray)
        assert result[1].tolist() == [32767] * 3

    def test_one_record(self) -> None:
        value = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32)
        form = Form("float32", (2,), ragged=True)
        assert apply_one(value, form, steps({"length": {"size": 2}})).tolist() == [[1, 2], [3, 4]]
        assert apply_one(value, form, ()).tolist() == value.tolist()
        assert apply_one(value[:0], form, steps({"length": {"size": 1, "pad": 9}})).tolist() == [[9, 9]]


class TestForm:
    @pytest.mark.parametrize(
        ("value", "form"),
        [
            (np.zeros((2, 3)), Form("float64", (2, 4))),
            (np.zeros((2, 3)), Form("float64", (2,))),
            (np.zeros(2), Form("float64", (3,), ragged=True)),
        ],
    )
    def test_a_value_of_another_form_is_an_error(self, value: Array, form: Form) -> None:
        with pytest.raises(ValueError, match="shape"):
            apply_one(value, form, ())

    def test_a_ragged_form_needs_a_ragged_column(self) -> None:
        with pytest.raises(ValueError, match="ragged"):
            apply_column(np.zeros((2, 3)), Form("float64", (3,), ragged=True), ())

    def test_a_step_that_does_not_fit_refuses(self) -> None:
        with pytest.raises(Refused, match="axes to resize"):
            one([1.0], "float32", {"resize": [2, 2]})

    @given(st.data())
    @settings(max_examples=150, deadline=None)
    def test_what_is_announced_is_what_comes_out(self, data: st.DataObject) -> None:
        form = data.draw(
            st.builds(
                Form,
                st.sampled_from(DTYPES),
                st.lists(st.integers(1, 5), max_size=3).map(tuple),
                st.booleans(),
            )
        )
        chosen = data.draw(st.lists(st.one_of(_STEPS), max_size=4).map(lambda found: steps(*found)))
        try:
            after = form_after("x", form, chosen)
        except Refused:
            return
        n = data.draw(st.integers(0, 3))
        offsets = np.arange(n + 1, dtype=np.int64) * 2
        values = data.draw(hnp.arrays(np.dtype(form.dtype), (2 * n if form.ragged else n, *form.shape)))
        column = Ragged(values, offsets) if form.ragged else values
        result = apply_column(column, form, chosen)
        found = result.values if isinstance(result, Ragged) else result
        assert isinstance(result, Ragged) == after.ragged
        assert (found.dtype.name, found.shape[1:]) == (after.dtype, after.shape)
        assert found.flags.c_contiguous
        for i in range(n):
            record = values[2 * i : 2 * i + 2] if form.ragged else values[i]
            alone = apply_one(record, form, chosen)
            same = result.values[2 * i : 2 * i + 2] if isinstance(result, Ragged) else result[i]
            assert np.array_equal(alone, same, equal_nan=after.dtype.startswith("float"))


_STEPS: list[st.SearchStrategy[dict[str, Any]]] = [
    st.just({"window": {"center": 1.0, "width": 3.0}}),
    st.just({"clip": {"min": -2.5, "max": 100.25}}),
    st.just({"normalise": {"mean": 3.0, "scale": 0.5}}),
    st.lists(st.integers(1, 6), min_size=1, max_size=3).map(lambda sizes: {"resize": sizes}),
    st.integers(1, 5).map(lambda size: {"length": {"size": size, "pad": -1.0}}),
    st.sampled_from(DTYPES).map(lambda dtype: {"dtype": dtype}),
]


@pytest.mark.parametrize("sizes", [[3, 4, 5], [50, 4, 40], [90, 60, 5], [70, 30, 50], [60, 33, 70]])
def test_in_blocks_the_numbers_are_those_of_the_whole(
    sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    value = np.random.Generator(np.random.PCG64(3)).integers(-2000, 3000, (70, 33, 50)).astype(np.int16)
    chosen = steps(
        {"window": {"center": 40, "width": 400}}, {"clip": {"min": 0.1, "max": 0.8}}, {"resize": sizes}
    )
    whole = apply_one(value, Form("int16", (0, 0, 0)), chosen)
    monkeypatch.setattr(resizing, "_AT_ONCE", 3000)
    assert np.array_equal(apply_one(value, Form("int16", (0, 0, 0)), chosen), whole)
    huge = np.where(value > 0, np.float32(3.4028e38), np.float32(1.0))
    apart = apply_one(huge, Form("float32", (0, 0, 0)), chosen[2:])
    monkeypatch.undo()
    assert np.array_equal(apart, apply_one(huge, Form("float32", (0, 0, 0)), chosen[2:]))


@pytest.mark.parametrize(
    "before",
    [
        (),
        ({"window": {"center": 0, "width": 1e20}},),
        ({"dtype": "float64"}, {"normalise": {"mean": 0.1, "scale": 1e-20}}, {"dtype": "float64"}),
    ],
)
def test_what_comes_before_a_resize_takes_little_room_beyond_the_record(
    before: tuple[dict[str, Any], ...],
) -> None:
    value = np.zeros((512, 256, 256), np.uint8)
    tracemalloc.start()
    try:
        apply_one(value, Form("uint8", (0, 0, 0)), steps(*before, {"resize": [32, 64, 64]}))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * value.nbytes
