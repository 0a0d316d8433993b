"""What the ledger writes down: one closed type an event, no patient in any of them."""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal

from pydantic import Field

from rapha.evidence import canonical
from rapha.spec.base import Model, Name, One, Sha256, Timestamp
from rapha.spec.disclosure import Count, Price
from rapha.spec.job import Kind, Purpose
from rapha.spec.refusals import Refused
from rapha.spec.subgroups import MAX_SUBGROUPS

START: Final = "0" * 64
"""What the first line names as the digest of the line before."""
Released = Literal["all", "metrics", "nothing"]


class Seen(Model):
    """How far somebody else saw the ledger: so many entries, of which the last had this digest."""

    entries: Annotated[int, Field(ge=1, le=2**53 - 1)]
    head: Sha256


class Opened(Model):
    """The first entry: whose ledger it is.

    Attributes:
        ledger: of the dataset's name and salt, so that it outlives revisions of the manifest.
        test_fraction: the one thing that a revision can't change: two splits that differ by a little are
            two cohorts that do, and no cohort's entry says on which side of the split somebody was.
    """

    event: Literal["opened"] = "opened"
    version: One = 1
    dataset: Name
    ledger: Sha256
    test_fraction: Annotated[float, Field(ge=0, le=1)]


class Reserved(Model):
    """A job is about to be served, and charged its worst case.

    Attributes:
        cohort: SHA-256 of the file that holds who and which records, as ordinals.
        subgroups: the same of each subgroup of it that is measured apart.
        tokens, tokens_sha256: how many tokens there are from here on, and the digest of all of them.
        opt_out_version: of the list that the job runs with.
        departed: patients of earlier cohorts who can't be used now, because they opted out or their records
            are gone: what a comparison with an earlier job shows of them, no cell protects.
    """

    event: Literal["reserved"] = "reserved"
    job: Sha256
    organisation: Name
    purpose: Purpose
    kind: Kind
    manifest: Sha256
    opt_out_version: Sha256
    price: Price
    cohort: Sha256
    subgroups: Annotated[tuple[Sha256, ...], Field(max_length=MAX_SUBGROUPS)] = ()
    tokens: Count
    tokens_sha256: Sha256
    departed: Count


class Settled(Model):
    """A job ended: what stays charged for it, no more than was reserved."""

    event: Literal["settled"] = "settled"
    job: Sha256
    released: Released
    price: Price


class Answered(Model):
    """A question about a cohort was answered: its counts were told, or a job's was accepted or refused.

    Attributes:
        question: keyed digest of what was asked, in the words in which it was.
    """

    event: Literal["answered"] = "answered"
    question: Sha256


Event = Opened | Reserved | Settled | Answered


class Entry(Model):
    """One line: an event, when it was written, and the digest of the line before."""

    seq: Count
    time: Timestamp
    previous: Sha256
    entry: Annotated[Event, Field(discriminator="event")]

    @property
    def line(self) -> bytes:
        """The entry as it is written: RFC 8785 and a line feed."""
        return canonical.dumps(self.dump()) + b"\n"

    @property
    def digest(self) -> str:
        """SHA-256 of the line, which chains all lines before it."""
        return hashlib.sha256(self.line).hexdigest()


def read(data: bytes) -> tuple[list[Entry], int]:
    """The entries of a ledger, and how many bytes of it they are: what follows is a torn end.

    Raises:
        Refused: `node.ledger_invalid` where a line isn't what was written after the one before.
    """
    entries: list[Entry] = []
    previous, good = START, 0
    # Only a line feed ends a line; `bytes.splitlines` also splits elsewhere, and an altered byte would pass
    # for a torn end.
    for line in [part + b"\n" for part in data.split(b"\n")[:-1]]:
        entry = _entry(line, len(entries))
        if (entry.seq, entry.previous) != (len(entries), previous) or entry.line != line:
            raise Refused("node.ledger_invalid", f"entry {len(entries)} was altered")
        entries.append(entry)
        previous = hashlib.sha256(line).hexdigest()
        good += len(line)
    return entries, good


def check_seen(entries: list[Entry], seen: Seen | None) -> None:
    """The ledger goes on from what was seen of it.

    Raises:
        Refused: `node.ledger_invalid` for one that was cut short, replaced, or restored from an older disk.
    """
    if seen is None:
        return
    if len(entries) < seen.entries or entries[seen.entries - 1].digest != seen.head:
        raise Refused("node.ledger_invalid", "it lacks entries that the node's log saw: an older copy?")


def _entry(line: bytes, number: int) -> Entry:
    try:
        return Entry.parse(canonical.loads_canonical(line[:-1]))
    except Refused:
        raise Refused("node.ledger_invalid", f"entry {number} is damaged") from None
