"""Sets of patients and records as bitmaps of ordinals, one file a set, named by its digest."""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from pyroaring import BitMap

from rapha.node.datasets.ledger.chain import check_private, refusal, sync_folder
from rapha.node.sources.interface import Array
from rapha.spec.refusals import Refused

_MAGIC: Final = b"RAPHAC1\n"
_LENGTHS: Final = struct.Struct("<8sQQ")


@dataclass(frozen=True, slots=True)
class Cohort:
    """Who was in a cohort, and with which records.

    Attributes:
        patients: ordinals of patients (of their record of rank 0, in the cohort or not).
        records: ordinals of records.
    """

    patients: BitMap
    records: BitMap

    @classmethod
    def of(cls, patients: Array, records: Array) -> Self:
        """From ordinals in any order, each any number of times. Precondition: none is negative."""
        return cls(_bitmap(patients), _bitmap(records))

    @property
    def digest(self) -> str:
        """SHA-256 of `dumps`: which sets they are."""
        return hashlib.sha256(self.dumps()).hexdigest()

    def dumps(self) -> bytes:
        """The same bytes for the same sets."""
        patients, records = self.patients.serialize(), self.records.serialize()
        return _LENGTHS.pack(_MAGIC, len(patients), len(records)) + patients + records

    @classmethod
    def loads(cls, data: bytes) -> Self:
        """Precondition: the digest of `data` is in the chain. Raises `Refused` (`node.ledger_invalid`)."""
        try:
            magic, patients, records = _LENGTHS.unpack_from(data)
            if magic != _MAGIC or _LENGTHS.size + patients + records != len(data):
                raise Refused("node.ledger_invalid", "a cohort's file is of another kind")
            body = data[_LENGTHS.size :]
            return cls(BitMap.deserialize(body[:patients]), BitMap.deserialize(body[patients:]))
        except (struct.error, ValueError):
            raise Refused("node.ledger_invalid", "a cohort's file can't be read") from None


def ordinals(bitmap: BitMap) -> Array:
    """The members in ascending order, uint32 [k]."""
    return np.frombuffer(bitmap.to_array(), dtype=np.uint32)


def write(folder: Path, cohort: Cohort) -> str:
    """Keep a cohort durably, and return its digest. Idempotent.

    Raises:
        Refused: `node.disk_full`, `node.internal`.
    """
    data = cohort.dumps()
    digest = hashlib.sha256(data).hexdigest()
    place, new = folder / f"{digest}.cohort", folder / "new.cohort"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        new.unlink(missing_ok=True)  # what a crash left
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        new.replace(place)
        sync_folder(folder)
    except OSError as error:
        raise refusal(error, place) from None
    return digest


def read(folder: Path, digest: str) -> Cohort:
    """A cohort by its digest.

    Raises:
        Refused: `node.ledger_invalid` where it isn't there, isn't private, or isn't what was written.
    """
    path = folder / f"{digest}.cohort"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            check_private(fd, path)
            data = file.read()
    except OSError as error:
        raise Refused("node.ledger_invalid", f"{path.name}: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise Refused("node.ledger_invalid", f"{path.name} was altered")
    return Cohort.loads(data)


def _bitmap(members: Array) -> BitMap:
    there = np.zeros(int(members.max(initial=-1)) + 1, dtype=np.bool_)
    there[members] = True
    found = BitMap(np.flatnonzero(there).astype(np.uint32))
    found.run_optimize()
    return found
