"""A ledger in numbers, for the people of the hospital."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from rapha.node.datasets.ledger.entries import check_seen
from rapha.node.datasets.ledger.ledger import Ledger, opened, place
from rapha.node.datasets.ledger.messages import Inspect, Line, Overlap, Shown
from rapha.spec.disclosure import Spent

MOST_OVERLAPS: Final = 24
"""Cohorts whose overlaps are told: the newest."""


def inspect(request: Inspect) -> Shown:
    """Check everything that the ledger holds, and sum it up.

    Raises:
        Refused: `node.ledger_invalid`, `node.busy`.
    """
    caps, bucket = request.manifest.disclosure, request.manifest.billing_bucket
    if not place(Path(request.ledger), request.manifest).exists():
        # Whoever looks may be another user, and what they made the node could not write to.
        check_seen([], request.seen)
        unused = Spent(spent=0, cap=caps.feasibility)
        return Shown(balance=None, feasibility=unused, jobs=(), uses={}, overlaps=(), bucket=bucket)
    with opened(Path(request.ledger), request.manifest, request.seen) as ledger:
        uses = ledger.history().uses  # reads every cohort, and so checks each
        numbers = {digest: number for number, digest in enumerate(ledger.account.cohorts)}
        jobs = tuple(
            Line(
                job=name,
                time=job.time,
                organisation=job.reserved.organisation,
                purpose=job.reserved.purpose,
                kind=job.reserved.kind,
                charged=job.price,
                released=job.released,
                opt_out_version=job.reserved.opt_out_version,
                cohort=numbers[job.reserved.cohort],
                departed=job.reserved.departed,
            )
            for name, job in ledger.account.jobs.items()
        )
        return Shown(
            balance=ledger.balance(jobs[-1].opt_out_version) if jobs else None,
            feasibility=Spent(spent=len(ledger.account.answers), cap=caps.feasibility),
            jobs=jobs,
            uses={
                str(number): int(count) for number, count in enumerate(np.bincount(uses)) if number and count
            },
            overlaps=_overlaps(ledger, bucket),
            bucket=bucket,
        )


def _overlaps(ledger: Ledger, bucket: int) -> tuple[Overlap, ...]:
    newest = list(enumerate(ledger.account.cohorts))[-MOST_OVERLAPS:]
    known = [(number, ledger.cohort(digest).patients) for number, digest in newest]
    return tuple(
        Overlap(first=a, second=b, patients=(common := one.intersection_cardinality(other)) - common % bucket)
        for a, one in known
        for b, other in known
        if a <= b
    )
