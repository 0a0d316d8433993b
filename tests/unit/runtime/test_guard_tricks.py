"""Tricks in what a hostile job leaves: numbers, headers, values, entries that are almost what was planned."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapha.evidence import canonical
from rapha.runtime.guard.codes import CODES
from rapha.runtime.guard.inspection import inspect
from rapha.runtime.guard.reading import Held
from rapha.runtime.guard.tensors import layout
from rapha.spec.release_plan import ReleasePlan

FILE, NUMBERS = "w.safetensors", "m.json"
BYTES = 2**17
"""Of one U8 tensor, through which every byte leaves as it came: what marks there are, tripwires must see."""


def plan_of(dtype: str = "U8", count: int = BYTES, release: str = "f32", **more: Any) -> ReleasePlan:
    low, high = (0, 255) if dtype == "U8" else (-1e30, 1e30)
    tensor = {"name": "w", "dtype": dtype, "shape": [count], "min": low, "max": high}
    weights = {"file": FILE, "release_dtype": release, "tensors": [tensor]}
    return ReleasePlan.parse({"version": 1, "max_bytes": 2**20, "weights": weights, **more})


def packed(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def header_of(dtype: str, count: int, size: int) -> bytes:
    entry = {"w": {"dtype": dtype, "shape": [count], "data_offsets": [0, size]}}
    text = json.dumps(entry, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def holding(data: bytes) -> bytes:
    """A conforming file whose tensor begins with `data`, and is not much else."""
    fill = np.random.default_rng(5).integers(0, 255, BYTES, "u1").tobytes()
    return packed(header_of("U8", BYTES, BYTES), (data + fill)[:BYTES])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "in"
    out.mkdir()
    return out


def refused(folder: Path, plan: ReleasePlan) -> str:
    """The code, after all that every no has in common."""
    out = folder.parent / "out"
    report = inspect(folder, plan, out)
    assert not report.ok
    assert report.released == () and report.transforms == () and report.self_reported == {}
    assert not any(out.iterdir()) if out.exists() else True
    assert report.code is not None
    failed = [check for check in report.checks if check.verdict == "fail"]
    assert [check.n for check in failed] == [CODES[report.code][0]]
    assert failed[0].reason.isprintable()
    assert report.covert_bound_bits <= 4
    return report.code


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
    (folder / FILE).write_bytes(entry(GOOD))
    assert inspect(folder, plan_of()).ok


@pytest.mark.parametrize("name", HEADERS)
def test_tricks_in_the_header(folder: Path, name: str) -> None:
    (folder / FILE).write_bytes(entry(HEADERS[name]))
    assert CODES[refused(folder, plan_of())][0] == 2


@settings(deadline=None)
@given(st.text(max_size=60) | st.from_regex(r'\{"w":\{[^}]{0,60}\}\}', fullmatch=True))
def test_any_other_header_refuses(text: str) -> None:
    from rapha.runtime.guard.codes import Finding

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
    tensor = {"name": "w", "dtype": dtype, "shape": [300_000], "min": -6e4, "max": 6e4}
    weights = {"file": FILE, "release_dtype": release, "tensors": [tensor]}
    plan = ReleasePlan.parse({"version": 1, "max_bytes": 2**22, "weights": weights})
    (folder / FILE).write_bytes(nan_of(dtype, bits, [0, 131_071, 131_072, 299_999][bits % 4]))
    assert refused(folder, plan) == "guard.not_finite"


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def _device(kind: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        try:
            os.mknod(path, 0o666 | kind, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")

    return make


def _holes(path: Path) -> None:
    data = holding(b"\x01\x02")
    with path.open("wb") as file:
        file.write(data[:4096])
        file.seek(len(data) - 4096)
        file.write(data[-4096:])


def _attribute(name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(holding(b"\x01\x02"))
        try:
            os.setxattr(path, name, b"1234567")
        except OSError:
            pytest.skip("no such attributes here")

    return make


def _conforming(mode: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(holding(b"\x01\x02"))
        path.chmod(mode)

    return make


def _empty(size: int) -> Callable[[Path], None]:
    """A file that is a hole of `size` bytes."""

    def make(path: Path) -> None:
        path.touch()
        os.truncate(path, size)

    return make


def _linked(path: Path) -> None:
    path.write_bytes(holding(b"\x01\x02"))
    (path.parent.parent / "second").hardlink_to(path)


ENTRIES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "socket": ("guard.not_regular", _socket),
    "FIFO": ("guard.not_regular", os.mkfifo),
    "character device": ("guard.not_regular", _device(0o020000)),
    "block device": ("guard.not_regular", _device(0o060000)),
    "folder": ("guard.not_regular", lambda p: p.mkdir()),
    "link to itself": ("guard.not_regular", lambda p: p.symlink_to(p.name)),
    "link to a device": ("guard.not_regular", lambda p: p.symlink_to("/dev/zero")),
    "link to our memory": ("guard.not_regular", lambda p: p.symlink_to("/proc/self/mem")),
    "link up": ("guard.not_regular", lambda p: p.symlink_to("../in")),
    "setgid": ("guard.not_regular", _conforming(0o2644)),
    "setuid": ("guard.not_regular", _conforming(0o4644)),
    "hard link": ("guard.links", _linked),
    "user attribute": ("guard.xattr", _attribute("user.mrn")),
    "trusted attribute": ("guard.xattr", _attribute("trusted.mrn")),
    "holes": ("guard.sparse", _holes),
    "nothing but a hole": ("guard.sparse", _empty(len(holding(b"")))),
    "empty": ("guard.file_size", lambda p: p.touch()),
    "a petabyte": ("guard.file_size", _empty(2**43)),
    "a name that differs in case": ("guard.extra_file", lambda p: p.with_name("W.safetensors").touch()),
    "a name with a dot": ("guard.extra_file", lambda p: p.with_name("w.safetensors.").touch()),
    "a name with a space": ("guard.extra_file", lambda p: p.with_name("w.safetensors ").touch()),
    "a name in another form": ("guard.extra_file", lambda p: p.with_name("w.safetensor\u0073\u0301").touch()),
    "a name that turns the text": ("guard.extra_file", lambda p: p.with_name("\u202ew").touch()),
    "the longest name": ("guard.extra_file", lambda p: p.with_name("n" * 255).touch()),
    "a backup": ("guard.extra_file", lambda p: p.with_name("w.safetensors~").touch()),
    "lost+found": ("guard.extra_file", lambda p: p.with_name("lost+found").mkdir()),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_that_are_not_the_planned_file(folder: Path, name: str) -> None:
    code, make = ENTRIES[name]
    make(folder / FILE)
    assert refused(folder, plan_of()) == code


def test_a_source_that_ends_too_soon_is_a_change() -> None:
    from rapha.runtime.guard.codes import Finding

    with pytest.raises(Finding, match=r"guard\.changed"):
        Held(b"abc").read_into(bytearray(2), 2)


def test_reports_stay_small(folder: Path) -> None:
    (folder / ("x" * 255)).touch()
    assert len(canonical.dumps(inspect(folder, plan_of()).dump())) < 2**13
