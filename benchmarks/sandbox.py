"""What each driver's walls cost: at start-up, and while a model trains inside.

Bare: the same interpreter and the same program, with nothing around them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rapha.runtime.sandbox import drivers
from rapha.runtime.sandbox.interface import Ending, Limits, Sandbox, Spec
from rapha.runtime.sandbox.pyruntime import PythonRuntime, installed
from rapha.spec.refusals import Refused

START_ROUNDS = 10
BARS_S = {"bubblewrap": 0.25, "gvisor": 0.5}
"""What each driver may add to a start."""
TRAIN_ROUNDS = 9
START = "pass"
TRAIN = """
import time, torch
torch.manual_seed(0)
torch.set_num_threads({threads})
model = torch.nn.Sequential(
    torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3), torch.nn.ReLU(),
    torch.nn.Flatten(), torch.nn.Linear(16 * 24 * 24, 10),
)
optimiser = torch.optim.SGD(model.parameters(), 0.01)
x, y = torch.rand(64, 1, 28, 28), torch.randint(0, 10, (64,))
def step():
    optimiser.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimiser.step()
for _ in range(5):
    step()
steps, began = 0, time.perf_counter()
while time.perf_counter() < began + {seconds}:
    step()
    steps += 1
print(steps * len(x) / (time.perf_counter() - began))
"""


def main() -> None:
    """Print JSON lines: seconds that each driver adds to a start, and records a second inside and out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=START_ROUNDS)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    for name in drivers.DRIVERS:
        sandbox = drivers.driver(name)
        try:
            sandbox.check()
        except Refused as refused:
            sys.stderr.write(f"{name}: skipped: {refused.detail}\n")
            continue
        start_up(sandbox, options.rounds)
        if installed(["torch"]):
            training(sandbox, options.seconds)
        else:
            sys.stderr.write(f"{name}: training skipped: torch is not installed\n")


def start_up(sandbox: Sandbox, rounds: int) -> None:
    """The best of each over `rounds`, in turn."""
    runtime = PythonRuntime.discover(())
    both = [(_inside(sandbox, runtime, START)[0], _outside(runtime, START)[0]) for _ in range(rounds)]
    ours, theirs = (min(values) for values in zip(*both, strict=True))
    _line(f"sandbox.{sandbox.name}.start_up", ours, theirs, "s")
    bar = BARS_S[sandbox.name]
    _line(f"sandbox.{sandbox.name}.start_up_added", ours - theirs, bar, f"s of at most {bar}")


def training(sandbox: Sandbox, seconds: float) -> None:
    """The median throughput of each over the rounds, in turn; who goes first alternates."""
    runtime = PythonRuntime.discover(["torch", "numpy"])
    code = TRAIN.format(threads=len(os.sched_getaffinity(0)), seconds=seconds)
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(TRAIN_ROUNDS):
        for inside in (number % 2 == 0, number % 2 == 1):
            said = (_inside(sandbox, runtime, code) if inside else _outside(runtime, code))[1]
            (ours if inside else theirs).append(float(said))
    _line(f"sandbox.{sandbox.name}.training", median(ours), median(theirs), "records/s")


def _inside(sandbox: Sandbox, runtime: PythonRuntime, code: str) -> tuple[float, str]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        argv = (runtime.python, "-c", code)
        began = time.perf_counter()
        limits = Limits(wall_s=300)
        outcome = sandbox.start(Spec(argv, runtime.mounts, runtime.env, "/", limits, log=log)).wait()
        took = time.perf_counter() - began
        assert (outcome.ending, outcome.exit_code) == (Ending.exited, 0), (outcome, log.read_text())
        return took, log.read_text()


def _outside(runtime: PythonRuntime, code: str) -> tuple[float, str]:
    threads = {name: value for name, value in runtime.env.items() if name.endswith("_NUM_THREADS")}
    environment = {**os.environ, **threads}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return time.perf_counter() - began, done.stdout


def _line(name: str, ours: float, theirs: float, unit: str) -> None:
    values = {"ours": round(ours, 3), "theirs": round(theirs, 3), "ratio": round(ours / theirs, 3)}
    print(json.dumps({"name": name, **values, "unit": unit}))


if __name__ == "__main__":
    main()
