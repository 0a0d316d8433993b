from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.spec import yaml
from rapha.spec.refusals import Refused

BAD = {
    "alias": "a: &x 1\nb: *x",
    "anchor alone": "a: &x 1",
    "anchor on the document": "&x {a: 1}",
    "alias to itself": "a: &x [*x]",
    "alias to nothing": "a: *x",
    "billion laughs": "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]",
    "merge": "a: &x {b: 1}\nc: {<<: *x}",
    "python tag": "a: !!python/object/apply:os.system [id]",
    "python name": "a: !!python/name:os.system",
    "local tag": "a: !foo 1",
    "bare tag": "a: ! 1",
    "timestamp tag": "a: !!timestamp 2020-01-01",
    "binary tag": "a: !!binary aGk=",
    "set tag": "a: !!set {b, c}",
    "ordered map tag": "a: !!omap [x: 1]",
    "pairs tag": "a: !!pairs [x: 1]",
    "string tag": "a: !!str 5",
    "tag on a key": "!!str a: 1",
    "tag on the document": "!!map {a: 1}",
    "tag by a directive": "%TAG ! tag:yaml.org,2002:\n---\na: !int 1",
    "duplicate key": "a: 1\na: 2",
    "duplicate key, quoted": "a: 1\n'a': 2",
    "duplicate key, escaped": 'a: 1\n"\\x61": 2',
    "duplicate key, deep": "x: [{y: {a: 1, a: 2}}]",
    "number as a key": "1: 2",
    "true as a key": "true: 1",
    "null as a key": "~: 1",
    "empty key": ": 1",
    "list as a key": "? [a]\n: 1",
    "mapping as a key": "? {a: 1}\n: 1",
    "two documents": "---\na: 1\n---\nb: 1",
    "tab": "a:\n\tb: 1",
    "NUL": "a: \x00",
    "control character": "a: \x07",
    "lone surrogate": 'a: "\\ud800"',
    "lone surrogate as a key": '"\\udfff": 1',
    "unclosed": "a: [1, 2",
    "unclosed text": "a: 'x",
    "bad indent": "a: 1\n  b: 2",
    "deep lists": "[" * 65 + "]" * 65,
    "deep mappings": "{a: " * 65 + "1" + "}" * 65,
    "deep by indent": "\n".join(" " * i + "a:" for i in range(80)),
    "too deep for the interpreter": "[" * 50_000,
    "dashes too deep": "- " * 5_000,
    "number beyond a double": "a: 1e999",
    "too many digits": "a: " + "9" * 5000,
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_refuses(text: str) -> None:
    with pytest.raises(Refused) as caught:
        yaml.load(text)
    assert caught.value.code == "schema.yaml"
    assert caught.value.detail


def test_names_line_and_column() -> None:
    with pytest.raises(Refused) as caught:
        yaml.load("a: 1\nb: 2\na: 3\n")
    assert caught.value.detail == "line 3, column 1: duplicate key 'a'"


def test_refuses_a_file_that_is_too_large() -> None:
    with pytest.raises(Refused) as caught:
        yaml.load(" " * (yaml.MAX_CHARS + 1))
    assert caught.value.code == "schema.too_large"


SCALARS: dict[str, Any] = {
    "": None,
    "~": None,
    "null": None,
    "true": True,
    "False": False,
    "0": 0,
    "-17": -17,
    "+3": 3,
    "2.50": 2.5,
    "1e3": 1000.0,
    "-1.5E-2": -0.015,
    # What YAML 1.1 would turn into something else stays text.
    "no": "no",
    "on": "on",
    "Y": "Y",
    "010": "010",
    "0x1F": "0x1F",
    "0b1": "0b1",
    "1_000": "1_000",
    "1:30": "1:30",
    "12:30:45": "12:30:45",
    ".inf": ".inf",
    "-.INF": "-.INF",
    ".nan": ".nan",
    "1.": "1.",
    ".5": ".5",
    "=": "=",
    "<<": "<<",
    "2027-01-31": "2027-01-31",
    "2027-01-31T00:00:00Z": "2027-01-31T00:00:00Z",
    "20m": "20m",
    "4GiB": "4GiB",
    '"5"': "5",
    "'true'": "true",
    "١٢": "١٢",
}


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_scalars(text: str, value: Any) -> None:
    found = yaml.load(f"a: {text}")
    assert found == {"a": value}
    assert type(found["a"]) is type(value)


def test_accepts_the_deepest_that_is_allowed() -> None:
    assert yaml.load("[" * 64 + "]" * 64)
    assert yaml.load("---\na: 1\n...\n") == {"a": 1}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(st.characters(codec="ascii")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abcxyz\"\\' ", max_size=5), inner, max_size=4)
    ),
)


@given(JSON)
def test_reads_json_as_json(value: Any) -> None:
    assert yaml.load(json.dumps(value)) == value


@given(st.text(max_size=60) | st.text("&*!{}[]:-?,|>%@`'\"# \n\tab01<", max_size=40))
def test_any_text_is_read_into_json_types_or_refused(text: str) -> None:
    try:
        value = yaml.load(text)
    except Refused as refused:
        assert refused.code == "schema.yaml"
        return
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
