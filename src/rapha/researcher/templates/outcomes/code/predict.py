"""Predict the held-out records with the weights as they were released; numpy alone starts fastest."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapha_trainer import RaphaDataLoader, release

Matrix = NDArray[np.float32]
# As in train.py.
ORIGIN = {"sample_yr": 1995.0}


def load(path: Path) -> dict[str, Matrix]:
    """Read a safetensors file of F32 and BF16 tensors; numpy has no bfloat16 of its own."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        raw = data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
        if entry["dtype"] == "BF16":
            # A bfloat16 is the upper half of a float32.
            values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
        else:
            values = np.frombuffer(raw, "<f4")
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def probabilities(weights: dict[str, Matrix], inputs: Matrix) -> Matrix:
    """The perceptron of train.py, [batch, fields] to [batch, 1]."""
    hidden = np.maximum(inputs @ weights["layer1.weight"].T + weights["layer1.bias"], 0)
    logits = hidden @ weights["layer2.weight"].T + weights["layer2.bias"]
    sure: Matrix = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))
    return sure


def stack(batch: dict[str, Any], names: list[str]) -> Matrix:
    """Inputs [batch, fields] in the catalogue's order."""
    columns = [np.asarray(batch[name], dtype=np.float32) - ORIGIN.get(name, 0.0) for name in names]
    return np.stack(columns, axis=1, dtype=np.float32)


def main() -> None:
    """One prediction a record, in the order served."""
    folder = Path(os.environ.get("RAPHA_IN", "/rapha/in")) / "released"
    weights = load(folder / "model.safetensors")
    loader = RaphaDataLoader(batch_size=256, split="test")
    names = [field.name for field in loader.fields if not field.label]
    for batch in loader:
        release.predictions(probabilities(weights, stack(batch, names)))


if __name__ == "__main__":
    main()
