"""Gates 8 and 9 of an evaluation: `predict` on the model that the job brings, and the node's own numbers.

Nothing trains, so the entrypoint does not run and no trainer leaves bytes that would have to be rebuilt. The
model is in the signed image and stays there; what leaves is `metrics.json`, which the node writes itself.
"""

from __future__ import annotations

import math
import secrets
import shutil
from pathlib import Path
from typing import Final

from rapha.evidence import canonical
from rapha.node.gates.base import as_released
from rapha.node.gates.consent import Consented
from rapha.node.gates.guard import Guarded, metrics_file
from rapha.node.gates.intake import Admitted
from rapha.node.gates.measure import PREDICTIONS, predict
from rapha.node.gates.train import Trained
from rapha.node.node import Node
from rapha.runtime.guard.report import GuardReport, Ledger
from rapha.spec.audited import untestable
from rapha.spec.disclosure import Leakage
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import METRICS_FILE, ReleasePlan

NOTHING_LEFT: Final = "nothing of a trainer leaves: the job releases only what the node computes"


def evaluate(
    node: Node, admitted: Admitted, consented: Consented, work: Path, hold: int | None = None
) -> Trained:
    """Gate 8: run `predict` over the held-out records, inputs only; its predictions wait in `outputs`.

    Raises:
        Ended: `job.*`. Refused: `node.*`.
    """
    if admitted.base is None:
        raise Refused("node.internal", "an evaluation without a base model passed intake")
    out = work / "predictions"
    out.mkdir(mode=0o700)
    released = as_released(admitted.base, work)
    return Trained(out, predict(node, admitted, consented, released, out, hold, "test"))


def score(
    node: Node,
    admitted: Admitted,
    consented: Consented,
    trained: Trained,
    work: Path,
    hold: int | None = None,
) -> Guarded:
    """Gate 9: compare the predictions with the labels that the job never saw, and destroy them.

    Raises:
        Refused: `job.outputs` where they are not one a record, or of a record that was never read; `node.*`.
    """
    plan = admitted.job.outputs
    trusted = consented.data.score(trained.outputs / PREDICTIONS, plan.trusted_metrics)
    shutil.rmtree(trained.outputs)
    report = nothing_left(plan)
    return Guarded(
        report,
        secrets.token_hex(32),
        files={METRICS_FILE: metrics_file(trusted, report)},
        trusted=trusted,
        leakage=Leakage(verdict="not_run", reason=untestable(admitted.job, admitted.manifest)),
    )


def nothing_left(plan: ReleasePlan) -> GuardReport:
    """The guard's report where it had nothing to look at: no check ran, and each says why."""
    ledger = Ledger()
    for check in ledger.checks():
        ledger.skipped(check.n, NOTHING_LEFT)
    return GuardReport(
        ok=True,
        plan_digest=canonical.digest(plan.dump()),
        checks=ledger.checks(),
        covert_bound_bits=math.ceil(plan.released_bits()),
    )
