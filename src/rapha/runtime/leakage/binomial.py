"""The exact interval of a rate (Clopper and Pearson, Biometrika 26:404, 1934), without a statistics library.

Its ends are quantiles of beta distributions. The distribution is computed by its continued fraction
(DLMF 8.17.22, evaluated as Lentz does), the quantile by bisection: it is asked for a few times a job.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

LEVEL: Final = 0.95
_TINY: Final = 1e-300
_EXACT: Final = 1e-15
_MOST_TERMS: Final = 100_000
"""Far beyond what is needed, which grows as the root of the larger parameter."""
_HALVINGS: Final = 64


def clopper_pearson(hits: int, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """The interval that covers the true rate with at least probability `level`, whatever the rate is.

    Precondition: 0 ≤ `hits` ≤ `trials`, 1 ≤ `trials`, 0 < `level` < 1.

    Raises:
        ValueError: otherwise.
    """
    if not (0 <= hits <= trials and trials >= 1 and 0 < level < 1):
        raise ValueError(f"{hits} of {trials} at level {level} is no rate")
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else _solve(lambda x: beta_below(x, hits, trials - hits + 1) - tail)
    high = 1.0 if hits == trials else _solve(lambda x: beta_below(x, hits + 1, trials - hits) - 1 + tail)
    return low, high


def beta_below(x: float, a: float, b: float) -> float:
    """Probability that a beta(a, b) variable is at most `x`: the regularised incomplete beta function.

    Precondition: 0 ≤ `x` ≤ 1, `a` > 0, `b` > 0.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast only on this side of the mean
        return 1 - beta_below(1 - x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(front) / (a * _fraction(x, a, b))


def _fraction(x: float, a: float, b: float) -> float:
    """1 + d₁/(1 + d₂/(1 + …)) with the coefficients d of DLMF 8.17.23, by the modified method of Lentz."""
    value = above = 1.0
    below = 0.0
    for term in range(1, _MOST_TERMS):
        m = term // 2
        if term % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        below = 1 / _nonzero(1 + d * below)
        above = _nonzero(1 + d / above)
        value *= above * below
        if abs(above * below - 1) < _EXACT:
            return value
    raise ValueError(f"the continued fraction of beta({a}, {b}) does not converge")


def _nonzero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def _solve(rising: Callable[[float], float]) -> float:
    """Where a function that rises over [0, 1] is zero."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if rising(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
