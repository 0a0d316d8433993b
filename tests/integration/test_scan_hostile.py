"""Images made to crash, hang or fill the scanner: it answers, in bounded memory."""

from __future__ import annotations

import gzip
import io
import json
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rapha.runtime.image import File, Image, build
from rapha.runtime.scan import scan
from rapha.runtime.scan.blob import Blob, Budget, Memory
from rapha.runtime.scan.content import judge
from rapha.runtime.scan.elf import ElfError, parse
from rapha.runtime.scan.pickles import walk
from rapha.runtime.scan.rules import default_rules
from rapha.runtime.scan.scripts import read as read_script

MEMORY = 512 * 1024 * 1024
MEASURE = """
import json, resource, sys
from pathlib import Path
from rapha.runtime.scan import run_in_process
report = run_in_process(Path(sys.argv[1]), 120)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps({"peak": peak, "rules": {f.path: f.rule for f in report.findings}}))
"""


def bomb(megabytes: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()


def zip_bomb(members: int, megabytes: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(members):
            archive.writestr(f"{number}.pkl", bytes(megabytes << 20))
    return out.getvalue()


def many_members(count: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number in range(count):
            archive.writestr(f"{number}", b"")
    return out.getvalue()


def giant_header() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a")
        info.pax_headers = {"comment": "x" * (4 << 20)}
        archive.addfile(info)
    return out.getvalue()


HOSTILE: dict[str, bytes] = {
    "bomb.gz": bomb(100),
    "bomb.pt": zip_bomb(4, 40),
    "members.zip": many_members(21_000),
    "header.tar": giant_header(),
    "opcodes.pkl": b"\x80\4" + b"N0" * 600_000 + b".",
    "memo.pkl": b"\x80\4]" + b"\x94" * 300_000 + b".",
    "deep.py": b"x = " + b"[" * 100_000 + b"]" * 100_000,
    "unary.py": b"x = " + b"-" * 100_000 + b"1",
    "blocks.py": b"".join(b" " * n + b"if 1:\n" for n in range(900)),
    "long.py": b"x = 1\n" * 2_000_000,
    "line.py": b"x = '" + b"a" * (12 << 20) + b"'",
    "names.py": b"".join(b"import a%d as m\n" % n for n in range(20_000)),
    "aliases.py": b"import os\n" + b"".join(b"a%d = a%d\n" % (n + 1, n) for n in range(15_000)),
    "nested.ipynb": b"[" * 1_000_000,
    "wide.py": b"x = [" + b"a," * 260_000 + b"]",
    "calls.py": b"f(" * 80 + b")" * 80 + b"\n" + b"a.b[c](d)\n" * 47_000,
    "aliases.yaml": b"a: &a [x]\n" + b"".join(b"k%d: *a\n" % n for n in range(300_000)),
    "tags.yaml": b"!" * (8 << 20),
    "quotes.sh": b'echo "$(' * 100_000,
    "arithmetic.sh": b"((" * 200_000,
    "here.sh": b"cat <<E\n" * 20_000,
    "lines.sh": b"a\\\n" * 300_000,
    "header.npy": b"\x93NUMPY\2\0" + b"\xff" * 4 + b"'|O'",
    "keys.pem": b"-----BEGIN RSA PRIVATE KEY-----\n" * 200_000,
    "tables.so": b"\x7fELF\2\1\1" + b"\xff" * 4096,
    "zeros.bin": bytes(20 << 20),
}


def test_hostile_files_are_answered_for_in_bounded_memory(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, data in HOSTILE.items():
        (source / name).write_bytes(data)
    (source / "train.py").write_text("import deep, unary, blocks, long, line, names, aliases, wide, calls\n")
    build(source, tmp_path / "image", entrypoint=["python3", "train.py"], predict=None, runtime="rt")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "image")], capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout)
    assert answer["peak"] < MEMORY
    code = ("deep.py", "unary.py", "long.py", "line.py", "names.py")
    unjudged = {f"app/{name}" for name in (*code, "opcodes.pkl", "bomb.pt", "tables.so")}
    assert unjudged <= answer["rules"].keys()


def image(files: Mapping[str, bytes]) -> Image:
    contents = {"app/train.py": b"1", **files}
    return Image(
        digest="sha256:" + "0" * 64,
        entrypoint=("python3", "train.py"),
        predict=None,
        runtime="rt",
        workdir="/app",
        files=cast(Mapping[str, File], {path: Memory(data) for path, data in sorted(contents.items())}),
        tree=Path("/none"),
    )


def _zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\4\x8c\2os\x8c\6system\x93)R.")
        archive.writestr("b.npy", b"\x93NUMPY\1\0\x10\0{'descr': '|O'}  ")
    return out.getvalue()


SEEDS = [
    _zipped(),
    gzip.compress(_zipped()),
    giant_header()[:4096],
    b"\x80\4\x8c\2os\x8c\6system\x93\x8c\2id\x85R.",
    b"(cos\nsystem\nS'id'\no.",
    b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQ", 3, 62, 1, 0, 64, 0) + bytes(512),
    b"\x7fELF\1\2\1" + bytes(512),
    b"\x93NUMPY\1\0\x10\0{'descr': '|O'}  ",
    b'#!/bin/sh\nx=$(cat <<E | sh\n"$y" `z`\nE\n)',
    b"\x28\xb5\x2f\xfd" + bytes(64),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid beginning with bytes changed, cut, or repeated."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=8))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@settings(max_examples=250, deadline=None)
@given(
    damaged(), st.sampled_from(["m.pt", "m.bin", "m.so", "m.tar", "m.npy", "run.sh", "m.keras", "x.ipynb"])
)
@example(b"S'\\\xa4'\n.", "m.pt")  # an escape that CPython warns of
def test_damaged_files_give_notes(data: bytes, name: str) -> None:
    notes = list(judge(Blob(name, Memory(data)), default_rules(), Budget()))
    assert all(note.rule.startswith("image.") for note in notes)
    assert scan(image({f"app/{name}": data})).files == 2


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_after_a_header_are_an_elf_or_an_error(data: bytes) -> None:
    for ident in (b"\x7fELF\2\1\1", b"\x7fELF\1\2\1"):
        try:
            parse(io.BytesIO(ident + data), len(ident + data))
        except ElfError:
            continue


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_walked(data: bytes) -> None:
    assert walk(io.BytesIO(b"\x80\4" + data), 1000).opcodes <= 1000


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab \n'\"$(){}`\\;&|<>#-=/E", max_size=80))
def test_any_text_is_a_script(text: str) -> None:
    read_script(text, default_rules())


@pytest.mark.parametrize("name", ["a\u0000b", "a\u001b[2J", "\ud800", "x" * 4000, "a b%2f\u202e.py"])
def test_reports_hold_any_name(name: str) -> None:
    from rapha.runtime.scan import sarif, sbom

    held = image({f"app/{name}": b"\x7fELF"})
    report = scan(held)
    json.dumps([sarif(report), sbom(held), report.dump()], ensure_ascii=False).encode()
