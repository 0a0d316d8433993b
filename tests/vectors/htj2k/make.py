"""How the HTJ2K code streams here were made: OpenJPH by way of imagecodecs, which the project doesn't need.

    pip install imagecodecs==2026.3.6 && python make.py

`picture` is the image in each of them; `tests/unit/node/test_imaging_codecs.py` has the same formula.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray


def picture(samples: int, bits: int) -> NDArray[Any]:
    """[40, 56] or [40, 56, 3]: smooth, with some noise, over most of the range."""
    row, column, sample = np.ogrid[:40, :56, :samples]
    wave = np.sin(row / 7 + sample) * np.cos(column / 11) + 1
    noise = (row * 31 + column * 17 + sample * 5) % 13
    image: NDArray[Any] = (wave * (2 ** (bits - 1) - 20) + noise).astype(np.uint16 if bits > 8 else np.uint8)
    return image[..., 0] if samples == 1 else image


def main() -> None:
    """Write all code streams next to this file."""
    here = Path(__file__).parent
    encode = imagecodecs.htj2k_encode
    grey, colour = picture(1, 16), picture(3, 8)
    made = {
        "grey16": encode(grey, reversible=True),
        "grey16_tiles_tlm": encode(grey, reversible=True, tile=(32, 32), tlm=True),
        "rgb8": encode(colour, reversible=True, rgb=True),
        "grey16_lossy": encode(grey, reversible=False, level=0.001),
    }
    for name, stream in made.items():
        (here / f"{name}.j2c").write_bytes(stream)


if __name__ == "__main__":
    main()
