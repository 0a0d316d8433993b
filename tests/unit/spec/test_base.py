from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rapha.spec.base import Model, Money, Name, Sha256, Timestamp
from rapha.spec.refusals import Refused


class Inner(Model):
    flag: bool = False


class Outer(Model):
    name: Name = "a"
    digest: Sha256 = "0" * 64
    time: Timestamp = "2026-01-01T00:00:00Z"
    money: Money = "0"
    count: int = 0
    ratio: float = 0.0
    kind: Literal["x", "y"] = "x"
    inner: Inner = Inner()
    items: tuple[int, ...] = ()
    free: dict[str, Any] | None = None


def refusal(value: object) -> Refused:
    with pytest.raises(Refused) as caught:
        Outer.parse(value, "doc")
    return caught.value


BAD: dict[str, tuple[str, Any]] = {
    "upper case": ("name", "A"),
    "path": ("name", "../x"),
    "slash": ("name", "a/b"),
    "hidden": ("name", ".a"),
    "newline": ("name", "a\n"),
    "other script": ("name", "а"),  # Cyrillic
    "too long": ("name", "a" * 65),
    "empty": ("name", ""),
    "null": ("name", None),
    "surrogate": ("name", "\ud800"),
    "upper-case digest": ("digest", "A" * 64),
    "short digest": ("digest", "0" * 63),
    "digest with newline": ("digest", "0" * 64 + "\n"),
    "digest in other digits": ("digest", "٠" * 64),
    "no zone": ("time", "2026-01-01T00:00:00"),
    "offset": ("time", "2026-01-01T00:00:00+00:00"),
    "fraction": ("time", "2026-01-01T00:00:00.0Z"),
    "leap second": ("time", "2026-12-31T23:59:60Z"),
    "hour 24": ("time", "2026-01-01T24:00:00Z"),
    "30 February": ("time", "2026-02-30T00:00:00Z"),
    "29 February of no leap year": ("time", "2027-02-29T00:00:00Z"),
    "year 0": ("time", "0000-01-01T00:00:00Z"),
    "time in other digits": ("time", "٢٠٢٧-01-31T00:00:00Z"),
    "small letters": ("time", "2026-01-01t00:00:00z"),
    "number as time": ("time", 1_800_000_000),
    "negative money": ("money", "-1"),
    "plus": ("money", "+1"),
    "leading zero": ("money", "01"),
    "seven decimals": ("money", "0.0000001"),
    "no decimals": ("money", "1."),
    "comma": ("money", "1,5"),
    "exponent": ("money", "1e3"),
    "float": ("money", 1.5),
    "whole number": ("money", 1),
    "money in other digits": ("money", "1٢"),
    "true for a number": ("count", True),
    "text for a number": ("count", "1"),
    "float for a number": ("count", 1.0),
    "number for a flag": ("inner", {"flag": 1}),
    "text for a flag": ("inner", {"flag": "true"}),
    "NaN": ("ratio", float("nan")),
    "infinity": ("ratio", float("inf")),
    "text for a ratio": ("ratio", "0.5"),
    "other literal": ("kind", "X"),
    "text for a list": ("items", "12"),
    "mapping for a list": ("items", {"0": 1}),
    "list for an object": ("inner", []),
    "number in a list of texts": ("items", ["1"]),
}


@pytest.mark.parametrize(("field", "value"), BAD.values(), ids=BAD.keys())
def test_a_wrong_value_refuses_and_is_named(field: str, value: Any) -> None:
    found = refusal({field: value})
    assert found.code == "schema.field_invalid"
    assert found.detail.startswith(f"doc.{field}")


@pytest.mark.parametrize("value", [None, 1, "x", [], [("name", "a")], True])
def test_what_is_no_object_refuses(value: object) -> None:
    assert refusal(value).code == "schema.field_invalid"


def test_an_unknown_field_refuses_at_every_level() -> None:
    assert refusal({"extra": 1}).code == "schema.field_unknown"
    found = refusal({"inner": {"extra": 1}})
    assert (found.code, found.detail) == ("schema.field_unknown", "doc.inner.extra: is not a field here")


def test_keys_that_are_no_text_refuse() -> None:
    for key in (1, None, True, b"name", "\ud800"):
        assert refusal({key: 1}).code in ("schema.field_invalid", "schema.field_unknown")


def test_a_missing_field_refuses() -> None:
    class Needs(Model):
        part: int

    with pytest.raises(Refused) as caught:
        Needs.parse({})
    assert (caught.value.code, caught.value.detail) == ("schema.field_missing", "part: is missing")


def test_a_model_is_immutable_and_round_trips() -> None:
    model = Outer.parse({"items": [1, 2], "ratio": 1, "inner": {"flag": True}})
    assert Outer.parse(model.dump()) == model
    assert model.dump()["items"] == [1, 2]
    with pytest.raises(ValidationError):
        model.count = 2  # type: ignore[misc]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(sorted(Outer.model_fields)), JSON))
def test_any_json_is_a_model_or_refused(value: dict[str, Any]) -> None:
    try:
        model = Outer.parse(value)
    except Refused as refused:
        assert refused.code.startswith("schema.field_")
        return
    assert Outer.parse(model.dump()) == model
