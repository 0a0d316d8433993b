"""Evaluate a cohort over columns in memory."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rapha.node.sources.interface import Array, Mask
from rapha.spec.cohort import All, AnyOf, Condition, Node, Not, Scalar


@dataclass(frozen=True, slots=True)
class Column:
    """One field of every record.

    Attributes:
        values: length n; for text, positions in `words`. Unspecified where `valid` is false.
        valid: length n; false where the value is missing (null or NaN).
        words: the distinct texts of a text column, else None.
    """

    values: Array
    valid: Mask
    words: tuple[str, ...] | None = None


_COMPARE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


def matches(cohort: Node, columns: Mapping[str, Column], length: int) -> Mask:
    """Which of `length` records the cohort matches.

    Precondition: `rapha.spec.cohort.check` passed. Numbers compare in the column's own type, so that
    `eq: 17.99` finds the float32 nearest to 17.99.
    """
    match cohort:
        case All(parts):
            result = np.ones(length, dtype=np.bool_)
            for part in parts:
                result &= matches(part, columns, length)
            return result
        case AnyOf(parts):
            result = np.zeros(length, dtype=np.bool_)
            for part in parts:
                result |= matches(part, columns, length)
            return result
        case Not(part):
            return ~matches(part, columns, length)
        case Condition():
            return _condition(cohort, columns[cohort.field])


def _condition(condition: Condition, column: Column) -> Mask:
    if condition.operator == "present":
        return column.valid if condition.value else ~column.valid
    if isinstance(condition.value, tuple):
        found = np.zeros(len(column.values), dtype=np.bool_)
        for value in condition.value:
            found |= _compare("eq", column, value)
        return found & column.valid
    return _compare(condition.operator, column, condition.value) & column.valid


def _compare(name: str, column: Column, value: Scalar) -> Mask:
    compare = _COMPARE[name]
    if column.words is not None:
        verdicts = np.array([compare(word, value) for word in column.words] or [False], dtype=np.bool_)
        return np.asarray(verdicts[column.values])
    with np.errstate(over="ignore"):  # a threshold past float32 compares as infinity, which is right
        return np.asarray(compare(column.values, value), dtype=np.bool_)
