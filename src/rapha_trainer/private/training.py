"""DP-SGD (Abadi et al. 2016), steps numbered as in docs/adr/0016.

1. sample    each patient with the declared rate, and one record of theirs
2. gradient  of each record's own loss, computed by itself: in a batch, how many others there are would show
             in the last bits, and a submitter's frozen weights can make those the first
3. clip      each to the declared norm, and add them up
4. noise     Gaussian, of standard deviation noise multiplier × clip, in every coordinate
5. step      the noisy sum, divided by a public constant, goes to the optimizer

The number of steps is fixed; a step in which nobody is sampled adds noise alone. Nothing else of the records
is looked at: no loss, no count, no accuracy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rapha_trainer import release
from rapha_trainer.loader import RaphaDataLoader
from rapha_trainer.private import batches
from rapha_trainer.private.clipping import clipped_sum
from rapha_trainer.private.models import Declared, build, load
from rapha_trainer.private.randomness import Patients, Source, gaussian, sample
from rapha_trainer.private.settings import Settings, inputs_folder

Read = Callable[[Settings, NDArray[np.int64]], Iterator[tuple[Tensor, Tensor]]]
"""Inputs and labels of the records with these indices."""


def train(settings: Settings) -> None:
    """Train on the records that the node serves, and leave the weights as the release plan says.

    Raises:
        ValueError: the node's files contradict one another.
    """
    groups = np.fromfile(inputs_folder() / "groups.i32", "<i4")
    if len(groups) != RaphaDataLoader().records:
        raise ValueError("groups.i32 is not of the records that are served")
    model = build(settings)
    if settings.net.frozen:
        load(model.body, inputs_folder() / "base.safetensors", prefix="body.")
    fit(settings, model, Patients.of(groups), batches.chosen)
    # Of the whole model, what is trained: a frozen body is the submitter's already.
    trained = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    release.weights({name: t for name, t in model.state_dict().items() if name in trained})


def fit(
    settings: Settings, model: Declared, patients: Patients, read: Read, source: Source = os.urandom
) -> None:
    """Steps 1 to 5, `settings.steps` times, on `model` in place."""
    trained = model.head if settings.net.frozen else model
    below: nn.Module = model.body if settings.net.frozen else nn.Identity()
    parameters = list(trained.parameters())
    optimizer = _optimizer(settings, parameters)
    std = settings.noise_multiplier * settings.clip
    for _ in range(settings.steps):
        indices = sample(patients, settings.sample_rate, source)  # 1
        total = [torch.zeros(p.shape, dtype=torch.float64) for p in parameters]
        for inputs, labels in read(settings, indices):
            gradients = _gradients(settings, below, trained, inputs, labels)  # 2
            pieces = clipped_sum(gradients, settings.clip)  # 3
            total = [summed + piece for summed, piece in zip(total, pieces, strict=True)]
        for parameter, summed in zip(parameters, total, strict=True):
            noise = torch.from_numpy(gaussian(summed.numel(), std, source)).reshape(summed.shape)  # 4
            parameter.grad = ((summed + noise) / settings.expected_batch).to(parameter.dtype)
        optimizer.step()  # 5


def _gradients(
    settings: Settings, below: nn.Module, trained: nn.Module, inputs: Tensor, labels: Tensor
) -> list[Tensor]:
    """For each trained tensor [n, *shape]: row i is the gradient of record i's loss, to the bit the same
    whoever else is there."""
    parameters = list(trained.parameters())
    rows = [torch.empty((len(inputs), *p.shape)) for p in parameters]
    for record in range(len(inputs)):
        with torch.no_grad():
            features = below(_alone(inputs, record))
        loss = batches.losses(settings, trained(features), _alone(labels, record))
        for row, gradient in zip(rows, torch.autograd.grad(loss, parameters), strict=True):
            row[record] = gradient
    return rows


def _alone(values: Tensor, record: int) -> Tensor:
    # A copy: which kernel runs may also depend on where in memory a row begins.
    return values[record : record + 1].clone(memory_format=torch.contiguous_format)


def _optimizer(settings: Settings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    # Whatever it does is done to noisy sums alone, so it costs no privacy.
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=settings.learning_rate)
    return torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=settings.momentum)
