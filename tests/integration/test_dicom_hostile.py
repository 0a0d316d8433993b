"""A mount of good and hostile files, through the real workers: every good one is used, every other is named.

Nothing is lost: each entry of the tree is a record that can be read, a record with a reason, or set aside.
"""

from __future__ import annotations

import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from rapha.node.sources.dicom import DicomSource
from rapha.node.sources.imaging.records import ImagingRecords
from rapha.node.sources.imaging.walk import UNDEFINED
from rapha.node.sources.interface import Quarantine, Render, Surroundings
from rapha.node.sources.tree import Tree, walk
from rapha.spec.dataset import Field
from rapha.spec.transforms import Form
from rapha.testing import dicoms
from rapha.testing.dicoms import Image

PATIENTS, SLICES = 12, 4
PIXELS = struct.pack("<HH", 0x7FE0, 0x0010)
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
MANIFEST = dicoms.manifest(
    dicoms.pixels(),
    Field(name="z", path="@slice_position", dtype="float32"),
    Field(name="thickness", path="SliceThickness", dtype="float32"),
    Field(name="kind", path="Modality", dtype="string"),
    Field(name="study", path="StudyDate", dtype="date"),
    Field(name="who", path="PatientID", dtype="pseudonym"),
)


def odd(number: int = 0, **more: object) -> bytes:
    return dicoms.stored(Image(patient="BAD", number=number, more=more))


def before_pixels(data: bytes, inserted: bytes) -> bytes:
    at = data.index(PIXELS)
    return data[:at] + inserted + data[at:]


def sequences(depth: int) -> bytes:
    opened = struct.pack("<HH2sHIHHI", 0x0040, 0x0275, b"SQ", 0, UNDEFINED, 0xFFFE, 0xE000, UNDEFINED)
    return opened * depth + struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0) * depth


def deflated_bomb() -> bytes:
    """An image of 64 KB whose data set inflates to 256 MB of a private element."""
    data = dicoms.stored(Image(patient="BAD", number=30, syntax=DEFLATED))
    at = data.index(DEFLATED.encode()) + len(DEFLATED)
    start = at + (-len(DEFLATED)) % 2
    while data[start : start + 2] == b"\x02\0":
        start += 8 + struct.unpack_from("<H", data, start + 6)[0]
    engine = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    parts = [struct.pack("<HH2sHI", 9, 0x1010, b"UN", 0, 2**28)] + [bytes(2**20)] * 256
    return data[:start] + b"".join(map(engine.compress, parts)) + engine.flush()


def codestream_bomb() -> bytes:
    """A JPEG 2000 codestream of 65,535 by 65,535 pixels, in an image that says 16 by 16."""
    size = struct.pack(">HHIIIIIIIIHBBB", 41, 0, 65535, 65535, 0, 0, 65535, 65535, 0, 0, 1, 15, 1, 1)
    stream = b"\xff\x4f\xff\x51" + size + b"\xff\xd9" + bytes(1)
    fragment = struct.pack("<HHIHHI", 0xFFFE, 0xE000, 0, 0xFFFE, 0xE000, len(stream)) + stream
    data = dicoms.stored(Image(patient="BAD", number=31))
    head = data[: data.index(PIXELS)].replace(b"1.2.840.10008.1.2.1\0", JPEG_2000.encode() + bytes(2))
    at = head.index(JPEG_2000.encode()) - 2
    head = head[:at] + struct.pack("<H", len(JPEG_2000)) + head[at + 2 :].replace(bytes(2), b"", 1)
    pixels = PIXELS + struct.pack("<2sHI", b"OB", 0, UNDEFINED)
    return head + pixels + fragment + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


PLAIN = odd()
LOST: dict[str, tuple[bytes, Quarantine]] = {
    "empty.dcm": (b"", Quarantine.FILE_INVALID),
    "zeros.dcm": (bytes(1000), Quarantine.FILE_INVALID),
    "no-preamble.dcm": (PLAIN[132:], Quarantine.FILE_INVALID),
    "cut-100.dcm": (PLAIN[:100], Quarantine.FILE_INVALID),
    "cut-300.dcm": (PLAIN[:300], Quarantine.FILE_INVALID),
    "cut-pixels.dcm": (odd(1)[:-200], Quarantine.PIXELS_INVALID),
    "no-pixels.dcm": (odd(2).split(PIXELS)[0], Quarantine.PIXELS_MISSING),
    "length.dcm": (
        before_pixels(odd(3), struct.pack("<HH2sHI", 0x40, 0x275, b"UT", 0, 2**32 - 2)),
        Quarantine.FILE_INVALID,
    ),
    "ten-gigabytes.dcm": (odd(4, NumberOfFrames=20_000_000), Quarantine.TOO_LARGE),
    "many-frames.dcm": (odd(5, NumberOfFrames=60_000), Quarantine.PIXELS_INVALID),
    "huge-rows.dcm": (odd(6, Rows=65535, Columns=65535), Quarantine.PIXELS_INVALID),
    "deep.dcm": (before_pixels(odd(7), sequences(50_000)), Quarantine.TOO_LARGE),
    "broad.dcm": (
        before_pixels(odd(8), struct.pack("<HH2sH", 0x40, 0x275, b"LO", 0) * 400_000),
        Quarantine.TOO_LARGE,
    ),
    "deflated-bomb.dcm": (deflated_bomb(), Quarantine.FILE_INVALID),
    "no-patient.dcm": (odd(9, PatientID=None), Quarantine.PATIENT_MISSING),
    "blank-patient.dcm": (odd(10, PatientID="   "), Quarantine.PATIENT_MISSING),
    "two-patients.dcm": (odd(11, PatientID="A\\B"), Quarantine.PATIENT_INVALID),
    "patient-twice.dcm": (
        before_pixels(odd(12), struct.pack("<HH2sH", 0x10, 0x20, b"LO", 4) + b"GOOD"),
        Quarantine.FILE_INVALID,
    ),
    "unknown-charset.dcm": (
        odd(13, PatientID="@@@@", SpecificCharacterSet="ISO_IR 100")
        .replace(b"@@@@", b"M\xfcll")
        .replace(b"ISO_IR 100", b"ISO_IR 555"),
        Quarantine.PATIENT_INVALID,
    ),
    "broken-charset.dcm": (
        odd(14, PatientID="@@@@", SpecificCharacterSet="ISO_IR 192").replace(b"@@@@", b"M\xfcll"),
        Quarantine.PATIENT_INVALID,
    ),
    "escape.dcm": (odd(15, PatientID="@@@@").replace(b"@@@@", b"P\x1b(B"), Quarantine.PATIENT_INVALID),
    "no-uid.dcm": (odd(16, SeriesInstanceUID=None), Quarantine.UID_MISSING),
    "bad-uid.dcm": (
        odd(17, StudyInstanceUID="1.7777.2").replace(b"1.7777.2", b"1..77772"),
        Quarantine.UID_MISSING,
    ),
    "no-thickness.dcm": (odd(18, SliceThickness=None), Quarantine.VALUE_MISSING),
    "no-place.dcm": (odd(19, ImagePositionPatient=None), Quarantine.VALUE_MISSING),
    "burned-in.dcm": (odd(20, BurnedInAnnotation="YES"), Quarantine.BURNED_IN),
    "screenshot.dcm": (dicoms.stored(Image("OT", "BAD")), Quarantine.BURNED_IN),
    "impostor.dcm": (
        dicoms.stored(Image(patient="BAD", number=900)),
        Quarantine.DUPLICATE,
    ),
    "impostor-2.dcm": (
        dicoms.stored(Image(patient="BAD", number=900, more={"SliceThickness": 9})),
        Quarantine.DUPLICATE,
    ),
}
"""What the index knows to be bad: the verdict on each file."""
UNDECODABLE: dict[str, tuple[bytes, frozenset[Quarantine]]] = {
    "codestream-bomb.dcm": (
        codestream_bomb(),
        frozenset((Quarantine.PIXELS_INVALID, Quarantine.TOO_LARGE, Quarantine.FILE_INVALID)),
    ),
    "another-size.dcm": (
        dicoms.stored(Image(patient="BAD", number=32, size=(8, 8))),
        frozenset((Quarantine.SHAPE,)),
    ),
}
"""What only its decoding shows: what may be said of it then."""
ASIDE: dict[str, Callable[[Path], object]] = {
    "README": lambda path: path.write_text("These are images."),
    "report.pdf": lambda path: path.write_bytes(b"%PDF-1.7" + bytes(500)),
    "DICOMDIR": lambda path: path.write_bytes(Path(str(get_testdata_file("DICOMDIR"))).read_bytes()),
    "fifo": os.mkfifo,
    "link.dcm": lambda path: path.symlink_to("README"),
    "outside.dcm": lambda path: path.symlink_to("/etc/passwd"),
    "loop": lambda path: path.symlink_to("."),
    "a-copy.dcm": lambda path: path.write_bytes(dicoms.stored(Image(patient="P00", number=0))),
}
"""What is no record, or one that is there already."""


class Counted:
    """A sink that remembers which records were given a value."""

    def __init__(self) -> None:
        self.given: dict[int, bytes] = {}

    def put(self, ordinal: int, field: str, value: memoryview) -> None:
        self.given[ordinal] = bytes(value)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    pacs = tmp_path / "pacs"
    for patient in range(PATIENTS):
        for number in range(SLICES):
            dicoms.write(
                pacs / f"p{patient:02d}" / f"{number}", Image(patient=f"P{patient:02d}", number=number)
            )
    bad = pacs / "zz"
    bad.mkdir()
    for name, (data, _) in {**LOST, **UNDECODABLE}.items():
        (bad / name).write_bytes(data)
    for name, make in ASIDE.items():
        make(bad / name)
    with socket.socket(socket.AF_UNIX) as sock:
        here = Path.cwd()
        os.chdir(bad)  # a socket's path has 108 bytes at most
        try:
            sock.bind("socket")
        finally:
            os.chdir(here)
    dicoms.seal(pacs)
    yield tmp_path
    for folder, _, _ in os.walk(pacs):
        Path(folder).chmod(0o755)


def opened(root: Path) -> ImagingRecords:
    return DicomSource().open(MANIFEST, Surroundings(root, 2, lambda what, done, total: None))


def test_nothing_is_lost(root: Path) -> None:
    records = opened(root)
    index = records.index
    verdicts = dict(zip(index.locators, map(Quarantine, index.quarantine.tolist()), strict=True))
    assert {name: verdicts[f"zz/{name}"] for name in LOST} == {n: verdict for n, (_, verdict) in LOST.items()}
    good = [n for n, patient in enumerate(index.patients) if patient.startswith("P")]
    assert len(good) == PATIENTS * SLICES and not index.quarantine[good].any()
    assert {one.locator for one in records.aside} == {f"zz/{name}" for name in (*ASIDE, "socket")}
    entries = sum(len(files) for _, _, files in os.walk(root / "pacs")) + 1  # a link to a folder
    assert len(index.patients) + len(records.aside) == entries, "every entry of the tree is accounted for"


def test_every_good_record_is_decoded_whatever_lies_beside_it(root: Path) -> None:
    records = opened(root)
    readable = np.flatnonzero(records.index.quarantine == Quarantine.NONE)
    assert len(readable) == PATIENTS * SLICES + len(UNDECODABLE)
    sink = Counted()
    rendered = records.render(readable, [Render("pixels", Form("int16", (16, 16)), ())], sink)
    good = [n for n, position in enumerate(readable) if records.index.patients[position].startswith("P")]
    assert not rendered.quarantine[good].any()
    expected = [
        dicoms.dataset(Image(patient=f"P{patient:02d}", number=number)).pixel_array - 1024
        for patient in range(PATIENTS)
        for number in range(SLICES)
    ]
    found = [np.frombuffer(sink.given[n], np.int16).reshape(16, 16) for n in good]
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    uids = {Quarantine(q) for n, q in enumerate(rendered.quarantine.tolist()) if n not in good}
    allowed = frozenset().union(*(reasons for _, reasons in UNDECODABLE.values()))
    assert Quarantine.NONE not in uids and uids <= allowed
    read = records.read(readable)
    assert {len(np.asarray(values)) for values in read.values()} == {len(readable)}


def test_a_file_that_can_not_be_opened_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root every file can be opened, so one that was walked is gone when the workers come."""

    def walked(path: str, start: Path) -> Tree:
        tree = walk(path, start)
        (root / "pacs" / "p00").chmod(0o755)
        (root / "pacs" / "p00" / "1").unlink(missing_ok=True)
        (root / "pacs" / "p00" / "2").unlink(missing_ok=True)
        os.mkfifo(root / "pacs" / "p00" / "2")
        return tree

    monkeypatch.setattr("rapha.node.sources.dicom.walk", walked)
    index = opened(root).index
    verdicts = dict(zip(index.locators, map(Quarantine, index.quarantine.tolist()), strict=True))
    assert verdicts["p00/1"] is verdicts["p00/2"] is Quarantine.FILE_UNREADABLE
    assert sum(patient.startswith("P") for patient in index.patients) == PATIENTS * SLICES - 2
