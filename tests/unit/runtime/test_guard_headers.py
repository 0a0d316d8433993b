"""Tricks in the header of a hostile job's weights, values that are not finite, and what rounding makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapha.runtime.guard.codes import CODES, Finding
from rapha.runtime.guard.inspection import inspect
from rapha.runtime.guard.tensors import layout
from rapha.testing.outputs import BYTES, WEIGHTS, header_of, packed, plan_of, refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "in"
    out.mkdir()
    return out


def entry(text: str) -> bytes:
    raw = bytes(BYTES)
    header = text.encode()
    return packed(header + b" " * (-len(header) % 8), raw)


GOOD = '{"w":{"dtype":"U8","shape":[131072],"data_offsets":[0,131072]}}'
HEADERS: dict[str, str] = {
    "an exponent": GOOD.replace("[0,131072]", "[0e0,131072]"),
    "a shape with an exponent": GOOD.replace("[131072]", "[1.31072e5]"),
    "a float shape": GOOD.replace("[131072]", "[131072.0]"),
    "negative zero": GOOD.replace("[0,", "[-0,"),
    "negative zero float": GOOD.replace("[0,", "[-0.0,"),
    "a leading zero": GOOD.replace("[0,", "[00,"),
    "a plus": GOOD.replace("[0,", "[+0,"),
    "Arabic digits": GOOD.replace("[131072]", "[١٣١٠٧٢]"),
    "full-width digits": GOOD.replace("[131072]", "[１３１０７２]"),
    "an escaped name": GOOD.replace('"w"', '"\\u0077"'),
    "an escaped field": GOOD.replace("dtype", "\\u0064type"),
    "a name that looks the same": GOOD.replace('"w"', '"ｗ"'),
    "a name with a combining mark": GOOD.replace('"w"', '"w\u0301"'),
    "a name that turns the text": GOOD.replace('"w"', '"\u202ew"'),
    "a wrapped shape": GOOD.replace("[131072]", "[[131072]]"),
    "a shape of text": GOOD.replace("[131072]", '["131072"]'),
    "an empty shape": GOOD.replace("[131072]", "[]"),
    "a shape with a zero": GOOD.replace("[131072]", "[131072,0]"),
    "a shape with a one": GOOD.replace("[131072]", "[131072,1]"),
    "a shape that overflows to the same size": GOOD.replace("[131072]", "[18446744073709682688]"),
    "a null dtype": GOOD.replace('"U8"', "null"),
    "another 8-bit dtype": GOOD.replace('"U8"', '"I8"'),
    "an 8-bit float": GOOD.replace('"U8"', '"F8_E5M2"'),
    "a dtype in lower case": GOOD.replace('"U8"', '"u8"'),
    "a dtype with a space": GOOD.replace('"U8"', '"U8 "'),
    "offsets as an object": GOOD.replace("[0,131072]", '{"0":0,"1":131072}'),
    "huge offsets": GOOD.replace("[0,131072]", "[18446744073709551616,18446744073709682688]"),
    "a second tensor without bytes": GOOD[:-1]
    + ',"x":{"dtype":"U8","shape":[0],"data_offsets":[131072,131072]}}',
    "a second tensor over the first": GOOD[:-1] + ',"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
    "metadata without entries": GOOD[:-1] + ',"__metadata__":{}}',
    "metadata first": '{"__metadata__":{"format":"pt"},' + GOOD[1:],
    "metadata as text": '{"__metadata__":"MRN 1234567",' + GOOD[1:],
    "a duplicate tensor": GOOD[:-1] + "," + GOOD[1:],
    "a duplicate field": GOOD.replace('"dtype":"U8"', '"dtype":"F32","dtype":"U8"'),
    "a nested copy": '{"w":' + GOOD + "}",
    "an array": "[" + GOOD + "]",
    "text": '"w"',
    "null": "null",
    "a number": "1",
    "nothing": "{}",
    "mixed styles": GOOD.replace(":", ": ", 1),
    "spaced commas": GOOD.replace(",", " ,"),
    "CRLF": GOOD.replace(",", ",\r\n"),
    "a form feed": GOOD.replace(",", ",\f"),
    "a vertical tab at the end": GOOD + "\v",
    "a no-break space at the end": GOOD + "\u00a0",
    "a comment": GOOD + "//",
    "two documents": GOOD + GOOD,
    "a trailing comma": GOOD[:-1] + ",}",
    "NaN": GOOD.replace("[131072]", "[NaN]"),
    "5000 digits": GOOD.replace("[131072]", "[" + "9" * 5000 + "]"),
    "deep": '{"w":' + "[" * 5000 + "]" * 5000 + "}",
    "a very long name": GOOD.replace('"w"', '"' + "w" * 300_000 + '"'),
    "a thousand strangers": "{" + ",".join(f'"x{n}":0' for n in range(1000)) + "," + GOOD[1:],
}


def test_the_header_that_the_tricks_start_from_conforms(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(entry(GOOD))
    assert inspect(folder, plan_of()).ok


@pytest.mark.parametrize("name", HEADERS)
def test_tricks_in_the_header(folder: Path, name: str) -> None:
    (folder / WEIGHTS).write_bytes(entry(HEADERS[name]))
    assert CODES[refused(folder, plan_of())][0] == 2


@settings(deadline=None)
@given(st.text(max_size=60) | st.from_regex(r'\{"w":\{[^}]{0,60}\}\}', fullmatch=True))
def test_any_other_header_refuses(text: str) -> None:
    if text.rstrip(" ") in (GOOD, GOOD.replace(",", ", ").replace(":", ": ")):
        return
    with pytest.raises(Finding):
        layout(text.encode("utf-8", "surrogatepass"), BYTES, [("w", "U8", (BYTES,))])


def nan_of(dtype: str, bits: int, where: int, count: int = 300_000) -> bytes:
    width = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}[dtype]
    raw = bytearray(width * count)
    raw[where * width : (where + 1) * width] = bits.to_bytes(width, "little")
    return packed(header_of(dtype, count, len(raw)), bytes(raw))


NANS = {
    "F64": [
        0x7FF8000000000000,
        0x7FF0000000000001,
        0xFFF8DEADBEEFCAFE,
        0x7FF0000000000000,
        0xFFF0000000000000,
    ],
    "F32": [0x7FC00000, 0x7F800001, 0xFFC0BEEF, 0x7F800000, 0xFF800000, 0x7FFFFFFF],
    "F16": [0x7E00, 0x7C01, 0xFE12, 0x7C00, 0xFC00],
    "BF16": [0x7FC0, 0x7F81, 0xFFC1, 0x7F80, 0xFF80],
}


@pytest.mark.parametrize("release", ["f32", "bf16", "f16", "int8"])
@pytest.mark.parametrize(("dtype", "bits"), [(d, b) for d, many in NANS.items() for b in many])
def test_what_is_not_finite(folder: Path, dtype: str, bits: int, release: str) -> None:
    plan = plan_of(dtype, 300_000, release, limit=6e4)
    (folder / WEIGHTS).write_bytes(nan_of(dtype, bits, [0, 131_071, 131_072, 299_999][bits % 4]))
    assert refused(folder, plan) == "guard.not_finite"


def test_marks_that_rounding_makes_are_seen_too(folder: Path) -> None:
    """The input is not DICOM; what bf16 makes of it is."""
    count = 256
    released = bytearray(np.full(count, 0x3F80, "<u2").tobytes())
    plan = plan_of("F32", count, "bf16")
    assert plan.weights is not None
    start = 8 + len(plan.weights.released_header())
    released[128 - start : 132 - start] = b"DICM"
    values = (np.frombuffer(bytes(released), "<u2").astype("<u4") << 16).view("<f4")
    data = packed(header_of("F32", count, 4 * count), values.tobytes())
    assert data[128:132] != b"DICM"
    (folder / WEIGHTS).write_bytes(data)
    assert refused(folder, plan) == "guard.polyglot"
