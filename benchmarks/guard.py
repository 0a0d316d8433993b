"""The guard on files of weights: its speed beside a hash and beside the library, and its memory.

Each line's `ours` and `theirs` are MB of F32 input a second, from a file in the page cache; the last are
MB of memory, summed over the processes with what they keep in tmpfs, beside the size of the file.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy
from blake3 import blake3

from rapha.runtime.guard.confined import run_in_process
from rapha.runtime.guard.inspection import inspect
from rapha.spec.release_plan import ReleasePlan

ROUNDS = 3
LARGE, MANY = {"w": (16384, 16384)}, {f"layer.{n}.weight": (128, 256) for n in range(8192)}
SMALL = {"w": (4096, 4096)}
FILE = "w.safetensors"


def main() -> None:
    """Print one JSON line a comparison."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        plan = written(folder, SMALL)
        compare("guard", plan, partial(guard, folder, plan), partial(library, folder / FILE))
        for name, shapes in (("guard-1gb-of-8192-tensors", MANY), ("guard-1gb", LARGE)):
            plan = written(folder, shapes)
            for kind, hashed in HASHES.items():
                compare(
                    f"{name}-blake3{kind}", plan, partial(guard, folder, plan), partial(hashed, folder / FILE)
                )
        command(folder, plan)
        sandbox(folder, plan)


def written(folder: Path, shapes: dict[str, tuple[int, int]]) -> ReleasePlan:
    """A plan, and a file in `folder` as it says."""
    draw = np.random.default_rng(0)
    weights = {name: draw.standard_normal(shape, "<f4") for name, shape in shapes.items()}
    safetensors.numpy.save_file(weights, folder / FILE)
    bounds = {"dtype": "F32", "min": -16.0, "max": 16.0}
    tensors = [{"name": name, "shape": list(shape), **bounds} for name, shape in shapes.items()]
    part = {"file": FILE, "release_dtype": "bf16", "tensors": tensors}
    return ReleasePlan.parse({"version": 1, "weights": part, "max_bytes": 2**30})


def guard(folder: Path, plan: ReleasePlan) -> None:
    """Checks 1 to 7 in this process; a wrong answer is no measurement."""
    report = inspect(folder, plan)
    assert report.ok, report.code


def library(path: Path) -> None:
    """What the guard replaces: the library's load, a cast, and its save."""
    values = safetensors.numpy.load_file(path)["w"].astype(ml_dtypes.bfloat16)
    safetensors.numpy.save({"w": values})


HASHES: dict[str, Callable[[Path], object]] = {
    "": lambda path: blake3(path.read_bytes()).digest(),
    "-all-threads": lambda path: blake3(path.read_bytes(), max_threads=blake3.AUTO).digest(),
    "-mapped": lambda path: blake3().update_mmap(path).digest(),
}


def compare(name: str, plan: ReleasePlan, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
    """One line: both in MB/s, the best of a few rounds that take turns."""
    best = [float("inf")] * 2
    for _ in range(ROUNDS):
        for at, run in enumerate((ours, theirs)):
            begin = time.perf_counter()
            run()
            best[at] = min(best[at], time.perf_counter() - begin)
    assert plan.weights is not None
    size = plan.weights.input_bytes / 1e6
    show(name, size / best[0], size / best[1], "MB/s")


def show(name: str, ours: float, theirs: float, unit: str) -> None:
    """Print one JSON line."""
    line = {"name": name, "ours": round(ours), "theirs": round(theirs), "ratio": round(ours / theirs, 3)}
    print(json.dumps({**line, "unit": unit}), flush=True)


def command(folder: Path, plan: ReleasePlan) -> None:
    """`rapha guard inspect --out`, as a person calls it."""
    with tempfile.TemporaryDirectory() as other:
        (Path(other) / "plan.json").write_text(json.dumps(plan.dump()))
        rapha = str(Path(sys.executable).with_name("rapha"))
        call = [
            rapha,
            "guard",
            "inspect",
            str(folder),
            "--plan",
            f"{other}/plan.json",
            "--out",
            f"{other}/out",
        ]

        def run() -> None:
            subprocess.run(call, check=True, capture_output=True)

        measured("guard-1gb-command", plan, folder, run)


def sandbox(folder: Path, plan: ReleasePlan) -> None:
    """In the node's sandbox."""
    with tempfile.TemporaryDirectory() as other:

        def run() -> None:
            report = run_in_process(folder, plan, Path(other) / "out")
            assert report.ok, report.code

        measured("guard-1gb-sandbox", plan, folder, run)


def measured(name: str, plan: ReleasePlan, folder: Path, run: Callable[[], None]) -> None:
    """Two lines of one run: its speed beside blake3's, and its memory beside the file's size."""
    begin = time.perf_counter()
    HASHES[""](folder / FILE)
    theirs = time.perf_counter() - begin
    with Memory() as memory:
        begin = time.perf_counter()
        run()
        ours = time.perf_counter() - begin
    assert plan.weights is not None
    size = plan.weights.input_bytes / 1e6
    show(f"{name}-blake3", size / ours, size / theirs, "MB/s")
    show(f"{name}-memory", memory.peak / 1e6, size, "MB")


class Memory:
    """The most memory that our children, and tmpfs since we began, had at one time, bytes."""

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._before = shared()

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        own = resident(os.getpid())
        while not self._done.wait(0.01):
            grown = max(0, resident(os.getpid()) - own)
            self.peak = max(self.peak, grown + tree() + max(0, shared() - self._before))


def shared() -> int:
    """Bytes in tmpfs and shared memory."""
    found = re.search(r"^Shmem:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def resident(pid: int) -> int:
    """Proportional set size, bytes; 0 for a process that is gone."""
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def tree() -> int:
    """Of all descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    total, queue = 0, children.get(os.getpid(), [])
    while queue:
        pid = queue.pop()
        total += resident(pid)
        queue += children.get(pid, [])
    return total


if __name__ == "__main__":
    main()
