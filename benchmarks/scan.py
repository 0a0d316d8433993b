"""What the scanner takes for an image of many files, beside parsing the same files and nothing else.

    python benchmarks/scan.py [--files N]

The scan is the whole of it: a process of its own, every digest checked, everything unpacked and judged. The
peer is CPython's own parser in one process over sources that are in memory already.
"""

from __future__ import annotations

import argparse
import ast
import json
import tempfile
import time
from pathlib import Path

from rapha.runtime.image import build
from rapha.runtime.scan import run_in_process

BAR_S = 5.0
ROUNDS = 3
MODULE = '''"""Module {n}."""
import math
import numpy as np

class Layer{n}:
    """A layer."""
    def __init__(self, width: int, depth: int = 3) -> None:
        self.width, self.depth = width, depth
        self.weights = [np.zeros((width, width)) for _ in range(depth)]

    def forward(self, x):
        for w in self.weights:
            x = np.maximum(x @ w, 0) + math.sqrt({n})
        return x

def helper_{n}(values, *, scale=1.0):
    total = 0.0
    for index, value in enumerate(values):
        if value > {n}:
            total += value * scale
        elif index % 7 == 0:
            total -= value / (index + 1)
    return {{"total": total, "mean": total / max(1, len(values))}}
'''


def main() -> None:
    """Print JSON lines for files that the entrypoint reaches, and for files that it does not."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=5000)
    files = parser.parse_args().files
    for name, reached in (("reached", True), ("present", False)):
        with tempfile.TemporaryDirectory() as folder:
            sources = write(Path(folder), files, reached)
            ours = min(scanned(Path(folder) / "image") for _ in range(ROUNDS))
        theirs = min(parsed(sources) for _ in range(ROUNDS))
        line(f"scan.{name}.vs_parse", ours, theirs, "s; smaller is faster")
        line(f"scan.{name}.vs_bar", ours, BAR_S, f"s of at most {BAR_S:g} for 5,000 files")


def write(folder: Path, files: int, reached: bool) -> list[str]:
    """An image at `folder`/image; its sources."""
    code = folder / "code"
    sources = [MODULE.format(n=n) for n in range(files)]
    for n, source in enumerate(sources):
        package = code / f"pkg{n // 100}"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
        (package / f"m{n}.py").write_text(source)
    imports = [f"from pkg{n // 100} import m{n}" for n in range(files)] if reached else []
    (code / "train.py").write_text("\n".join([*imports, "print(1)", ""]))
    image = folder / "image"
    build(code, image, entrypoint=["python3", "train.py"], predict=None, runtime="python-torch")
    return sources


def scanned(image: Path) -> float:
    """Seconds of one scan, which must find nothing."""
    began = time.perf_counter()
    assert run_in_process(image).ok
    return time.perf_counter() - began


def parsed(sources: list[str]) -> float:
    """Seconds to parse them all."""
    began = time.perf_counter()
    for source in sources:
        ast.parse(source)
    return time.perf_counter() - began


def line(name: str, ours: float, theirs: float, unit: str) -> None:
    """One JSON line."""
    values = {"ours": round(ours, 3), "theirs": round(theirs, 3), "ratio": round(ours / theirs, 3)}
    print(json.dumps({"name": name, **values, "unit": unit}))


if __name__ == "__main__":
    main()
