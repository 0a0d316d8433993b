"""Trusted metrics: computed by the node from labels that the job never saw, rounded, small cells left out.

`evaluate` computes what a plan names; `dominance` leaves out what is about one patient; `bootstrap` makes the
intervals; `chance` gives the same question the same random numbers. A metric (`interface`) is sorted once and
then computed for many resamples of the patients.
"""

from rapha.runtime.metrics.case import Labels, parse_predictions
from rapha.runtime.metrics.evaluate import MIN_CELL, evaluate
from rapha.runtime.metrics.rounding import published

__all__ = ["MIN_CELL", "Labels", "evaluate", "parse_predictions", "published"]
