from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.node.sources.filter import Column, matches
from rapha.spec import cohort
from rapha.spec.cohort import day_number
from rapha.spec.dataset import Field

DAYS = ("2024-02-28", "2024-02-29", "2024-03-01", "1969-12-31", "9999-12-31")
FIELDS = (Field(name="day", dtype="date"), Field(name="x", dtype="int32"))


def columns(valid: list[bool] | None = None) -> dict[str, Column]:
    there = np.array(valid or [True] * len(DAYS))
    days = np.array([day_number(day) for day in DAYS], dtype=np.int32)
    return {"day": Column(days, there, dates=True), "x": Column(np.arange(len(DAYS)), there)}


def found(text: dict[str, Any], valid: list[bool] | None = None) -> list[int]:
    parsed = cohort.parse(text)
    cohort.check(parsed, FIELDS)
    return np.flatnonzero(matches(parsed, columns(valid), len(DAYS))).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({"field": "day", "eq": "2024-02-29"}, [1]),
        ({"field": "day", "ne": "2024-02-29"}, [0, 2, 3, 4]),
        ({"field": "day", "gte": "2024-02-29"}, [1, 2, 4]),
        ({"field": "day", "lt": "1970-01-01"}, [3]),
        ({"field": "day", "gt": "0001-01-01"}, [0, 1, 2, 3, 4]),
        ({"field": "day", "in": ["2024-03-01", "9999-12-31"]}, [2, 4]),
        ({"field": "day", "present": True}, [0, 1, 2, 3, 4]),
        ({"all": [{"field": "day", "gte": "2024-02-28"}, {"field": "day", "lte": "2024-02-29"}]}, [0, 1]),
    ],
)
def test_dates_select(text: dict[str, Any], expected: list[int]) -> None:
    assert found(text) == expected


def test_a_missing_date_compares_with_nothing() -> None:
    valid = [False, True, False, False, False]
    assert found({"field": "day", "ne": "2000-01-01"}, valid) == [1]
    assert found({"not": {"field": "day", "eq": "2024-02-29"}}, valid) == [0, 2, 3, 4]
    assert found({"field": "day", "present": False}, valid) == [0, 2, 3, 4]


@pytest.mark.parametrize("value", [2.0**63, 2.0**62, -(2.0**63), 0.5, 1.0])
@pytest.mark.parametrize("name", ["eq", "ne", "gt", "gte", "lt", "lte"])
def test_large_integers_compare_exactly_with_any_number(name: str, value: float) -> None:
    numbers = [2**63 - 1, -(2**63), 2**62, 2**62 + 1, 0, 1]
    held = {"x": Column(np.array(numbers), np.ones(len(numbers), dtype=np.bool_))}
    compare = {"eq": "eq", "ne": "ne", "gt": "gt", "gte": "ge", "lt": "lt", "lte": "le"}[name]
    expected = [getattr(operator, compare)(number, value) for number in numbers]
    assert matches(cohort.parse({"field": "x", name: value}), held, len(numbers)).tolist() == expected
    if name == "eq":
        listed = matches(cohort.parse({"field": "x", "in": [value, 0.25]}), held, len(numbers))
        assert listed.tolist() == expected


def test_what_nobody_could_describe_matches_only_where_nothing_is_compared() -> None:
    nobody = [False] * len(DAYS)
    assert found({"any": [{"field": "x", "gte": 0}, {"field": "x", "lt": 0}]}, nobody) == []
    assert found({"all": []}, nobody) == found({"not": {"field": "x", "gte": 0}}, nobody) == [0, 1, 2, 3, 4]


@given(st.dates(), st.dates(), st.sampled_from(["eq", "ne", "gt", "gte", "lt", "lte"]))
def test_dates_compare_as_the_calendar_does(one: Any, other: Any, name: Any) -> None:
    column = Column(np.array([day_number(one.isoformat())], dtype=np.int32), np.ones(1, bool), dates=True)
    python = {
        "eq": "__eq__",
        "ne": "__ne__",
        "gt": "__gt__",
        "gte": "__ge__",
        "lt": "__lt__",
        "lte": "__le__",
    }
    parsed = cohort.parse({"field": "day", name: other.isoformat()})
    assert bool(matches(parsed, {"day": column}, 1)[0]) is getattr(one, python[name])(other)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8", "uint8", "uint16", "int64", "float64"])
@pytest.mark.parametrize("value", [-5, 0.5, 70_000, 2**53 - 1, 1e300, -1e300])
def test_any_number_compares_with_any_column(dtype: str, value: float) -> None:
    column = Column(np.array([0, 1, 100]).astype(dtype), np.ones(3, bool))
    for name, expected in (
        ("lt", [x < value for x in (0, 1, 100)]),
        ("eq", [x == value for x in (0, 1, 100)]),
    ):
        parsed = cohort.parse({"field": "x", name: value})
        assert matches(parsed, {"x": column}, 3).tolist() == expected


NUMBERS = st.one_of(
    st.integers(-300, 300), st.floats(-300, 300), st.sampled_from([2**53 - 1, 1e300, 0.5, 1.0])
)


@given(
    st.sampled_from(["float16", "float32", "float64", "int8", "int64", "uint8", "uint16"]),
    st.lists(st.integers(-100, 100), min_size=1, max_size=20),
    st.lists(NUMBERS, min_size=1, max_size=8),
)
def test_in_is_eq_with_any_of_them(dtype: str, stored: list[int], values: list[float]) -> None:
    column = Column(np.array(stored).astype(dtype), np.array([i % 7 != 6 for i in range(len(stored))]))
    _same(column, values)


@given(
    st.lists(st.sampled_from(["a", "b", "", "A"]), min_size=1),
    st.lists(st.sampled_from(["a", "c", ""]), min_size=1),
)
def test_in_is_eq_with_any_text(words: list[str], values: list[str]) -> None:
    distinct = tuple(dict.fromkeys(words))
    codes = np.array([distinct.index(word) for word in words])
    _same(Column(codes, np.ones(len(words), bool), distinct), values)


@given(st.lists(st.dates(), min_size=1), st.lists(st.dates(), min_size=1))
def test_in_is_eq_with_any_day(stored: list[Any], values: list[Any]) -> None:
    days = np.array([day_number(day.isoformat()) for day in stored], dtype=np.int32)
    _same(Column(days, np.ones(len(days), bool), dates=True), [day.isoformat() for day in values])


@pytest.mark.parametrize("values", [[True], [False], [True, False]])
def test_in_is_eq_with_any_truth(values: list[bool]) -> None:
    _same(Column(np.array([True, False, True]), np.array([True, True, False])), values)


def _same(column: Column, values: list[Any]) -> None:
    listed = cohort.parse({"field": "x", "in": values})
    one_by_one = cohort.parse({"any": [{"field": "x", "eq": value} for value in values]})
    length = len(column.values)
    found = matches(listed, {"x": column}, length)
    assert found.dtype == np.bool_ and found.tolist() == matches(one_by_one, {"x": column}, length).tolist()
