"""The one way in which the node puts a job's code behind walls."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from rapha.node.gates.intake import Admitted
from rapha.node.node import Node
from rapha.runtime.sandbox.interface import Limits, Mount, Outcome, Spec

APP = "/app"
INPUT = "/rapha/in"
MAX_COLUMNS = 16
"""Columns of predictions that the output folder has room for."""


def walls(
    node: Node,
    app: Path | None,
    *,
    argv: tuple[str, ...],
    inputs: Mapping[str, Path],
    limits: Limits,
    log: Path,
    broker: int | None = None,
    out: Path | None = None,
) -> Spec:
    """A sandbox with the image's `app` at /app, the node's runtime, and `inputs` below /rapha/in.

    Without `app` nothing of the submitter is in it, and it starts in /.
    """
    mounts = (
        *node.runtime.mounts,
        *((Mount(app, APP),) if app is not None else ()),
        *(Mount(source, f"{INPUT}/{name}") for name, source in sorted(inputs.items())),
    )
    environment = {**node.runtime.env, "RAPHA_IN": INPUT, "RAPHA_OUT": "/rapha/out"}
    if broker is not None:
        environment["RAPHA_BROKER_FD"] = "3"
    return Spec(
        argv=argv,
        mounts=mounts,
        env=environment,
        cwd=APP if app is not None else "/",
        limits=limits,
        broker=broker,
        out=out,
        log=log,
    )


def limits_of(admitted: Admitted) -> Limits:
    """The job's own limits; output is capped by its release plan and a prediction for each record."""
    compute = admitted.job.compute
    predictions = 4 * MAX_COLUMNS * admitted.job.dataset.max_records
    return Limits(
        wall_s=float(compute.wall_clock_s),
        cpu_s=compute.wall_clock_s * compute.cpus,
        memory_bytes=compute.memory_bytes,
        out_bytes=min(4 * admitted.job.outputs.max_bytes + predictions, compute.memory_bytes) + 2**20,
    )


def run(node: Node, spec: Spec) -> Outcome:
    """Run to the end, or kill everything when the node is told to stop."""
    running = node.sandbox.start(spec)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            if node.stop.is_set():
                running.kill()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        return running.wait()
    finally:
        done.set()
        watcher.join()
