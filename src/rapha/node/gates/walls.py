"""The one way in which the node puts a job's code behind walls."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from pathlib import Path

from rapha.node.gates.base import SHOWN
from rapha.node.gates.intake import Admitted
from rapha.node.node import Node
from rapha.node.private.admit import SETTINGS
from rapha.runtime.sandbox.interface import Limits, Mount, Outcome, Spec
from rapha.runtime.sandbox.pyruntime import ImageRuntime
from rapha.spec.release_plan import MAX_COLUMNS

APP = "/app"
INPUT = "/rapha/in"


def walls(
    node: Node,
    admitted: Admitted | None,
    *,
    argv: tuple[str, ...],
    inputs: Mapping[str, Path],
    limits: Limits,
    log: Path,
    broker: int | None = None,
    out: Path | None = None,
    hold: int | None = None,
) -> Spec:
    """A sandbox with `inputs` below /rapha/in, and the image of a job with the base model that it names.

    A slim image is /app on the node's runtime; a full one is the root, and gets only `rapha_trainer` of the
    node. Without a job nothing of a submitter is in it, and it starts in /; for a private job neither, since
    the hospital's own trainer runs in place of its commands.
    """
    private = admitted.private if admitted else None
    image = admitted.image if admitted and private is None else None
    if private is not None:
        argv, inputs = private.argv(node.runtime.python, argv), {**inputs, SETTINGS: private.settings}
    full = image is not None and image.kind == "full"
    runtime = ImageRuntime.make(image.path) if image is not None and full else node.runtime
    mounts = (
        *runtime.mounts,
        *((Mount(admitted.app, APP),) if admitted is not None and image is not None and not full else ()),
        *(Mount(source, f"{INPUT}/{name}") for name, source in sorted(inputs.items())),
        *((Mount(admitted.base, f"{INPUT}/{SHOWN}"),) if admitted and admitted.base else ()),
    )
    environment = {**runtime.env, "RAPHA_IN": INPUT, "RAPHA_OUT": "/rapha/out"}
    if broker is not None:
        environment["RAPHA_BROKER_FD"] = "3"
    return Spec(
        argv=argv,
        mounts=mounts,
        env=environment,
        cwd="/" if image is None else image.workdir if full else APP,
        limits=limits,
        broker=broker,
        out=out,
        log=log,
        hold=hold,
        root=image.tree if image is not None and full else None,
    )


def limits_of(admitted: Admitted, wall_s: float = math.inf) -> Limits:
    """The job's own limits, and no more than `wall_s`.

    Output is capped by its release plan and a prediction for each record.
    """
    compute = admitted.job.compute
    predictions = 4 * MAX_COLUMNS * admitted.job.dataset.max_records
    return Limits(
        wall_s=min(float(compute.wall_clock_s), wall_s),
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
