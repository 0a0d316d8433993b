"""Trusted metrics of a job's predictions, in the process that alone holds the labels."""

from __future__ import annotations

from rapha.node.datasets import control
from rapha.node.datasets.held import Job
from rapha.node.datasets.ledger.tokens import question
from rapha.node.datasets.predictions import read_predictions
from rapha.node.datasets.prepare import Ready
from rapha.runtime.metrics import evaluate
from rapha.spec.refusals import Refused
from rapha.spec.release_plan import TrustedMetric


def score(
    job: Job, ready: Ready, descriptor: int | None, metrics: tuple[TrustedMetric, ...]
) -> control.Scored:
    """Over the held-out split, in the order in which it was served, and over the job's subgroups of it.

    Random numbers are the dataset's: of one question, jobs that ask it again learn nothing anew.

    Raises:
        Refused: `job.outputs` for predictions that don't fit; `node.config` for a dataset without a target.
    """
    if ready.labels is None:
        raise Refused("node.config", "the dataset's manifest names no target for metrics")
    manifest, order = job.request.manifest, ready.order
    found = evaluate(
        metrics,
        ready.labels.take(order),
        read_predictions(descriptor, len(ready.test))[order],
        seed=int(question(manifest.salt, manifest.dataset, b"metrics"), 16),
        min_cell=manifest.minimum_cell,
        groups={name: rows[order] for name, rows in ready.subgroups.items()},
    )
    return control.Scored(values=found)
