"""What so much noise keeps: an upper bound of epsilon that anyone can compute again, from a receipt alone.

The Rényi divergence of the Poisson-subsampled Gaussian at whole orders, over all steps, for adding or
removing one patient. That delta alone bounds a divergence below its square is left out: there, rounding
would decide.

Sources: Mironov, Talwar and Zhang, arXiv 1908.10530, 2019 (the sum); Canonne, Kamath and Steinke, arXiv
2004.00010, Proposition 12 (from divergence to epsilon).
"""

from __future__ import annotations

import math
from typing import Final

ORDERS: Final = (*range(2, 65), 72, 80, 96, 128, 192, 256, 512, 1024)
"""Of the divergence. Whole ones, whose sum is finite: for others the series may not converge."""
_NO_NOISE: Final = 1e-3
"""Below it the sum is no number any more."""


def spent(noise: float, sample_rate: float, steps: int, delta: float) -> float:
    """Epsilon of `steps` steps at `noise` times the clip; without end for hardly any noise."""
    if noise < _NO_NOISE:
        return math.inf
    return max(0.0, min(_at(order, noise, sample_rate, steps, delta) for order in ORDERS))


def _at(order: int, noise: float, rate: float, steps: int, delta: float) -> float:
    total = steps * _divergence(order, noise, rate)
    return total + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


def _divergence(order: int, noise: float, rate: float) -> float:
    half = 0.5 / noise / noise
    if rate == 1:
        return order * half
    whole, out, into = math.lgamma(order + 1), math.log1p(-rate), math.log(rate)
    terms = [
        whole
        - math.lgamma(k + 1)
        - math.lgamma(order - k + 1)
        + (order - k) * out
        + k * into
        + (k * k - k) * half
        for k in range(order + 1)
    ]
    largest = max(terms)
    return (largest + math.log(math.fsum(math.exp(t - largest) for t in terms))) / (order - 1)
