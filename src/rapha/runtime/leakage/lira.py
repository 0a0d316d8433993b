"""The offline likelihood-ratio attack: is the model surer of this patient than models that never saw them?

Each patient's confidences under shadow models trained without them are taken as a Gaussian, and the score is
how many standard deviations the released model lies above it; of one-sided tests this is the likelihood ratio
up to a monotone map (Carlini et al. 2022, section VI-A), and unlike a probability it does not saturate.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from rapha.runtime.leakage.confidence import Floats

Mask = NDArray[np.bool_]
OWN_VARIANCE: Final = 32
"""Shadows without a patient from which that patient's own variance is used; below, one that all share."""
_LEAST_SHARE: Final = 0.01
"""Of the shared variance, below which no patient's own falls: a few equal numbers don't make certainty."""
_FLOOR: Final = 1e-18
"""Keeps a division finite where no model ever differs."""


class Outs:
    """Mean and variance of each patient's confidence over the shadows without them, as they come in.

    Nothing else of a shadow is kept (Welford, Technometrics 4:419, 1962), so memory does not grow with them.
    """

    def __init__(self, patients: int) -> None:
        self.count = np.zeros(patients, dtype=np.int64)
        self._mean = np.zeros(patients)
        self._squares = np.zeros(patients)

    def add(self, without: Mask, confidence: Floats) -> None:
        """Take one shadow: of patients `without`, who were not in its training; shapes (patients,)."""
        self.count[without] += 1
        difference = confidence[without] - self._mean[without]
        self._mean[without] += difference / self.count[without]
        self._squares[without] += difference * (confidence[without] - self._mean[without])

    def scores(self, confidence: Floats) -> Floats:
        """float64[patients] for the released model's `confidence`: more is more likely a member.

        NaN for a patient who was in every shadow: nothing is known of them.
        """
        freedom = np.maximum(self.count - 1, 0)
        shared = max(float(self._squares.sum()) / max(int(freedom.sum()), 1), _FLOOR)
        own = np.maximum(self._squares / np.maximum(freedom, 1), _LEAST_SHARE * shared)
        variance = np.where(self.count >= OWN_VARIANCE, own, shared)
        known = np.maximum(self.count, 1)
        # The mean is itself known only to variance / count, less well for who was left out less often.
        found = (confidence - self._mean) / np.sqrt(variance * (1 + 1 / known))
        scores: Floats = np.where(self.count > 0, found, np.nan)
        return scores


def canary_scores(confidence: Floats, planted: Mask) -> tuple[Floats, Floats]:
    """Scores of canaries where they were planted, and where they were left out.

    Each shadow in turn is the model under attack and the others are its shadows.

    Args:
        confidence: shape (shadows, canaries), in the canary's wrong label.
        planted: of that shape, whether the shadow's training had the canary.
    """
    out = ~planted
    total = np.where(out, confidence, 0).sum(axis=0)
    others = out.sum(axis=0) - out  # a model is not its own shadow
    mean = (total - np.where(out, confidence, 0)) / np.maximum(others, 1)
    centre = total / np.maximum(out.sum(axis=0), 1)
    squares = float((np.where(out, confidence - centre, 0) ** 2).sum())
    freedom = int(np.maximum(out.sum(axis=0) - 1, 0).sum())
    shared = max(squares / max(freedom, 1), _FLOOR)
    scores = (confidence - mean) / np.sqrt(shared * (1 + 1 / np.maximum(others, 1)))
    usable = others > 0
    return scores[planted & usable], scores[out & usable]
