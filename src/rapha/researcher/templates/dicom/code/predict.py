"""Predict the held-out images with the weights as they were released."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import conv2d, linear

from rapha_trainer import RaphaDataLoader, release


def probabilities(weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """The network of train.py, [batch, 64, 64] from 0 to 1 to [batch, 1]."""
    images = (pixels * 2 - 1).unsqueeze(1)
    for layer in ("conv1", "conv2", "conv3"):
        images = conv2d(images, weights[f"{layer}.weight"], weights[f"{layer}.bias"], 2, 1).relu()
    return linear(images.mean(dim=(2, 3)), weights["head.weight"], weights["head.bias"]).sigmoid()


def main() -> None:
    """One probability of CT an image, in the order served."""
    torch.set_num_threads(1)
    folder = Path(os.environ.get("RAPHA_IN", "/rapha/in")) / "released"
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    for batch in RaphaDataLoader(batch_size=64, split="test", as_torch=True):
        release.predictions(probabilities(weights, batch["pixels"]))


if __name__ == "__main__":
    main()
