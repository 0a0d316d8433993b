"""Whom an attack finds more easily: patients by what the small-valued fields of their records say."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rapha.runtime.broker.store import RecordStore
from rapha.runtime.leakage.lira import Mask

Indices = NDArray[np.int64]
MOST_VALUES: Final = 16
"""Of a field that divides patients into groups; more make groups about which nothing can be said."""


def column(store: RecordStore, field: str, dense: Indices) -> NDArray[Any]:
    """The values of a field of shape () for the records `dense`."""
    about = next(f for f in store.fields if f.name == field)
    out = np.empty(len(dense), dtype=about.dtype)
    store.gather(field, dense, out)
    return out


def subgroups(store: RecordStore, dense: Indices, patient: Indices) -> dict[str, Mask]:
    """Patients by what a small-valued field says of them: `field=value` → bool[patients].

    A field counts if it is one number a record and has at most `MOST_VALUES` values, labels among them. A
    patient whose records disagree is in none of its groups.
    """
    found: dict[str, Mask] = {}
    order = np.argsort(patient, kind="stable")
    starts = np.flatnonzero(np.diff(patient[order], prepend=-1))
    for field in store.fields:
        if field.shape or field.ragged:
            continue
        values = column(store, field.name, dense)[order]
        distinct = np.unique(values)
        if not 2 <= len(distinct) <= MOST_VALUES:
            continue
        low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
        for value in distinct:
            # As short as tells it from all others of its type: a code of eight digits is not its first six.
            name = f"{field.name}={str(value).removesuffix('.0')}"
            found[name] = (low == value) & (high == value)
    return found
