"""The job's `predict` on bytes that may be released, over inputs only; the dataset process has the labels."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rapha.node.datasets.control import Split
from rapha.node.gates.consent import Consented
from rapha.node.gates.intake import Admitted
from rapha.node.gates.train import Ended, check_outcome
from rapha.node.gates.walls import limits_of, run, walls
from rapha.node.node import Node
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
) -> Iterator[Path]:
    """The file of predictions over `split`, deleted afterwards.

    Raises:
        Ended: `job.*`. Refused: `node.*`.
    """
    if admitted.job.predict is None:
        raise Refused("node.internal", "trusted metrics without a predict command passed intake")
    out, log = work / "predictions", node.log_file(admitted.id, "predict")
    out.mkdir(mode=0o700)
    try:
        with consented.data.serve(split) as broker:
            spec = walls(
                node,
                admitted,
                argv=admitted.job.predict,
                inputs={"plan.json": consented.plan_file, "released": released},
                limits=limits_of(admitted),
                log=log,
                broker=broker.fileno(),
                out=out,
                hold=hold,
            )
            outcome = run(node, spec)
        check_outcome(node, admitted, consented, outcome, log)
        if [o.name for o in outcome.outputs] != [PREDICTIONS]:
            raise Ended("job.outputs", outcome)
        yield out / PREDICTIONS
    finally:
        shutil.rmtree(out)
