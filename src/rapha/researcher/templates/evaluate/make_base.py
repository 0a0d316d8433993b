"""Write the model that this job brings, and print its SHA-256: `python3 make_base.py` beside job.yaml.

It was fitted to nobody's records. Its three numbers are general knowledge: by Gompertz' law the risk of death
doubles about every 8 years of age; at one age men's is about half as high again as women's; and of 100 women
of 65, about 7 die within five years. The job asks how well that orders real people by risk, and how far its
probabilities are off.

Your own model replaces it: save its tensors with safetensors, without metadata, anywhere below code/, and put
the file's SHA-256 into `model.base` of job.yaml. `rapha job build` says what it found.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path

DOUBLING_YEARS = 8.0
MEN_TO_WOMEN = 1.5
AGE, RISK = 65.0, 0.07
TARGET = Path(__file__).parent / "code" / "gompertz.safetensors"


def coefficients() -> dict[str, list[float]]:
    """A logistic regression's tensors: weights of age in years and of being a man, and the intercept."""
    per_year, man = math.log(2) / DOUBLING_YEARS, math.log(MEN_TO_WOMEN)
    return {"bias": [math.log(RISK / (1 - RISK)) - per_year * AGE], "weight": [per_year, man]}


def encoded(tensors: dict[str, list[float]]) -> bytes:
    """The safetensors file of these F32 vectors: length of the header, header, data."""
    header, data = {}, b""
    for name, values in tensors.items():
        begin = len(data)
        data += struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": [begin, len(data)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def write() -> str:
    """Write the file; its SHA-256."""
    model = encoded(coefficients())
    TARGET.write_bytes(model)
    return hashlib.sha256(model).hexdigest()


if __name__ == "__main__":
    print(write())  # noqa: T201
