from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.evidence import canonical
from rapha.spec.refusals import Refused

INTEGERS = st.integers(-(2**53) + 1, 2**53 - 1)
SCALARS = st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | st.text()
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)


def refusal(data: bytes, *, strict: bool = False) -> str:
    with pytest.raises(Refused) as caught:
        (canonical.loads_canonical if strict else canonical.loads)(data)
    return caught.value.code


BAD: dict[str, bytes] = {
    "empty": b"",
    "white space only": b" \n",
    "two values": b"1 2",
    "duplicate key": b'{"a":1,"a":1}',
    "duplicate key, spelled differently": b'{"a":1,"\\u0061":1}',
    "duplicate key, deep": b'[{"x":{"a":1,"a":2}}]',
    "NaN": b"NaN",
    "infinity": b"[-Infinity]",
    "infinity by exponent": b"[1e999]",
    "trailing comma": b"[1,]",
    "single quotes": b"{'a':1}",
    "comment": b"1//x",
    "lone surrogate": b'"\\ud800"',
    "lone surrogate as a key": b'{"\\uDFFF":1}',
    "reversed pair": b'"\\udc00\\ud800"',
    "raw control character": b'"\x01"',
    "raw NUL": b'"\x00"',
    "UTF-8 BOM": b"\xef\xbb\xbf1",
    "UTF-16": '"a"'.encode("utf-16"),
    "overlong UTF-8": b'"\xc0\xaf"',
    "surrogate in UTF-8": b'"\xed\xa0\x80"',
    "cut short": b'{"a":',
    "unterminated text": b'"' + b"\\" * 9,
    "too many digits": b"9" * 5000,
    "integer that no double is": b"9007199254740993",
    "integer beyond 10^21": b"1" + b"0" * 22,
    "integer beyond every double": b"1" + b"0" * 400,
    "leading zero": b"01",
    "plus": b"+1",
    "hexadecimal": b"0x10",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_refuses_what_is_not_strict_json(data: bytes) -> None:
    assert refusal(data) == "schema.json"


DEEP = {
    "arrays": b"[" * 65 + b"]" * 65,
    "objects": b'{"a":' * 65 + b"1" + b"}" * 65,
    "far beyond the interpreter": b"[" * 100_000,
    "closing brackets inside text": b'["]",' * 300 + b"1" + b"]" * 300,
    "closing braces inside keys": b'{"}":' * 70 + b"1" + b"}" * 70,
}


@pytest.mark.parametrize("data", DEEP.values(), ids=DEEP.keys())
def test_refuses_deep_nesting(data: bytes) -> None:
    assert refusal(data) == "schema.json"


def test_accepts_the_deepest_that_is_allowed_and_any_bracket_inside_text() -> None:
    assert canonical.loads(b"[" * 64 + b"]" * 64)
    assert canonical.loads(b'"' + b"[{" * 500 + b'"') == "[{" * 500


def test_refuses_more_bytes_than_the_limit() -> None:
    with pytest.raises(Refused) as caught:
        canonical.loads(b"[1,2,3]", limit=6)
    assert caught.value.code == "schema.too_large"
    assert canonical.loads(b"[1,2,3]", limit=7) == [1, 2, 3]


NOT_CANONICAL: dict[str, bytes] = {
    "white space": b'{"a": 1}',
    "trailing newline": b"1\n",
    "order of keys": b'{"b":1,"a":2}',
    "order by UTF-16 units": '{"\ufb33":1,"\U0001f600":2}'.encode(),
    "escape that needn't be": b'"\\u0061"',
    "escaped slash": b'"\\/"',
    "upper-case escape": b'"\\u001F"',
    "escaped pair": b'"\\ud83d\\ude00"',
    "float for an integer": b"1.0",
    "exponent for an integer": b"1e2",
    "negative zero": b"-0",
    "negative zero as a float": b"-0.0",
    "more digits than a double has": b"0.10000000000000001",
    "upper-case exponent": b"1E-7",
    "padded exponent": b"1e-07",
}


@pytest.mark.parametrize("data", NOT_CANONICAL.values(), ids=NOT_CANONICAL.keys())
def test_refuses_what_is_not_the_canonical_form(data: bytes) -> None:
    canonical.loads(data)
    assert refusal(data, strict=True) == "schema.json"


# RFC 8785, appendix B, as doubles and their only text.
NUMBERS = {
    5e-324: "5e-324",
    1.7976931348623157e308: "1.7976931348623157e+308",
    0.000001: "0.000001",
    1e-7: "1e-7",
    333333333.33333329: "333333333.3333333",
    4.50: "4.5",
    2e-3: "0.002",
    -0.0: "0",
    2.0**53: "9007199254740992",
    -(2.0**53): "-9007199254740992",
    1e20: "100000000000000000000",
    1e21: "1e+21",
}


@pytest.mark.parametrize(("value", "text"), NUMBERS.items())
def test_writes_numbers_as_rfc_8785_does(value: float, text: str) -> None:
    assert canonical.dumps(value) == text.encode()
    assert canonical.loads_canonical(text.encode()) == value


def test_writes_the_example_of_rfc_8785() -> None:
    value = {
        "string": '\u20ac$\u000f\nA\'B"\\\\"/',
        "numbers": [333333333.33333329, 4.5, 0.002, 1e-27],
        "literals": [None, True, False],
    }
    assert (
        canonical.dumps(value)
        == (
            '{"literals":[null,true,false],"numbers":[333333333.3333333,4.5,0.002,1e-27],'
            '"string":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
        ).encode()
    )


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


UNWRITABLE: dict[str, Any] = {
    "NaN": float("nan"),
    "infinity": float("inf"),
    "integer beyond 2^53": 2**53,
    "lone surrogate": "\ud800",
    "lone surrogate as a key": {"\ud800": 1},
    "key that is no text": {1: 1},
    "bytes": b"x",
    "set": {1},
    "deeper than the interpreter goes": nested(100_000),
}


@pytest.mark.parametrize("value", UNWRITABLE.values(), ids=UNWRITABLE.keys())
def test_refuses_to_write_what_json_cannot_express(value: Any) -> None:
    with pytest.raises(Refused) as caught:
        canonical.dumps(value)
    assert caught.value.code == "schema.json"


@given(TREES)
def test_what_is_written_is_read_back_and_is_its_own_canonical_form(value: Any) -> None:
    data = canonical.dumps(value)
    assert canonical.dumps(canonical.loads_canonical(data)) == data
    assert canonical.digest(canonical.loads(data)) == canonical.digest(value)


@given(TREES, st.integers(0), st.sampled_from(b' \t\n,:[]{}"0'))
def test_an_inserted_byte_is_noticed_or_changes_the_value(value: Any, at: int, extra: int) -> None:
    data = canonical.dumps(value)
    at %= len(data) + 1
    changed = data[:at] + bytes([extra]) + data[at:]
    try:
        found = canonical.loads_canonical(changed)
    except Refused:
        return
    assert canonical.dumps(found) == changed


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        value = canonical.loads(data)
    except Refused as refused:
        assert refused.code == "schema.json"
        return
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
