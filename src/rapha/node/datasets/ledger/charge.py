"""One job's way through the ledger, as the dataset process takes it: checked, charged, settled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from rapha.node.datasets import control
from rapha.node.datasets.ledger.entries import Released
from rapha.node.datasets.ledger.ledger import Asker, Ledger, opened
from rapha.node.datasets.ledger.population import Population
from rapha.node.datasets.resolve import Selection, readable_records
from rapha.node.sources.interface import Index, Mask, Quarantine
from rapha.spec.disclosure import Balance, Price
from rapha.spec.refusals import Refused
from rapha.spec.units import format_time


@dataclass(slots=True)
class Charge:
    """What the ledger knows of the job that this process has. Make one with `admitted`."""

    request: control.Resolve
    asker: Asker
    people: Population
    usable: Mask
    reserved: bool = field(default=False)

    @classmethod
    def admitted(
        cls, request: control.Resolve, index: Index, selection: Selection, opt_out_version: str
    ) -> Self:
        """Gate 5: the job fits under the caps, and shows of nobody what no cell protects.

        Raises:
            Refused: `budget.disclosure`, `privacy.cohort_refused`, `node.ledger_invalid`, `node.busy`.
        """
        usable = readable_records(index, selection.patient_of) & ~selection.opted_out
        people = Population.of(request.manifest, index, selection, usable)
        asker = Asker(request.job_id, request.organisation, request.purpose, request.kind, opt_out_version)
        charge = cls(request, asker, people, usable)
        if request.ledger is not None:
            with charge._opened() as ledger:
                ledger.check(request.price, asker, people)
        return charge

    def reserve(self, price: Price, prepared: Selection) -> Balance:
        """Charge the worst case, once, before the first record; raises as `Ledger.reserve`.

        Args:
            prepared: what is left once records were decoded.
        """
        fallen = (prepared.quarantine != Quarantine.NONE)[self.usable]
        left = self.people.without(fallen) if fallen.any() else self.people
        with self._opened() as ledger:
            balance = ledger.reserve(price, self.asker, self.people, left, now())
        self.reserved = True
        return balance

    def settle(self, bits: int, released: Released) -> Balance:
        """Lower the charge to what left; nothing may be served any more. Raises as `Ledger.settle`."""
        self.reserved = False
        with self._opened() as ledger:
            return ledger.settle(self.asker.job, bits, released, now())

    def demand(self) -> None:
        """Raises `Refused` (`policy.conflict`) unless the job was charged by this process."""
        if not self.reserved:
            raise Refused("policy.conflict", "no record is served before the ledger was charged")

    @contextmanager
    def _opened(self) -> Iterator[Ledger]:
        if self.request.ledger is None:
            raise Refused("policy.conflict", "the records were resolved without a ledger")
        with opened(Path(self.request.ledger), self.request.manifest, self.request.seen) as ledger:
            yield ledger


def now() -> str:
    """The time, as an entry has it."""
    return format_time(datetime.now(UTC))
