"""The job's `predict` on bytes that may be released, over inputs only; the dataset process has the labels."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rapha.node.datasets.control import Split
from rapha.node.gates.consent import Consented
from rapha.node.gates.intake import Admitted
from rapha.node.gates.train import Ended, check_outcome, check_run
from rapha.node.gates.walls import limits_of, run, walls
from rapha.node.node import Node
from rapha.runtime.sandbox.interface import Outcome
from rapha.spec.refusals import Refused

PREDICTIONS: Final = "predictions.f32"


def measure(
    node: Node,
    admitted: Admitted,
    consented: Consented,
    released: Path,
    work: Path,
    hold: int | None,
) -> dict[str, float]:
    """Trusted metrics of `predict` on what lies in `released`, over the held-out split.

    Raises:
        Ended: `job.*`. Refused: `node.*`.
    """
    with predicted(node, admitted, consented, released, work, hold, "test") as predictions:
        return dict(consented.data.score(predictions, admitted.job.outputs.trusted_metrics))


@contextmanager
def predicted(
    node: Node,
    admitted: Admitted,
    consented: Consented,
    released: Path,
    work: Path,
    hold: int | None,
    split: Split,
    *,
    wall_s: float = math.inf,
) -> Iterator[Path]:
    """The file of predictions over `split`, deleted afterwards.

    Raises:
        Ended: `job.*`. Refused: `node.*`.
    """
    out = work / "predictions"
    out.mkdir(mode=0o700)
    try:
        predict(node, admitted, consented, released, out, hold, split, wall_s)
        yield out / PREDICTIONS
    finally:
        shutil.rmtree(out)


def predict(
    node: Node,
    admitted: Admitted,
    consented: Consented,
    released: Path,
    out: Path,
    hold: int | None,
    split: Split,
    wall_s: float = math.inf,
) -> Outcome:
    """Leave the file `PREDICTIONS`, and no other, in the empty folder `out`, within `wall_s` at most.

    Raises:
        Ended: `job.*`. Refused: `node.*`.
    """
    if admitted.job.predict is None:
        raise Refused("node.internal", "trusted metrics without a predict command passed intake")
    log = node.log_file(admitted.id, "predict" if split == "test" else "audit")
    with consented.data.serve(split) as broker:
        spec = walls(
            node,
            admitted,
            argv=admitted.job.predict,
            inputs={"plan.json": consented.plan_file, "released": released},
            limits=limits_of(admitted, wall_s),
            log=log,
            broker=broker.fileno(),
            out=out,
            hold=hold,
        )
        outcome = run(node, spec)
    check_outcome(node, admitted, consented, outcome, log)
    check_run(node, consented, outcome)
    if [o.name for o in outcome.outputs] != [PREDICTIONS]:
        raise Ended("job.outputs", outcome)
    return outcome
