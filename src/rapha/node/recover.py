"""What a start does about jobs that a crash or a power cut left in the middle.

Before `committed` nothing has left: the job is failed and all it made is destroyed. After it, the outbox is
complete and signed: it is sent again, byte for byte, until the coordinator has it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from rapha.node.journal import Entry

OPEN, COMMITTED, ENDED, CLOSED = "accepted", "committed", "ended", "closed"


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
