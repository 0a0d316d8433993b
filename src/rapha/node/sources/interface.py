"""The port every source of records implements; one file an adapter.

The three parts of a source's answer are separate on purpose: identities (who), verdicts (why a record
falls out) and values (what a job may see). Only values ever reach the broker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rapha.runtime.broker.store import Ragged
from rapha.spec.cohort import Node
from rapha.spec.dataset import DatasetManifest
from rapha.spec.transforms import Form, Step

Array = NDArray[Any]
Mask = NDArray[np.bool_]


class Quarantine(IntEnum):
    """Why a record can't be read. 0 is readable. Names never change: they are in old receipts."""

    NONE = 0
    PATIENT_MISSING = 1
    PATIENT_INVALID = 2
    VALUE_MISSING = 3
    VALUE_NOT_FINITE = 4
    UID_MISSING = 5
    DUPLICATE = 6
    FILE_UNREADABLE = 7
    FILE_INVALID = 8
    TOO_LARGE = 9
    TOO_SLOW = 10
    DECODER_CRASHED = 11
    SYNTAX_UNSUPPORTED = 12
    PIXELS_MISSING = 13
    PIXELS_INVALID = 14
    PHOTOMETRIC_UNSUPPORTED = 15
    BURNED_IN = 16
    LABEL_MISSING = 17
    SHAPE = 18
    GEOMETRY = 19
    PAIR_MISSING = 20
    CHANGED = 21
    TRANSFER_FAILED = 22

    @property
    def reason(self) -> str:
        """The reason code that the funnel counts under."""
        return "record." + self.name.lower()


@dataclass(frozen=True, slots=True)
class Index:
    """Every record of a source, by dense position 0 … n-1.

    Attributes:
        patients: length n; the patient's identifier in the hospital, "" where it is unreadable.
        quarantine: length n, uint8 of `Quarantine`.
        locators: length n; names each record within the source, the same as long as the data is.
    """

    patients: list[str]
    quarantine: Array
    locators: Sequence[str]


@dataclass(frozen=True, slots=True)
class Aside:
    """What a source holds and is no record: where, and what it is. For the hospital's own report."""

    locator: str
    reason: str


Told = Callable[[str, int, int], None]
"""Progress: what is being done, how many are done, of how many (0: not known yet)."""


@dataclass(frozen=True, slots=True)
class Render:
    """How a field that is rendered is to come out: `steps` of the signed job lead to `form`."""

    field: str
    form: Form
    steps: tuple[Step, ...]


class Sink(Protocol):
    """Takes rendered values; nothing it holds is ever written anywhere in clear."""

    def put(self, ordinal: int, field: str, value: memoryview) -> None:
        """Keep the value of record `ordinal`, C-contiguous bytes of exactly the field's form."""
        ...


class Records(Protocol):
    """An open source. Closed by `close`, after which nothing may be called."""

    @property
    def index(self) -> Index:
        """Who each record belongs to and whether it can be read, as far as its description tells."""
        ...

    @property
    def aside(self) -> Sequence[Aside]:
        """What was found and makes no record, in a lasting order; nothing is passed over in silence."""
        ...

    @property
    def rendered(self) -> tuple[str, ...]:
        """The served fields that `render` gives, such as pixels; the others come from `read`."""
        ...

    def select(self, cohort: Node) -> Mask:
        """Which records the cohort matches, bool of length n; readable or not.

        Precondition: `rapha.spec.cohort.check` passed against the manifest's fields.
        """
        ...

    def read(self, positions: Array) -> Mapping[str, Array | Ragged]:
        """The served fields that are held in memory, each of length `len(positions)`, in that order.

        A `pseudonym` field comes as its identifiers, a list of text of that length in an object array.
        Precondition: every position is readable. Raises: nothing that carries a value.
        """
        ...

    def render(self, positions: Array, renders: Sequence[Render], sink: Sink) -> Rendered:
        """Decode the records at `positions` and put each value of each render into `sink`.

        A record that can't be rendered is quarantined and the others go on; what `sink` was given of it
        is not used. Precondition: `renders` are of `rendered` fields.

        Raises:
            Refused: `node.dataset_missing` or `node.dataset_invalid` when the source as a whole is gone.
        """
        ...

    def close(self) -> None:
        """Drop everything held. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class Rendered:
    """What became of each position.

    Attributes:
        quarantine: length k, uint8 of `Quarantine`.
        content: length k; SHA-256 of the stored bytes that each record was decoded from, b"" if it wasn't.
    """

    quarantine: Array
    content: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a source needs of its node.

    Attributes:
        folder: the manifest's folder; relative paths in it are relative to this.
        workers: processes that may parse and decode.
        tell: called with progress, at most a few times a second.
    """

    folder: Path
    workers: int
    tell: Told


class RecordSource(Protocol):
    """How to open one kind of source. An instance lives as long as the dataset process does."""

    def open(self, manifest: DatasetManifest, around: Surroundings) -> Records:
        """Check the source against its manifest and index it.

        Result: an open `Records`. Idempotent: opening changes nothing in the source. What an instance
        remembers from an earlier opening may save work and never changes the answer.

        Raises:
            Refused: `node.dataset_missing`, `node.dataset_writable` or `node.dataset_invalid`; the detail
                names files and columns, never a value.
        """
        ...
