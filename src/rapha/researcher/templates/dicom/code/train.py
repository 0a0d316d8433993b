"""Train a small convolutional network to tell CT from other images; leave its weights and its losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from rapha_trainer import RaphaDataLoader, release

RATE = 0.02
MOMENTUM = 0.9
EPOCHS = 12
BATCH = 32
SHARE = 64


class Network(nn.Module):
    """Three convolutions, the mean over all places, one logit: images [batch, 1, 64, 64] to [batch]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 1)

    def forward(self, images: Tensor) -> Tensor:
        """The logit of "this is CT"."""
        for layer in (self.conv1, self.conv2, self.conv3):
            images = layer(images).relu()
        logits: Tensor = self.head(images.mean(dim=(2, 3)))
        return logits.squeeze(1)


def centred(pixels: Tensor) -> Tensor:
    """What the node's transforms leave, [batch, 64, 64] from 0 to 1, as images from -1 to 1."""
    return (pixels * 2 - 1).unsqueeze(1)


def places() -> dict[bytes, list[int]]:
    """Where each patient's images are; a patient is 16 bytes here, which mean nothing outside this job."""
    found: dict[bytes, list[int]] = {}
    place = 0
    for batch in RaphaDataLoader(batch_size=64):
        if place == 0:
            print(f"first batch: {len(batch['pixels'])} images", flush=True)  # noqa: T201
        for patient in batch["patient"]:
            found.setdefault(patient.tobytes(), []).append(place)
            place += 1
    return found


def drawn(places: dict[bytes, list[int]]) -> Tensor:
    """`SHARE` images of each patient in random order: one who has a hundred must not outweigh the others."""
    each = [torch.tensor(images)[torch.randint(len(images), (SHARE,))] for images in places.values()]
    chosen = torch.cat(each)
    return chosen[torch.randperm(len(chosen))]


def train(places: dict[bytes, list[int]]) -> Network:
    """A network after `EPOCHS` epochs; the mean loss of each is reported."""
    network = Network()
    parameters = list(network.parameters())
    velocity = [torch.zeros_like(parameter) for parameter in parameters]
    for epoch in range(1, EPOCHS + 1):
        total, images = 0.0, drawn(places)
        for batch in RaphaDataLoader(batch_size=BATCH, indices=images.numpy(), as_torch=True):
            logits = network(turned(centred(batch["pixels"])))
            loss = binary_cross_entropy_with_logits(logits, batch["is_ct"])
            descend(parameters, velocity, torch.autograd.grad(loss, parameters))
            total += loss.item() * len(logits)
        release.metric(f"loss_e{epoch:02d}", total / len(images))
    return network


def turned(images: Tensor) -> Tensor:
    """Upside down or mirrored half of the time each: what CT looks like doesn't depend on it."""
    for axis in (2, 3):
        if torch.rand(()) < 0.5:
            images = images.flip(axis)
    return images


@torch.no_grad()
def descend(parameters: list[nn.Parameter], velocity: list[Tensor], gradients: tuple[Tensor, ...]) -> None:
    """One step of gradient descent with momentum; importing torch.optim takes longer than this training."""
    for parameter, speed, gradient in zip(parameters, velocity, gradients, strict=True):
        speed.mul_(MOMENTUM).add_(gradient)
        parameter.sub_(speed, alpha=RATE)


def main() -> None:
    """Train, and release."""
    torch.manual_seed(7)
    torch.set_num_threads(1)
    release.weights(train(places()).state_dict())


if __name__ == "__main__":
    main()
