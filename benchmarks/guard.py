"""The guard on a file of weights, against what it replaces: the library's load, a cast, and its save."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy

from rapha.runtime.guard.inspection import inspect
from rapha.spec.release_plan import ReleasePlan

SHAPE = (4096, 4096)
ROUNDS = 5


def main() -> None:
    """Print one JSON line: MB/s of F32 input, in process, from file to released bytes."""
    weights = np.random.default_rng(0).standard_normal(SHAPE).astype("<f4")
    tensor = {"name": "w", "dtype": "F32", "shape": list(SHAPE), "min": -16.0, "max": 16.0}
    plan = ReleasePlan.parse(
        {
            "version": 1,
            "weights": {"file": "w.safetensors", "release_dtype": "bf16", "tensors": [tensor]},
            "max_bytes": 2**26,
        }
    )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "w.safetensors"
        safetensors.numpy.save_file({"w": weights}, path)

        def guard() -> None:
            assert inspect(Path(scratch), plan).ok

        def library() -> None:
            values = safetensors.numpy.load_file(path)["w"].astype(ml_dtypes.bfloat16)
            safetensors.numpy.save({"w": values})

        ours, theirs = (weights.nbytes / 1e6 / fastest(run) for run in (guard, library))
    line = {"name": "guard", "ours": round(ours), "theirs": round(theirs), "unit": "MB/s"}
    print(json.dumps({**line, "ratio": round(ours / theirs, 3)}))


def fastest(run: Callable[[], None]) -> float:
    """Seconds of the best of a few rounds."""
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


if __name__ == "__main__":
    main()
