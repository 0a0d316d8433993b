"""Percentile bootstrap over patients, seeded, in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from rapha.runtime.metrics.case import Case, Floats
from rapha.runtime.metrics.interface import Metric
from rapha.spec.release_plan import TrustedMetric

RESAMPLES: Final = 200
LEAST_RESAMPLES: Final = 50
_WORK: Final = 10**7
"""Predictions in all resamples together, where that leaves `LEAST_RESAMPLES`."""
_BLOCK: Final = 2**21
"""Weights that are in memory at once."""


def resamples(case: Case) -> int:
    """How many: 200, and fewer beyond 50,000 predictions, down to 50 from 200,000 on."""
    return max(LEAST_RESAMPLES, min(RESAMPLES, _WORK // case.scores.size))


def percentiles(
    case: Case, metrics: Mapping[TrustedMetric, Metric], generator: np.random.Generator
) -> dict[TrustedMetric, tuple[float, float]]:
    """By metric, where the middle 95% of the resamples lie.

    A metric that no resample has is not among them.
    """
    drawn: dict[TrustedMetric, list[Floats]] = {name: [] for name in metrics}
    if metrics:
        for weights in _weights(case, generator):
            for name, metric in metrics.items():
                drawn[name].append(metric.values(weights))
    found = {}
    for name, blocks in drawn.items():
        each = np.concatenate(blocks)
        each = each[np.isfinite(each)]  # a resample may lack a class
        if each.size:
            low, high = np.percentile(each, [2.5, 97.5])
            found[name] = float(low), float(high)
    return found


def _weights(case: Case, generator: np.random.Generator) -> Iterator[Floats]:
    """Blocks of shape (resamples, rows): how often each row is drawn, all rows of a patient together."""
    count, total = case.patients, resamples(case)
    share = np.full(count, 1 / count)
    block = max(1, min(total, _BLOCK // case.rows))
    for begin in range(0, total, block):
        drawn = generator.multinomial(count, share, min(block, total - begin))
        yield drawn.astype(np.float64)[:, case.who]
