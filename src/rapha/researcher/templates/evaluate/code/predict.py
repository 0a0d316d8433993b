"""Predict the held-out records with the model that the job brought; nothing is trained."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rapha_trainer import RaphaDataLoader, release

Matrix = NDArray[np.float32]
FIELDS = ("age", "sex")
"""In the order of the model's weights: years, and 1 for a man."""


def load(path: Path) -> dict[str, Matrix]:
    """The F32 tensors of a safetensors file."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        begin, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(data[start + begin : start + end], "<f4").reshape(entry["shape"])
    return tensors


def probabilities(model: dict[str, Matrix], inputs: Matrix) -> Matrix:
    """A logistic regression, [batch, fields] to [batch, 1]."""
    logits = inputs @ model["weight"] + model["bias"]
    risks: Matrix = 1 / (1 + np.exp(-logits[:, None]))
    return risks


def main() -> None:
    """One prediction a record, in the order served."""
    released = Path(os.environ.get("RAPHA_IN", "/rapha/in")) / "released"
    model = load(released / "model.safetensors")
    for batch in RaphaDataLoader(batch_size=256, split="test"):
        inputs = np.stack([np.asarray(batch[name], dtype=np.float32) for name in FIELDS], axis=1)
        release.predictions(probabilities(model, inputs))


if __name__ == "__main__":
    main()
