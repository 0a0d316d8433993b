"""How fine a number is told, and its interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

from rapha.spec.release_plan import METRIC_DECIMALS, TRUSTED_METRICS, TrustedMetric

_FINEST: Final = 10.0**-METRIC_DECIMALS
_STEPS: Final = tuple(sorted(1 / n for n in range(1, 1001) if 1000 % n == 0))
"""Thousandths that divide 1, so that it can be told: 0.001, 0.002, 0.004 … 0.5, 1."""

_INTERVAL_STEP: Final = 0.01


class Told(NamedTuple):
    """A value as it may leave, and the step that it is told in."""

    value: float
    step: float


def published(name: TrustedMetric, value: float) -> float:
    """`value` in the range that the plan prices, at 3 decimals."""
    low, high = TRUSTED_METRICS[name]
    return round(min(max(value, low), high), METRIC_DECIMALS) + 0.0


def share_step(grain: float) -> float:
    """The smallest step in which a number from 0 to 1 may be told that is no smaller than `grain`."""
    return next(step for step in _STEPS if step >= min(grain * (1 - 1e-9), 1))


def coarse(name: TrustedMetric, value: float, grain: float, chance: Callable[[float], float]) -> Told:
    """`value` in steps no finer than `grain`, up or down at random, right on average.

    The steps are few (1, 2, 5 and their like): `grain` itself would tell how many patients a class has.

    Args:
        grain: at least 0.001.
        chance: by step, a random number in [0, 1).
    """
    low, high = TRUSTED_METRICS[name]
    value, least = min(max(value, low), high), grain * (1 - 1e-9)
    if (low, high) == (0, 1):
        step = share_step(grain)
    else:
        power = 10.0 ** math.floor(math.log10(least))
        step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= least)
    return Told(step * math.floor(value / step + chance(step)), step)


def widened(name: TrustedMetric, distance: float, step: float) -> float:
    """How far an end of the interval is told to be from its value: `distance`, rounded up.

    An end may depend on one patient more than the value does. Told behind the value, in steps no finer than
    its own, of 0.01 or for a quantity two significant digits, it doesn't: where no patient carries more than
    a share of the value, one moves the distance by a fraction of a step.
    """
    low, high = TRUSTED_METRICS[name]
    if (low, high) == (0, 1):
        unit = _INTERVAL_STEP * math.ceil(step / _INTERVAL_STEP - 1e-9)
    else:
        unit = max(step, 10.0 ** (math.floor(math.log10(max(distance, _FINEST))) - 1))
    times = max(1, math.ceil(distance / unit - 1e-9))
    return round(min(times * unit, high), METRIC_DECIMALS)
