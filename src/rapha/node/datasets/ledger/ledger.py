"""The ledger of one dataset, opened for one operation at a time.

A job meets it three times: at gate 5 (`check`), before its first record (`reserve`, which checks again, since
others may have been served meanwhile) and at its end (`settle`). What crashes in between stays charged as the
worst case. A refusal changes nothing but for the count of questions, and the same question gets the same
answer until somebody else's job changes what there is to compare with.

    <folder>/<dataset>-<id>/ledger.jsonl     entries (`chain`)
                            tokens.bin       16 bytes a token, in order of their ordinals
                            cohorts/…        one file a different cohort, named by its digest

Tokens and cohorts are on disk before the entry that names them, so an entry can be relied on whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from rapha.node.datasets.ledger import cohorts
from rapha.node.datasets.ledger.account import Account, settlement
from rapha.node.datasets.ledger.chain import Chain, check_private, refusal
from rapha.node.datasets.ledger.cohorts import Cohort
from rapha.node.datasets.ledger.compared import WORD, Compared, History, known_at
from rapha.node.datasets.ledger.entries import Answered, Opened, Released, Reserved, Seen, Settled, check_seen
from rapha.node.datasets.ledger.partition import too_small
from rapha.node.datasets.ledger.population import Population
from rapha.node.datasets.ledger.tokens import WIDTH, Dictionary, ledger_id
from rapha.spec.dataset import DatasetManifest
from rapha.spec.disclosure import Balance, Price
from rapha.spec.job import Kind, Purpose
from rapha.spec.refusals import Refused

TOKENS: Final = "tokens.bin"
COHORTS: Final = "cohorts"


@dataclass(frozen=True, slots=True)
class Asker:
    """Whose job it is, and what for."""

    job: str
    organisation: str
    purpose: Purpose
    kind: Kind
    opt_out_version: str


class Ledger:
    """An open ledger, locked; make one with `opened`."""

    def __init__(self, folder: Path, manifest: DatasetManifest, chain: Chain) -> None:
        self.folder, self._manifest, self._chain = folder, manifest, chain
        whose = Opened(
            dataset=manifest.dataset,
            ledger=ledger_id(manifest.salt, manifest.dataset),
            test_fraction=manifest.test_fraction,
        )
        self.account = Account.replay(whose, chain.entries)
        self._whose = whose
        self.dictionary = self._tokens()

    def ask(self, price: Price, job: str, event: Answered, now: str) -> None:
        """Count what a job asks, before it is answered: from its terms, and from no record.

        Whether its price fits is an answer too, so `event` tells prices apart.

        Raises:
            Refused: `budget.disclosure`; `node.disk_full`.
        """
        if job not in self.account.jobs:
            self.answer(event, now)
            self.account.demand(price, self._manifest.disclosure)

    def check(self, price: Price, asker: Asker, people: Population) -> None:
        """The job fits, and shows of nobody what no cell protects, or was reserved. Changes nothing.

        Raises:
            Refused: `budget.disclosure`; `privacy.cohort_refused`, always with the same words.
        """
        if asker.job in self.account.jobs:
            return
        self.account.demand(price, self._manifest.disclosure)
        self._admit(people, self.dictionary)

    def subgroups(self, people: Population, left: Population) -> tuple[str, ...]:
        """Which subgroups may be measured apart; of the others, nothing is told. Changes nothing.

        Each is a cohort: what is measured of it can be compared with what another job was told, of everybody
        or of a subgroup. One that doesn't pass is left out as a small one is, and stops no job.

        Args:
            people, left: as for `reserve`.

        Raises:
            Refused: `privacy.cohort_refused` for the job itself.
        """
        wider = self.dictionary.extended(people.tokens_to_keep())
        job = self._admit(people, wider)
        rest = job if left is people else self._compared(left, wider, job.history)
        counted = {*self.account.cohorts, job.cohort().digest}
        history = job.history.also(job.cohort(), len(wider))
        told: list[str] = []
        for name in people.groups:
            part = job.subgroup(name, history)
            both, cohort = (part, rest.subgroup(name, history)), part.cohort()
            room = len(counted) < self._manifest.disclosure.cohorts or cohort.digest in counted
            if room and cohort.records and not any(map(self._stands_out, both)):
                told.append(name)
                counted.add(cohort.digest)
                history = history.also(cohort, len(wider))
        return tuple(told)

    def reserve(self, price: Price, asker: Asker, people: Population, left: Population, now: str) -> Balance:
        """Charge the worst case, durably; the job may be served once this returns.

        Args:
            people: as at gate 5; what is written down, with those of its subgroups that `subgroups` named.
            left: less what fell out since; the cells have to hold among them as well.

        Raises:
            Refused: as `check`; `policy.conflict` for a job that was reserved before; `node.disk_full`,
                `node.internal`.
        """
        if asker.job in self.account.jobs:
            raise Refused("policy.conflict", "the job was charged before")
        self.account.demand(price, self._manifest.disclosure)
        # A wider dictionary holds nobody that the narrower one knew, so the answer is the same with it.
        wider = self.dictionary.extended(people.tokens_to_keep())
        admitted = self._admit(people, wider)
        if left is not people:
            self._admit(left, wider)
        self._write_tokens(wider)
        digest = cohorts.write(self.folder / COHORTS, admitted.cohort())
        parts = [admitted.subgroup(name, admitted.history) for name in people.groups]
        event = Reserved(
            job=asker.job,
            organisation=asker.organisation,
            purpose=asker.purpose,
            kind=asker.kind,
            manifest=self._manifest.digest,
            opt_out_version=asker.opt_out_version,
            price=price,
            cohort=digest,
            subgroups=tuple(cohorts.write(self.folder / COHORTS, part.cohort()) for part in parts),
            tokens=len(wider),
            tokens_sha256=wider.sha256,
            departed=admitted.departed(),
        )
        self._append(event, now)
        self.dictionary = wider
        return self.balance(asker.opt_out_version)

    def settle(self, job: str, bits: int, released: Released, now: str) -> Balance:
        """Lower a job's charge to what left. Idempotent: said again, it is the same.

        Raises:
            Refused: `policy.conflict` for a job that was never reserved, or was settled otherwise;
                `node.internal` for more than was reserved; `node.disk_full`.
        """
        found = self.account.jobs.get(job)
        if found is None:
            raise Refused("policy.conflict", "the job was never charged")
        event = Settled(job=job, released=released, price=settlement(found, bits, released))
        if found.settled is None:
            self._append(event, now)
        elif found.settled != event:
            raise Refused("policy.conflict", "the job was settled otherwise")
        return self.balance(found.reserved.opt_out_version)

    def answer(self, event: Answered, now: str) -> None:
        """Count a question before it is answered; one that was answered before is free.

        Raises:
            Refused: `budget.disclosure` when no answer is left; `node.disk_full`.
        """
        if self.account.demand_answer(event.question, self._manifest.disclosure):
            self._append(event, now)

    def balance(self, opt_out_version: str) -> Balance:
        """What was spent of each cap, and the head of the chain."""
        uses = self.history().uses
        return self.account.balance(
            self._manifest.disclosure,
            head=self._chain.head,
            entries=len(self._chain.entries),
            most_used=int(uses.max(initial=0)),
            opt_outs=opt_out_version,
        )

    def cohort(self, digest: str) -> Cohort:
        """A cohort that an entry names. Raises `Refused` (`node.ledger_invalid`)."""
        found = cohorts.read(self.folder / COHORTS, digest)
        most = max((bitmap.max() for bitmap in (found.patients, found.records) if bitmap), default=-1)
        if most >= len(self.dictionary):
            raise Refused("node.ledger_invalid", "a cohort names a token that isn't there")
        return found

    def history(self) -> History:
        """All cohorts so far. Raises `Refused` (`node.ledger_invalid`)."""
        counted = self.account.cohorts
        shape = len(self.dictionary), -(-len(counted) // WORD)
        records, patients = np.zeros(shape, dtype=np.uint64), np.zeros(shape, dtype=np.uint64)
        uses = np.zeros(shape[0], dtype=np.int64)
        for number, (digest, jobs) in enumerate(counted.items()):
            found = self.cohort(digest)
            word, bit = divmod(number, WORD)
            people = cohorts.ordinals(found.patients)
            which = people if found.records == found.patients else cohorts.ordinals(found.records)
            records[which, word] |= np.uint64(1 << bit)
            patients[people, word] |= np.uint64(1 << bit)
            uses[people] += jobs
        return History(records, patients, uses, len(counted))

    def _append(self, event: Reserved | Settled | Answered, now: str) -> None:
        if not self._chain.entries:
            self._chain.append(self._whose, now)
        self.account.add(self._chain.append(event, now))

    def _admit(self, people: Population, dictionary: Dictionary) -> Compared:
        """Whom the job asks for, by ordinals.

        `privacy.cohort_refused` for too many cohorts, too many uses of a patient, or a part too small.
        """
        caps, history = self._manifest.disclosure, self.history()
        found = self._compared(people, dictionary, history)
        counted = self.account.cohorts
        used = known_at(history.uses, found.patients[people.chosen_patients])
        if (
            int(used.max(initial=0)) >= caps.uses_per_patient
            or (len(counted) >= caps.cohorts and found.cohort().digest not in counted)
            or self._stands_out(found)
        ):
            raise Refused("privacy.cohort_refused")
        return found

    def _compared(self, people: Population, dictionary: Dictionary, history: History) -> Compared:
        patients = dictionary.find(people.patients)
        records = dictionary.find(people.records) if people.several else patients[people.patient_of]
        return Compared(people, patients, records, history)

    def _stands_out(self, found: Compared) -> bool:
        return any(too_small(units, self._manifest.minimum_cell) for units in found.units())

    def _tokens(self) -> Dictionary:
        said = [e.entry for e in self._chain.entries if isinstance(e.entry, Reserved)]
        count, digest = (said[-1].tokens, said[-1].tokens_sha256) if said else (0, "")
        if not count:
            return Dictionary(np.zeros((0, 2), dtype="<u8"))
        path = self.folder / TOKENS
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(fd, "rb") as file:
                check_private(fd, path)
                return Dictionary.read(file.read(), count, digest)
        except OSError as error:
            raise refusal(error, path) from None

    def _write_tokens(self, wider: Dictionary) -> None:
        """What a crash left beyond the tokens that an entry names is overwritten: nothing relies on it."""
        path, start = self.folder / TOKENS, len(self.dictionary)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "r+b") as file:
                check_private(fd, path)
                file.seek(start * WIDTH)
                file.write(wider.dumps(start))
                file.truncate()
                file.flush()
                os.fsync(fd)
        except OSError as error:
            raise refusal(error, path) from None


@contextmanager
def opened(parent: Path, manifest: DatasetManifest, seen: Seen | None) -> Iterator[Ledger]:
    """The ledger of a dataset below `parent`, made if there is none and nobody saw one.

    Args:
        seen: how far the node's log saw it.

    Raises:
        Refused: `node.ledger_invalid` where it was altered, is another dataset's, or is older than what was
            seen; `node.busy`, `node.disk_full`, `node.internal`.
    """
    folder = place(parent, manifest)
    with Chain.open(folder) as chain:
        check_seen(chain.entries, seen)
        yield Ledger(folder, manifest, chain)


def place(parent: Path, manifest: DatasetManifest) -> Path:
    """The folder of a dataset's ledger."""
    return parent / f"{manifest.dataset}-{ledger_id(manifest.salt, manifest.dataset)[:16]}"
