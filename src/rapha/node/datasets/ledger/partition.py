"""Which records can be told apart by comparing jobs, and when there are too few people among them.

Jobs over the cohorts C1 … Ck tell something of each. Whoever compares them learns of unions, intersections
and differences of the Ci, and of any Boolean combination of them; each is a union of atoms, where two records
are in one atom iff they are in exactly the same cohorts. So it is enough to watch the atoms:

    inside, outside = atom ∩ new cohort, atom \\ new cohort

A new cohort is refused where it cuts an atom in two, and either part has fewer people than the minimum cell;
or where it takes in, for the first time, people who were in no cohort, and they are fewer than that: compared
with a job before they came, it would be about them alone.

What leaves an atom whole is allowed, however small the atom became since: people opt out, and that must stop
no job of the others. It does show something. Two jobs after the withdrawals, with the atom and without it,
differ by the few of it who are left, and no cell protects those (ADR 15, "Who is counted").

Weights tell of the training part and metrics of the test part, so the fixed split is the first cut: a cell
has to hold on each side of it. Who is in a part is counted in people, also where records are compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapha.node.sources.interface import Array, Mask


@dataclass(frozen=True, slots=True)
class Units:
    """Patients or records that can be used now, k of them.

    Attributes:
        signature: uint64 [k, w]; bit j is set where the unit was in cohort j.
        held: whether the unit is in the test split.
        chosen: whether it is in the new cohort.
        owner: the patient's number, int64 [k].
    """

    signature: Array
    held: Mask
    chosen: Mask
    owner: Array


def too_small(units: Units, cell: int) -> bool:
    """Whether the new cohort would make somebody stand out: some new part has 1 to `cell` - 1 patients."""
    if not len(units.owner):
        return False
    atom = atoms(units)
    inside, outside = _people(atom, units, units.chosen), _people(atom, units, ~units.chosen)
    fresh = np.zeros(len(inside), dtype=np.bool_)
    fresh[atom] = ~units.signature.any(axis=1)
    cut = (inside > 0) & (outside > 0) & (np.minimum(inside, outside) < cell)
    newcomers = fresh & (inside > 0) & (inside < cell)
    return bool(np.any(cut | newcomers))


def atoms(units: Units) -> Array:
    """The number of each unit's atom, dense from 0: int64 [k]."""
    found = _dense(units.held.astype(np.int64), 2)
    for word in units.signature.T:
        distinct, among = np.unique(word, return_inverse=True)
        found = _dense(found * len(distinct) + among, (int(found.max()) + 1) * len(distinct))
    return found


def _dense(numbers: Array, limit: int) -> Array:
    """The same classes, numbered from 0 without gaps. Precondition: 0 ≤ `numbers` < `limit`."""
    if limit > 4 * len(numbers):
        return np.unique(numbers, return_inverse=True)[1]
    there = np.zeros(limit, dtype=np.bool_)
    there[numbers] = True
    return (np.cumsum(there) - 1)[numbers]


def _people(atom: Array, units: Units, part: Mask) -> Array:
    """Different owners of the units of `part`, by atom."""
    count, owners = int(atom.max()) + 1, int(units.owner.max()) + 1
    at = atom[part]
    if int(np.bincount(units.owner).max()) > 1:  # else nobody can be counted twice
        at = np.unique(at * owners + units.owner[part]) // owners
    return np.bincount(at, minlength=count)
