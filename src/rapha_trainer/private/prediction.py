"""Predictions with the weights as they were released, for the metrics that the node computes."""

from __future__ import annotations

import torch

from rapha_trainer import release
from rapha_trainer.loader import RaphaDataLoader
from rapha_trainer.private import batches
from rapha_trainer.private.models import build, load
from rapha_trainer.private.settings import Settings, inputs_folder


def predict(settings: Settings) -> None:
    """One row a record of the held-out split, in the order served.

    Raises:
        ValueError: the weights are not those of the declared model.
    """
    model = build(settings)
    released = inputs_folder() / "released" / settings.weights_file
    if settings.net.frozen:
        load(model.body, inputs_folder() / "base.safetensors", prefix="body.")
        load(model.head, released, prefix="head.")
    else:
        load(model, released)
    with torch.no_grad():
        for batch in RaphaDataLoader(settings.at_once, split="test", as_torch=True):
            raw = model(batches.inputs(settings, batch))
            # The weights are released whatever they are, so this is no place to be particular.
            release.predictions(torch.nan_to_num(batches.predictions(settings.target, raw)))
