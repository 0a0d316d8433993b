"""What the gates, the walls, the meter and the guard add over running the same scripts bare.

Bare: `train.py`, then `predict.py`, on the same records from a local file, with nothing around them.
Ours: from submit to delivered through a running coordinator and node, people's signatures included.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from pyarrow import parquet

from rapha.testing import stack as stacks
from rapha.testing.stack import Stack

ROUNDS = 3


def main() -> None:
    """Print JSON lines: seconds for the whole job, what we add, and seconds to the first training line."""
    with (
        tempfile.TemporaryDirectory() as folder,
        stacks.stack(Path(folder) / "world") as stack,
        stacks.node(stack.world.node),
        stacks.people(stack.world),
    ):
        data = _home_data(stack, Path(folder) / "home.npz")
        plan = Path(folder) / "in"
        plan.mkdir()
        (plan / "plan.json").write_text(json.dumps(stack.world.project.load().outputs.dump()))
        _ours(stack)  # both sides start with warm file caches
        rounds = [(_ours(stack), _bare(stack, data, plan, Path(folder))) for _ in range(ROUNDS)]
    whole, first, bare, bare_first = (
        statistics.median(values)
        for values in zip(*((*ours, *theirs) for ours, theirs in rounds), strict=True)
    )
    _line("overhead.whole_job", whole, bare, "s")
    _line("overhead.added", whole - bare, 3.0, "s of at most 3")
    _line("overhead.first_training_line", first, bare_first, "s")


def _ours(stack: Stack) -> tuple[float, float]:
    project = stack.world.project
    project.build()
    signed = project.sign(stack.key, "demo")
    archive = project.pack()
    log = stack.world.node / "state" / "logs" / signed.id / "train.log"
    seen: list[float] = []
    watcher = threading.Thread(target=_first_line, args=(log, seen))
    watcher.start()
    began = time.monotonic()
    stack.client.submit(signed.job, signed.image, archive)
    last = stack.follow(signed)
    whole = time.monotonic() - began
    watcher.join()
    assert last["state"] == "delivered", last
    return whole, seen[0] - began


def _bare(stack: Stack, data: Path, plan: Path, folder: Path) -> tuple[float, float]:
    out = Path(tempfile.mkdtemp(dir=folder))
    code = stack.world.project.folder / "code"
    environment = {
        **os.environ,
        "RAPHA_HOME_DATA": str(data),
        "RAPHA_IN": str(plan),
        "RAPHA_OUT": str(out),
        "OMP_NUM_THREADS": "2",
    }
    began = time.monotonic()
    log = out.with_suffix(".log")
    seen: list[float] = []
    watcher = threading.Thread(target=_first_line, args=(log, seen))
    watcher.start()
    with log.open("wb") as file:
        subprocess.run([sys.executable, "train.py"], cwd=code, env=environment, stdout=file, check=True)
        watcher.join()
        released = plan / "released"
        released.mkdir(exist_ok=True)
        for path in out.iterdir():
            path.replace(released / path.name)
        subprocess.run([sys.executable, "predict.py"], cwd=code, env=environment, stdout=file, check=True)
    return time.monotonic() - began, seen[0] - began


def _first_line(log: Path, seen: list[float]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if b"\n" in log.read_bytes():
                seen.append(time.monotonic())
                return
        except OSError:
            pass
        time.sleep(0.005)


def _home_data(stack: Stack, path: Path) -> Path:
    manifest = json.loads((stack.world.data / "manifest.json").read_bytes())
    table = parquet.read_table(stack.world.data / manifest["source"]["path"])
    columns = {f["name"]: table.column(f["name"]).to_numpy() for f in manifest["fields"]}
    test = np.flatnonzero(np.arange(table.num_rows) % 5 == 0)
    labels = np.array([f["name"] for f in manifest["fields"] if f["label"]])
    np.savez(path, **columns, __labels__=labels, __test__=test)
    return path


def _line(name: str, ours: float, theirs: float, unit: str) -> None:
    values = {"ours": round(ours, 3), "theirs": round(theirs, 3), "ratio": round(ours / theirs, 3)}
    print(json.dumps({"name": name, **values, "unit": unit}))


if __name__ == "__main__":
    main()
