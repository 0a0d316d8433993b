"""Files of other formats, as hostile jobs may leave them: whole, appended, in front, inside, at an offset."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import pickletools
import sqlite3
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from rapha.cli.main import run
from rapha.runtime.guard.codes import CODES
from rapha.runtime.guard.inspection import inspect
from rapha.runtime.guard.tripwires import MARKS, STARTS, TAILS
from rapha.spec.release_plan import ReleasePlan
from rapha.testing.outputs import (
    BYTES,
    NUMBERS,
    WEIGHTS,
    at,
    ending,
    header_of,
    holding,
    packed,
    plan_of,
    refused,
)


def zipped(comment: bytes = b"", name: str = "a") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, b"records")
        archive.comment = comment
    return out.getvalue()


def zip64() -> bytes:
    """An archive whose end is in the 64-bit records alone (APPNOTE 4.3.14)."""
    plain = zipped()
    end = plain.rindex(b"PK\x05\x06")
    size, offset = struct.unpack_from("<2L", plain, end + 12)
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, size, offset)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    return (
        plain[:end]
        + record
        + locator
        + struct.pack("<4s4H2LH", b"PK\x05\x06", *[0xFFFF] * 4, *[0xFFFFFFFF] * 2, 0)
    )


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return out.getvalue()


def database() -> bytes:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("create table patients (mrn text)")
        data = connection.serialize()
    connection.close()
    return data


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<2H2sH", group, number, vr, len(value)) + value


DICOM = element(8, 5, b"CS", b"ISO_IR 100") + element(0x10, 0x20, b"LO", b"1234567 ")
IMPLICIT = struct.pack("<2HL", 8, 5, 10) + b"ISO_IR 100"
DEEP = b'{"a":' * 3000 + b"1" + b"}" * 3000
FORMATS: dict[str, Callable[[], bytes]] = {
    "ZIP": zipped,
    "ZIP with a comment": lambda: zipped(b"x" * 60000),
    "ZIP64": zip64,
    "tar": tarred,
    "tar.gz": lambda: gzip.compress(tarred()),
    "gzip": lambda: gzip.compress(b"records" * 99),
    "gzip of a length that a header may have": lambda: (
        b"\x1f\x8b\x08\x00" + bytes(6) + zlib.compress(b"x" * 99)
    ),
    "zlib": lambda: zlib.compress(b"records" * 99),
    "bzip2": lambda: bz2.compress(b"records" * 99),
    "xz": lambda: lzma.compress(b"records" * 99),
    "lzma": lambda: lzma.compress(b"records" * 99, lzma.FORMAT_ALONE),
    "Zstandard": lambda: b"\x28\xb5\x2f\xfd\x20\x05" + b"\x29\x00\x00records",
    "LZ4": lambda: b"\x04\x22\x4d\x18\x64\x40\xa7" + bytes(40),
    "7-Zip": lambda: b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(99),
    "RAR 4": lambda: b"Rar!\x1a\x07\x00" + bytes(99),
    "RAR 5": lambda: b"Rar!\x1a\x07\x01\x00" + bytes(99),
    "HDF5": lambda: b"\x89HDF\r\n\x1a\n" + bytes(99),
    "DICOM": lambda: bytes(128) + b"DICM" + DICOM,
    "DICOM without a preamble": lambda: DICOM,
    "DICOM, implicit VR": lambda: IMPLICIT,
    "DICOM, deflated": lambda: bytes(128) + b"DICM" + zlib.compress(DICOM)[2:-4],
    "NIfTI": lambda: struct.pack("<l", 348) + bytes(340) + b"n+1\x00",
    "NIfTI-2": lambda: struct.pack("<l", 540) + b"n+2\x00\r\n\x1a\n" + bytes(528),
    "GGUF": lambda: b"GGUF" + struct.pack("<L2Q", 3, 0, 0),
    "ELF": lambda: b"\x7fELF\x02\x01\x01" + bytes(99),
    "Mach-O": lambda: b"\xcf\xfa\xed\xfe" + bytes(99),
    "PE": lambda: b"MZ" + bytes(58) + b"\x80\x00\x00\x00" + bytes(64) + b"PE\x00\x00",
    "WebAssembly": lambda: b"\x00asm\x01\x00\x00\x00",
    "shell script": lambda: b"#!/bin/sh\ncat /etc/passwd\n",
    "Python": lambda: b"import os\nos.system('id')\n" * 9,
    "SQLite": database,
    "PDF": lambda: b"%PDF-1.7\n1 0 obj\n" + b" " * 99,
    "PNG": lambda: b"\x89PNG\r\n\x1a\n" + bytes(99),
    "JPEG": lambda: b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(99),
    "TIFF": lambda: b"II*\x00\x08\x00\x00\x00" + bytes(99),
    "MP4": lambda: b"\x00\x00\x00\x18ftypmp42" + bytes(99),
    "Parquet": lambda: b"PAR1" + bytes(99) + b"PAR1",
    "Arrow": lambda: b"ARROW1\x00\x00" + bytes(99),
    "NumPy": lambda: b"\x93NUMPY\x01\x00" + bytes(99),
    "ISO 9660": lambda: bytes(32768) + b"\x01CD001\x01" + bytes(99),
    "FHIR": lambda: b'{"resourceType": "Patient", "id": "1234567"}',
    "XML": lambda: b'<?xml version="1.0"?><ClinicalDocument/>',
    "HL7 v2": lambda: b"MSH|^~\\&|LAB|HOSP|||20240101||ORU^R01|1|P|2.5\rPID|||1234567\r",
    "VCF": lambda: b"##fileformat=VCFv4.3\n#CHROM\tPOS\n",
    "CSV": lambda: b"mrn,name\n1234567,Mary Smith\n" * 50,
    "private key": lambda: b"-----BEGIN PRIVATE KEY-----\nAAAA\n",
    "another safetensors file": lambda: packed(header_of("F32", 4, 16), bytes(16)),
    **{
        f"pickle, protocol {n}": partial(pickle.dumps, {"mrn": "1234567" * 9}, n)
        for n in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "deep JSON": lambda: DEEP,
    "random bytes": lambda: np.random.default_rng(3).bytes(4096),
    "zeros": lambda: bytes(4096),
    "ones": lambda: b"\xff" * 4096,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "in"
    out.mkdir()
    return out


def test_the_frame_itself_conforms(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(holding(b"\x01\x02"))
    assert inspect(folder, plan_of()).ok


@pytest.mark.parametrize("name", FORMATS)
def test_another_format_instead_of_weights(folder: Path, name: str) -> None:
    data = FORMATS[name]()
    size = len(holding(b""))
    (folder / WEIGHTS).write_bytes(data.ljust(size, b"\x00"))
    assert CODES[refused(folder, plan_of())][0] == 2
    (folder / WEIGHTS).write_bytes(data)
    assert CODES[refused(folder, plan_of())][0] in (1, 2)


@pytest.mark.parametrize("name", FORMATS)
def test_another_format_after_weights(folder: Path, name: str) -> None:
    (folder / WEIGHTS).write_bytes(holding(b"") + FORMATS[name]())
    assert refused(folder, plan_of()) == "guard.coverage"


@pytest.mark.parametrize("name", FORMATS)
def test_another_format_before_weights(folder: Path, name: str) -> None:
    (folder / WEIGHTS).write_bytes(FORMATS[name]() + holding(b""))
    assert CODES[refused(folder, plan_of())][0] in (1, 2)


@pytest.mark.parametrize("name", FORMATS)
def test_another_format_as_self_reported_numbers(folder: Path, name: str) -> None:
    fields = [{"name": f"loss{n}", "type": "number", "min": 0, "max": 9, "decimals": 1} for n in range(200)]
    plan = ReleasePlan.parse(
        {"version": 1, "max_bytes": 2**17, "self_reported": {"file": NUMBERS, "fields": fields}}
    )
    (folder / NUMBERS).write_bytes(FORMATS[name]())
    assert refused(folder, plan) in ("guard.report_json", "guard.report_fields", "guard.file_size")


@pytest.mark.parametrize(("kind", "magic"), STARTS, ids=lambda value: repr(value)[:24])
def test_a_tensor_that_is_a_file(folder: Path, kind: str, magic: bytes) -> None:
    (folder / WEIGHTS).write_bytes(holding(magic))
    assert refused(folder, plan_of()) == "guard.polyglot"


INSIDE = [
    *("ZIP", "gzip", "bzip2", "xz", "Zstandard", "LZ4", "7-Zip", "RAR 4", "RAR 5", "HDF5", "DICOM", "GGUF"),
    *("ELF", "SQLite", "PDF", "PNG", "JPEG", "TIFF", "Parquet", "Arrow", "NumPy", "FHIR", "XML", "HL7 v2"),
    *("VCF", "private key", "pickle, protocol 2", "pickle, protocol 3", "pickle, protocol 4"),
    "pickle, protocol 5",
]


@pytest.mark.parametrize("name", INSIDE)
def test_a_real_file_inside_a_tensor(folder: Path, name: str) -> None:
    data = FORMATS[name]()
    if name == "FHIR":
        data = data.replace(b" ", b"")
    (folder / WEIGHTS).write_bytes(holding(data))
    assert refused(folder, plan_of()) == "guard.polyglot"


POSITIONS = [(kind, magic, where) for kind, magic, first, last in MARKS for where in {first, last}]


@pytest.mark.parametrize(
    ("kind", "magic", "where"),
    [p for p in POSITIONS if 80 < p[2] < BYTES],
    ids=lambda value: repr(value)[:24],
)
def test_a_mark_where_readers_look(folder: Path, kind: str, magic: bytes, where: int) -> None:
    (folder / WEIGHTS).write_bytes(at(where, magic))
    assert refused(folder, plan_of()) == "guard.polyglot"


@pytest.mark.parametrize(("kind", "magic", "distance"), TAILS)
def test_a_mark_at_the_end(folder: Path, kind: str, magic: bytes, distance: int) -> None:
    (folder / WEIGHTS).write_bytes(ending(magic.ljust(distance, b"\x01")))
    assert refused(folder, plan_of()) == "guard.polyglot"


@pytest.mark.parametrize(
    "make",
    [
        zipped,
        lambda: zipped(b"c" * 65535),
        lambda: zipped(name="n" * 60000),
        zip64,
        lambda: zipped(b"PK\x05\x06" + bytes(18)),
        lambda: b"PK\x05\x06" + bytes(18),
    ],
    ids=["plain", "longest comment", "long directory", "ZIP64", "an end in the comment", "an empty archive"],
)
@pytest.mark.parametrize("tail", [0, 1, 100])
def test_an_archive_at_the_end(folder: Path, make: Callable[[], bytes], tail: int) -> None:
    data = make()
    if zipfile.is_zipfile(io.BytesIO(ending(data + b"\x01" * tail))):  # what Python would open
        (folder / WEIGHTS).write_bytes(ending(data + b"\x01" * tail))
        assert refused(folder, plan_of()) == "guard.polyglot" or data.startswith(b"PK\x05\x06")


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**43)


CALLS: dict[str, tuple[int, Callable[[Path], object]]] = {
    "conforming": (0, lambda p: p.write_bytes(holding(b"\x01\x02"))),
    "a FIFO": (1, os.mkfifo),
    "a device behind a link": (1, lambda p: p.symlink_to("/dev/zero")),
    "deep JSON": (1, lambda p: p.write_bytes(packed(DEEP, bytes(BYTES)))),
    "a gzip header that is a length": (
        1,
        lambda p: p.write_bytes(FORMATS["gzip of a length that a header may have"]().ljust(BYTES + 200)),
    ),
    "ZIP64": (1, lambda p: p.write_bytes(ending(zip64()))),
    "far too large": (1, _huge),
    "nothing": (1, lambda p: None),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_command_answers_by_its_contract(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, make = CALLS[name]
    make(folder / WEIGHTS)
    plan, out = folder.parent / "plan.json", folder.parent / "out"
    plan.write_text(json.dumps(plan_of().dump()))
    assert run(["guard", "inspect", str(folder), "--plan", str(plan), "--out", str(out), "--json"]) == code
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert {"ok", "checks", "released", "covert_bound_bits"} <= report.keys()
    assert report["ok"] is (code == 0)
    assert "Traceback" not in said.err
    assert [path.name for path in out.glob("*")] == ([WEIGHTS] if code == 0 else [])


def test_pickles_here_are_real() -> None:
    for n in range(pickle.HIGHEST_PROTOCOL + 1):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pickletools.dis(FORMATS[f"pickle, protocol {n}"](), io.StringIO())
