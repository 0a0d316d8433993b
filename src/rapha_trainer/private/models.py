"""The declared models as torch modules; tensors are named as `rapha.spec.private` plans them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rapha_trainer.private.settings import Net, Settings

_NORM_GROUPS: Final = 8
_ACTIVATIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
}


class Block(nn.Module):
    """3×3 convolution, GroupNorm, activation, 2×2 pooling. Nothing in it looks at another record."""

    def __init__(self, before: int, after: int, activation: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1)
        self.norm = nn.GroupNorm(norm_groups(after), after)
        self._activation = _ACTIVATIONS[activation]

    def forward(self, images: Tensor) -> Tensor:
        """[n, before, h, w] to [n, after, h // 2, w // 2]."""
        return functional.max_pool2d(self._activation(self.norm(self.conv(images))), 2)


class Body(nn.ModuleList):
    """What lies below the last layer, as features [n, k]; its layers are called 0, 1 …"""

    def __init__(self, net: Net, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.image, self.features = net.kind == "cnn", shape[0]
        self._activation = _ACTIVATIONS[net.activation]
        for width in net.layers:
            below = self.features
            self.append(Block(below, width, net.activation) if self.image else nn.Linear(below, width))
            self.features = width

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, c, h, w] or [n, d] to [n, k]."""
        for layer in self:
            inputs = layer(inputs) if self.image else self._activation(layer(inputs))
        return inputs.mean(dim=(2, 3)) if self.image else inputs


class Declared(nn.Module):
    """The whole model: `body` and the linear `head` over it; a frozen body is not trained."""

    def __init__(self, net: Net, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.body = Body(net, shape)
        self.head = nn.Linear(self.body.features, outputs)
        self.body.requires_grad_(not net.frozen)

    def forward(self, inputs: Tensor) -> Tensor:
        """Raw outputs [n, outputs]."""
        raw: Tensor = self.head(self.body(inputs))
        return raw


def shape_of(settings: Settings) -> tuple[int, ...]:
    """What one record is to the model: channels, height and width; or its values side by side."""
    if settings.net.kind == "cnn":
        shape = settings.inputs[0].shape
        return shape if len(shape) == 3 else (1, *shape)
    return (sum(int(np.prod(i.shape, dtype=np.int64)) for i in settings.inputs),)


def build(settings: Settings) -> Declared:
    """The model with its initial weights: those of the declared seed and of nothing else."""
    torch.manual_seed(settings.init_seed)
    return Declared(settings.net, shape_of(settings), settings.target.outputs)


def load(module: nn.Module, path: Path, prefix: str = "") -> None:
    """Fill `module` from a safetensors file that holds exactly its tensors, under `prefix`, in any dtype.

    An int8 tensor is multiplied by the scale that lies beside it.

    Raises:
        ValueError: it holds others. Weights that are no numbers are the guard's to refuse, or the base's own.
    """
    from safetensors.torch import load_file

    found = load_file(path)
    values = {name: _whole(name, tensor, found) for name, tensor in found.items() if not _scale(name, found)}
    wanted = {prefix + name: tensor.shape for name, tensor in module.state_dict().items()}
    if {name: tensor.shape for name, tensor in values.items()} != wanted:
        raise ValueError(f"{path.name}: not exactly the tensors of the declared model")
    module.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in values.items()})


def norm_groups(channels: int) -> int:
    """As `rapha.spec.private.norm_groups`: the most groups up to 8 that divide the channels."""
    return max(n for n in range(1, _NORM_GROUPS + 1) if channels % n == 0)


def _scale(name: str, found: Mapping[str, Any]) -> bool:
    return name.endswith(".scale") and name.removesuffix(".scale") in found


def _whole(name: str, tensor: Tensor, found: Mapping[str, Tensor]) -> Tensor:
    scale = found.get(f"{name}.scale")
    return tensor.float() if scale is None else tensor.float() * scale.float()
