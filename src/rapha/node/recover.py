"""What a start does about jobs that a crash or a power cut left in the middle.

Before `committed` nothing has left: the job is failed and all it made is destroyed. After it, the outbox is
complete and signed: it is sent again, byte for byte, until the coordinator has it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rapha.node.datasets.ledger.entries import Seen
from rapha.node.journal import Entry
from rapha.spec.units import parse_time

OPEN, COMMITTED, ENDED, CLOSED = "accepted", "committed", "ended", "closed"
TRAINING = "training"
LEDGERED = "ledgered"
"""How far the node saw a dataset's disclosure ledger."""
LEDGER_TOLD = "ledger_told"
"""The opening of a receipt's commitment to that."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What is taken for used where training began and nothing counted the end.

    The exact counts are in the meter's journal, under a key that only the dataset process derives, and over
    a cohort that it would have to open the records to resolve. So the bucket of the job's cap is charged.

    Attributes:
        started: Unix time at which training began.
        records, patients: buckets.
        wall_s: from then to the last thing that the node wrote about the job.
    """

    started: float
    records: int
    patients: int
    wall_s: float


def charge(entries: Iterable[Entry]) -> Charge | None:
    """The charge of one job by its journal; None if training never began."""
    told = list(entries)
    began = next((e for e in told if e.event == TRAINING), None)
    if began is None:
        return None
    started = began.data["started_ms"] / 1000
    last = parse_time(told[-1].time).timestamp()
    return Charge(started, began.data["records"], began.data["patients"], max(0.0, last - started))


def seen(journal: Iterable[Entry], dataset: str) -> Seen | None:
    """How far the node saw the dataset's disclosure ledger; None where it never did.

    A job that a crash cut off stays charged there as the worst case: what it released is for nobody to say.

    Raises:
        Refused: `schema.*` for an entry that another version wrote.
    """
    found = [e.data for e in journal if e.event == LEDGERED and e.data.get("dataset") == dataset]
    return Seen.parse({name: found[-1].get(name) for name in Seen.model_fields}, LEDGERED) if found else None


def next_boundary(started: float, quantum_s: int, now: float) -> float:
    """The next multiple of the quantum, counted from `started`, that is not before `now`, as Unix time.

    Never more than a quantum away: where the clock was set back meanwhile, so that `now` is before `started`,
    the multiples go on backwards, and nobody waits, with the WAN severed, until the clock is right again.
    """
    return started + math.ceil((now - started) / quantum_s) * quantum_s


def unfinished(journal: Iterable[Entry]) -> tuple[list[str], list[str]]:
    """Jobs that were cut off before anything was decided, and decided ones that were not yet told."""
    by_job: dict[str, set[str]] = {}
    for entry in journal:
        by_job.setdefault(entry.job, set()).add(entry.event)
    left = [job for job, events in by_job.items() if OPEN in events and CLOSED not in events]
    decided = [job for job in left if by_job[job] & {COMMITTED, ENDED}]
    return [job for job in left if job not in decided], decided


def destroy(work: Path) -> None:
    """Delete a job's working folder: image, raw outputs, logs."""
    if not work.exists():
        return
    for path in work.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(work)
