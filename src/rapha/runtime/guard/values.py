"""Checks 3 to 5 on one part of one tensor: finite, clipped, rounded, and looked at again.

A part is a copy of the guard's own that fits in the processor's cache. Whatever the file holds when it is
copied, what comes out is in the planned range, or nothing comes out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Self

import numpy as np

from rapha.runtime.guard.codes import Finding
from rapha.runtime.guard.noise import gaussian
from rapha.runtime.guard.rounding import DTYPES, SMALLEST_SCALE, Array, cast, quantise, scale_of, widened
from rapha.spec.weights import FLOATS, RELEASED_AS, TensorPlan, WeightsPlan

PART: Final = 2**17
"""Elements of a part: with what is computed from it, it stays in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one tensor is rebuilt.

    Attributes:
        target: the dtype that is released.
        scale, levels: of int8 made from floats; else None and 0.
        noise: its standard deviation, 0 for none.
        low, high: bounds of the values as they come, in the dtype that they are worked in.
        least, most: bounds of the values as they leave, widened.
    """

    tensor: TensorPlan
    target: str
    scale: float | None
    levels: int
    noise: float
    low: Any
    high: Any
    least: Any
    most: Any

    @classmethod
    def of(cls, tensor: TensorPlan, plan: WeightsPlan, scale: float | None = None) -> Self:
        """The recipe for `tensor`; `scale` is what `scale_from` says."""
        target = RELEASED_AS[plan.release_dtype] if tensor.floating else tensor.dtype
        noise = plan.noise_std if tensor.floating else 0.0
        bounds = _bounds(tensor.dtype, tensor.min, tensor.max, target, plan.levels)
        return cls(tensor, target, scale, plan.levels, noise, *bounds)


@lru_cache
def _bounds(dtype: str, low: float, high: float, target: str, levels: int) -> tuple[Any, Any, Any, Any]:
    """The planned range in the dtype that values are worked in, and in the one that they leave in."""
    if dtype not in FLOATS:
        whole = DTYPES[dtype].type
        return (whole(int(low)), whole(int(high))) * 2
    work = np.float64 if dtype == "F64" else np.float32
    if target == "I8":
        return work(low), work(high), np.int8(-levels), np.int8(levels)
    # The bounds round as the values do, so half a step beyond the written bound is in range.
    return work(low), work(high), *widened(cast(np.array([low, high], work), target))


@dataclass(frozen=True, slots=True)
class Piece:
    """A rebuilt part.

    Attributes:
        data: what leaves.
        clipped: values that were out of range.
        error: the greatest absolute change that rounding made.
        largest: the largest magnitude as it came.
    """

    data: Array
    clipped: int
    error: float
    largest: float


def rebuilt(raw: Array, recipe: Recipe) -> Piece:
    """The released form of `raw`.

    Equal values after clipping and rounding give equal bytes, whatever the file looked like.

    Raises:
        Finding: `guard.not_finite`, `guard.boolean`, `guard.rebuild`.
    """
    work, clipped, largest_of_raw = _bounded(raw, recipe)
    if recipe.noise:
        noisy = work.astype(np.float64) + recipe.noise * gaussian(len(work))
        work = np.clip(noisy, np.float64(recipe.low), np.float64(recipe.high))
    scale = recipe.scale
    made = cast(work, recipe.target) if scale is None else quantise(work, scale, recipe.levels)
    wide = widened(made) if recipe.tensor.floating and scale is None else made
    _confirm(made, wide, recipe)
    error = 0.0 if made.dtype == work.dtype else _error(work, wide, scale)
    return Piece(made, clipped, error, largest_of_raw)


def largest(raw: Array, recipe: Recipe) -> float:
    """The largest magnitude in `raw` once it is clipped. Raises `Finding` as `rebuilt` does."""
    work, _, _ = _bounded(raw, recipe)
    return max(abs(float(work.max())), abs(float(work.min())))


def scale_from(largest_value: float, recipe: Recipe) -> float:
    """The scale of an int8 tensor: from its values, or from the planned range where there is noise.

    A scale from the values would tell the largest of them to 24 bits, without any noise.
    """
    if recipe.noise:
        largest_value = max(abs(float(recipe.low)), abs(float(recipe.high)))
    return scale_of(largest_value, recipe.levels)


def confirm_scale(name: str, scale: float) -> None:
    """Raises `Finding` (`guard.rebuild`) where `scale` is not one that the guard makes."""
    if not SMALLEST_SCALE <= scale < np.inf:
        raise Finding("guard.rebuild", f"tensor {name}")


def _bounded(raw: Array, recipe: Recipe) -> tuple[Array, int, float]:
    """Check 3. Values in range, floats as F32 or F64; how many were moved; the largest magnitude before."""
    tensor, low, high = recipe.tensor, recipe.low, recipe.high
    if tensor.dtype == "BOOL" and (raw > 1).any():
        raise Finding("guard.boolean", f"tensor {tensor.name}")
    work = _worked(raw) if tensor.floating else raw
    with np.errstate(invalid="ignore"):
        least, most = work.min(), work.max()
    largest_of_raw = max(abs(float(least)), abs(float(most)))
    if low <= least and most <= high:  # a NaN would be both, and nothing compares with it
        return work, 0, largest_of_raw
    if tensor.floating and not np.isfinite(work).all():
        raise Finding("guard.not_finite", f"tensor {tensor.name}")
    beyond = np.count_nonzero(work < low) + np.count_nonzero(work > high)
    return np.clip(work, low, high), int(beyond), largest_of_raw


def _worked(raw: Array) -> Array:
    if raw.dtype == DTYPES["BF16"]:
        return widened(raw)
    return raw.astype(np.float32) if raw.dtype == DTYPES["F16"] else raw


def _error(work: Array, wide: Array, scale: float | None) -> float:
    back = wide - work if scale is None else wide.astype(work.dtype) * work.dtype.type(scale) - work
    return max(abs(float(back.max())), abs(float(back.min())))


def _confirm(made: Array, wide: Array, recipe: Recipe) -> None:
    """Check 5, on our own output: in range, and no −0."""
    negative_zero = False
    if made.dtype.kind not in "iu":
        bits = made.view(f"<u{made.dtype.itemsize}")
        negative_zero = bool((bits == 1 << (8 * made.dtype.itemsize - 1)).any())
    if negative_zero or not (recipe.least <= wide.min() and wide.max() <= recipe.most):
        raise Finding("guard.rebuild", f"tensor {recipe.tensor.name}")
