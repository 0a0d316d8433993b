"""Tricks in what a hostile job says of itself: numbers that are almost what was planned."""

from __future__ import annotations

from pathlib import Path

import pytest

from rapha.runtime.guard.inspection import inspect
from rapha.spec.release_plan import ReleasePlan
from rapha.testing.outputs import NUMBERS, refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "in"
    out.mkdir()
    return out


NUMBER_PLAN = ReleasePlan.parse(
    {
        "version": 1,
        "max_bytes": 2**12,
        "self_reported": {
            "file": NUMBERS,
            "fields": [
                {"name": "loss", "type": "number", "min": -5, "max": 100, "decimals": 3},
                {"name": "epochs", "type": "integer", "min": 0, "max": 50},
                {"name": "kind", "type": "enum", "options": ["adam", "sgd"]},
                {"name": "done", "type": "boolean"},
            ],
        },
    }
)
TAIL = b',"epochs":1,"kind":"sgd","done":true}'


def told(loss: bytes, rest: bytes = TAIL) -> bytes:
    return b'{"loss":' + loss + rest


BAD_NUMBERS: dict[str, bytes] = {
    **{
        f"loss {text}": told(text.encode())
        for text in (
            *(
                "NaN",
                "-NaN",
                "Infinity",
                "-Infinity",
                "nan",
                "inf",
                "1e400",
                "-1e400",
                "1e99999",
                "0x10",
                "1_000",
                "+1",
            ),
            *(
                "01",
                "-01",
                "1.",
                ".5",
                "1e",
                "1e+",
                "--1",
                "1,5",
                "1 2",
                "true",
                "null",
                '"1"',
                "[1]",
                '{"a":1}',
                "٣",
                "１",
            ),
            *(
                "9" * 400,
                "1" + "0" * 309,
                "9007199254740993",
                "-9007199254740993",
                "1/2",
                "1;",
                "/*c*/1",
                "1//c",
                "$",
            ),
            *("\ud7ff", "０.５", "1\u00a0", "\u20281", "Ⅷ", "½", "∞", "−1"),
        )
    },
    "BOM": b"\xef\xbb\xbf" + told(b"1"),
    "UTF-16": told(b"1").decode().encode("utf-16"),
    "UTF-32": told(b"1").decode().encode("utf-32"),
    "two objects": told(b"1") + told(b"1"),
    "a trailing comma": told(b"1", TAIL[:-1] + b",}"),
    "a comment": told(b"1", TAIL + b"//x"),
    "single quotes": told(b"1").replace(b'"', b"'"),
    "a NUL after": told(b"1") + b"\x00",
    "a NUL inside": told(b"1\x00"),
    "an invalid escape": told(b"1").replace(b"loss", b"\\x6coss"),
    "an overlong slash": told(b"1").replace(b"loss", b"l\xc0\xafss"),
    "a surrogate": told(b"1").replace(b"sgd", b"\\ud800"),
    "duplicate keys": told(b"1", b',"loss":2' + TAIL),
    "duplicate keys, one escaped": told(b"1", b',"l\\u006fss":2' + TAIL),
    "duplicate keys inside": told(b'{"a":1,"a":1}'),
    "a field that looks the same": told(b"1").replace(b"loss", "lοss".encode()),
    "a field with a zero-width space": told(b"1").replace(b"loss", "lo\u200bss".encode()),
    "a field in capitals": told(b"1").replace(b"loss", b"LOSS"),
    "a field with a space": told(b"1").replace(b"loss", b"loss "),
    "__proto__": told(b"1", b',"__proto__":{}' + TAIL),
    "an empty name": told(b"1", b',"":0' + TAIL),
    "an integer as a float": told(b"1", TAIL.replace(b'"epochs":1', b'"epochs":1.0')),
    "an integer with an exponent": told(b"1", TAIL.replace(b'"epochs":1', b'"epochs":1e0')),
    "an integer beyond exact": told(b"1", TAIL.replace(b'"epochs":1', b'"epochs":9007199254740992')),
    "an integer of 5000 digits": told(b"1", TAIL.replace(b'"epochs":1', b'"epochs":' + b"9" * 900)),
    "a boolean as text": told(b"1", TAIL.replace(b"true", b'"true"')),
    "a boolean in capitals": told(b"1", TAIL.replace(b"true", b"True")),
    "an option in capitals": told(b"1", TAIL.replace(b"sgd", b"SGD")),
    "an option and more": told(b"1", TAIL.replace(b"sgd", b"sgd\\u0000")),
    "an option with a combining mark": told(b"1", TAIL.replace(b"sgd", "sgd\u0301".encode())),
    "an option in a list": told(b"1", TAIL.replace(b'"sgd"', b'["sgd"]')),
    "deep": told(b"[" * 400 + b"]" * 400),
    "deep objects": told(b'{"a":' * 150 + b"1" + b"}" * 150),
    "JSON lines": told(b"1") + b"\n{}",
    "only space": b"   ",
    "a string": b'"loss"',
    "null": b"null",
}


@pytest.mark.parametrize("name", BAD_NUMBERS)
def test_tricks_in_self_reported_numbers(folder: Path, name: str) -> None:
    (folder / NUMBERS).write_bytes(BAD_NUMBERS[name])
    code = refused(folder, NUMBER_PLAN)
    assert code in ("guard.report_json", "guard.report_fields", "guard.report_type", "guard.file_size")


@pytest.mark.parametrize(
    ("loss", "leaves"),
    [
        *(
            (b"-0", b"0"),
            (b"-0.0", b"0"),
            (b"-0.0004", b"0"),
            (b"1e0", b"1"),
            (b"1E+0", b"1"),
            (b"0.1e1", b"1"),
        ),
        *((b"1e300", b"100"), (b"-1e300", b"-5"), (b"5e-324", b"0"), (b"0.12345678901234567890", b"0.123")),
        *((b"0.0005", b"0"), (b"0.0015", b"0.002"), (b"99.9999", b"100"), (b"9007199254740991", b"100")),
        *((b"\t1\n", b"1"), (b"100000000000000000000", b"100"), (b"1e-400", b"0")),
    ],
)
def test_numbers_leave_in_one_form(folder: Path, loss: bytes, leaves: bytes) -> None:
    (folder / NUMBERS).write_bytes(told(loss))
    out = folder.parent / "out"
    assert inspect(folder, NUMBER_PLAN, out).ok
    expected = b'{"done":true,"epochs":1,"kind":"sgd","loss":' + leaves + b"}"
    assert (out / NUMBERS).read_bytes() == expected
