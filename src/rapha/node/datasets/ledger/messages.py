"""What a dataset process is asked about the ledger, and what it says: totals, and no patient."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rapha.node.datasets.ledger.entries import Released, Seen
from rapha.spec.base import Model, Name, Sha256, Timestamp
from rapha.spec.dataset import DatasetManifest
from rapha.spec.disclosure import Balance, Count, Price, Spent
from rapha.spec.job import Kind, Purpose
from rapha.spec.paths import AbsolutePath


class Inspect(Model):
    """Check a dataset's ledger from its first byte, and sum it up. Changes nothing.

    Attributes:
        ledger: folder of the disclosure ledgers.
        seen: how far the node's log saw this one.
    """

    manifest: DatasetManifest
    ledger: AbsolutePath
    seen: Seen | None = None


class Reserve(Model):
    """Charge the job's worst case. Once, between `Prepare` and the first `Serve`. Its reply: `Balance`."""

    price: Price


class Settle(Model):
    """The job has ended: lower its charge to the `bits` that left. Its reply: `Balance`."""

    bits: Count
    released: Released


class Line(Model):
    """One job, for the hospital's own people.

    Attributes:
        charged: what counts against the caps.
        released: what left; None where nobody said so, and the worst case stays charged.
        cohort: number of the cohort, from 0 in order of first use.
        departed: patients of earlier cohorts who could not be used by then.
    """

    job: Sha256
    time: Timestamp
    organisation: Name
    purpose: Purpose
    kind: Kind
    charged: Price
    released: Released | None
    opt_out_version: Sha256
    cohort: Count
    departed: Count


class Overlap(Model):
    """Patients that two cohorts have in common, in steps of the bucket; of one with itself, its size."""

    first: Count
    second: Count
    patients: Count


class Shown(Model):
    """A whole ledger in numbers. It stays in the hospital.

    Attributes:
        feasibility: different questions about counts that were answered.
        uses: number of jobs → patients who were in so many.
        overlaps: of the newest cohorts.
    """

    balance: Balance | None
    feasibility: Spent
    jobs: tuple[Line, ...]
    uses: Annotated[dict[Annotated[str, Field(pattern=r"^[0-9]{1,7}$")], Count], Field(max_length=10**6)]
    overlaps: tuple[Overlap, ...]
    bucket: Count
