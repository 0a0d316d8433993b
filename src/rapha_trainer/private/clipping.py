"""The one place where a patient's influence is bounded: no gradient goes on longer than the clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

SLACK: Final = 1 - 2.0**-20
"""Gradients are cut a millionth shorter than declared, so that no rounding makes one longer."""


def clipped_sum(gradients: Sequence[Tensor], clip: float) -> list[Tensor]:
    """The sum over records of each one's gradient, shortened to an L2 norm below `clip`; in double precision.

    A gradient that has a number that is none, or that is too long to measure, counts as nothing: it can't be
    shortened, and refusing it would tell of the record.

    Args:
        gradients: for each tensor of the model [n, *shape], row i of record i's loss alone.
    """
    squares = [g.detach().reshape(len(g), -1).double().square().sum(dim=1) for g in gradients]
    norms = torch.stack(squares).sum(dim=0).sqrt()
    usable = torch.isfinite(norms)
    # Where the norm is 0 the quotient is infinite, and the factor 1.
    factors = torch.where(usable, (clip * SLACK / norms).clamp(max=1.0), torch.zeros_like(norms))
    return [(factors @ _rows(g, usable)).reshape(g.shape[1:]) for g in gradients]


def _rows(gradient: Tensor, usable: Tensor) -> Tensor:
    # Zero times infinity is none of both.
    rows = gradient.detach().reshape(len(gradient), -1).double()
    return torch.where(usable[:, None], rows, torch.zeros_like(rows))
