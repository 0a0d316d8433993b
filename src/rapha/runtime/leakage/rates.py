"""From scores to what a person reads: the share of members found where few others are taken for members.

An attack that is right about a few people and silent about the rest has an average accuracy near chance, so
averages say little about privacy; the rate at a low false positive rate does (Carlini et al. 2022, section
III). The averages' area under the curve is given beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from rapha.runtime.leakage.binomial import clopper_pearson
from rapha.runtime.leakage.confidence import Floats, midranks
from rapha.runtime.leakage.lira import Mask

FALSE_POSITIVES: Final = 0.001
LEAST_GROUP: Final = 100
"""Members of a subgroup below which its rate would be mostly chance."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`hits` of `of` members were found."""

    hits: int
    of: int

    @property
    def value(self) -> float:
        """The share found."""
        return self.hits / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """95% (Clopper and Pearson), over members, the threshold taken as given."""
        return clopper_pearson(self.hits, self.of)


def threshold(non_members: Floats, false_positives: float = FALSE_POSITIVES) -> float:
    """The score above which somebody is called a member.

    Strictly above it lie at most `false_positives` of the non-members, ties included, so the rate that was
    asked for is never exceeded. Precondition: at least one non-member, 0 ≤ `false_positives` < 1.
    """
    allowed = math.floor(false_positives * len(non_members) + 1e-9)
    return float(np.partition(non_members, len(non_members) - 1 - allowed)[len(non_members) - 1 - allowed])


def found(members: Floats, above: float) -> Rate:
    """Members with a score strictly above `above`. Precondition: at least one."""
    return Rate(int(np.count_nonzero(members > above)), len(members))


def auc(members: Floats, non_members: Floats) -> float:
    """Probability that a member scores above a non-member, ties half (Mann and Whitney)."""
    ranks = midranks(np.concatenate([members, non_members]))[: len(members)]
    wins = ranks.sum() - len(members) * (len(members) + 1) / 2
    return float(wins / (len(members) * len(non_members)))


def worst(
    groups: Mapping[str, Mask], scores: Floats, member: Mask, above: float, cell: int
) -> tuple[str, Rate] | None:
    """The subgroup of which the largest share of members is found by the threshold of all patients.

    The largest of many rates is large by chance too: it says where to look, and is no test.

    Args:
        groups: by name, who is in it; shape (patients,), as `scores` and `member`.
        cell: fewest members and fewest non-members of a group that is told.

    Returns:
        Its name and rate, the first by name of equals; None where no group is large enough.
    """
    best: tuple[str, Rate] | None = None
    for name in sorted(groups):
        inside = groups[name] & member
        others = int(np.count_nonzero(groups[name])) - int(np.count_nonzero(inside))
        if np.count_nonzero(inside) < max(cell, LEAST_GROUP) or others < cell:
            continue
        rate = found(scores[inside], above)
        if best is None or rate.value > best[1].value:
            best = name, rate
    return best
