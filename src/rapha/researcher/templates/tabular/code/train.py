"""Train a small classifier on one label; leave its weights as the release plan says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rapha_trainer import RaphaDataLoader, release

HIDDEN = 16
RATE = 0.05
MOMENTUM = 0.9
DECAY = 0.01
EPOCHS = 30
BATCH = 64


def split(batch: dict[str, Tensor], names: list[str], label: str) -> tuple[Tensor, Tensor]:
    """Inputs [batch, fields] in the catalogue's order, and labels [batch, 1]."""
    inputs = torch.stack([batch[name].float() for name in names], dim=1)
    return inputs, batch[label].float().unsqueeze(1)


def moments(names: list[str], label: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each input, [fields], by one pass over the records."""
    count, total, squares = 0, torch.zeros(len(names)).double(), torch.zeros(len(names)).double()
    for batch in RaphaDataLoader(batch_size=1024, as_torch=True):
        inputs = split(batch, names, label)[0].double()
        if count == 0:
            print(f"first batch: {len(inputs)} records of {len(names)} fields", flush=True)  # noqa: T201
        count += len(inputs)
        total += inputs.sum(0)
        squares += (inputs**2).sum(0)
    mean = total / count
    return mean.float(), (squares / count - mean**2).clamp(min=1e-12).sqrt().float()


def train(names: list[str], label: str, mean: Tensor, scale: Tensor) -> nn.Sequential:
    """A two-layer perceptron on standardised inputs; its output is a logit."""
    model = nn.Sequential(nn.Linear(len(names), HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    loss_of = nn.BCEWithLogitsLoss()
    parameters = list(model.parameters())
    velocity = [torch.zeros_like(parameter) for parameter in parameters]
    for batch in RaphaDataLoader(batch_size=BATCH, shuffle=True, seed=7, epochs=EPOCHS, as_torch=True):
        inputs, labels = split(batch, names, label)
        gradients = torch.autograd.grad(loss_of(model((inputs - mean) / scale), labels), parameters)
        descend(parameters, velocity, gradients)
    return model


@torch.no_grad()
def descend(parameters: list[nn.Parameter], velocity: list[Tensor], gradients: tuple[Tensor, ...]) -> None:
    """One step of gradient descent with momentum; importing torch.optim takes longer than this training."""
    for parameter, speed, gradient in zip(parameters, velocity, gradients, strict=True):
        speed.mul_(MOMENTUM).add_(gradient).add_(parameter, alpha=DECAY)
        parameter.sub_(speed, alpha=RATE)


def folded(model: nn.Sequential, mean: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """The weights for inputs in their own units: (x - mean) / scale becomes part of the first layer."""
    state = model.state_dict()
    weight = state["0.weight"] / scale
    return {
        "layer1.weight": weight,
        "layer1.bias": state["0.bias"] - weight @ mean,
        "layer2.weight": state["2.weight"],
        "layer2.bias": state["2.bias"],
    }


def main() -> None:
    """Train, and release."""
    torch.manual_seed(7)
    torch.set_num_threads(1)
    fields = RaphaDataLoader().fields
    names = [field.name for field in fields if not field.label]
    (label,) = [field.name for field in fields if field.label]
    mean, scale = moments(names, label)
    model = train(names, label, mean, scale)
    release.weights(folded(model, mean, scale))


if __name__ == "__main__":
    main()
