"""Records as the model sees them. A record with a hole in it is used, never refused: whether there is one is
about a patient, so nothing here may raise, warn or leave out because of a value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from rapha_trainer.loader import RaphaDataLoader
from rapha_trainer.private.models import shape_of
from rapha_trainer.private.settings import Settings, Target

LIMIT: Final = 10.0
"""Inputs and learned quantities are cut off here, in units of their declared spread; no number becomes 0."""


def chosen(settings: Settings, indices: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels of these records of the training split, in pieces that fit into memory."""
    if len(indices):
        size = min(settings.at_once, len(indices))
        for batch in RaphaDataLoader(size, indices=indices, as_torch=True):
            yield inputs(settings, batch), batch[settings.target.label].double()


def inputs(settings: Settings, batch: Mapping[str, Tensor]) -> Tensor:
    """[n, c, h, w] or [n, d], float32, normalised by the declared constants."""
    columns = []
    for column in settings.inputs:
        values = (batch[column.field].double() - column.shift) / column.scale
        columns.append(_tame(values).reshape(len(values), -1))
    return torch.cat(columns, dim=1).float().reshape(-1, *shape_of(settings))


def losses(settings: Settings, raw: Tensor, labels: Tensor) -> Tensor:
    """The sum over the records of each one's own loss. Of a label that is none nothing is learned."""
    target = settings.target
    if target.task == "multiclass":
        known = (labels >= 0) & (labels < target.outputs) & (labels == labels.round())
        classes = torch.where(known, labels, torch.zeros_like(labels)).long()
        each = functional.cross_entropy(raw, classes, reduction="none")
    elif target.task == "binary":
        known = torch.isfinite(labels)
        positive = (labels == target.positive).float()
        each = functional.binary_cross_entropy_with_logits(raw[:, 0], positive, reduction="none")
    else:
        known = torch.isfinite(labels)
        wanted = _tame((labels - target.mean) / target.std).float()
        distance = functional.mse_loss if settings.loss == "mse" else functional.huber_loss
        each = distance(raw[:, 0], wanted, reduction="none")
    return torch.where(known, each, torch.zeros_like(each)).sum()


def predictions(target: Target, raw: Tensor) -> Tensor:
    """What is predicted, [n, outputs]: probabilities, or the quantity in its own unit."""
    if target.task == "multiclass":
        return torch.softmax(raw, dim=1)
    if target.task == "binary":
        return torch.sigmoid(raw)
    return raw * target.std + target.mean


def _tame(values: Tensor) -> Tensor:
    return torch.nan_to_num(values, nan=0.0, posinf=LIMIT, neginf=-LIMIT).clamp(-LIMIT, LIMIT)
