"""The port every source of records implements; one file an adapter.

The three parts of a source's answer are separate on purpose: identities (who), verdicts (why a record
falls out) and values (what a job may see). Only values ever reach the broker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rapha.spec.cohort import Node
from rapha.spec.dataset import DatasetManifest

Array = NDArray[Any]
Mask = NDArray[np.bool_]


class Quarantine(IntEnum):
    """Why a record can't be read. 0 is readable."""

    NONE = 0
    PATIENT_MISSING = 1
    PATIENT_INVALID = 2
    VALUE_MISSING = 3
    VALUE_NOT_FINITE = 4

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


class Records(Protocol):
    """An open source. Closed by `close`, after which nothing may be called."""

    @property
    def index(self) -> Index:
        """Who each record belongs to and whether it can be read."""
        ...

    def select(self, cohort: Node) -> Mask:
        """Which records the cohort matches, bool of length n; readable or not.

        Precondition: `rapha.spec.cohort.check` passed against the manifest's fields.
        """
        ...

    def read(self, positions: Array) -> Mapping[str, Array]:
        """The served fields of some records, each of length `len(positions)`, in that order.

        Precondition: every position is readable. Raises: nothing that carries a value.
        """
        ...

    def close(self) -> None:
        """Drop everything held. Idempotent."""
        ...


class RecordSource(Protocol):
    """How to open one kind of source."""

    def open(self, manifest: DatasetManifest, manifest_folder: Path) -> Records:
        """Check the source against its manifest and index it.

        Result: an open `Records`. Idempotent: opening changes nothing in the source.

        Raises:
            Refused: `node.dataset_missing`, `node.dataset_writable` or `node.dataset_invalid`; the detail
                names files and columns, never a value.
        """
        ...
