"""One job's way through the ledger, as the dataset process takes it: checked, charged, settled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from rapha.evidence.canonical import dumps
from rapha.node.datasets import control
from rapha.node.datasets.ledger.entries import Answered, Released
from rapha.node.datasets.ledger.ledger import Asker, Ledger, opened
from rapha.node.datasets.ledger.population import Population
from rapha.node.datasets.ledger.tokens import question
from rapha.node.datasets.resolve import Selection, readable_records
from rapha.node.sources.interface import Mask, Quarantine, Records
from rapha.spec import cohort as cohorts
from rapha.spec.cohort import Node
from rapha.spec.dataset import DatasetManifest
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
    subgroups: tuple[str, ...] = field(default=())
    """Which may be measured apart, once the job is charged."""

    @classmethod
    def admitted(
        cls, request: control.Resolve, records: Records, selection: Selection, opt_out_version: str
    ) -> Self:
        """Gate 5: the job fits under the caps, and shows of nobody what no cell protects.

        Raises:
            Refused: `budget.disclosure`, `privacy.cohort_refused`, `node.ledger_invalid`, `node.busy`.
        """
        index = records.index
        usable = readable_records(index, selection.patient_of) & ~selection.opted_out
        named = (pair for subgroup in request.subgroups for pair in subgroup.groups.items())
        groups = {name: records.select(condition) for name, condition in named}
        people = Population.of(request.manifest, index, selection, usable, groups)
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
        people, left = self.people, self.people.without(fallen) if fallen.any() else self.people
        with self._opened() as ledger:
            if people.groups:
                self.subgroups = ledger.subgroups(people, left)
                people, left = people.telling(self.subgroups), left.telling(self.subgroups)
            balance = ledger.reserve(price, self.asker, people, left, now())
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
            raise Refused("policy.conflict", "nothing is served or measured before the ledger is charged")

    @contextmanager
    def _opened(self) -> Iterator[Ledger]:
        if self.request.ledger is None:
            raise Refused("policy.conflict", "the records were resolved without a ledger")
        with opened(Path(self.request.ledger), self.request.manifest, self.request.seen) as ledger:
            yield ledger


def afford(request: control.Resolve, listed: frozenset[str]) -> None:
    """Before a record is looked at: what the job asks is counted, and it fits under the caps.

    Whether its cohort is refused then is an answer about records, exact and of one bit, which somebody could
    have a thousand times without a job ever being approved; and whether its price fits is one about others'
    jobs. So it is one of the answers that are counted, another one at another price.

    Raises:
        Refused: `budget.disclosure`, whatever the records are; `node.ledger_invalid`, `node.busy`.
    """
    if request.ledger is None:
        return
    price = dumps(request.price.dump()).decode()
    event = asked(request.manifest, listed, request.cohort, request.kind, str(request.max_records), price)
    with opened(Path(request.ledger), request.manifest, request.seen) as ledger:
        ledger.ask(request.price, request.job_id, event, now())


def asked(manifest: DatasetManifest, listed: frozenset[str], cohort: Node, *how: str) -> Answered:
    """What was asked, in the words in which it was, of which data.

    Not about whom: once no answer is left, a question would pass if and only if somebody had asked about
    exactly the same people in other words, and that tells who matches.
    """
    words = dumps([manifest.commitment, sorted(listed), cohorts.dump(cohort), *how])
    return Answered(question=question(manifest.salt, manifest.dataset, words))


def now() -> str:
    """The time, as an entry has it."""
    return format_time(datetime.now(UTC))
