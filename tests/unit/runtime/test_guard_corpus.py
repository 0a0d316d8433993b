"""The guard's bar: every hostile folder refused with its own code, no conforming one refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy

from rapha.runtime.guard.codes import CODES
from rapha.runtime.guard.inspection import inspect
from rapha.runtime.guard.report import GuardReport
from rapha.spec.release_plan import ReleasePlan

PLAN = ReleasePlan.parse(
    {
        "version": 1,
        "weights": {
            "file": "model.safetensors",
            "release_dtype": "bf16",
            "tensors": [
                {"name": "fc.weight", "dtype": "F32", "shape": [64, 16], "min": -16.0, "max": 16.0},
                {"name": "fc.bias", "dtype": "F32", "shape": [16], "min": -16.0, "max": 16.0},
                {"name": "steps", "dtype": "I64", "shape": [], "min": 0, "max": 1000},
                {"name": "mask", "dtype": "BOOL", "shape": [8], "min": 0, "max": 1},
            ],
        },
        "self_reported": {
            "file": "metrics.json",
            "fields": [
                {"name": "loss", "type": "number", "min": 0, "max": 100, "decimals": 3},
                {"name": "epochs", "type": "integer", "min": 0, "max": 50},
                {"name": "converged", "type": "boolean"},
                {"name": "optimiser", "type": "enum", "options": ["adam", "sgd"]},
            ],
        },
        "max_bytes": 65536,
    }
)
ORDER = [t.name for t in PLAN.weights.tensors] if PLAN.weights else []
REPORT: dict[str, Any] = {"loss": 0.3, "epochs": 5, "converged": True, "optimiser": "adam"}
Tensors = dict[str, npt.NDArray[Any]]


def tensors(seed: int = 0) -> Tensors:
    draw = np.random.default_rng(seed)
    return {
        "fc.weight": draw.standard_normal((64, 16)).astype("<f4"),
        "fc.bias": np.zeros(16, "<f4"),
        "steps": np.array(7, "<i8"),
        "mask": np.array([0, 1] * 4, np.bool_),
    }


def parts(values: Tensors | None = None, order: list[str] = ORDER) -> tuple[dict[str, Any], bytes]:
    """Header and data, as a plain writer makes them."""
    values, names = values or tensors(), {"<f4": "F32", "<i8": "I64", "|b1": "BOOL"}
    header: dict[str, Any] = {}
    data = b""
    for name in order:
        raw = values[name].tobytes()
        offsets = [len(data), len(data) + len(raw)]
        shape = list(values[name].shape)
        header[name] = {"dtype": names[values[name].dtype.str], "shape": shape, "data_offsets": offsets}
        data += raw
    return header, data


def packed(header: bytes, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def text(header: Any) -> bytes:
    compact = json.dumps(header, separators=(",", ":")).encode()
    return compact + b" " * (-len(compact) % 8)


def good() -> bytes:
    header, data = parts()
    return packed(text(header), data)


def edited(change: Callable[[dict[str, Any]], Any]) -> bytes:
    header, data = parts()
    change(header)
    return packed(text(header), data)


def with_header(change: Callable[[bytes], bytes]) -> bytes:
    header, data = parts()
    return packed(change(text(header).rstrip()), data)


def with_values(**changes: npt.NDArray[Any]) -> bytes:
    header, data = parts(tensors() | {k.replace("_", "."): v for k, v in changes.items()})
    return packed(text(header), data)


def weight(at: int, value: float) -> bytes:
    array = tensors()["fc.weight"]
    array.flat[at] = value
    return with_values(fc_weight=array)


def nan_payload() -> bytes:
    raw = bytearray(good())
    start = 8 + int.from_bytes(raw[:8], "little")
    raw[start : start + 4] = struct.pack("<I", 0x7FC0BEEF)
    return bytes(raw)


def at(data: bytes, offset: int, mark: bytes) -> bytes:
    return data[:offset] + mark + data[offset + len(mark) :]


def zip_bytes(stored: bytes = b"records") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a", stored)
    return out.getvalue()


def tar_bytes() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return out.getvalue()


HOSTILE_WEIGHTS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty": ("guard.file_size", lambda: b""),
    "seven bytes": ("guard.file_size", lambda: b"\x00" * 7),
    "truncated header": ("guard.file_size", lambda: good()[:60]),
    "truncated data": ("guard.coverage", lambda: good()[:-1]),
    "trailing byte": ("guard.coverage", lambda: good() + b"\x00"),
    "trailing ZIP": ("guard.coverage", lambda: good() + zip_bytes()),
    "trailing megabyte": ("guard.file_size", lambda: good() + b"\x00" * 2**20),
    "header length huge": ("guard.header", lambda: packed(text(parts()[0]), parts()[1], 2**63)),
    "header length all ones": ("guard.header", lambda: packed(text(parts()[0]), parts()[1], 2**64 - 1)),
    "header length past end": ("guard.header", lambda: packed(text(parts()[0]), parts()[1], 2**19)),
    "header length zero": ("guard.header", lambda: packed(text(parts()[0]), parts()[1], 0)),
    "header length short": ("guard.header", lambda: packed(text(parts()[0]), parts()[1], 8)),
    "not JSON": ("guard.header", lambda: with_header(lambda h: b"\xff" + h[1:])),
    "header a list": ("guard.header", lambda: with_header(lambda h: b"[" + h + b"]")),
    "header twice": ("guard.header", lambda: with_header(lambda h: h + h)),
    "deep nesting": ("guard.header", lambda: with_header(lambda h: b"[" * 100_000 + b"]" * 100_000)),
    "duplicate key": ("guard.header", lambda: with_header(lambda h: h[:-1] + b"," + h[1:])),
    "duplicate field": (
        "guard.header",
        lambda: with_header(lambda h: h.replace(b'"dtype":"F32"', b'"dtype":"F32","dtype":"F32"')),
    ),
    "metadata": ("guard.metadata", lambda: edited(lambda h: h.update(__metadata__={"format": "pt"}))),
    "metadata with a payload": (
        "guard.metadata",
        lambda: edited(lambda h: h.update(__metadata__={"x": "A" * 999})),
    ),
    "space flood inside": (
        "guard.header",
        lambda: with_header(lambda h: h.replace(b"{", b"{" + b" " * 900, 1)),
    ),
    "space flood after": ("guard.header", lambda: with_header(lambda h: h + b" " * 9000)),
    "eight spaces": ("guard.header", lambda: with_header(lambda h: h + b" " * 8)),
    "space before": ("guard.header", lambda: with_header(lambda h: b" " + h)),
    "tab padding": ("guard.header", lambda: with_header(lambda h: h + b"\t")),
    "newlines": ("guard.header", lambda: with_header(lambda h: h.replace(b",", b",\n"))),
    "NUL padding": ("guard.header", lambda: with_header(lambda h: h + b"\x00")),
    "escaped name": ("guard.header", lambda: with_header(lambda h: h.replace(b"fc.bias", b"fc.bi\\u0061s"))),
    "escaped slash": ("guard.header", lambda: with_header(lambda h: h.replace(b"fc.bias", b"fc\\/bias"))),
    "byte order mark": ("guard.header", lambda: with_header(lambda h: b"\xef\xbb\xbf" + h)),
    "number with exponent": ("guard.header", lambda: with_header(lambda h: h.replace(b"[16]", b"[1.6e1]"))),
    "negative zero offset": ("guard.header", lambda: with_header(lambda h: h.replace(b"[0,", b"[-0,"))),
    "giant integer": (
        "guard.header",
        lambda: with_header(lambda h: h.replace(b"[16]", b"[" + b"9" * 5000 + b"]")),
    ),
    "NaN in the header": ("guard.header", lambda: with_header(lambda h: h.replace(b"[16]", b"[NaN]"))),
    "lone surrogate": ("guard.header", lambda: with_header(lambda h: h.replace(b"fc.bias", b"\\ud800"))),
    "extra tensor": (
        "guard.names",
        lambda: edited(lambda h: h.update(x={"dtype": "U8", "shape": [0], "data_offsets": [4176, 4176]})),
    ),
    "missing tensor": ("guard.names", lambda: edited(lambda h: h.pop("mask"))),
    "renamed tensor": ("guard.names", lambda: edited(lambda h: h.update({"patient_1234567": h.pop("mask")}))),
    "name with dots": ("guard.names", lambda: edited(lambda h: h.update({"../../etc/x": h.pop("mask")}))),
    "name with NUL": ("guard.names", lambda: edited(lambda h: h.update({"mask\x00": h.pop("mask")}))),
    "name with a payload": ("guard.names", lambda: edited(lambda h: h.update({"x" * 2000: h.pop("mask")}))),
    "order": ("guard.order", lambda: packed(text(parts(order=ORDER[::-1])[0]), parts(order=ORDER[::-1])[1])),
    "keys out of order": ("guard.order", lambda: edited(lambda h: h.update(steps=h.pop("steps")))),
    "unknown entry field": ("guard.header", lambda: edited(lambda h: h["mask"].update(note="x"))),
    "entry without dtype": ("guard.header", lambda: edited(lambda h: h["mask"].pop("dtype"))),
    "entry not an object": ("guard.header", lambda: edited(lambda h: h.update(mask=[]))),
    "wrong dtype": ("guard.dtype", lambda: edited(lambda h: h["fc.bias"].update(dtype="I32"))),
    "unknown dtype": ("guard.dtype", lambda: edited(lambda h: h["fc.bias"].update(dtype="F8_E4M3"))),
    "dtype not text": ("guard.dtype", lambda: edited(lambda h: h["fc.bias"].update(dtype=["F32"]))),
    "wrong shape": ("guard.shape", lambda: edited(lambda h: h["fc.weight"].update(shape=[16, 64]))),
    "flattened shape": ("guard.shape", lambda: edited(lambda h: h["fc.weight"].update(shape=[1024]))),
    "shape with true": ("guard.shape", lambda: edited(lambda h: h["fc.bias"].update(shape=[16, True]))),
    "shape of floats": ("guard.shape", lambda: edited(lambda h: h["fc.bias"].update(shape=[16.0]))),
    "negative shape": ("guard.shape", lambda: edited(lambda h: h["fc.weight"].update(shape=[-64, -16]))),
    "overflowing shape": (
        "guard.header",
        lambda: edited(lambda h: h["fc.bias"].update(shape=[2**62, 4, 16])),
    ),
    "overlapping offsets": (
        "guard.offsets",
        lambda: edited(lambda h: h["fc.bias"].update(data_offsets=[0, 64])),
    ),
    "gap": ("guard.offsets", lambda: edited(lambda h: h["fc.bias"].update(data_offsets=[4104, 4168]))),
    "reversed offsets": (
        "guard.offsets",
        lambda: edited(lambda h: h["fc.bias"].update(data_offsets=[4160, 4096])),
    ),
    "negative offsets": (
        "guard.offsets",
        lambda: edited(lambda h: h["fc.bias"].update(data_offsets=[-64, 0])),
    ),
    "offsets past the end": (
        "guard.offsets",
        lambda: edited(lambda h: h["mask"].update(data_offsets=[4168, 2**40])),
    ),
    "three offsets": ("guard.offsets", lambda: edited(lambda h: h["mask"]["data_offsets"].append(0))),
    "false as offset": (
        "guard.offsets",
        lambda: edited(lambda h: h["fc.weight"].update(data_offsets=[False, 4096])),
    ),
    "NaN": ("guard.not_finite", lambda: weight(3, np.nan)),
    "NaN with a payload": ("guard.not_finite", nan_payload),
    "infinity": ("guard.not_finite", lambda: weight(1023, np.inf)),
    "negative infinity": ("guard.not_finite", lambda: weight(0, -np.inf)),
    "boolean of two": ("guard.boolean", lambda: good()[:-1] + b"\x02"),
    "polyglot DICOM": ("guard.header", lambda: at(good(), 128, b"DICM")),
    "ZIP": ("guard.file_size", zip_bytes),
    "ZIP of the right size": ("guard.header", lambda: zip_bytes(bytes(len(good()) - 108))),
    "pickle": ("guard.header", lambda: pickle.dumps(bytes(len(good())))),
    "gzip": ("guard.file_size", lambda: gzip.compress(good())),
    "gzip stored": ("guard.header", lambda: gzip.compress(good(), 0)),
    "tar": ("guard.header", tar_bytes),
    "DICOM": ("guard.header", lambda: bytes(128) + b"DICM" + bytes(len(good()))),
    "ELF": ("guard.header", lambda: b"\x7fELF" + bytes(len(good()))),
    "text": ("guard.header", lambda: b"MRN 1234567 " * 500),
    "zeros": ("guard.header", lambda: bytes(len(good()))),
}

HOSTILE_REPORTS: dict[str, tuple[str, bytes]] = {
    "empty": ("guard.file_size", b""),
    "not JSON": ("guard.report_json", b"loss=1"),
    "not UTF-8": ("guard.report_json", b'{"loss":"\xff"}'),
    "a list": ("guard.report_json", b"[1]"),
    "a number": ("guard.report_json", b"12"),
    "duplicate key": ("guard.report_json", b'{"loss":1,"loss":2}'),
    "NaN": ("guard.report_json", b'{"loss":NaN}'),
    "deep": ("guard.report_json", b"[" * 500 + b"]" * 500),
    "flood": ("guard.file_size", b" " * 9999 + b"{}"),
    "trailing": ("guard.report_json", json.dumps(REPORT).encode() + b"x"),
    "extra field": ("guard.report_fields", json.dumps(REPORT | {"mrn": "1234567"}).encode()),
    "missing field": ("guard.report_fields", b'{"loss":1}'),
    "infinite": ("guard.report_json", json.dumps(REPORT).replace("0.3", "1e999").encode()),
    "text for number": ("guard.report_type", json.dumps(REPORT | {"loss": "0.3"}).encode()),
    "true for number": ("guard.report_type", json.dumps(REPORT | {"loss": True}).encode()),
    "null": ("guard.report_type", json.dumps(REPORT | {"loss": None}).encode()),
    "nested": ("guard.report_type", json.dumps(REPORT | {"loss": {"x": 1}}).encode()),
    "fraction for integer": ("guard.report_type", json.dumps(REPORT | {"epochs": 1.5}).encode()),
    "one for boolean": ("guard.report_type", json.dumps(REPORT | {"converged": 1}).encode()),
    "free text": ("guard.report_type", json.dumps(REPORT | {"optimiser": "Mary Smith"}).encode()),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "in"
    out.mkdir()
    (out / "model.safetensors").write_bytes(good())
    (out / "metrics.json").write_text(json.dumps(REPORT))
    return out


def refused(folder: Path, plan: ReleasePlan = PLAN) -> GuardReport:
    """Inspect, and check what every no has in common."""
    out = folder.parent / "out"
    report = inspect(folder, plan, out)
    assert not report.ok
    assert report.released == ()
    assert report.covert_bound_bits <= 4
    assert not out.exists() or not any(out.iterdir())
    assert report.code is not None
    failed = [check for check in report.checks if check.verdict == "fail"]
    assert [check.n for check in failed] == [CODES[report.code][0]]
    assert failed[0].reason.isprintable()
    assert failed[0].reason.isascii() or "×" in failed[0].reason
    assert GuardReport.parse(report.dump()) == report
    return report


def accepted(folder: Path, plan: ReleasePlan = PLAN) -> dict[str, bytes]:
    out = folder.parent / "accepted"
    report = inspect(folder, plan, out)
    assert report.ok, report.checks
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {f.name: f.bytes for f in report.released} == {name: len(data) for name, data in files.items()}
    assert sum(map(len, files.values())) <= plan.released_bytes <= plan.max_bytes
    for path in out.iterdir():
        path.unlink()
    return files


@pytest.mark.parametrize("name", HOSTILE_WEIGHTS)
def test_hostile_weights(folder: Path, name: str) -> None:
    code, make = HOSTILE_WEIGHTS[name]
    (folder / "model.safetensors").write_bytes(make())
    assert refused(folder).code == code


@pytest.mark.parametrize("name", HOSTILE_REPORTS)
def test_hostile_reports(folder: Path, name: str) -> None:
    code, data = HOSTILE_REPORTS[name]
    (folder / "metrics.json").write_bytes(data)
    assert refused(folder).code == code


def _replace(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.rename(folder.parent / "moved")
        make(path)

    return change


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _sparse(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(len(good()) + 500_000)


def _xattr(folder: Path) -> None:
    try:
        os.setxattr(folder / "metrics.json", "user.mrn", b"1234567")
    except OSError:
        pytest.skip("this file system has no extended attributes")


HOSTILE_FOLDERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "extra file": ("guard.extra_file", lambda f: (f / "notes.txt").write_text("x")),
    "hidden file": ("guard.extra_file", lambda f: (f / ".x").write_text("")),
    "DICOM file": ("guard.extra_file", lambda f: (f / "ct.dcm").write_bytes(bytes(128) + b"DICM")),
    "gzip file": ("guard.extra_file", lambda f: (f / "model.safetensors.gz").write_bytes(b"\x1f\x8b")),
    "predictions": ("guard.extra_file", lambda f: (f / "predictions.f32").write_bytes(bytes(4))),
    "name not UTF-8": ("guard.extra_file", lambda f: Path(os.fsdecode(bytes(f) + b"/\xff")).touch()),
    "name with newline": ("guard.extra_file", lambda f: (f / "a\nb").touch()),
    "name with escape": ("guard.extra_file", lambda f: (f / "\x1b[2J").touch()),
    "name in capitals": ("guard.extra_file", lambda f: (f / "MODEL.safetensors").touch()),
    "subfolder": ("guard.extra_file", lambda f: (f / "sub").mkdir()),
    "many files": ("guard.extra_file", lambda f: [(f / f"{i}").write_bytes(b"") for i in range(500)]),
    "missing weights": ("guard.missing_file", lambda f: (f / "model.safetensors").unlink()),
    "missing report": ("guard.missing_file", lambda f: (f / "metrics.json").unlink()),
    "empty folder": ("guard.missing_file", _clear),
    "symbolic link": ("guard.not_regular", _replace(lambda p: p.symlink_to(p.parent.parent / "moved"))),
    "link to a secret": ("guard.not_regular", _replace(lambda p: p.symlink_to("/etc/passwd"))),
    "link to /proc": ("guard.not_regular", _replace(lambda p: p.symlink_to("/proc/self/environ"))),
    "dangling link": ("guard.not_regular", _replace(lambda p: p.symlink_to("nowhere"))),
    "link to itself": ("guard.not_regular", _replace(lambda p: p.symlink_to(p.name))),
    "FIFO": ("guard.not_regular", _replace(os.mkfifo)),
    "folder for a file": ("guard.not_regular", _replace(lambda p: p.mkdir())),
    "setuid": ("guard.not_regular", lambda f: (f / "model.safetensors").chmod(0o4755)),
    "hard link": ("guard.links", lambda f: (f.parent / "again").hardlink_to(f / "model.safetensors")),
    "extended attribute": ("guard.xattr", _xattr),
    "sparse": ("guard.sparse", _sparse),
    "huge and sparse": ("guard.file_size", lambda f: os.truncate(f / "model.safetensors", 2**40)),
}


@pytest.mark.parametrize("name", HOSTILE_FOLDERS)
def test_hostile_folders(folder: Path, name: str) -> None:
    code, change = HOSTILE_FOLDERS[name]
    change(folder)
    assert refused(folder).code == code


def test_a_device_is_not_opened(folder: Path) -> None:
    def device(path: Path) -> None:
        try:
            os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("only root makes devices")

    _replace(device)(folder)
    assert refused(folder).code == "guard.not_regular"


def test_a_folder_that_is_not_there_is_undecided(tmp_path: Path) -> None:
    report = inspect(tmp_path / "none", PLAN)
    assert (report.ok, report.decided, report.code) == (False, False, "guard.directory")


def test_an_output_folder_in_use_is_undecided(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").touch()
    report = inspect(folder, PLAN, tmp_path / "out")
    assert (report.ok, report.decided, report.code) == (False, False, "guard.out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["old"]


ONE_TENSOR = {"name": "w", "dtype": "F32", "shape": [8192], "min": -16.0, "max": 16.0}


def small(folder: Path, values: npt.NDArray[Any], **weights: Any) -> ReleasePlan:
    """A plan with one tensor, and its file in `folder`: the header is short, so marks lie in the data."""
    _clear(folder)
    safetensors.numpy.save_file({"w": values}, folder / "w.safetensors")
    fields = {"file": "w.safetensors", "release_dtype": "bf16", "tensors": [ONE_TENSOR]} | weights
    return ReleasePlan.parse({"version": 1, "max_bytes": 2**20, "weights": fields})


def marked(offset: int, mark: bytes) -> npt.NDArray[Any]:
    """Small floats with `mark` at `offset` in the file."""
    raw = bytearray(np.full(8192, 0.5, "<f4").tobytes())
    start = len(safetensors.numpy.save({"w": np.zeros(8192, "<f4")})) - len(raw)
    offset = offset - start if offset >= 0 else len(raw) + offset
    raw[offset : offset + len(mark)] = mark
    return np.frombuffer(bytes(raw), "<f4")


@pytest.mark.parametrize(
    ("offset", "mark"),
    [
        (128, b"DICM"),
        (257, b"ustar"),
        (500, b"%PDF-1.7"),
        (900, b"Rar!\x1a\x07"),
        (901, b"7z\xbc\xaf\x27\x1c"),
        (32768, b"\x01CD001\x01"),
        (-len(zip_bytes()), zip_bytes()),
        (-len(zip_bytes()) - 8, zip_bytes()),
    ],
    ids=["DICOM", "tar", "PDF", "RAR", "7-Zip", "ISO", "ZIP", "ZIP and a tail"],
)
def test_polyglots_that_the_format_allows(folder: Path, offset: int, mark: bytes) -> None:
    plan = small(folder, marked(offset, mark))
    assert safetensors.numpy.load_file(folder / "w.safetensors")["w"].size == 8192
    assert refused(folder, plan).code in ("guard.polyglot", "guard.not_finite")


def test_a_lone_zip_signature_is_chance(folder: Path) -> None:
    accepted(folder, small(folder, marked(-22, b"PK\x05\x06")))


def test_ciphertext_in_the_exponents(folder: Path) -> None:
    bits = np.random.default_rng(1).integers(0, 2**32, 8192, np.uint32)
    bits &= np.where((bits >> 23) & 0xFF == 0xFF, 0xBFFFFFFF, 0xFFFFFFFF).astype(np.uint32)
    plan = small(folder, bits.astype("<u4").view("<f4"))
    assert refused(folder, plan).code == "guard.entropy"


def _torch_bytes() -> bytes:
    torch = pytest.importorskip("torch")
    save = pytest.importorskip("safetensors.torch").save
    data: bytes = save({name: torch.from_numpy(array) for name, array in tensors().items()})
    return data


CONFORMING: dict[str, Callable[[], bytes]] = {
    "plan order": good,
    "safetensors library": lambda: safetensors.numpy.save(tensors()),
    "spaced JSON": lambda: packed(json.dumps(parts()[0]).encode(), parts()[1]),
    "unaligned header": lambda: packed(text(parts()[0]).rstrip(), parts()[1]),
    "entry fields in another order": lambda: packed(
        text({k: dict(sorted(v.items())) for k, v in parts()[0].items()}), parts()[1]
    ),
    "torch": _torch_bytes,
}


@pytest.mark.parametrize("name", CONFORMING)
def test_conforming_files_give_the_same_bytes(folder: Path, name: str) -> None:
    expected = accepted(folder)
    (folder / "model.safetensors").write_bytes(CONFORMING[name]())
    assert accepted(folder) == expected


def test_what_leaves_is_what_the_library_would_write(folder: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = tensors()
    for name in ("fc.weight", "fc.bias"):
        values[name] = values[name].astype(ml_dtypes.bfloat16)
    released = accepted(folder)
    assert released["model.safetensors"] == safetensors.numpy.save(values)
    assert json.loads(released["metrics.json"]) == REPORT


def test_reports_are_clipped_rounded_and_canonical(folder: Path) -> None:
    loose = {"optimiser": "sgd", "loss": 1e300, "epochs": -4, "converged": False}
    (folder / "metrics.json").write_text(json.dumps(loose, indent=4))
    report = accepted(folder)["metrics.json"]
    assert report == b'{"converged":false,"epochs":0,"loss":100,"optimiser":"sgd"}'


def test_the_trainers_own_output_is_accepted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = pytest.importorskip("rapha_trainer.release")
    given = folder.parent / "given"
    given.mkdir()
    (given / "plan.json").write_text(json.dumps(PLAN.dump()))
    expected = accepted(folder)
    _clear(folder)
    monkeypatch.setenv("RAPHA_IN", str(given))
    monkeypatch.setenv("RAPHA_OUT", str(folder))
    release.weights(tensors())
    for name, value in REPORT.items():
        release.metric(name, value)
    assert accepted(folder) == expected


def test_a_plan_of_metrics_alone_takes_an_empty_folder(tmp_path: Path) -> None:
    plan = ReleasePlan.parse({"version": 1, "trusted_metrics": ["auroc"], "max_bytes": 128})
    (tmp_path / "in").mkdir()
    report = inspect(tmp_path / "in", plan)
    assert report.ok
    assert [c.verdict for c in report.checks] == ["pass", *["not_run"] * 5, "pass"]
    (tmp_path / "in/metrics.json").write_text("{}")
    assert not inspect(tmp_path / "in", plan).ok
