"""Evaluate a cohort over columns in memory."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rapha.node.sources.interface import Array, Mask
from rapha.spec.cohort import All, AnyOf, Condition, Node, Not, Scalar, day_number


@dataclass(frozen=True, slots=True)
class Column:
    """One field of every record.

    Attributes:
        values: length n; for text, positions in `words`; for dates, int32 days from 1970-01-01. Unspecified
            where `valid` is false, and everywhere in a field of several values, which nothing compares.
        valid: length n; false where the value is missing (null or NaN).
        words: the distinct texts of a text column, else None.
        dates: whether it is a column of dates; cohorts write theirs as text.
    """

    values: Array
    valid: Mask
    words: tuple[str, ...] | None = None
    dates: bool = False


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
    `eq: 17.99` finds the float32 nearest to 17.99. A record whose description can't be read has no valid
    value: only what holds without any matches it, such as `{"all": []}` or `{"not": …}`.
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
        return _among(column, condition.value) & column.valid
    return _compare(condition.operator, column, condition.value) & column.valid


def _among(column: Column, values: tuple[Scalar, ...]) -> Mask:
    """As `eq` with each of `values`, in one pass: a cohort may list 256 times 1024 of them."""
    if column.words is not None:
        wanted = frozenset(values)
        return np.array([word in wanted for word in column.words] or [False], dtype=np.bool_)[column.values]
    if column.dates:
        return np.isin(column.values, [day_number(str(value)) for value in values])
    kind = column.values.dtype
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        # isin would compare a list that holds 0.5 or 2^40 in a type that can't tell large integers apart.
        values = tuple(int(v) for v in values if limits.min <= v <= limits.max and v == int(v))  # type: ignore[operator]
    with np.errstate(over="ignore"):
        return np.isin(column.values, np.array(values).astype(kind))


def _compare(name: str, column: Column, value: Scalar) -> Mask:
    compare = _COMPARE[name]
    if column.dates:
        value = day_number(str(value))
    if isinstance(value, float) and column.values.dtype.kind in "iu" and value.is_integer():
        value = int(value)  # as a float, it would equal large integers beside it
    if column.words is not None:
        verdicts = np.array([compare(word, value) for word in column.words] or [False], dtype=np.bool_)
        return np.asarray(verdicts[column.values])
    with np.errstate(over="ignore"):  # a threshold past float32 compares as infinity, which is right
        return np.asarray(compare(column.values, value), dtype=np.bool_)
