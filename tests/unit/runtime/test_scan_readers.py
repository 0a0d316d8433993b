"""The scanner's readers by themselves: pickles, ELF files, shell scripts, archives."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

from rapha.runtime.image import File, Image
from rapha.runtime.scan import scan
from rapha.runtime.scan.archives import ArchiveError, members
from rapha.runtime.scan.blob import Blob, Budget, Memory
from rapha.runtime.scan.elf import Elf, ElfError, parse
from rapha.runtime.scan.pickles import walk
from rapha.runtime.scan.provided import of_distributions
from rapha.runtime.scan.rules import default_rules
from rapha.runtime.scan.scripts import read
from rapha.runtime.scan.shell import commands


def elf(wide: bool = True, order: str = "<", name: bytes = b"connect", **values: int) -> bytes:
    """A library that imports `name`, without section headers; `values` replace dynamic entries by tag."""
    strings = b"\0" + name + b"\0libc.so.6\0"
    width = 24 if wide else 16
    symbol = (
        struct.pack(order + "IBBHQQ", 1, 0x12, 0, 0, 0, 0)
        if wide
        else struct.pack(order + "IIIBBH", 1, 0, 0, 0x12, 0, 0)
    )
    base = (64 + 2 * 56) if wide else (52 + 2 * 32)
    strtab = base + 2 * width
    table = strtab + len(strings)
    dynamic = table + 20
    entries = {1: 2 + len(name), 5: strtab, 10: len(strings), 6: base, 4: table}
    entries |= {int(tag.removeprefix("t")): value for tag, value in values.items()}
    form = order + ("qQ" if wide else "iI")
    packed = b"".join(struct.pack(form, tag, value) for tag, value in entries.items()) + bytes(width)
    size = dynamic + len(packed)
    program = b""
    for kind, offset, length in ((1, 0, size), (2, dynamic, len(packed))):
        if wide:
            program += struct.pack(order + "IIQQQQQQ", kind, 5, offset, offset, 0, length, length, 8)
        else:
            program += struct.pack(order + "IIIIIIII", kind, offset, offset, 0, length, length, 5, 4)
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    head = (
        struct.pack(order + "HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
        if wide
        else struct.pack(order + "HHIIIIIHHHHHH", 3, 3, 1, 0, 52, 0, 0, 52, 32, 2, 0, 0, 0)
    )
    hashes = struct.pack(order + "IIIII", 1, 2, 0, 0, 0)
    return ident + head + program + bytes(width) + symbol + strings + hashes + packed


def parsed(data: bytes) -> Elf:
    return parse(io.BytesIO(data), len(data))


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
def test_symbols_are_read_without_section_headers(wide: bool, order: str) -> None:
    found = parsed(elf(wide, order))
    assert found.imports == frozenset({"connect"})
    assert (found.needed, found.dynamic) == (("libc.so.6",), True)


def test_a_symbol_is_known_without_its_version() -> None:
    assert parsed(elf(name=b"connect@GLIBC_2.2.5")).imports == {"connect"}


@pytest.mark.parametrize(
    "data",
    [
        b"\x7fELF",
        b"\x7fELF\3\1\1" + bytes(60),
        elf()[:200],
        elf(t5=1 << 40),
        elf(t10=1 << 30),
        elf(t6=1 << 63),
        elf(t1=9999),
        elf(t10=1),
        elf(t4=1 << 20),
        elf()[:40] + b"\xff" * 24 + elf()[64:],
    ],
)
def test_an_elf_file_that_contradicts_itself_is_an_error(data: bytes) -> None:
    with pytest.raises(ElfError):
        parsed(data)


def test_the_programs_of_this_machine_are_read() -> None:
    import sys

    data = Path(sys.executable).resolve().read_bytes()
    assert parsed(data).needed


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"cos\nsystem\n(S'id'\ntR.", {"os.system"}),
        (b"\x80\4\x8c\2os\x8c\6system\x93)R.", {"os.system"}),
        (b"\x80\4\x8c\2os\x94\x8c\6system\x9400h\0h\1\x93)R.", {"os.system"}),
        (b"\x80\4\x8c\2osp\x01\x30\x8c\6system\x93)R.", set()),
        (b"\x80\4N\x8c\6system\x93)R.", {"?.system"}),
        (pickle.dumps([1]) + b"cos\nsystem\n)R.", {"os.system"}),
        (b"\x80\2\x82\x05)R.", {"copyreg extension.5"}),
    ],
)
def test_globals_are_named(data: bytes, names: set[str]) -> None:
    assert set(walk(io.BytesIO(data), 1000).globals) == names


@pytest.mark.parametrize("data", [b"", b"cats\nand dogs.\n", b"hello", b"0.95", b"\xff", b"cnn\nmodel\n0.9."])
def test_text_is_no_pickle(data: bytes) -> None:
    assert not walk(io.BytesIO(data), 1000).is_pickle


def called(text: str) -> list[str]:
    return [command.words[0].text for command in commands(text) if command.words]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a; b && c || d | e & f", ["a", "b", "c", "d", "e", "f"]),
        ("# a\nb # c\n'd'#e", ["b", "d#e"]),
        ("a \"b; c\" 'd | e' f\\;g", ["a"]),
        ('a $(b `c`) "$(d)"', ["c", "b", "d", "a"]),
        ("a <<E\nb\n$(c)\nE\nd", ["a", "c", "d"]),
        ("a <<'E'\n$(c)\nE\nd", ["a", "d"]),
        ("a <<-E\n\tb\n\tE\nd", ["a", "d"]),
        ("a <<<b >c 2>&1; d", ["a", "d"]),
        ("a $((1 + (2 * 3))) ; ((x = 1)); b", ["a", "b"]),
        ("a \\\nb\nc", ["a", "c"]),
        ("a <(b) >(c)", ["b", "c", "a"]),
        ("${a:-$(b)} c", ["b", "?"]),
    ],
)
def test_commands_are_told_from_words(text: str, names: list[str]) -> None:
    assert called(text) == names


def test_lines_are_those_of_the_script() -> None:
    notes = read("echo\n\n\ncurl x\n", default_rules()).notes
    assert [(note.rule, note.line, note.grave) for note in notes] == [("image.network_module", 4, True)]


def test_what_a_script_starts_is_handed_on() -> None:
    assert read("set -e\nexec python3 -u train.py --lr 1\n./tool x", default_rules()).starts == [
        ("python3", "-u", "train.py", "--lr", "1"),
        ("./tool", "x"),
    ]


def test_an_archive_past_the_budget_is_an_error() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a", b"x" * 100)
        archive.writestr("b", b"x")
    blob = Blob("a.zip", Memory(out.getvalue()))
    assert [member.name for member in members(blob, Budget())] == ["a", "b"]
    with pytest.raises(ArchiveError):
        list(members(blob, Budget(inflated=50)))
    with pytest.raises(ArchiveError):
        list(members(blob, Budget(members=1)))


@pytest.mark.parametrize(
    ("source", "certain", "severities"),
    [
        (b"import absent", True, ["refuse"]),
        (b"import absent", False, ["warn"]),
        (b"try:\n    import absent\nexcept ImportError:\n    absent = None", True, ["warn"]),
        (b"def f():\n    import absent", True, ["warn"]),
        (b"import helper, numpy.linalg, json, rapha_trainer\nfrom . import helper", True, []),
        (b"import requests", True, ["refuse"]),
    ],
)
def test_a_missing_module_refuses_where_the_job_would_surely_fail(
    source: bytes, certain: bool, severities: list[str]
) -> None:
    held = {"app/helper.py": Memory(b""), "app/train.py": Memory(source)}
    image = Image(
        digest="sha256:" + "0" * 64,
        entrypoint=("python3", "train.py"),
        predict=None,
        runtime="rt",
        workdir="/app",
        files=cast(Mapping[str, File], held),
        tree=Path("/none"),
    )
    report = scan(image, provided=of_distributions(["numpy"], certain))
    assert [finding.severity for finding in report.findings] == severities
