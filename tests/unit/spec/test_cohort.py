from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.spec import cohort
from rapha.spec.base import Model
from rapha.spec.cohort import All, AnyOf, Cohort, Condition, Node, Not
from rapha.spec.dataset import Field
from rapha.spec.refusals import Refused

FIELDS = (
    Field(name="age", dtype="int32"),
    Field(name="mean_radius", dtype="float32"),
    Field(name="smoker", dtype="bool"),
    Field(name="code", dtype="string"),
    Field(name="malignant", dtype="float32", label=True),
    Field(name="study_date", dtype="date"),
    Field(name="study", dtype="pseudonym"),
    Field(name="pixels", dtype="int16", shape=(0, 0)),
    Field(name="labs", dtype="float32", ragged=True),
)


class Holder(Model):
    cohort: Cohort


def test_the_documented_example_parses() -> None:
    parsed = cohort.parse({"all": [{"field": "mean_radius", "gte": 6.0}]})
    assert parsed == All((Condition("mean_radius", "gte", 6.0),))
    cohort.check(parsed, FIELDS)


def test_a_model_reads_and_writes_a_cohort() -> None:
    text = {"any": [{"not": {"field": "code", "in": ["C50", "C50.1"]}}, {"field": "smoker", "eq": True}]}
    held = Holder.parse({"cohort": text})
    assert held.dump() == {"cohort": text}
    assert Holder(cohort=held.cohort) == held
    assert isinstance(held.cohort, AnyOf) and isinstance(held.cohort.parts[0], Not)


BAD: list[tuple[str, object, str]] = [
    ("not an object", [], "schema.field_invalid"),
    ("null", None, "schema.field_invalid"),
    ("text", "age > 5", "schema.field_invalid"),
    ("empty object", {}, "schema.field_invalid"),
    ("a field that breaks the line", {"field": "age\n", "eq": 1}, "schema.field_invalid"),
    ("a field without UTF-8", {"field": "\ud800", "eq": 1}, "schema.field_invalid"),
    ("unknown combinator", {"xor": []}, "schema.field_unknown"),
    ("two combinators", {"all": [], "any": []}, "schema.field_invalid"),
    ("any of nothing", {"any": []}, "schema.field_invalid"),
    ("all of a text", {"all": "x"}, "schema.field_invalid"),
    ("all of an object", {"all": {"field": "age", "eq": 1}}, "schema.field_invalid"),
    ("not of a list", {"not": []}, "schema.field_invalid"),
    ("operator without field", {"eq": 1}, "schema.field_missing"),
    ("field without operator", {"field": "age"}, "schema.field_invalid"),
    ("two operators", {"field": "age", "gt": 1, "lt": 5}, "schema.field_invalid"),
    ("unknown operator", {"field": "age", "like": "x"}, "schema.field_unknown"),
    ("combinator beside field", {"field": "age", "eq": 1, "all": []}, "schema.field_unknown"),
    ("field not a text", {"field": 1, "eq": 1}, "schema.field_invalid"),
    ("empty field", {"field": "", "eq": 1}, "schema.field_invalid"),
    ("long field", {"field": "a" * 200, "eq": 1}, "schema.field_invalid"),
    ("in of a scalar", {"field": "age", "in": 1}, "schema.field_invalid"),
    ("in of a text", {"field": "code", "in": "C50"}, "schema.field_invalid"),
    ("in of nothing", {"field": "age", "in": []}, "schema.field_invalid"),
    ("in of lists", {"field": "age", "in": [[1]]}, "schema.field_invalid"),
    ("in of too many", {"field": "age", "in": list(range(1025))}, "schema.too_large"),
    ("present of a number", {"field": "age", "present": 1}, "schema.field_invalid"),
    ("eq of null", {"field": "age", "eq": None}, "schema.field_invalid"),
    ("eq of an object", {"field": "age", "eq": {"$gt": ""}}, "schema.field_invalid"),
    ("NaN", {"field": "age", "eq": float("nan")}, "schema.field_invalid"),
    ("infinity", {"field": "age", "lt": float("inf")}, "schema.field_invalid"),
    ("an integer JSON can't carry", {"field": "age", "eq": 2**53}, "schema.field_invalid"),
    ("control characters", {"field": "code", "eq": "a\x00b"}, "schema.field_invalid"),
    ("a lone surrogate", {"field": "code", "eq": "\ud800"}, "schema.field_invalid"),
    ("long text", {"field": "code", "eq": "x" * 129}, "schema.too_large"),
    ("too many parts", {"all": [{"field": "age", "eq": 1}] * 256}, "schema.too_large"),
    ("a key that is no text", {1: []}, "schema.field_invalid"),
]


@pytest.mark.parametrize(("value", "code"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_cohorts_refuse(value: object, code: str) -> None:
    with pytest.raises(Refused) as refused:
        cohort.parse(value)
    assert refused.value.code == code


@pytest.mark.parametrize("kind", ["not", "all"])
def test_depth_is_limited_long_before_the_stack(kind: str) -> None:
    value: Any = {"field": "age", "eq": 1}
    for _ in range(5000):
        value = {kind: value if kind == "not" else [value]}
    with pytest.raises(Refused, match=r"schema\.too_large"):
        cohort.parse(value)


CHECKS: list[tuple[str, dict[str, object], str]] = [
    ("unknown field", {"field": "weight", "gt": 1}, "schema.cohort_field"),
    ("the patient id", {"field": "patient_id", "eq": "p1"}, "schema.cohort_field"),
    ("a label's value", {"field": "malignant", "eq": 1}, "schema.cohort_field"),
    ("a label's order", {"field": "malignant", "gt": 0.5}, "schema.cohort_field"),
    ("order of a text", {"field": "code", "lt": "D"}, "schema.cohort_field"),
    ("order of a bool", {"field": "smoker", "gt": False}, "schema.cohort_field"),
    ("number with a text", {"field": "age", "eq": "60"}, "schema.field_invalid"),
    ("number with a bool", {"field": "age", "eq": True}, "schema.field_invalid"),
    ("bool with a number", {"field": "smoker", "eq": 1}, "schema.field_invalid"),
    ("text with a number", {"field": "code", "in": ["C50", 50]}, "schema.field_invalid"),
    ("a pseudonym", {"field": "study", "eq": "1.2.3"}, "schema.cohort_field"),
    ("a pseudonym among others", {"field": "study", "in": ["1.2.3"]}, "schema.cohort_field"),
    ("a pseudonym's presence", {"field": "study", "present": True}, "schema.cohort_field"),
    ("an image", {"field": "pixels", "gt": 5}, "schema.cohort_field"),
    ("a list", {"field": "labs", "eq": 5}, "schema.cohort_field"),
    ("a date with a number", {"field": "study_date", "gte": 20240131}, "schema.field_invalid"),
    ("a date with true", {"field": "study_date", "eq": True}, "schema.field_invalid"),
    ("no day of the calendar", {"field": "study_date", "eq": "2023-02-29"}, "schema.field_invalid"),
    ("a month 13", {"field": "study_date", "lt": "2023-13-01"}, "schema.field_invalid"),
    ("a year 0", {"field": "study_date", "lt": "0000-01-01"}, "schema.field_invalid"),
    ("a date as DICOM writes it", {"field": "study_date", "eq": "20240131"}, "schema.field_invalid"),
    ("a week", {"field": "study_date", "eq": "2024-W05-3"}, "schema.field_invalid"),
    ("a time, too", {"field": "study_date", "eq": "2024-01-31T00:00:00"}, "schema.field_invalid"),
    ("other digits", {"field": "study_date", "eq": "\u0662024-01-31"}, "schema.field_invalid"),
    ("a blank", {"field": "study_date", "eq": "2024-01-31 "}, "schema.field_invalid"),
    ("one of a list", {"field": "study_date", "in": ["2024-01-31", "soon"]}, "schema.field_invalid"),
]


@pytest.mark.parametrize(("value", "code"), [c[1:] for c in CHECKS], ids=[c[0] for c in CHECKS])
@pytest.mark.parametrize("wrap", ["bare", "not", "any"])
def test_conditions_are_type_checked_at_any_place(value: dict[str, object], code: str, wrap: str) -> None:
    inside: dict[str, object] = {"bare": value, "not": {"not": value}, "any": {"any": [value]}}[wrap]  # type: ignore[assignment]
    with pytest.raises(Refused) as refused:
        cohort.check(cohort.parse(inside), FIELDS)
    assert refused.value.code == code


@pytest.mark.parametrize("name", ["malignant", "pixels", "labs", "study_date", "age"])
def test_a_field_may_be_asked_to_be_present(name: str) -> None:
    cohort.check(cohort.parse({"field": name, "present": True}), FIELDS)


@pytest.mark.parametrize("operator", ["eq", "ne", "gt", "gte", "lt", "lte"])
def test_a_date_has_an_order(operator: str) -> None:
    cohort.check(cohort.parse({"field": "study_date", operator: "2024-02-29"}), FIELDS)
    cohort.check(cohort.parse({"field": "study_date", "in": ["2024-02-29", "0001-01-01"]}), FIELDS)


@given(st.dates())
def test_days_are_counted_from_1970(day: date) -> None:
    assert cohort.day_number(day.isoformat()) == (day - date(1970, 1, 1)).days


@given(st.text(max_size=12))
def test_any_text_is_a_day_or_none(text: str) -> None:
    try:
        number = cohort.day_number(text)
    except ValueError:
        return
    assert (date(1970, 1, 1) + timedelta(number)).isoformat() == text


_scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**53) + 1, 2**53 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(categories=("L", "N")), max_size=8),
)
_conditions = st.one_of(
    st.builds(Condition, st.just("age"), st.sampled_from(["eq", "ne", "gt", "lte"]), _scalars),
    st.builds(
        Condition, st.just("age"), st.just("in"), st.lists(_scalars, min_size=1, max_size=3).map(tuple)
    ),
    st.builds(Condition, st.just("age"), st.just("present"), st.booleans()),
)
_cohorts: st.SearchStrategy[Node] = st.recursive(
    _conditions,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(All, st.lists(inner, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(inner, min_size=1, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)


@given(_cohorts)
def test_what_is_dumped_parses_to_the_same(value: Node) -> None:
    try:
        parsed = cohort.parse(cohort.dump(value))
    except Refused as refused:
        assert refused.code == "schema.too_large"
    else:
        assert parsed == value


def test_lists_are_limited_together() -> None:
    part = {"field": "age", "in": list(range(cohort.MAX_VALUES))}
    several = cohort.MAX_LISTED // cohort.MAX_VALUES
    cohort.parse({"any": [part] * several})
    with pytest.raises(Refused, match=r"schema\.too_large"):
        cohort.parse({"any": [part] * several + [{"field": "age", "in": [1]}]})


_json = st.recursive(
    st.none() | _scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["all", "any", "not", "field", "eq", "in", "present", "x"]), inner)
    ),
    max_leaves=12,
)


@given(_json)
def test_any_json_parses_or_refuses(value: object) -> None:
    try:
        parsed = cohort.parse(value)
        cohort.check(parsed, FIELDS)
    except Refused as refused:
        assert refused.code.startswith("schema.")
