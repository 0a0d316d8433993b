"""Sums over the ledger's entries, and the caps that stop."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Self

from rapha.node.datasets.ledger.entries import Answered, Entry, Event, Opened, Released, Reserved, Settled
from rapha.spec.disclosure import Balance, Caps, Price, Spent
from rapha.spec.refusals import Refused

_ADVICE: Final = {
    "bits": "release fewer or smaller tensors, or metrics only",
    "epsilon": "ask for a smaller epsilon",
    "delta": "ask for a smaller delta",
    "evaluations": "release no trusted metrics",
}
_ROUNDING: Final = {"epsilon": 1e-9, "delta": 1e-9}
"""How far a sum of fractions may be above its cap: 0.1 + 0.1 + 0.1 is above 0.3."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job's charge: the worst case until it is settled."""

    reserved: Reserved
    time: str
    settled: Settled | None = None

    @property
    def price(self) -> Price:
        """What counts against the caps."""
        return self.settled.price if self.settled else self.reserved.price

    @property
    def released(self) -> Released | None:
        """What left; None while nobody said so, and for ever after a crash."""
        return self.settled.released if self.settled else None


@dataclass(slots=True)
class Account:
    """All entries of one ledger, summed up."""

    ledger: str
    dataset: str
    jobs: dict[str, Job] = field(default_factory=dict)
    answers: set[str] = field(default_factory=set)

    @classmethod
    def replay(cls, whose: Opened, entries: Iterable[Entry]) -> Self:
        """From the first entry on, which is `whose`; there may be none yet.

        Raises:
            Refused: `node.ledger_invalid` for another dataset's entries, for another split, or for entries
                that contradict each other.
        """
        account = cls(whose.ledger, whose.dataset)
        for entry in entries:
            if entry.seq:
                account.add(entry)
            else:
                _demand_same(entry.entry, whose)
        return account

    def add(self, entry: Entry) -> None:
        """One entry more. Raises `Refused` (`node.ledger_invalid`) where it can't follow those before."""
        match entry.entry:
            case Reserved() as event if event.job not in self.jobs:
                self.jobs[event.job] = Job(event, entry.time)
            case Settled() as event if self._may_settle(event):
                before = self.jobs[event.job]
                self.jobs[event.job] = Job(before.reserved, before.time, event)
            case Answered() as event:
                self.answers.add(event.question)
            case _:
                raise Refused("node.ledger_invalid", f"entry {entry.seq} contradicts those before it")

    @property
    def cohorts(self) -> Counter[str]:
        """Each different cohort, and how many jobs had it, oldest first.

        Subgroups that were measured apart are among them; a job whose they are has used its patients once.
        """
        found: Counter[str] = Counter()
        for job in self.jobs.values():
            found[job.reserved.cohort] += 1
            for digest in job.reserved.subgroups:
                found[digest] += 0
        return found

    def sums(self) -> dict[str, float]:
        """What all jobs together are charged: bits, epsilon, delta (basic composition) and evaluations."""
        prices = [job.price for job in self.jobs.values()]
        return {name: math.fsum(getattr(price, name) for price in prices) for name in _ADVICE}

    def demand(self, price: Price, caps: Caps) -> None:
        """The job fits under the caps that depend on no record.

        What is left is told as a power of two: exactly, it would say how others' jobs ended.

        Raises:
            Refused: `budget.disclosure`, with the cap and what would pass.
        """
        sums = self.sums()
        for name, advice in _ADVICE.items():
            asked, cap = getattr(price, name), getattr(caps, name)
            if asked and sums[name] + asked > cap * (1 + _ROUNDING.get(name, 0)):
                room = _power_below(cap - sums[name])
                raise Refused(
                    "budget.disclosure",
                    f"{name}: the job may cost {asked:g} and the dataset's cap leaves less; {room:g} would "
                    f"pass: {advice}",
                )

    def demand_answer(self, question: str, caps: Caps) -> bool:
        """Whether the question is a new one; then there must be an answer left.

        Raises:
            Refused: `budget.disclosure`.
        """
        if question in self.answers:
            return False
        if len(self.answers) >= caps.feasibility:
            raise Refused(
                "budget.disclosure",
                "feasibility: the dataset's cap on answers is used up; ask again what was asked before, in "
                "the same words",
            )
        return True

    def balance(self, caps: Caps, *, head: str, entries: int, most_used: int, opt_outs: str) -> Balance:
        """For the page that people sign."""
        sums = self.sums()
        return Balance(
            dataset=self.dataset,
            jobs=len(self.jobs),
            bits=Spent(spent=sums["bits"], cap=caps.bits),
            epsilon=Spent(spent=sums["epsilon"], cap=caps.epsilon),
            delta=Spent(spent=sums["delta"], cap=caps.delta),
            evaluations=Spent(spent=sums["evaluations"], cap=caps.evaluations),
            cohorts=Spent(spent=len(self.cohorts), cap=caps.cohorts),
            most_used=Spent(spent=most_used, cap=caps.uses_per_patient),
            opt_out_version=opt_outs,
            head=head,
            entries=entries,
        )

    def _may_settle(self, event: Settled) -> bool:
        job = self.jobs.get(event.job)
        if job is None or job.settled is not None:
            return False
        before, after = job.reserved.price, event.price
        return all(getattr(after, name) <= getattr(before, name) for name in _ADVICE)


def settlement(job: Job, bits: int, released: Released) -> Price:
    """What stays charged of a job that ended so.

    Raises:
        Refused: `node.internal` for more bits than were reserved.
    """
    before = job.reserved.price
    if bits > before.bits:
        raise Refused("node.internal", f"{bits} bits left, and {before.bits} were reserved")
    private = released == "all"
    return Price(
        bits=bits,
        # Weights that didn't leave spent no privacy; how the job ended is in the bits.
        epsilon=before.epsilon if private else 0.0,
        delta=before.delta if private else 0.0,
        evaluations=before.evaluations if released != "nothing" else 0,
    )


def _demand_same(first: Event, whose: Opened) -> None:
    if not isinstance(first, Opened) or (first.dataset, first.ledger) != (whose.dataset, whose.ledger):
        raise Refused("node.ledger_invalid", "it is another dataset's")
    if first.test_fraction != whose.test_fraction:
        raise Refused(
            "node.ledger_invalid",
            f"the dataset's test_fraction was {first.test_fraction:g}, and can't change any more",
        )


def _power_below(left: float) -> float:
    return 2.0 ** math.floor(math.log2(left)) if left > 0 else 0.0
